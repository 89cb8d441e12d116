//! A volume from the node's side: its mount, its folder, and that nothing of it is left.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::SOON;
use crate::cluster::Cluster;
use crate::cluster::cache::hex;

/// One volume of one pod, there or not.
pub(super) struct Volume<'a> {
    cluster: &'a Cluster,
    /// What the kubelet calls it.
    pub(super) id: String,
    /// Where the kubelet wants it.
    pub(super) target: String,
    pod: String,
}

impl<'a> Volume<'a> {
    /// The volume called `name` of the pod with this UID.
    pub(super) fn of(cluster: &'a Cluster, pod_uid: &str, name: &str) -> Result<Self> {
        let root = cluster.kubelet_root();
        let pod = path(&root.join("pods").join(pod_uid))?;
        Ok(Self {
            cluster,
            id: format!("csi-{}", hex(&Sha256::digest(format!("{pod_uid}{name}")))),
            target: format!("{pod}/volumes/kubernetes.io~csi/{name}/mount"),
            pod,
        })
    }

    /// The kernel's number for the one mount at the target. A mount that was made anew has another.
    pub(super) fn mount_id(&self) -> Result<String> {
        Ok(self.mount()?.id)
    }

    /// The one mount at the target.
    pub(super) fn mount(&self) -> Result<Mount> {
        let mounts = mounts(self.cluster, "self")?;
        match mounts
            .iter()
            .filter(|mount| mount.at == self.target)
            .collect::<Vec<_>>()[..]
        {
            [mount] => Ok(mount.clone()),
            ref found => bail!("{} has {} mounts", self.target, found.len()),
        }
    }

    /// The folder that holds the present files: another one after each rotation.
    pub(super) fn generation(&self) -> Result<String> {
        let link = format!("{}/..data", self.target);
        self.cluster.on_node(&["readlink", &link])
    }

    /// Waits until nothing of the volume and of its pod is left on the node.
    pub(super) fn wait_until_gone(&self) -> Result<()> {
        let what = format!("{} is gone", self.pod);
        self.cluster.wait_until(&what, SOON, || {
            let mounts = mounts(self.cluster, "self")?;
            let mounted = mounts.iter().any(|mount| mount.at.starts_with(&self.pod));
            let folder =
                self.cluster
                    .on_node(&["sh", "-c", r#"[ ! -e "$0" ] || echo there"#, &self.pod])?;
            Ok(!mounted && folder.is_empty())
        })
    }
}

/// A line of a mount table.
#[derive(Clone)]
pub(super) struct Mount {
    pub(super) id: String,
    /// Major and minor number: each tmpfs has its own.
    pub(super) device: String,
    pub(super) at: String,
    /// Between commas.
    pub(super) options: String,
}

/// The mounts of volumes that a process on the node sees.
pub(super) fn mounts(cluster: &Cluster, process: &str) -> Result<Vec<Mount>> {
    let table = cluster.on_node(&["cat", &format!("/proc/{process}/mountinfo")])?;
    // mountinfo: id, parent, device, root, mount point, options, …
    let mounts = table
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [id, _, device, _, at, options, ..] if at.contains("/volumes/kubernetes.io~csi/") => {
                Some(Mount {
                    id: id.to_owned(),
                    device: device.to_owned(),
                    at: at.to_owned(),
                    options: options.to_owned(),
                })
            }
            _ => None,
        });
    Ok(mounts.collect())
}

fn path(path: &Path) -> Result<String> {
    let path = path.to_str();
    Ok(path
        .context("the state folder has a plain name")?
        .to_owned())
}
