//! What a cluster leaves on the machine, and how it is all put back.
//!
//! A file in the state folder lists it from the first moment on, so one function serves the normal end, a
//! failure, Ctrl-C, `cargo xtask cluster down`, and the next run after this one was killed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::cgroup;
use super::enclosure::Process;
use super::state::State;

/// The list of what to put back.
pub(crate) struct Remains {
    file: PathBuf,
}

impl Remains {
    /// Begins the list. All else of a cluster comes after this.
    pub(crate) fn of(state: &State) -> Result<Self> {
        let file = list(state);
        File::create_new(&file).with_context(|| format!("cannot make {}", file.display()))?;
        Ok(Self { file })
    }

    /// Opens the list for what is about to be made. Fails when all was put back meanwhile: nothing may be made any
    /// more.
    pub(crate) fn list(&self) -> Result<Listing> {
        let list = File::options().append(true).open(&self.file)?;
        list.lock()?;
        ensure!(self.file.exists(), "the cluster was taken down");
        Ok(Listing(list))
    }
}

/// The list, open: as long as it is, whoever wants to put things back waits, so that nothing is made behind their
/// back.
pub(crate) struct Listing(File);

impl Listing {
    /// To be ended: the first process of an enclosure.
    pub(crate) fn process(&mut self, process: Process) -> Result<()> {
        Ok(writeln!(
            self.0,
            "process {} {}",
            process.id, process.started
        )?)
    }

    /// To be removed: a control group.
    pub(crate) fn control_group(&mut self, name: &str) -> Result<()> {
        Ok(writeln!(self.0, "cgroup {name}")?)
    }
}

/// Ends the cluster's processes, and removes its control groups and its folder.
///
/// May be called by several at a time and again later: what is gone is done.
pub(crate) fn put_back(state: &State) -> Result<()> {
    // A folder without a list: nothing was started yet, or all but the folder is put back.
    let Ok(list) = File::open(list(state)) else {
        return remove_folder(state.root());
    };
    list.lock()?;
    // Whoever held the lock before may have finished the work.
    let Ok(lines) = fs::read_to_string(self::list(state)) else {
        return Ok(());
    };

    let mut groups = Vec::new();
    for line in lines.lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["process", id, started] => Process {
                id: id.parse()?,
                started: started.parse()?,
            }
            .end()?,
            ["cgroup", name] => groups.push(*name),
            _ => bail!("{}: what is {line:?}?", self::list(state).display()),
        }
    }
    for group in groups {
        cgroup::remove(group)?;
    }
    remove_folder(state.root())
}

/// The list goes last but for the folder: until then it says that there is something to do.
fn remove_folder(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    // Nothing is ever mounted there in the machine's own namespace; should it be, deleting would reach through.
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let inside = format!(" {}/", folder.display());
    ensure!(
        !mounts.contains(&inside),
        "something is mounted below {}: unmount it first",
        folder.display()
    );

    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == LIST {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        }
        .with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

const LIST: &str = "remains";

fn list(state: &State) -> PathBuf {
    state.file(LIST)
}
