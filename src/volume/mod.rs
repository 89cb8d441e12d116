//! The edge to the kernel: what the core may ask of the node, and nothing else touches a target path.
//!
//! Everything here blocks; callers stay off the async threads. Whoever calls holds the volume's turn:
//! two operations on one target never overlap. That another process has not got one either is the
//! kernel's to say: whoever changes a volume has a lock on its folder, for as long as that takes.

mod budget;
mod generation;
mod mount;
mod record;
mod staging;
mod target;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use coffer_provider::SecretBytes;
use rustix::fs::{AtFlags, FlockOperation, Mode};
use rustix::io::Errno;
use tracing::warn;

pub use record::{HeldObject, LAYOUT, Record};
pub use staging::{Stage, WrittenFile};
pub use target::{TargetPath, TargetPathError, TargetRules};

use crate::error::Reason;
use crate::payload::{Limits, Payload};
use budget::{Budget, Exceeded};
use mount::{Built, Marks};

/// The volumes of this node.
pub struct Volumes {
    rules: TargetRules,
    limits: Limits,
    budget: Budget,
    marks: Marks,
    options: mount::Options,
}

/// What an operation did to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none, and now there is.
    Mounted,
    /// It has another generation now.
    Rotated,
    /// Nothing was touched.
    Unchanged,
    /// Nothing was touched, since readers may still be in the generation before the present one: try
    /// again after this time.
    TooSoon(Duration),
}

/// What is at a target path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of ours.
    Absent,
    /// A whole volume, with its record where the kernel lets us keep one.
    Complete(Option<Record>),
    /// A volume that secrets-store-csi-driver has mounted, with files in it.
    Inherited,
    /// One that it has mounted and not filled: its publish came to no end.
    Empty,
}

/// Bytes and inodes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the volume can hold.
    pub bytes: u64,
    /// Bytes that are free.
    pub bytes_free: u64,
    /// Inodes that the volume can hold.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// What the node did not let us do. Whatever it was, a volume that was complete still is.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something is at the target path that must not be touched.
    #[error("target path {target}: {problem}")]
    Refused {
        /// The target path.
        target: TargetPath,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder of the volume is not there: the kubelet makes it before it calls.
    #[error("target path {0}: its parent folder does not exist")]
    NoParent(TargetPath),
    /// There is no room for one more volume, or for a larger one.
    #[error(
        "the volume needs {needed} bytes, more than is left for the volumes of this node: --node-budget (nodeBudget in the chart) is {budget}"
    )]
    NoBudget {
        /// What the volume comes to, with the generation that replaces it.
        needed: u64,
        /// What all volumes may come to.
        budget: u64,
    },
    /// The volume is gone from under us.
    #[error("target path {0}: the volume is no longer mounted")]
    NotMounted(TargetPath),
    /// A system call failed.
    #[error("target path {target}: cannot {step} it: {errno}")]
    Kernel {
        /// The target path.
        target: TargetPath,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl VolumeError {
    /// The one word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } | Self::NoParent(_) => Reason::TargetRefused,
            Self::NoBudget { .. } => Reason::NodeExhausted,
            Self::NotMounted(_) => Reason::NodeFailure,
            Self::Kernel { errno, .. } => match *errno {
                Errno::NOSPC | Errno::DQUOT => Reason::TooLarge,
                Errno::NOMEM | Errno::MFILE | Errno::NFILE => Reason::NodeExhausted,
                _ => Reason::NodeFailure,
            },
        }
    }
}

impl From<Exceeded> for VolumeError {
    fn from(Exceeded { needed, limit }: Exceeded) -> Self {
        Self::NoBudget {
            needed,
            budget: limit,
        }
    }
}

/// Why this node cannot hold volumes.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} a tmpfs: {errno}; the driver needs CAP_SYS_ADMIN and Linux 5.10 or later")]
pub struct ProbeError {
    step: &'static str,
    errno: Errno,
}

impl Volumes {
    /// Tries on a tmpfs that nobody sees what this kernel and these rights allow.
    ///
    /// # Errors
    /// When a tmpfs cannot be made at all.
    pub fn probe(rules: TargetRules, limits: Limits) -> Result<Self, ProbeError> {
        let (options, marks) = mount::probe()?;
        Ok(Self {
            rules,
            limits,
            budget: Budget::new(u64::MAX),
            marks,
            options,
        })
    }

    /// The same, with at most so many bytes for all volumes together: pages and inodes of each, with room
    /// for the generation that replaces the present one.
    #[must_use]
    pub fn with_budget(mut self, bytes: u64) -> Self {
        self.budget = Budget::new(bytes);
        self
    }

    /// What is set aside for the volumes of this node, of its budget.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.budget.counted()
    }

    /// Whether the kernel keeps these volumes out of swap.
    #[must_use]
    pub fn noswap(&self) -> bool {
        self.options.noswap
    }

    /// Whether volumes have a label that every container may read: where SELinux is on.
    #[must_use]
    pub fn labelled(&self) -> bool {
        self.options.selinux
    }

    /// Whether volumes can be taken over from an earlier process: not in a user namespace.
    #[must_use]
    pub fn adopts(&self) -> bool {
        matches!(self.marks, Marks::Recorded)
    }

    /// Which target paths are taken.
    #[must_use]
    pub fn rules(&self) -> &TargetRules {
        &self.rules
    }

    /// What may be in one volume.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Looks at a target.
    ///
    /// # Errors
    /// [`VolumeError::Refused`] for something that is not ours and not an empty folder of root's.
    pub fn state(&self, target: &TargetPath) -> Result<State, VolumeError> {
        let Some(parent) = target.open_parent()? else {
            return Ok(State::Absent);
        };
        match target.open_in(&parent)? {
            None => Ok(State::Absent),
            Some(found) => self.look(target, &found),
        }
    }

    fn look(&self, target: &TargetPath, found: &OwnedFd) -> Result<State, VolumeError> {
        let seen = mount::look(found).map_err(|errno| target.failed("look at", errno))?;
        if !seen.mount_root {
            return generation::check_empty(target, found).map(|()| State::Absent);
        }
        let ours = match seen.tmpfs {
            true => self.marks.read(found, seen.device),
            false => Ok(None),
        };
        match ours.map_err(|errno| target.failed("read the record of", errno))? {
            Some(record) => Ok(State::Complete(record)),
            None if seen.tmpfs && self.is_inherited(target, found)? => {
                match generation::is_empty(found) {
                    Ok(true) => Ok(State::Empty),
                    Ok(false) => Ok(State::Inherited),
                    Err(errno) => Err(target.failed("look at", errno)),
                }
            }
            None => Err(target.refused("something else is mounted there")),
        }
    }

    fn is_inherited(&self, target: &TargetPath, found: &OwnedFd) -> Result<bool, VolumeError> {
        // Where nothing can be adopted, nothing can be inherited either.
        if !self.adopts() {
            return Ok(false);
        }
        mount::is_inherited(found).map_err(|errno| target.failed("look at the mount of", errno))
    }

    /// Makes a volume that is not there yet: built where nobody can see it, filled, and attached whole
    /// with one call. Whatever fails, nothing is mounted and a folder that was made for it is gone.
    ///
    /// One that secrets-store-csi-driver has mounted and never filled is filled where it is, since the
    /// containers that run have that one; what fails leaves it empty.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn mount(
        &self,
        target: &TargetPath,
        payload: &Payload,
        record: &Record,
    ) -> Result<Outcome, VolumeError> {
        self.budget.admit(target, payload, record)?;
        self.make(target, payload, record)
            .inspect_err(|_| self.budget.release(target))
    }

    fn make(
        &self,
        target: &TargetPath,
        payload: &Payload,
        record: &Record,
    ) -> Result<Outcome, VolumeError> {
        let built = mount::build(&self.limits, self.options)
            .map_err(|failed| target.failed(failed.step, failed.errno))?;
        generation::fill(&built.root, payload).map_err(|errno| target.failed("fill", errno))?;
        let marked = self.marks.record(&built.root, record);
        marked.map_err(|errno| target.failed("mark", errno))?;

        let parent = target.open_parent()?;
        let parent = parent.ok_or_else(|| VolumeError::NoParent(target.clone()))?;
        alone(target, &parent)?;
        let made = match rustix::fs::mkdirat(&parent, target.leaf(), Mode::from_bits_retain(0o750))
        {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(target.failed("make the folder of", errno)),
        };
        let placed = self.place(target, &parent, &built, payload, record);
        placed.inspect_err(|_| {
            // Before a first success a final error may never be followed by an unpublish.
            if made {
                let _ = rustix::fs::unlinkat(&parent, target.leaf(), AtFlags::REMOVEDIR);
            }
        })?;
        Ok(Outcome::Mounted)
    }

    /// Puts the volume where it is wanted, as it is fit for what is there.
    fn place(
        &self,
        target: &TargetPath,
        parent: &OwnedFd,
        built: &Built,
        payload: &Payload,
        record: &Record,
    ) -> Result<(), VolumeError> {
        let folder = target.open_in(parent)?;
        let folder = folder.ok_or_else(|| VolumeError::NotMounted(target.clone()))?;
        match self.look(target, &folder)? {
            State::Absent => self.attach(target, built, &folder),
            State::Empty => self.fill(target, &folder, payload, record),
            State::Complete(_) | State::Inherited => {
                Err(target.refused("a volume is mounted there already"))
            }
        }
    }

    fn attach(
        &self,
        target: &TargetPath,
        built: &Built,
        folder: &OwnedFd,
    ) -> Result<(), VolumeError> {
        self.marks
            .remember(&built.root)
            .and_then(|()| mount::attach(built, folder))
            .map_err(|errno| {
                self.marks.forget(&built.root);
                target.failed("attach", errno)
            })
    }

    /// Fills a volume that secrets-store-csi-driver has left empty.
    fn fill(
        &self,
        target: &TargetPath,
        root: &OwnedFd,
        payload: &Payload,
        record: &Record,
    ) -> Result<(), VolumeError> {
        generation::take_over(root, payload.group())
            .and_then(|()| generation::fill(root, payload))
            .and_then(|()| self.marks.record(root, record))
            .map_err(|errno| {
                let _ = generation::clear(root);
                target.failed("fill", errno)
            })
    }

    /// Gives a volume its next generation, if that differs from the present one in anything.
    ///
    /// # Errors
    /// The present generation stays, whatever happened. [`VolumeError::NotMounted`] when there is no
    /// volume of ours: nothing is ever written into the folder below.
    pub fn rotate(
        &self,
        target: &TargetPath,
        payload: &Payload,
        record: &Record,
    ) -> Result<Outcome, VolumeError> {
        let (root, held, _alone) = self.open_volume_alone(target)?;
        let failed = |errno| target.failed("rotate", errno);
        let found = generation::nothing_to_write(&root, payload).map_err(failed)?;
        let outcome = match found {
            Some(found) => found,
            None => {
                let before = self.budget.share(target);
                self.budget.grow(target, payload, record)?;
                generation::take_over(&root, payload.group())
                    .and_then(|()| generation::write(&root, payload))
                    .map_err(failed)
                    .inspect_err(|_| self.budget.restore(target, before))?;
                Outcome::Rotated
            }
        };
        let pinned = record.immutable && held.is_some_and(|held| !held.immutable);
        if outcome == Outcome::Rotated || pinned && outcome == Outcome::Unchanged {
            // After the switch: a record that lags behind costs one comparison, one that runs ahead
            // would leave old contents for good. Not where nothing changed, since whoever watches the
            // volume would be woken for it; but that it stays as it is has to outlive this process.
            let recorded = self.marks.record(&root, record);
            recorded.map_err(|errno| target.failed("mark", errno))?;
        }
        Ok(outcome)
    }

    /// What a volume holds, by the paths of its files.
    ///
    /// # Errors
    /// [`VolumeError::NotMounted`] when there is no volume of ours.
    pub fn files(&self, target: &TargetPath) -> Result<BTreeMap<String, SecretBytes>, VolumeError> {
        let (root, _, _alone) = self.open_volume_alone(target)?;
        generation::read(&root).map_err(|errno| target.failed("read", errno))
    }

    /// Removes what an earlier generation or a crash left in a volume, once no reader can be in it.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub fn sweep(&self, target: &TargetPath) -> Result<Outcome, VolumeError> {
        let (root, _, _alone) = self.open_volume_alone(target)?;
        let swept = generation::sweep(&root).map_err(|errno| target.failed("sweep", errno))?;
        if !matches!(swept, Outcome::TooSoon(_)) {
            self.budget.settle(target, measure(target, &root)?.taken());
        }
        Ok(swept)
    }

    /// Takes a volume away: every mount at the target, then the folder. There need not be any.
    ///
    /// # Errors
    /// [`VolumeError::Refused`] when files lie in the folder itself: nothing is deleted there.
    pub fn unmount(&self, target: &TargetPath) -> Result<(), VolumeError> {
        let Some(parent) = target.open_parent()? else {
            self.budget.release(target);
            return Ok(());
        };
        alone(target, &parent)?;
        self.clear_stages(target);
        while let Some(found) = target.open_in(&parent)? {
            let seen = mount::look(&found).map_err(|errno| target.failed("look at", errno))?;
            if !seen.mount_root {
                break;
            }
            self.marks.forget(&found);
            drop(found);
            mount::detach(&parent, target.leaf())
                .map_err(|errno| target.failed("unmount", errno))?;
        }
        self.budget.release(target);
        match rustix::fs::unlinkat(&parent, target.leaf(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Err(target.refused(
                "files lie in the folder itself, below the volume: look at them and remove them",
            )),
            Err(errno) => Err(target.failed("remove the folder of", errno)),
        }
    }

    /// Whether a container mounts something of the volume by subPath: the kubelet binds those in folders
    /// of the pod. Such a container keeps the file of its start for ever.
    #[must_use]
    pub fn is_mounted_by_subpath(&self, target: &TargetPath) -> bool {
        let folder = target.subpaths(&self.rules);
        folder.is_some_and(|folder| folder.exists())
    }

    /// How full a volume is.
    ///
    /// # Errors
    /// [`VolumeError::NotMounted`] when there is no volume of ours.
    pub fn usage(&self, target: &TargetPath) -> Result<Usage, VolumeError> {
        let (root, _) = self.open_volume(target)?;
        measure(target, &root)
    }

    /// Every volume of ours that is mounted, left by an earlier process. Not those of
    /// secrets-store-csi-driver, which may run beside this one: they are ours once they are asked for.
    pub fn adoptable(&self) -> impl Iterator<Item = TargetPath> {
        let targets = target::all_below(&self.rules).into_iter();
        targets.filter(|target| matches!(self.state(target), Ok(State::Complete(_))))
    }

    /// Removes what an earlier process left half done in its volumes, and counts them, also towards the
    /// budget. For the start:
    /// nobody may have a turn yet.
    #[must_use]
    pub fn sweep_all(&self) -> usize {
        self.clear_all_stages();
        let swept = self.adoptable().inspect(|target| {
            if let Err(error) = self.sweep(target) {
                warn!(%error, "leftovers of an earlier process stay");
            }
            match self.usage(target) {
                Ok(usage) => self.budget.adopt(target, usage.taken()),
                Err(error) => warn!(%error, "a volume of an earlier process is not counted"),
            }
        });
        swept.count()
    }

    /// Opens the root of a volume to change it, and nobody else does until the second descriptor goes.
    fn open_volume_alone(
        &self,
        target: &TargetPath,
    ) -> Result<(OwnedFd, Option<Record>, OwnedFd), VolumeError> {
        let parent = target.open_parent()?;
        let parent = parent.ok_or_else(|| VolumeError::NotMounted(target.clone()))?;
        alone(target, &parent)?;
        let (root, record) = self.open_volume_in(target, &parent)?;
        Ok((root, record, parent))
    }

    fn open_volume(&self, target: &TargetPath) -> Result<(OwnedFd, Option<Record>), VolumeError> {
        let parent = target.open_parent()?;
        let parent = parent.ok_or_else(|| VolumeError::NotMounted(target.clone()))?;
        self.open_volume_in(target, &parent)
    }

    /// Opens the root of a volume, once it is certain that it is one: a tmpfs, and ours.
    fn open_volume_in(
        &self,
        target: &TargetPath,
        parent: &OwnedFd,
    ) -> Result<(OwnedFd, Option<Record>), VolumeError> {
        let gone = || VolumeError::NotMounted(target.clone());
        let root = target.open_in(parent)?.ok_or_else(gone)?;
        match self.look(target, &root)? {
            State::Complete(record) => Ok((root, record)),
            State::Inherited => Ok((root, None)),
            State::Absent | State::Empty => Err(gone()),
        }
    }
}

/// Waits until no other process changes the volume whose folder the kubelet made is `parent` (R10), and
/// keeps others waiting until that descriptor is closed. It is no file of a container's that is locked:
/// none of them can reach that folder.
fn alone(target: &TargetPath, parent: &OwnedFd) -> Result<(), VolumeError> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(parent, FlockOperation::LockExclusive))
        .map_err(|errno| target.failed("lock", errno))
}

impl Usage {
    /// What that costs the node, in bytes of its budget.
    #[must_use]
    pub fn taken(&self) -> u64 {
        budget::measured(self.bytes - self.bytes_free, self.inodes - self.inodes_free)
    }
}

fn measure(target: &TargetPath, root: &OwnedFd) -> Result<Usage, VolumeError> {
    let stats = rustix::fs::fstatvfs(root).map_err(|errno| target.failed("measure", errno))?;
    Ok(Usage {
        bytes: stats.f_blocks * stats.f_frsize,
        bytes_free: stats.f_bfree * stats.f_frsize,
        inodes: stats.f_files,
        inodes_free: stats.f_ffree,
    })
}

impl Outcome {
    /// The word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mounted => "mounted",
            Self::Rotated => "rotated",
            Self::Unchanged => "unchanged",
            Self::TooSoon(_) => "too_soon",
        }
    }
}
