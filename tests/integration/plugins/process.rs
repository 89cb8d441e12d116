//! A provider plugin for one test: `providers/plugin/tests/plugin.py` in a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{PATIENCE, replace};

/// The attribute with the tokens.
pub(crate) const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A plugin, whether it runs at the moment or not.
pub(crate) struct Plugin {
    pub(crate) socket: PathBuf,
    control: TempDir,
    process: Option<Child>,
}

impl Plugin {
    /// A plugin on `<folder>/<name>.sock` that gives the file `password`.
    pub(crate) async fn start(folder: &Path, name: &str) -> Self {
        let mut plugin = Self::new(folder, name);
        plugin.behave(json!({"files": [["password", "correct-horse", 0o600]]}));
        plugin.run().await;
        plugin
    }

    /// What only looks like one from afar: see the file for how.
    pub(crate) async fn misbehaving(folder: &Path, name: &str, how: &str) -> Self {
        let mut plugin = Self::new(folder, name);
        plugin.spawn(&["--misbehave", how]).await;
        plugin
    }

    fn new(folder: &Path, name: &str) -> Self {
        fs::create_dir_all(folder).unwrap();
        Self {
            socket: folder.join(format!("{name}.sock")),
            control: tempfile::tempdir().unwrap(),
            process: None,
        }
    }

    /// Starts it, and waits until it listens.
    pub(crate) async fn run(&mut self) {
        let control = self.control.path().display().to_string();
        self.spawn(&["--control", &control]).await;
    }

    async fn spawn(&mut self, flags: &[&str]) {
        let modules = std::env::var("COFFER_GRPCIO").expect("run through cargo xtask test");
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/providers/plugin/tests/plugin.py"
        );
        let _ = fs::remove_file(&self.socket);
        let child = Command::new("python3")
            .arg(script)
            .arg("--socket")
            .arg(&self.socket)
            .args(flags)
            .env("PYTHONPATH", modules)
            .stdin(Stdio::null())
            .spawn();
        self.process = Some(child.unwrap());
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "the plugin does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it as a crash does: its socket stays.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// From the next call on it answers so.
    pub(crate) fn behave(&self, behaviour: Value) {
        let file = self.control.path().join("behaviour.json");
        replace(&file, behaviour.to_string().as_bytes());
    }

    /// Every call so far of that name.
    pub(crate) fn calls(&self, name: &str) -> Vec<Value> {
        let calls = fs::read_to_string(self.control.path().join("calls.jsonl"));
        let calls = calls.unwrap_or_default();
        // The last line may be half written.
        let calls = calls
            .lines()
            .map_while(|line| serde_json::from_str(line).ok());
        calls.filter(|call: &Value| call["call"] == name).collect()
    }

    /// Every volume that it was asked for so far.
    pub(crate) fn mounts(&self) -> Vec<Value> {
        self.calls("Mount")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
    }
}
