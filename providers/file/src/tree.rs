//! What lies below the folder of a Namespace, seen with openat2 only: no path that a class or a link
//! spells can leave that folder. One [`Look`] is one moment; that two of them agree is `read.rs`'s to see.

use std::fs::{File, Metadata};
use std::io::{ErrorKind as IoError, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coffer_provider::{ErrorKind, SecretBytes};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::Limits;
use crate::error::{Trouble, Wanted};
use crate::parameters::WHOLE_FOLDER;

/// A folder may have this many entries of any kind for each file that it may have: folders and
/// what is skipped cost time too.
const ENTRIES_PER_FILE: usize = 16;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// An object as one moment shows it.
pub(crate) struct Look<'a> {
    wanted: Wanted<'a>,
    limits: &'a Limits,
    folder_of_namespace: OwnedFd,
}

/// The files of an object, in the order of their paths.
#[derive(PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) is_folder: bool,
    pub(crate) files: Vec<FoundFile>,
}

/// One regular file.
#[derive(PartialEq, Eq)]
pub(crate) struct FoundFile {
    /// Below the folder of the Namespace.
    pub(crate) path: String,
    pub(crate) stamp: Stamp,
}

/// What the kernel changes whenever somebody changes a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    /// Nanoseconds since the epoch.
    pub(crate) modified: i128,
    pub(crate) changed: i128,
}

impl<'a> Look<'a> {
    /// Opens the folder of the Namespace anew: an earlier one may be of a generation that is gone.
    pub(crate) fn new(
        root: &Path,
        limits: &'a Limits,
        wanted: Wanted<'a>,
    ) -> Result<Self, Trouble> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (object, namespace) = (&wanted.object.request, wanted.namespace);
        let root = open(root, folder, Mode::empty()).map_err(|errno| {
            let what = "cannot be read: the root of the file provider cannot be opened";
            let error = wanted.says(ErrorKind::Unavailable, object, what);
            Trouble::Lasting(error.with_detail(errno.to_string()))
        })?;
        let folder_of_namespace = openat2(&root, namespace, folder, Mode::empty(), BENEATH)
            .map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR => {
                    let what = format!("is not there: Namespace {namespace} has no folder");
                    Trouble::Missing(wanted.says(ErrorKind::NotFound, object, &what))
                }
                Errno::XDEV | Errno::LOOP => {
                    let what = format!(
                        "cannot be read: what stands for Namespace {namespace} leads out of the root \
                         of the file provider, by a link or a mount"
                    );
                    wanted.lasting(ErrorKind::PermissionDenied, object, &what)
                }
                other => wanted.refused(other, object),
            })?;
        Ok(Self {
            wanted,
            limits,
            folder_of_namespace,
        })
    }

    /// What the object is made of, by names and stamps alone; within the limits.
    pub(crate) fn list(&self) -> Result<Listing, Trouble> {
        let path = &self.wanted.object.request;
        let found = self.stat(path)?;
        let is_folder = found.is_dir();
        let mut walk = Walk::default();
        if is_folder {
            self.walk(path, 1, &mut walk)?;
        } else if found.is_file() {
            walk.found(path.clone(), &found);
        } else {
            let what = "is neither a file nor a folder";
            return Err(self.wanted.lasting(ErrorKind::InvalidAnswer, path, what));
        }
        if walk.files.is_empty() {
            let what = "holds no files";
            return Err(self.wanted.lasting(ErrorKind::NotFound, path, what));
        }
        let files = walk.files;
        let listing = Listing { is_folder, files };
        self.fits(listing.size(), "bytes")?;
        Ok(listing)
    }

    /// Refuses more bytes than one read may bring.
    pub(crate) fn fits(&self, size: u64, unit: &str) -> Result<(), Trouble> {
        let limit = self.limits.bytes as u64;
        if size <= limit {
            return Ok(());
        }
        Err(self.too_large(&format!("has {size} {unit}, and the limit is {limit}")))
    }

    /// Reads a file that is still the one that was found.
    pub(crate) fn read(&self, found: &FoundFile) -> Result<SecretBytes, Trouble> {
        let path = &found.path;
        // A FIFO or a device may have taken the file's place by now: then opening must not wait for
        // a writer, and not make a terminal ours.
        let mut file = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let now = metadata(&file).map_err(|errno| self.wanted.refused(errno, path))?;
        if !now.is_file() || Stamp::of(&now) != found.stamp {
            return Err(self.wanted.being_written(path));
        }
        let size = usize::try_from(found.stamp.size).expect("it is within the limit");
        // read_exact fills this memory itself; read_to_end would go through a buffer on the stack.
        let mut bytes = Zeroizing::new(vec![0; size]);
        let mut beyond = Zeroizing::new([0]);
        let read = file
            .read_exact(&mut bytes)
            .and_then(|()| file.read(&mut *beyond));
        match read {
            Ok(0) => Ok(bytes.into()),
            Ok(_) => Err(self.wanted.being_written(path)),
            Err(error) if error.kind() == IoError::UnexpectedEof => {
                Err(self.wanted.being_written(path))
            }
            Err(error) => Err(self.wanted.refused(errno(&error), path)),
        }
    }

    /// Collects the regular files below `folder`, whose own ones are `depth` names away from the object.
    fn walk(&self, folder: &str, depth: usize, walk: &mut Walk) -> Result<(), Trouble> {
        let Limits {
            depth: deepest,
            files: most,
            ..
        } = *self.limits;
        if depth > deepest {
            return Err(self.too_large(&format!("is deeper than {deepest} levels")));
        }
        for name in self.names(folder, walk)? {
            let path = match folder {
                WHOLE_FOLDER => name,
                folder => format!("{folder}/{name}"),
            };
            let found = self.stat(&path).map_err(Trouble::in_a_folder)?;
            if found.is_dir() {
                self.walk(&path, depth + 1, walk)?;
            } else if found.is_file() {
                walk.found(path, &found);
            }
            if walk.files.len() > most {
                return Err(self.too_large(&format!("has more than {most} files")));
            }
        }
        Ok(())
    }

    /// The names in a folder that can lead to files, sorted so that the first error is always the same.
    fn names(&self, folder: &str, walk: &mut Walk) -> Result<Vec<String>, Trouble> {
        let refused = |errno| self.wanted.refused(errno, folder).in_a_folder();
        let opened = self.open(folder, OFlags::RDONLY | OFlags::DIRECTORY);
        let opened = opened.map_err(Trouble::in_a_folder)?;
        let most = self.limits.files.saturating_mul(ENTRIES_PER_FILE);
        let mut names = Vec::new();
        for entry in Dir::new(opened).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            walk.entries += 1;
            if walk.entries > most {
                return Err(self.too_large(&format!("has more than {most} entries")));
            }
            // `..data` and its folders are how a generation is swapped: what they hold is seen
            // through the links beside them.
            if name.to_bytes().starts_with(b"..") {
                continue;
            }
            let may_lead_to_a_file = matches!(
                entry.file_type(),
                FileType::RegularFile | FileType::Directory | FileType::Symlink | FileType::Unknown
            );
            if !may_lead_to_a_file {
                continue;
            }
            let Ok(name) = name.to_str() else {
                let what = "has an entry whose name is not UTF-8";
                return Err(self.wanted.lasting(ErrorKind::InvalidAnswer, folder, what));
            };
            names.push(name.to_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Looks at what is there without opening it: to open a device can have effects.
    fn stat(&self, path: &str) -> Result<Metadata, Trouble> {
        metadata(&self.open(path, OFlags::PATH)?).map_err(|errno| self.wanted.refused(errno, path))
    }

    fn too_large(&self, what: &str) -> Trouble {
        let object = &self.wanted.object.request;
        self.wanted.lasting(ErrorKind::TooLarge, object, what)
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<File, Trouble> {
        let flags = flags | OFlags::CLOEXEC;
        openat2(
            &self.folder_of_namespace,
            path,
            flags,
            Mode::empty(),
            BENEATH,
        )
        .map(File::from)
        .map_err(|errno| self.wanted.refused(errno, path))
    }
}

#[derive(Default)]
struct Walk {
    files: Vec<FoundFile>,
    entries: usize,
}

impl Walk {
    fn found(&mut self, path: String, metadata: &Metadata) {
        let stamp = Stamp::of(metadata);
        self.files.push(FoundFile { path, stamp });
    }
}

impl Listing {
    pub(crate) fn size(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.stamp.size);
        sizes.fold(0, u64::saturating_add)
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the last change is at least `apart` from `now`, so that a change from now on gives
    /// another stamp.
    pub(crate) fn is_settled(&self, now: SystemTime, apart: Duration) -> bool {
        let now = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        // Either way: a clock that was set back makes changes of the future.
        self.changed
            .abs_diff(i128::try_from(now).unwrap_or(i128::MAX))
            >= apart.as_nanos()
    }
}

fn metadata(file: &File) -> Result<Metadata, Errno> {
    file.metadata().map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_settled_once_the_clock_has_moved_on() {
        const TICKS: Duration = Duration::from_millis(20);
        let changed = Duration::from_secs(1_700_000_000);
        let stamp = Stamp {
            device: 0,
            inode: 0,
            size: 0,
            modified: 0,
            changed: changed.as_nanos() as i128,
        };
        let nanosecond = Duration::from_nanos(1);
        for (now, settled) in [
            (changed, false),
            (changed + TICKS - nanosecond, false),
            (changed + TICKS, true),
            // The clock was set back after the change.
            (changed - TICKS + nanosecond, false),
            (changed - TICKS, true),
        ] {
            assert_eq!(
                stamp.is_settled(UNIX_EPOCH + now, TICKS),
                settled,
                "{now:?}"
            );
        }
    }
}
