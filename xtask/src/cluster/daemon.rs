//! One long-running program of the cluster.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::command::{output, tail};
use super::enclosure::{Enclosure, kill};
use super::state::State;

/// A program that runs inside an enclosure until it is stopped or the enclosure closes.
pub(crate) struct Daemon {
    name: &'static str,
    outside: Child,
    pid_file: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`; its output goes to the log of that name.
    pub(crate) fn start(
        enclosure: &Enclosure,
        state: &State,
        name: &'static str,
        program: &Path,
        change: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let pid_file = state.file("run").join(format!("{name}.pid"));
        let log = state.log(name);
        let output = File::options().create(true).append(true).open(&log)?;
        // Its number inside is known to nobody outside, so the program's own shell notes it.
        let mut command = enclosure.command("sh");
        command
            .args(["-c", r#"echo $$ > "$0"; exec "$@""#])
            .arg(&pid_file)
            .arg(program);
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        change(&mut command);
        Ok(Self {
            name,
            outside: command.spawn()?,
            pid_file,
            log,
        })
    }

    /// Fails, with the end of its log, if the program is over.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.outside.try_wait()? {
            bail!(
                "{} ended ({status}); the end of its log:\n{}",
                self.name,
                self.log_tail(20)
            );
        }
        Ok(())
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        tail(
            &String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()),
            lines,
        )
    }

    /// Asks the program to end, and waits for it.
    pub(crate) fn stop(mut self, enclosure: &Enclosure) -> Result<()> {
        let pid = fs::read_to_string(&self.pid_file)?;
        output(kill(&mut enclosure.command("sh"), "TERM", pid.trim()))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.outside.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!(
                    "{} does not end; the end of its log:\n{}",
                    self.name,
                    self.log_tail(20)
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Buries the program after its enclosure was closed.
    pub(crate) fn bury(mut self) -> Result<()> {
        self.outside.wait()?;
        Ok(())
    }
}
