//! A node for one test: mounts of its own, a pods folder, `Volumes` on it; and how a test looks at
//! what the pods would see.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coffer::class::Mode;
use coffer::payload::{Limits, Payload};
use coffer::volume::{HeldObject, LAYOUT, Outcome, Record, TargetPath, TargetRules, Volumes};
use coffer::volume_path::VolumePath;
use coffer_provider::SecretBytes;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tempfile::TempDir;

/// How long a replaced generation stays (ARCHITECTURE.md, invariant 2).
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// Set for a test that runs again in a process of its own.
const ALONE: &str = "COFFER_TEST_ALONE";

/// Gives this thread, and every thread and process that it starts from now on, mounts of its own; a
/// umask and a current folder of its own come with that.
pub(crate) fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: run through cargo xtask test");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of our own");
}

/// A node without pods.
pub(crate) struct Node {
    pub(crate) volumes: Volumes,
    folder: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        own_mounts();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pods")).unwrap();
        let volumes = Volumes::probe(rules(folder.path()), limits).unwrap();
        Self { volumes, folder }
    }

    /// `Volumes` as the next process of the driver has them.
    pub(crate) fn restarted(&self) -> Volumes {
        Volumes::probe(self.volumes.rules().clone(), *self.volumes.limits()).unwrap()
    }

    /// A path beside the pods folder.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The target of volume `secrets` of a pod, with the folders that the kubelet makes for it.
    pub(crate) fn prepare(&self, pod_uid: &str) -> TargetPath {
        prepare(&self.volumes, pod_uid, "secrets")
    }

    /// A volume that holds `payload`.
    pub(crate) fn mounted(&self, pod_uid: &str, payload: &Payload) -> TargetPath {
        let target = self.prepare(pod_uid);
        let mounted = self.volumes.mount(&target, payload, &record("first"));
        assert_eq!(mounted.unwrap(), Outcome::Mounted);
        target
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The temporary folder cannot go while something is mounted in it.
        for mounted in mounts_below(self.folder.path()).iter().rev() {
            let _ = umount2(
                &mounted.at,
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            );
        }
    }
}

/// The rules of the node in `folder`.
pub(crate) fn rules(folder: &Path) -> TargetRules {
    TargetRules {
        pods: folder.join("pods"),
        conformance_root: None,
    }
}

/// The target of a volume, with the folders that the kubelet makes for it.
pub(crate) fn prepare(volumes: &Volumes, pod_uid: &str, name: &str) -> TargetPath {
    let folder = volumes
        .rules()
        .pods
        .join(pod_uid)
        .join("volumes/kubernetes.io~csi")
        .join(name);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("mount");
    volumes.rules().parse(path.to_str().unwrap()).unwrap()
}

/// Where a target is.
pub(crate) fn path(target: &TargetPath) -> PathBuf {
    target.to_string().into()
}

/// A payload of these files, readable by everybody.
pub(crate) fn payload<P: Into<String>, B: Into<Vec<u8>>>(
    files: impl IntoIterator<Item = (P, B)>,
) -> Payload {
    payload_of(
        files.into_iter().map(|(path, bytes)| (path, bytes, 0o644)),
        None,
    )
}

/// A payload of these files with their modes, of a pod with this fsGroup.
pub(crate) fn payload_of<P: Into<String>, B: Into<Vec<u8>>>(
    files: impl IntoIterator<Item = (P, B, u32)>,
    group: Option<u32>,
) -> Payload {
    try_payload(files, group, &Limits::default()).unwrap()
}

pub(crate) fn try_payload<P: Into<String>, B: Into<Vec<u8>>>(
    files: impl IntoIterator<Item = (P, B, u32)>,
    group: Option<u32>,
    limits: &Limits,
) -> Result<Payload, coffer::error::PublishError> {
    let files = files.into_iter().map(|(path, bytes, mode)| {
        let path = VolumePath::new(path).unwrap();
        let mode = Mode::try_from(i64::from(mode)).unwrap();
        (path, SecretBytes::new(bytes.into()), mode)
    });
    Payload::new(files, group, limits)
}

/// The record of a volume whose one object has this version.
pub(crate) fn record(version: &str) -> Record {
    let held = HeldObject {
        version: version.to_owned(),
        expires: None,
        once: false,
    };
    Record {
        layout: LAYOUT,
        immutable: false,
        class: "class".to_owned(),
        objects: [("object".to_owned(), held)].into(),
    }
}

/// What the files of a volume hold, by the paths that a pod opens.
pub(crate) fn visible(target: &TargetPath) -> BTreeMap<String, Vec<u8>> {
    read_all(&path(target))
}

/// Every file below a folder, without what is the driver's own.
pub(crate) fn read_all(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in names(folder).iter().filter(|name| !name.starts_with("..")) {
        read_below(folder, name, &mut files);
    }
    files
}

fn read_below(folder: &Path, name: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let at = folder.join(name);
    // Through links, as a pod does: one that leads nowhere fails here.
    match fs::metadata(&at)
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .is_dir()
    {
        false => drop(files.insert(name.to_owned(), fs::read(&at).unwrap())),
        true => {
            for inner in names(&at) {
                read_below(folder, &format!("{name}/{inner}"), files);
            }
        }
    }
}

/// What `payload` is to look like.
pub(crate) fn wanted(payload: &Payload) -> BTreeMap<String, Vec<u8>> {
    let files = payload.files().iter();
    files
        .map(|(path, file)| (path.to_string(), file.bytes.expose().to_vec()))
        .collect()
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The names of the driver's own in the root of a volume.
pub(crate) fn internal_names(target: &TargetPath) -> Vec<String> {
    let names = names(&path(target));
    names
        .into_iter()
        .filter(|name| name.starts_with(".."))
        .collect()
}

/// The name of the present generation.
pub(crate) fn generation(target: &TargetPath) -> String {
    let link = fs::read_link(path(target).join("..data")).unwrap();
    link.into_os_string().into_string().unwrap()
}

/// What every generation holds that a volume still has.
pub(crate) fn generations(target: &TargetPath) -> Vec<BTreeMap<String, Vec<u8>>> {
    let folders = internal_names(target)
        .into_iter()
        .filter(|name| !name.starts_with("..data"));
    folders
        .map(|name| read_all(&path(target).join(name)))
        .collect()
}

/// Sets the time at which the present generation was switched to.
pub(crate) fn set_switched(target: &TargetPath, time: Timespec) {
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let link = path(target).join("..data");
    rustix::fs::utimensat(CWD, &link, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// When the present generation was switched to, as far as the volume knows.
pub(crate) fn switched(target: &TargetPath) -> Timespec {
    let link = fs::symlink_metadata(path(target).join("..data")).unwrap();
    Timespec {
        tv_sec: link.mtime(),
        tv_nsec: link.mtime_nsec(),
    }
}

/// Lets the grace of the last switch pass without waiting for it: to the volume it is the same
/// whether the clock moves on or the switch back.
pub(crate) fn grace_passes(target: &TargetPath) {
    let mut time = switched(target);
    time.tv_sec -= GRACE.as_secs() as i64;
    set_switched(target, time);
}

/// Rotates once the grace of the switch before has passed.
pub(crate) fn rotate(volumes: &Volumes, target: &TargetPath, payload: &Payload) -> Outcome {
    grace_passes(target);
    volumes.rotate(target, payload, &record("next")).unwrap()
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Of the mount and of the filesystem.
    pub(crate) options: Vec<String>,
}

/// What is mounted for this thread at or below `folder`, in the order of mounting.
pub(crate) fn mounts_below(folder: &Path) -> Vec<Mounted> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mounts = table.lines().map(|line| {
        let (mount, filesystem) = line.split_once(" - ").unwrap();
        let mount: Vec<_> = mount.split(' ').collect();
        let filesystem: Vec<_> = filesystem.split(' ').collect();
        Mounted {
            at: unescape(mount[4]).into(),
            kind: filesystem[0].to_owned(),
            source: filesystem[1].to_owned(),
            options: mount[5]
                .split(',')
                .chain(filesystem[2].split(','))
                .map(Into::into)
                .collect(),
        }
    });
    mounts
        .filter(|mounted| mounted.at.starts_with(folder))
        .collect()
}

/// What is mounted at a target.
pub(crate) fn mounts_at(target: &TargetPath) -> Vec<Mounted> {
    mounts_below(&path(target))
}

/// mountinfo writes what would break its lines as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(3);
        bytes.push(u8::from_str_radix(digits, 8).unwrap());
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}

/// Mounts a tmpfs that is not ours.
pub(crate) fn mount_foreign(at: &Path) {
    let none = None::<&str>;
    mount(Some("someone"), at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

/// Shows `from` at `at` as well.
pub(crate) fn bind(from: &Path, at: &Path) {
    let none = None::<&str>;
    mount(Some(from), at, none, MsFlags::MS_BIND, none).unwrap();
}

/// Everything about everything below `folder`, mounts included, to see whether anything changed.
pub(crate) fn snapshot(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    describe(folder, &mut lines);
    lines
}

fn describe(at: &Path, lines: &mut Vec<String>) {
    let stat = fs::symlink_metadata(at).unwrap();
    let kind = stat.file_type();
    let content = match () {
        () if kind.is_symlink() => fs::read_link(at).unwrap().as_os_str().as_bytes().to_vec(),
        () if kind.is_file() => fs::read(at).unwrap(),
        () => Vec::new(),
    };
    let changed = (
        stat.mtime(),
        stat.mtime_nsec(),
        stat.ctime(),
        stat.ctime_nsec(),
    );
    lines.push(format!(
        "{} {:o} {} {} on {} at {changed:?} socket={} {content:?}",
        at.display(),
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.dev(),
        kind.is_socket(),
    ));
    if kind.is_dir() {
        let mut inner: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        inner.sort();
        for at in inner {
            describe(&at, lines);
        }
    }
}

/// Whether this is a user namespace: there volumes have no record, and there is one user and one group.
pub(crate) fn in_a_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Does `work` in a process where everything belongs to it: descriptors, threads, memory. `test` is the
/// test that calls this: it runs once more, in that process.
pub(crate) fn alone<F: Fn()>(test: F, work: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return work();
    }
    let run = again(test).env(ALONE, "1").output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        run.status.success(),
        "{}\n{}",
        said(&run.stdout),
        said(&run.stderr)
    );
    let lines = said(&run.stdout);
    assert!(lines.contains("1 passed"), "{lines}");
    lines
        .lines()
        .filter(|line| line.starts_with("  "))
        .for_each(|line| println!("{line}"));
}

/// This test binary with `test` only.
pub(crate) fn again<F: Fn()>(_test: F) -> Command {
    // `kernel::crash::rule_…`: what comes before the first `::` is the binary.
    let (_, name) = std::any::type_name::<F>().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--include-ignored", "--nocapture"]);
    command
}
