//! A process id namespace and a mount namespace for the cluster's programs.
//!
//! Whatever is started in it ends with its first process, and whatever is mounted in it goes with the
//! last one: the machine's own mounts are never touched, and no process can be missed. The first process
//! lives as long as this one does, even if this one is killed, unless it is told to stay.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::command::tail;
use super::state::State;

/// What the first process does after the mounts: it waits, and buries orphans meanwhile, as `wait` does. The end
/// of the pipe ends it, be it closed on purpose or by a death; a line on the pipe lets it stay for good.
const LIVE: &str = "exec 3<&0; (read -r stay <&3 && exec sleep infinity) & wait $!";

/// In the environment of every program of a cluster: whose it is.
const CLUSTER: &str = "COFFER_CLUSTER";

/// The two namespaces, held open.
pub(crate) struct Enclosure {
    first: Process,
    holder: Child,
    lifeline: Option<ChildStdin>,
    cluster: String,
}

impl Enclosure {
    /// Opens the namespaces and runs `prepare`, a piece of shell that mounts what the programs shall see.
    /// The log called `name` holds its complaints.
    pub(crate) fn open(name: &str, prepare: &str, state: &State) -> Result<Self> {
        let log = state.log(name);
        let mut holder = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--mount",
                "--mount-proc",
                "--propagation=private",
                "--",
            ])
            .args([
                "sh",
                "-eu",
                "-c",
                &format!("{prepare}\necho ready\nexec >/dev/null\n{LIVE}"),
            ])
            .env(CLUSTER, state.name())
            // A Ctrl-C at the terminal is for xtask, which then ends things in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start unshare (of util-linux)")?;

        let mut answer = String::new();
        let stdout = holder.stdout.take().context("unshare has no output")?;
        BufReader::new(stdout).read_line(&mut answer)?;
        if answer != "ready\n" {
            holder.wait()?;
            bail!(
                "cannot open the namespaces: {}",
                tail(&fs::read_to_string(&log).unwrap_or_default(), 5)
            );
        }
        let first = Process::child_of(holder.id())?;
        Ok(Self {
            first,
            lifeline: holder.stdin.take(),
            holder,
            cluster: state.name().to_owned(),
        })
    }

    /// The first process, whose end is the end of all.
    pub(crate) fn first(&self) -> Process {
        self.first
    }

    /// A command that will run inside, with nothing of the environment but what it needs to find programs.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.first.id))
            .args(["--pid", "--mount", "--"])
            .arg(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env(CLUSTER, &self.cluster)
            .current_dir("/");
        command
    }

    /// Lets everything inside go on when this process ends.
    pub(crate) fn outlive(&mut self) -> Result<()> {
        writeln!(
            self.lifeline
                .as_mut()
                .context("it outlives this process already")?,
            "stay"
        )?;
        Ok(())
    }

    /// Ends everything inside, at once.
    pub(crate) fn close(mut self) -> Result<()> {
        self.first.end()?;
        self.holder.wait()?;
        Ok(())
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // Reaps the holder where it is already over, so that no zombie stays in a long-lived process.
        let _ = self.holder.try_wait();
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Process {
    pub(crate) id: u32,
    /// In clock ticks since the machine started.
    pub(crate) started: u64,
}

impl Process {
    fn child_of(parent: u32) -> Result<Self> {
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process may end between the listing and the look.
            let Some(stat) = Stat::of(id) else { continue };
            if stat.parent == parent {
                return Ok(Self {
                    id,
                    started: stat.started,
                });
            }
        }
        bail!("process {parent} has no child")
    }

    /// Whether it still runs. A zombie does not: the first process of a namespace becomes one only after all
    /// others in it are gone.
    pub(crate) fn is_alive(self) -> bool {
        Stat::of(self.id).is_some_and(|stat| {
            stat.started == self.started && stat.state != 'Z' && stat.state != 'X'
        })
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn end(self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.is_alive() {
            // It may be over by now, so the answer says nothing; the loop's condition does.
            kill(&mut Command::new("sh"), "KILL", &self.id.to_string())
                .stderr(Stdio::null())
                .status()?;
            ensure!(
                Instant::now() < deadline,
                "process {} does not end",
                self.id
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Makes `shell` send a signal: kill is built into every shell, and a program of its own on some machines only.
pub(crate) fn kill<'a>(shell: &'a mut Command, signal: &str, process: &str) -> &'a mut Command {
    shell.args(["-c", &format!("kill -{signal} {process}")])
}

struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn of(id: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}
