//! The driver's own binary, with the file provider and one class, in a folder that goes with it.

use std::fs;
use std::io::{BufRead, BufReader, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const CLASS: &str = "\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: sanity, namespace: sanity}
spec: {provider: file, parameters: {objects: \"- password\"}}
";

/// What the kubelet would say about the pod, and the pod about its class.
pub(crate) const ATTRIBUTES: &str = "\
csi.storage.k8s.io/pod.name: sanity
csi.storage.k8s.io/pod.namespace: sanity
csi.storage.k8s.io/pod.uid: 7c3d4f43-9d0c-4a38-a50f-2f0f6d1a7a3e
csi.storage.k8s.io/serviceAccount.name: default
csi.storage.k8s.io/ephemeral: \"true\"
secretProviderClass: sanity
";

/// A driver that serves. Dropping it ends it.
pub(crate) struct Driver {
    process: Child,
    log: Arc<Mutex<String>>,
    socket: PathBuf,
}

impl Driver {
    /// Starts it in `folder`. Target paths are those below `conformance_root`, where there is one.
    pub(crate) fn start(folder: &Path, conformance_root: Option<&Path>) -> Self {
        let socket = folder.join("csi/csi.sock");
        let (classes, secrets) = (folder.join("classes"), folder.join("secrets"));
        let kubelet = folder.join("kubelet");
        for made in [&classes, &secrets.join("sanity"), &kubelet.join("pods")] {
            fs::create_dir_all(made).expect("a folder");
        }
        fs::write(classes.join("sanity.yaml"), CLASS).expect("a class");
        fs::write(secrets.join("sanity/password"), "open sesame").expect("a secret");

        let (output, writer) = pipe().expect("a pipe");
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command
            .args(["node", "--node-id=sanity", "--metrics-addr="])
            .args(["--log-level=debug", "--log-format=text"])
            .arg(format!("--endpoint=unix://{}", socket.display()))
            .arg(format!("--kubelet-root={}", kubelet.display()))
            .arg(format!("--classes={}", classes.display()))
            .arg(format!("--file-root={}", secrets.display()))
            .stdout(writer.try_clone().expect("the same pipe"))
            .stderr(writer);
        if let Some(root) = conformance_root {
            command.arg(format!("--conformance-root={}", root.display()));
        }
        let process = command.spawn().expect("the driver's binary");
        // It holds the pipe's other end, and the log would have no end.
        drop(command);

        let log = Arc::<Mutex<String>>::default();
        let driver = Self {
            process,
            log: log.clone(),
            socket,
        };
        let (started, starts) = channel();
        thread::spawn(move || keep(BufReader::new(output), &log, &started));
        if starts.recv_timeout(Duration::from_secs(30)).is_err() {
            panic!("the driver does not start:\n{}", driver.log());
        }
        driver
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no reader panicked").clone()
    }

    /// Ends it as the kubelet would, and waits until it has ended well.
    pub(crate) fn stop(mut self) {
        kill_process(self.pid(), Signal::TERM).expect("it still runs");
        let ended = self.process.wait().expect("our child");
        assert!(ended.success(), "{ended}:\n{}", self.log());
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nothing is wrong with one that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the driver's log to its end, and says when the driver serves.
fn keep(output: impl BufRead, log: &Mutex<String>, started: &Sender<()>) {
    for line in output.lines().map_while(Result::ok) {
        let mut log = log.lock().expect("no reader panicked");
        log.push_str(&line);
        log.push('\n');
        if line.contains("driver started") {
            // Nobody may be waiting any more.
            let _ = started.send(());
        }
    }
}
