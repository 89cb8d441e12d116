//! Generations: the files of a volume behind one symlink, written beside and switched with one rename.
//!
//! ```text
//! db/password -> ..data/db/password      one link for each first name of a path (here `db`)
//! ..data -> ..2026_11_25_03_41_07.x7     the present generation
//! ..2026_11_25_03_41_07.x7/db/password   its files
//! ```
//!
//! The layout is that of Kubernetes' own volumes, and so is the promise: a reader who opens `..data`
//! once sees one generation. What a crash leaves behind is found by its name and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use coffer_provider::SecretBytes;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::target::{BENEATH, DIRECTORY};
use super::{Outcome, TargetPath, VolumeError};
use crate::payload::Payload;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";
const LINK_TMP: &str = "..link_tmp";

/// How long a replaced generation stays for readers who are in the middle of a path.
pub(super) const GRACE: Duration = Duration::from_secs(1);

const FOLDER_MODE: u32 = 0o755;
/// Under an fsGroup new files of a folder get its group, as in the kubelet's volumes.
const SETGID: u32 = 0o2000;

/// Fills a new volume.
pub(super) fn fill(root: &OwnedFd, payload: &Payload) -> Result<(), Errno> {
    if payload.group().is_some() {
        set_folder(root, payload.group())?;
    }
    let name = write_generation(root, payload)?;
    rustix::fs::symlinkat(name.as_str(), root, DATA)?;
    link_names(root, payload)
}

/// Gives the root of a volume that somebody else may have made the mode and the group of one of ours: that of
/// secrets-store-csi-driver can be written by everybody.
pub(super) fn take_over(root: &OwnedFd, group: Option<u32>) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(root)?.st_mode).bits() & 0o7777;
    match mode & 0o022 {
        0 => Ok(()),
        _ => set_folder(root, group),
    }
}

/// Why there is nothing to write: `payload` is the present generation, or the one before that is not
/// gone yet. Otherwise the volume is swept, and ready for [`write`].
pub(super) fn nothing_to_write(
    root: &OwnedFd,
    payload: &Payload,
) -> Result<Option<Outcome>, Errno> {
    let present = present(root)?;
    if is_present(root, &present, payload)? {
        // A crash may have come between the switch and the links.
        link_names(root, payload)?;
        return Ok(Some(Outcome::Unchanged));
    }
    match sweep(root)? {
        wait @ Outcome::TooSoon(_) => Ok(Some(wait)),
        _ => Ok(None),
    }
}

/// Makes `payload` the present generation.
pub(super) fn write(root: &OwnedFd, payload: &Payload) -> Result<(), Errno> {
    let name = write_generation(root, payload)?;
    if let Err(errno) = switch(root, &name) {
        // The new one is not visible yet: take it back, and keep the first error.
        let _ = remove_all(root, &name);
        return Err(errno);
    }
    link_names(root, payload)
}

/// Removes every generation but the present one, unless readers may still be in one of them.
pub(super) fn sweep(root: &OwnedFd) -> Result<Outcome, Errno> {
    let present = present(root)?;
    let old: Vec<_> = names(root)?
        .into_iter()
        .filter(|name| {
            name == DATA_TMP || name == LINK_TMP || is_generation(name) && *name != present
        })
        .collect();
    if old.is_empty() {
        return Ok(Outcome::Unchanged);
    }
    if let Some(wait) = grace_left(root, &present)? {
        return Ok(Outcome::TooSoon(wait));
    }
    for name in &old {
        remove_all(root, name)?;
    }
    Ok(Outcome::Rotated)
}

/// The switch made `..data` anew, so its time is when the generation before it was replaced.
fn grace_left(root: &OwnedFd, present: &str) -> Result<Option<Duration>, Errno> {
    let link = match rustix::fs::statat(root, DATA, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        link => link?,
    };
    let seconds = u64::try_from(link.st_mtime).unwrap_or_default();
    let nanos = u32::try_from(link.st_mtime_nsec).unwrap_or_default();
    let switched = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    match SystemTime::now().duration_since(switched) {
        Ok(age) => Ok(GRACE.checked_sub(age).filter(|left| !left.is_zero())),
        // The clock was set back, and by how much nobody knows: the second begins now, with a new link
        // to the same generation. Waiting for the clock to catch up could take a day.
        Err(_) => {
            let _ = rustix::fs::unlinkat(root, DATA_TMP, AtFlags::empty());
            switch(root, present)?;
            Ok(Some(GRACE))
        }
    }
}

/// The name that `..data` points to; empty in a volume without one.
fn present(root: &OwnedFd) -> Result<String, Errno> {
    match rustix::fs::readlinkat(root, DATA, Vec::new()) {
        Ok(name) => Ok(name.into_string().unwrap_or_default()),
        Err(Errno::NOENT) => Ok(String::new()),
        Err(errno) => Err(errno),
    }
}

/// By its year, whichever: a node without a battery for its clock starts in 1970.
fn is_generation(name: &str) -> bool {
    name.strip_prefix("..")
        .is_some_and(|time| time.starts_with(|first: char| first.is_ascii_digit()))
}

/// Writes a whole generation under a name that nobody looks at yet. If it cannot be written whole,
/// none of it stays.
fn write_generation(root: &OwnedFd, payload: &Payload) -> Result<String, Errno> {
    let name = new_name(root)?;
    match write_files(root, &name, payload) {
        Ok(()) => Ok(name),
        Err(errno) => {
            let _ = remove_all(root, &name);
            Err(errno)
        }
    }
}

/// Makes the folder of a new generation, named after the time as Kubernetes does.
fn new_name(root: &OwnedFd) -> Result<String, Errno> {
    let time = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S");
    for attempt in 0_u16.. {
        let name = format!("{time}.{attempt}");
        match rustix::fs::mkdirat(root, name.as_str(), Mode::from_bits_retain(FOLDER_MODE)) {
            Err(Errno::EXIST) => {}
            made => return made.map(|()| name),
        }
    }
    Err(Errno::EXIST)
}

fn write_files(root: &OwnedFd, name: &str, payload: &Payload) -> Result<(), Errno> {
    let generation = open_folder(root, name)?;
    set_folder(&generation, payload.group())?;
    for folder in payload.folders() {
        rustix::fs::mkdirat(&generation, folder, Mode::from_bits_retain(FOLDER_MODE))?;
        set_folder(&open_folder(&generation, folder)?, payload.group())?;
    }
    for (path, file) in payload.files() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let owner_only = Mode::RUSR | Mode::WUSR;
        let created = rustix::fs::openat2(&generation, path.as_str(), flags, owner_only, BENEATH)?;
        let mut created = std::fs::File::from(created);
        created.write_all(file.bytes.expose()).map_err(errno)?;
        // After the write, and not through the umask. The mode comes before the group: giving a file
        // away first would take the right to change its mode along.
        rustix::fs::fchmod(&created, Mode::from_bits_retain(file.mode.bits()))?;
        if let Some(group) = payload.group() {
            rustix::fs::fchown(&created, None, Some(gid(group)))?;
        }
    }
    Ok(())
}

fn set_folder(folder: &OwnedFd, group: Option<u32>) -> Result<(), Errno> {
    let setgid = group.map_or(0, |_| SETGID);
    if group.is_some() {
        // A folder in one with setgid has its group already, and who is not in that group cannot set the
        // bit without CAP_FSETID: the kernel leaves it out and says nothing.
        rustix::fs::fchown(folder, None, Some(rustix::process::getegid()))?;
    }
    rustix::fs::fchmod(folder, Mode::from_bits_retain(FOLDER_MODE | setgid))?;
    if let Some(group) = group {
        rustix::fs::fchown(folder, None, Some(gid(group)))?;
    }
    Ok(())
}

fn gid(group: u32) -> Gid {
    Gid::from_raw(group)
}

/// The one moment at which the contents change.
fn switch(root: &OwnedFd, name: &str) -> Result<(), Errno> {
    rustix::fs::symlinkat(name, root, DATA_TMP)?;
    rustix::fs::renameat(root, DATA_TMP, root, DATA).inspect_err(|_| {
        let _ = rustix::fs::unlinkat(root, DATA_TMP, AtFlags::empty());
    })
}

/// Makes the root show the names of the present generation and no others.
fn link_names(root: &OwnedFd, payload: &Payload) -> Result<(), Errno> {
    let wanted = payload.first_names();
    let mut there = BTreeSet::new();
    for name in names(root)?.into_iter().filter(|name| !is_internal(name)) {
        match wanted.contains(name.as_str()) {
            true if is_link(root, &name)? => drop(there.insert(name)),
            true => replace_by_link(root, &name)?,
            false => remove_all(root, &name)?,
        }
    }
    for name in wanted.into_iter().filter(|name| !there.contains(*name)) {
        match rustix::fs::symlinkat(format!("{DATA}/{name}"), root, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn is_link(root: &OwnedFd, name: &str) -> Result<bool, Errno> {
    let stat = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Puts the link in the place of what a plugin of secrets-store-csi-driver wrote there itself: a file is there
/// at every moment, a folder is not for one.
fn replace_by_link(root: &OwnedFd, name: &str) -> Result<(), Errno> {
    let link = format!("{DATA}/{name}");
    let _ = rustix::fs::unlinkat(root, LINK_TMP, AtFlags::empty());
    rustix::fs::symlinkat(link, root, LINK_TMP)?;
    match rustix::fs::renameat(root, LINK_TMP, root, name) {
        Err(Errno::ISDIR) => {
            remove_all(root, name)?;
            rustix::fs::renameat(root, LINK_TMP, root, name)
        }
        renamed => renamed,
    }
}

/// Leaves nothing in the root.
pub(super) fn clear(root: &OwnedFd) -> Result<(), Errno> {
    for name in names(root)? {
        remove_all(root, &name)?;
    }
    Ok(())
}

/// No path of a payload starts with `..`, so what does is ours.
fn is_internal(name: &str) -> bool {
    name.starts_with("..")
}

/// Whether the present generation is `payload` to the last bit: names, modes, group and bytes.
fn is_present(root: &OwnedFd, present: &str, payload: &Payload) -> Result<bool, Errno> {
    let generation = match open_folder(root, present) {
        Ok(generation) => generation,
        Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let mut paths = BTreeSet::new();
    list_files(&generation, "", &mut paths)?;
    if !paths
        .iter()
        .map(String::as_str)
        .eq(payload.files().keys().map(|path| path.as_str()))
    {
        return Ok(false);
    }
    for (path, file) in payload.files() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened =
            match rustix::fs::openat2(&generation, path.as_str(), flags, Mode::empty(), BENEATH) {
                // A mode without u+r shuts the driver out too: then it cannot tell, and writes.
                Err(Errno::ACCESS) => return Ok(false),
                opened => opened?,
            };
        let stat = rustix::fs::fstat(&opened)?;
        let bytes = file.bytes.expose();
        let same = stat.st_mode & 0o7777 == file.mode.bits()
            && payload.group().is_none_or(|group| stat.st_gid == group)
            && u64::try_from(stat.st_size) == Ok(bytes.len() as u64)
            && holds(std::fs::File::from(opened), bytes).map_err(errno)?;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The files of the present generation, by their paths.
pub(super) fn read(root: &OwnedFd) -> Result<BTreeMap<String, SecretBytes>, Errno> {
    let generation = open_folder(root, &present(root)?)?;
    let mut paths = BTreeSet::new();
    list_files(&generation, "", &mut paths)?;
    let mut files = BTreeMap::new();
    for path in paths {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened =
            rustix::fs::openat2(&generation, path.as_str(), flags, Mode::empty(), BENEATH)?;
        let size = rustix::fs::fstat(&opened)?.st_size;
        // As large as it will be: growing would leave copies behind.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
        std::fs::File::from(opened)
            .read_to_end(&mut bytes)
            .map_err(errno)?;
        files.insert(path, SecretBytes::new(bytes));
    }
    Ok(files)
}

fn holds(mut file: std::fs::File, bytes: &[u8]) -> std::io::Result<bool> {
    let mut chunk = Zeroizing::new([0_u8; 4096]);
    let mut rest = bytes;
    loop {
        match file.read(&mut chunk[..])? {
            0 => return Ok(rest.is_empty()),
            read if !rest.starts_with(&chunk[..read]) => return Ok(false),
            read => rest = &rest[read..],
        }
    }
}

/// Every file below `folder`, sorted, as the paths of a payload are.
fn list_files(folder: &OwnedFd, prefix: &str, paths: &mut BTreeSet<String>) -> Result<(), Errno> {
    for name in names(folder)? {
        let path = match prefix {
            "" => name.clone(),
            prefix => format!("{prefix}/{name}"),
        };
        let stat = rustix::fs::statat(folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => list_files(&open_folder(folder, &name)?, &path, paths)?,
            _ => drop(paths.insert(path)),
        }
    }
    Ok(())
}

/// Removes `name` with all that is in it.
fn remove_all(folder: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let inner = open_folder(folder, name)?;
    for name in names(&inner)? {
        remove_all(&inner, &name)?;
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// Refuses a bare target folder that is not an empty one of ours.
pub(super) fn check_empty(target: &TargetPath, folder: &OwnedFd) -> Result<(), VolumeError> {
    let look = |errno| target.failed("look at", errno);
    let stat = rustix::fs::fstat(folder).map_err(look)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(target.refused("the folder belongs to another user"));
    }
    match is_empty(folder).map_err(look)? {
        true => Ok(()),
        false => Err(target.refused("the folder is not empty, and nothing is mounted there")),
    }
}

/// Whatever is in it, and however much: none of it is ours.
pub(super) fn is_empty(folder: &OwnedFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(folder)? {
        if !is_dot(entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn names(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            let name = entry.file_name().to_str().map_err(|_| Errno::ILSEQ)?;
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn open_folder(folder: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(folder, name, DIRECTORY, Mode::empty(), BENEATH)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
