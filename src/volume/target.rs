//! Target paths: which ones are taken, and how they are walked without being led astray.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use coffer_provider::clean_text;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::VolumeError;

/// The two places that a target path may be in.
#[derive(Clone, Debug)]
pub struct TargetRules {
    /// `pods` in the kubelet's root, usually `/var/lib/kubelet/pods`.
    pub pods: PathBuf,
    /// A folder below which any target is taken: for conformance suites only.
    pub conformance_root: Option<PathBuf>,
}

/// A target path that the kubelet may name.
///
/// It is kept as a folder that we trust and names below it, so that every walk starts at the trusted
/// folder and the kernel refuses symlinks from there on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetPath {
    base: PathBuf,
    parent: String,
    leaf: String,
    pod_uid: Option<String>,
}

/// Why a target path is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be {expected}")]
pub struct TargetPathError {
    expected: String,
}

impl TargetRules {
    /// Takes `<kubelet root>/pods/<pod UID>/volumes/kubernetes.io~csi/<volume>/mount` and nothing that
    /// only resembles it; the filesystem is not asked.
    ///
    /// # Errors
    /// Says what is taken.
    pub fn parse(&self, path: &str) -> Result<TargetPath, TargetPathError> {
        self.below_pods(path)
            .or_else(|| self.below_conformance_root(path))
            .ok_or_else(|| TargetPathError {
                expected: format!(
                    "{}/<pod UID>/volumes/kubernetes.io~csi/<volume>/mount",
                    self.pods.display()
                ),
            })
    }

    fn below_pods(&self, path: &str) -> Option<TargetPath> {
        match names_below(path, &self.pods)?.as_slice() {
            [pod_uid, "volumes", "kubernetes.io~csi", volume, "mount"] => Some(TargetPath {
                base: self.pods.clone(),
                parent: format!("{pod_uid}/volumes/kubernetes.io~csi/{volume}"),
                leaf: "mount".to_owned(),
                pod_uid: Some((*pod_uid).to_owned()),
            }),
            _ => None,
        }
    }

    fn below_conformance_root(&self, path: &str) -> Option<TargetPath> {
        let root = self.conformance_root.as_deref()?;
        let names = names_below(path, root)?;
        let (leaf, parents) = names.split_last()?;
        Some(TargetPath {
            base: root.to_owned(),
            parent: parents.join("/"),
            leaf: (*leaf).to_owned(),
            pod_uid: None,
        })
    }
}

/// The names of `path` below `folder`, unless one of them could mean anything but itself.
fn names_below<'a>(path: &'a str, folder: &Path) -> Option<Vec<&'a str>> {
    let below = path.strip_prefix(folder.to_str()?)?.strip_prefix('/')?;
    let names: Vec<_> = below.split('/').collect();
    // What a terminal would not show (NUL too) is in no name that the kubelet gives, and would be in logs.
    let shown = clean_text(below, usize::MAX) == below;
    let plain = |name: &&str| !matches!(*name, "" | "." | "..");
    (shown && names.iter().all(plain)).then_some(names)
}

impl TargetPath {
    /// The pod that the path belongs to; none below a conformance root.
    #[must_use]
    pub fn pod_uid(&self) -> Option<&str> {
        self.pod_uid.as_deref()
    }

    /// What the pod calls the volume; none below a conformance root.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        self.pod_uid.as_ref()?;
        self.parent.rsplit('/').next()
    }

    /// Another name in the folder that the kubelet made for the volume.
    pub(super) fn beside(&self, leaf: &str) -> Self {
        Self {
            leaf: leaf.to_owned(),
            ..self.clone()
        }
    }

    /// Where the kubelet binds what containers mount of the volume by subPath.
    pub(super) fn subpaths(&self, rules: &TargetRules) -> Option<PathBuf> {
        let pod = rules.pods.join(self.pod_uid.as_deref()?);
        Some(pod.join("volume-subpaths").join(self.volume()?))
    }

    /// The last name, below the folder of [`Self::open_parent`].
    pub(super) fn leaf(&self) -> &str {
        &self.leaf
    }

    /// Opens the folder that the kubelet made for the volume; `None` where it is not there.
    pub(super) fn open_parent(&self) -> Result<Option<OwnedFd>, VolumeError> {
        let base = match rustix::fs::open(&self.base, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(|errno| self.failed("open the pods folder of", errno))?,
        };
        if self.parent.is_empty() {
            return Ok(Some(base));
        }
        self.open_below(&base, &self.parent)
    }

    /// Opens the target itself in `parent`: the root of whatever is mounted there, or the bare folder.
    pub(super) fn open_in(&self, parent: &OwnedFd) -> Result<Option<OwnedFd>, VolumeError> {
        self.open_below(parent, &self.leaf)
    }

    fn open_below(&self, folder: &OwnedFd, names: &str) -> Result<Option<OwnedFd>, VolumeError> {
        match rustix::fs::openat2(folder, names, DIRECTORY, Mode::empty(), BENEATH) {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(self.refused("there is a symlink in its path")),
            Err(Errno::NOTDIR) => Err(self.refused("it is not a folder")),
            Err(errno) => Err(self.failed("open", errno)),
        }
    }

    pub(super) fn refused(&self, problem: &'static str) -> VolumeError {
        VolumeError::Refused {
            target: self.clone(),
            problem,
        }
    }

    pub(super) fn failed(&self, step: &'static str, errno: Errno) -> VolumeError {
        VolumeError::Kernel {
            target: self.clone(),
            step,
            errno,
        }
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.base.join(&self.parent).join(&self.leaf);
        write!(formatter, "{}", path.display())
    }
}

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Every target of an inline volume that there is below the pods folder, as the kubelet lays them out.
pub(super) fn all_below(rules: &TargetRules) -> Vec<TargetPath> {
    let names = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    };
    let mut targets = Vec::new();
    for pod_uid in names(rules.pods.clone()) {
        let volumes = rules.pods.join(&pod_uid).join("volumes/kubernetes.io~csi");
        for volume in names(volumes.clone()) {
            let path = volumes.join(volume).join("mount");
            targets.extend(path.to_str().and_then(|path| rules.parse(path).ok()));
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> TargetRules {
        TargetRules {
            pods: "/var/lib/kubelet/pods".into(),
            conformance_root: None,
        }
    }

    #[test]
    fn rule_t1_only_the_kubelets_own_layout_is_taken() {
        let good = "/var/lib/kubelet/pods/5a1a9c3e/volumes/kubernetes.io~csi/secrets/mount";
        let target = rules().parse(good).expect("good");
        assert_eq!(target.pod_uid(), Some("5a1a9c3e"));
        assert_eq!(target.to_string(), good);
        for bad in [
            "",
            "/",
            "mount",
            "var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount/",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount/x",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mounts",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/v/mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi//mount",
            "/var/lib/kubelet/pods//volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/../mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/./mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v\0/mount",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v\n/mount",
            "/var/lib/kubelet/pods/u\u{1b}[31m/volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods/u\u{202e}/volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet/pods2/u/volumes/kubernetes.io~csi/v/mount",
            "/var/lib/kubelet//pods/u/volumes/kubernetes.io~csi/v/mount",
            "/etc/../var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount",
            "/etc",
        ] {
            assert!(rules().parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rule_t14_characters_of_a_shell_mean_themselves() {
        for name in ["*", "$(reboot)", "a b", "[x]", "~", "'\"", "-rf", "ü"] {
            let path = format!("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/{name}/mount");
            let target = rules().parse(&path).expect(name);
            assert_eq!(target.to_string(), path);
        }
    }

    #[test]
    fn a_conformance_root_takes_any_path_below_it_and_none_beside_it() {
        let rules = TargetRules {
            conformance_root: Some("/tmp/csi".into()),
            ..rules()
        };
        let target = rules.parse("/tmp/csi/mount/target").expect("below");
        assert_eq!(target.pod_uid(), None);
        for bad in [
            "/tmp/csi",
            "/tmp/csi/",
            "/tmp/csi/../x",
            "/tmp/csi2/x",
            "/tmp/x",
        ] {
            assert!(rules.parse(bad).is_err(), "{bad}");
        }
    }
}
