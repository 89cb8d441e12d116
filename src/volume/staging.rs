//! Places for provider plugins that write files by themselves (G5).
//!
//! Such a plugin never gets a volume to write into: a volume is complete from its first moment on, and what a
//! plugin writes one after the other is not. It gets a tmpfs of its own in the folder of the volume, which is
//! where plugins see mounts of the driver; what it has written is read once it says that it is done, and the
//! tmpfs goes.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use coffer_provider::{ErrorKind, ProviderError, SecretBytes, clean_text};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tracing::warn;

use super::target::{BENEATH, DIRECTORY};
use super::{TargetPath, VolumeError, Volumes, mount, target};
use crate::payload::Limits;

/// How the names of these places begin.
const PREFIX: &str = "coffer-stage-";

/// The folder in it that a plugin gets. Once the tmpfs is gone there is none of that name below: a plugin that
/// still writes finds nothing to write into, least of all on a disk.
const INSIDE: &str = "mount";

/// As deep as a path of a volume may be.
const MAX_DEPTH: usize = 32;

const SHOWN: usize = 80;

/// An empty tmpfs for one plugin and one call. It is unmounted when this goes.
pub struct Stage {
    place: TargetPath,
    parent: OwnedFd,
    limits: Limits,
}

/// A file that a plugin has written.
pub struct WrittenFile {
    /// Its path below the place.
    pub path: String,
    /// Its permission bits, not more than 0777.
    pub mode: u32,
    /// What is in it.
    pub bytes: SecretBytes,
}

impl Volumes {
    /// Makes such a place beside a target, whether something is mounted there or not.
    ///
    /// # Errors
    /// As for a volume; nothing of the place is left then.
    pub fn stage(&self, target: &TargetPath) -> Result<Stage, VolumeError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = target.beside(&format!("{PREFIX}{number}"));
        let parent = place.open_parent()?;
        let parent = parent.ok_or_else(|| VolumeError::NoParent(target.clone()))?;
        let built = mount::build(&self.limits, self.options)
            .map_err(|failed| place.failed(failed.step, failed.errno))?;
        let folder_of = |errno| place.failed("make the folder of", errno);
        rustix::fs::mkdirat(&built.root, INSIDE, Mode::RWXU).map_err(folder_of)?;
        rustix::fs::mkdirat(&parent, place.leaf(), Mode::RWXU).map_err(folder_of)?;
        // From here on it goes by itself, whatever happens.
        let stage = Stage {
            place,
            parent,
            limits: self.limits,
        };
        let folder = stage.place.open_in(&stage.parent)?;
        let folder = folder.ok_or_else(|| VolumeError::NotMounted(stage.place.clone()))?;
        mount::attach(&built, &folder).map_err(|errno| stage.place.failed("attach", errno))?;
        Ok(stage)
    }

    /// Takes away what a process that was killed has left of such places beside a target.
    pub(super) fn clear_stages(&self, target: &TargetPath) {
        let Ok(Some(parent)) = target.open_parent() else {
            return;
        };
        for name in names(&parent).unwrap_or_default() {
            if name.starts_with(PREFIX) {
                clear(&parent, &target.beside(&name));
            }
        }
    }

    /// The same for every target below the pods folder.
    pub(super) fn clear_all_stages(&self) {
        for target in target::all_below(&self.rules) {
            self.clear_stages(&target);
        }
    }
}

impl Stage {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{INSIDE}", self.place)
    }

    /// Takes what was written, and the place away.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidAnswer`] for anything but files and folders of the plugin's own, and
    /// [`ErrorKind::TooLarge`] for more than a volume may hold.
    pub fn take(self) -> Result<Vec<WrittenFile>, ProviderError> {
        let root = self.place.open_in(&self.parent).ok().flatten();
        let root = root.filter(|root| {
            let seen = mount::look(root);
            seen.is_ok_and(|seen| seen.mount_root && seen.tmpfs)
        });
        let inside = root.and_then(|root| {
            rustix::fs::openat2(&root, INSIDE, DIRECTORY, Mode::empty(), BENEATH).ok()
        });
        let gone = || wrong("took the folder away that it was to write into");
        let mut taken = Taken {
            files: Vec::new(),
            left: self.limits.bytes,
            limits: self.limits,
        };
        taken.folder(&inside.ok_or_else(gone)?, "", 1)?;
        Ok(taken.files)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        clear(&self.parent, &self.place);
    }
}

fn clear(parent: &OwnedFd, place: &TargetPath) {
    while let Ok(Some(found)) = place.open_in(parent) {
        let mounted = mount::look(&found).is_ok_and(|seen| seen.mount_root);
        drop(found);
        if !mounted || mount::detach(parent, place.leaf()).is_err() {
            break;
        }
    }
    match rustix::fs::unlinkat(parent, place.leaf(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => warn!(%place, %errno, "a place for a plugin to write into is left"),
    }
}

struct Taken {
    files: Vec<WrittenFile>,
    left: usize,
    limits: Limits,
}

impl Taken {
    fn folder(&mut self, folder: &OwnedFd, path: &str, depth: usize) -> Result<(), ProviderError> {
        let failed = |errno: Errno| wrong(&format!("wrote what cannot be read: {errno}"));
        if depth > MAX_DEPTH {
            return Err(wrong("wrote folders that are too deep"));
        }
        for name in names(folder).map_err(failed)? {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}/{name}"),
            };
            let shown = clean_text(&path, SHOWN);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let within = ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV;
            let odd = || {
                wrong(&format!(
                    "wrote {shown:?}, which is neither a file nor a folder"
                ))
            };
            let found = rustix::fs::openat2(folder, &name, flags, Mode::empty(), within)
                .map_err(|_| odd())?;
            let stat = rustix::fs::fstat(&found).map_err(failed)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.folder(&found, &path, depth + 1)?,
                FileType::RegularFile => {
                    let mode = stat.st_mode & 0o7777;
                    if mode > 0o777 {
                        return Err(wrong(&format!("wrote {shown:?} with a mode that is none")));
                    }
                    let bytes = self.read(&found)?;
                    self.files.push(WrittenFile { path, mode, bytes });
                }
                _ => return Err(odd()),
            }
            if self.files.len() > self.limits.files {
                return Err(self.too_large());
            }
        }
        Ok(())
    }

    fn read(&mut self, file: &OwnedFd) -> Result<SecretBytes, ProviderError> {
        // One more than allowed, to see that there is more; enough at once, so that nothing is copied.
        let mut bytes = Vec::with_capacity(self.size(file)?.min(self.left) + 1);
        loop {
            let read = rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes));
            match read {
                Ok(0) => break,
                Ok(_) if bytes.len() > self.left => return Err(self.too_large()),
                Ok(_) if bytes.len() == bytes.capacity() => {
                    return Err(wrong("still writes although it says that it is done"));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(wrong(&format!("wrote what cannot be read: {errno}"))),
            }
        }
        self.left -= bytes.len();
        Ok(SecretBytes::new(bytes))
    }

    fn size(&self, file: &OwnedFd) -> Result<usize, ProviderError> {
        let stat = rustix::fs::fstat(file);
        let stat = stat.map_err(|errno| wrong(&format!("wrote what cannot be read: {errno}")))?;
        usize::try_from(stat.st_size).map_err(|_| self.too_large())
    }

    fn too_large(&self) -> ProviderError {
        let Limits { bytes, files } = self.limits;
        ProviderError::new(
            ErrorKind::TooLarge,
            format!(
                "the plugin wrote more than {bytes} bytes or {files} files, which a volume may hold"
            ),
        )
    }
}

/// Every name in a folder, in one order.
fn names(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) => names.push(name.to_owned()),
            Err(_) => return Err(Errno::ILSEQ),
        }
    }
    names.sort();
    Ok(names)
}

fn wrong(how: &str) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidAnswer, format!("the plugin {how}"))
}
