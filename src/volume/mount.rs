//! tmpfs: built detached, recognised by its mark, attached once, detached for good.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::target::{BENEATH, DIRECTORY};
use super::{LAYOUT, ProbeError, Record};
use crate::payload::Limits;

/// What mountinfo shows as the source: whose volume it is, and how its files lie.
const SOURCE: &str = "coffer-1";

/// Where SELinux is on, what every container may read: the kubelet labels no volume that is read-only, and
/// passes no context for an inline one.
const SELINUX_CONTEXT: &str = "system_u:object_r:container_file_t:s0";

const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What this kernel lets a volume have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// It is never written to swap.
    pub(super) noswap: bool,
    /// Its files have [`SELINUX_CONTEXT`].
    pub(super) selinux: bool,
}

/// The step that failed, and how.
pub(super) struct Failed {
    pub(super) step: &'static str,
    pub(super) errno: Errno,
}

/// How a volume is known to be ours.
pub(super) enum Marks {
    /// By the record on its root: it outlives this process.
    Recorded,
    /// By its device number, remembered: a user namespace has no `trusted.` attributes.
    Remembered(Mutex<HashSet<Device>>),
}

/// The device number of a mounted tmpfs: no other mounted filesystem has it.
pub(super) type Device = (u32, u32);

impl Marks {
    /// Whether the tmpfs is ours, and its record where there is one.
    pub(super) fn read(
        &self,
        root: &OwnedFd,
        device: Device,
    ) -> Result<Option<Option<Record>>, Errno> {
        match self {
            Self::Recorded => Ok(Record::read(root)?.map(Some)),
            Self::Remembered(devices) => Ok(lock(devices).contains(&device).then_some(None)),
        }
    }

    /// Writes the record of a volume; before a new one is attached, it makes the volume ours.
    pub(super) fn record(&self, root: &OwnedFd, record: &Record) -> Result<(), Errno> {
        match self {
            Self::Recorded => record.write(root),
            Self::Remembered(_) => Ok(()),
        }
    }

    /// Remembers a volume that is about to be attached: once it can be seen, nothing may fail any more.
    pub(super) fn remember(&self, root: &OwnedFd) -> Result<(), Errno> {
        if let Self::Remembered(devices) = self {
            lock(devices).insert(look(root)?.device);
        }
        Ok(())
    }

    /// Forgets a volume while its device number cannot be another's yet.
    pub(super) fn forget(&self, root: &OwnedFd) {
        if let (Self::Remembered(devices), Ok(seen)) = (self, look(root)) {
            lock(devices).remove(&seen.device);
        }
    }
}

fn lock(devices: &Mutex<HashSet<Device>>) -> MutexGuard<'_, HashSet<Device>> {
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds out on a tmpfs that is never attached what it can have, and how to mark it.
pub(super) fn probe() -> Result<(Options, Marks), ProbeError> {
    let limits = Limits::default();
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let selinux = has_selinux(&filesystems);
    // Before 6.4 `noswap` is not known; in a user namespace it is not allowed.
    let wanted = [(true, selinux), (false, selinux), (true, false)];
    let scratch = wanted.into_iter().find_map(|(noswap, selinux)| {
        let options = Options { noswap, selinux };
        Some((options, build(&limits, options).ok()?))
    });
    let (options, scratch) = match scratch {
        Some(scratch) => scratch,
        None => {
            let options = Options {
                noswap: false,
                selinux: false,
            };
            let scratch = build(&limits, options);
            let scratch = scratch.map_err(|Failed { step, errno }| ProbeError { step, errno })?;
            (options, scratch)
        }
    };
    let record = Record {
        layout: LAYOUT,
        class: String::new(),
        objects: Default::default(),
        immutable: false,
    };
    let marks = match record.write(&scratch.root) {
        Ok(()) => Marks::Recorded,
        Err(_) => Marks::Remembered(Mutex::default()),
    };
    Ok((options, marks))
}

/// The kernel has that filesystem only where SELinux is on.
fn has_selinux(filesystems: &str) -> bool {
    let mut names = filesystems
        .lines()
        .filter_map(|line| line.split('\t').nth(1));
    names.any(|name| name == "selinuxfs")
}

/// A tmpfs that is not attached anywhere: it goes with its descriptors.
pub(super) struct Built {
    /// The mount, to attach; as good as a path, so nothing can be read or written with it.
    mount: OwnedFd,
    /// The root folder, to fill.
    pub(super) root: OwnedFd,
}

/// Makes an empty tmpfs.
///
/// Three generations fit: the present one, the one before it that readers may still be in, and the
/// next.
pub(super) fn build(limits: &Limits, options: Options) -> Result<Built, Failed> {
    let at = |step| move |errno| Failed { step, errno };
    let page = rustix::param::page_size();
    // Each file ends in a page of its own, and the link to a long name in the root takes one.
    let generation = limits.bytes + limits.files * page;
    let size = 3 * generation + limits.files * page + 16 * page;
    // Since 6.6 an attribute takes an inode's room for each KiB: the record, and then the next one
    // while the one before is still there.
    let records = 2 * Record::MAX_BYTES / 1024;
    let inodes = 3 * limits.entries() + limits.files + records + 64;

    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("open a tmpfs for"))?;
    let fd = tmpfs.as_fd();
    for (key, value) in [
        ("source", SOURCE.to_owned()),
        ("size", size.to_string()),
        ("nr_inodes", inodes.to_string()),
        ("mode", "0755".to_owned()),
    ] {
        fsconfig_set_string(fd, key, value).map_err(at("configure a tmpfs for"))?;
    }
    if options.noswap {
        fsconfig_set_flag(fd, "noswap").map_err(at("configure a tmpfs for"))?;
    }
    if options.selinux {
        fsconfig_set_string(fd, "context", SELINUX_CONTEXT).map_err(at("label a tmpfs for"))?;
    }
    fsconfig_create(fd).map_err(at("create a tmpfs for"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount =
        fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(at("make a mount for"))?;
    let root =
        rustix::fs::openat2(&mount, ".", DIRECTORY, Mode::empty(), BENEATH).map_err(at("open"))?;
    Ok(Built { mount, root })
}

/// Attaches a built tmpfs on `folder`: the one moment at which the volume appears.
///
/// Both ends are descriptors, so nothing that happens to the path meanwhile can lead it elsewhere. In
/// a mount namespace with shared propagation the host sees it at the same moment.
pub(super) fn attach(built: &Built, folder: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&built.mount, "", folder, "", flags)
}

/// Takes away the topmost mount at `name` in `parent`. A container that still holds a file keeps that
/// one file until it closes it.
pub(super) fn detach(parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    // umount2 knows no descriptors; this is the parent that was walked to, whatever its path is by now.
    let path = format!("/proc/self/fd/{}/{name}", parent.as_raw_fd());
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// What an open folder is.
pub(super) struct Seen {
    pub(super) mount_root: bool,
    pub(super) tmpfs: bool,
    pub(super) device: Device,
}

pub(super) fn look(folder: &OwnedFd) -> Result<Seen, Errno> {
    let stat = rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    let mount_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(Seen {
        mount_root,
        tmpfs: mount_root && rustix::fs::fstatfs(folder)?.f_type == TMPFS_MAGIC,
        device: (stat.stx_dev_major, stat.stx_dev_minor),
    })
}

/// Whether the mount that `root` is the root of is one of secrets-store-csi-driver: a whole tmpfs, by the
/// name that its `mount` gives every one. Reads the table of all mounts: not to be asked for one of ours.
pub(super) fn is_inherited(root: &OwnedFd) -> Result<bool, Errno> {
    let stat = rustix::fs::statx(root, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo");
    let table = table.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(has_inherited(&table, stat.stx_mnt_id))
}

/// See proc_pid_mountinfo(5): the root of the mount is the fourth field; after the dash come type and source.
fn has_inherited(table: &str, mount_id: u64) -> bool {
    let mut of_it = table.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let is_it = mount.next()?.parse() == Ok(mount_id);
        is_it.then_some((mount.nth(2)?, filesystem))
    });
    of_it
        .next()
        .is_some_and(|(root, filesystem)| root == "/" && filesystem.starts_with("tmpfs tmpfs "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_the_incumbent_is_a_whole_tmpfs_of_that_name() {
        let table = "20 1 0:20 / / rw - ext4 /dev/sda rw\n\
            31 20 0:31 / /pods/a/mount rw,relatime shared:5 - tmpfs tmpfs rw\n\
            32 20 0:31 /folder /pods/b/mount rw shared:5 - tmpfs tmpfs rw\n\
            33 20 0:33 / /pods/c/mount rw - tmpfs someone rw\n\
            34 20 0:34 / /pods/d/mount rw - tmpfs tmpfs2 rw\n";
        for (mount_id, inherited) in [(20, false), (31, true), (32, false), (33, false)] {
            assert_eq!(has_inherited(table, mount_id), inherited, "{mount_id}");
        }
        assert!(!has_inherited(table, 34) && !has_inherited(table, 35));
    }

    #[test]
    fn selinux_is_on_where_the_kernel_has_its_filesystem() {
        assert!(has_selinux("nodev\tsysfs\nnodev\tselinuxfs\n\text4\n"));
        for off in ["", "nodev\tsysfs\n\text4\n", "nodev\tnotselinuxfs\n"] {
            assert!(!has_selinux(off), "{off:?}");
        }
    }

    #[test]
    #[ignore = "needs a mount namespace: cargo xtask test"]
    fn a_label_is_asked_for_only_where_selinux_is_on() {
        let filesystems = std::fs::read_to_string("/proc/filesystems").expect("of the kernel");
        let (options, _) = probe().map_err(|error| error.to_string()).expect("a tmpfs");
        assert_eq!(options.selinux, has_selinux(&filesystems));
        if !options.selinux {
            let labelled = Options {
                selinux: true,
                ..options
            };
            let refused = build(&Limits::default(), labelled).err().expect("unknown");
            assert_eq!(refused.step, "label a tmpfs for");
        }
    }
}
