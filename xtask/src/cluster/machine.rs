//! What a cluster could change on the machine, looked at before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cgroup;
use super::state::State;

/// Values that the kubelet, containerd or runc are known to set.
const SYSCTLS: [&str; 9] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_unprivileged_port_start",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Folders that they make unless they are told or kept from it.
const FOLDERS: [&str; 14] = [
    "/etc/cni",
    "/etc/containerd",
    "/etc/kubernetes",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    "/run/netns",
    "/run/runc",
    "/usr/libexec/kubernetes",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/var/run/kubernetes",
];

/// The state of the machine at one moment, one line for each thing.
pub(crate) struct Machine(BTreeSet<String>);

impl Machine {
    /// Looks at the machine.
    pub(crate) fn look() -> Result<Self> {
        let mut things = BTreeSet::new();
        things.extend(mounts()?);
        things.extend(processes()?);
        things.extend(control_groups()?);
        things.extend(entries("network device", Path::new("/sys/class/net"))?);
        for name in SYSCTLS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
            things.insert(format!("sysctl {name} = {}", value.trim()));
        }
        things.extend(
            FOLDERS
                .iter()
                .filter(|path| Path::new(path).exists())
                .map(|path| format!("folder {path}")),
        );
        things.extend(
            entries("folder", &std::env::temp_dir())?
                .into_iter()
                .filter(|folder| folder.ends_with(State::of_this_process().name())),
        );
        Ok(Self(things))
    }

    /// Fails if anything is there that was not, or is missing, or has another value.
    ///
    /// Others may mount and unmount on this machine too, so a difference has to last to count.
    pub(crate) fn ensure_unchanged(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::look()?;
            let new = now
                .0
                .difference(&self.0)
                .map(|thing| format!("\n  new:  {thing}"));
            let gone = self
                .0
                .difference(&now.0)
                .map(|thing| format!("\n  gone: {thing}"));
            let differences: String = new.chain(gone).collect();
            if differences.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the machine is not as it was:{differences}"
            );
            thread::sleep(Duration::from_millis(500));
        }
    }
}

fn mounts() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // Without the two numbers in front, which a remount changes.
    Ok(table
        .lines()
        .filter_map(|line| line.splitn(3, ' ').nth(2))
        .map(|mount| format!("mount {mount}"))
        .collect())
}

/// Processes of this process's cluster: those with its name in their environment or on their command line.
/// Containers have neither, but theirs are all in one control group, and end with one process id namespace.
fn processes() -> Result<Vec<String>> {
    let cluster = State::of_this_process();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // What is no process has neither file, and a process may end between the listing and the look.
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let environment = fs::read(folder.join("environ")).unwrap_or_default();
        let text = String::from_utf8_lossy(&line).replace('\0', " ");
        if text.contains(cluster.name())
            || String::from_utf8_lossy(&environment).contains(cluster.name())
        {
            found.push(format!("process {}: {text:.120}", folder.display()));
        }
    }
    Ok(found)
}

/// The groups at the top of each hierarchy, but for those of other clusters: what lies below groups that were
/// there before is not ours.
fn control_groups() -> Result<Vec<String>> {
    let own = State::of_this_process();
    let mut groups = Vec::new();
    for hierarchy in cgroup::hierarchies()? {
        groups.extend(entries("control group", &hierarchy)?);
    }
    groups.retain(|group| !State::is_of_a_cluster(group) || group.ends_with(own.name()));
    Ok(groups)
}

fn entries(kind: &str, folder: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Links count as what they lead to: network devices are links to folders.
        if path.is_dir() {
            all.push(format!("{kind} {}", path.display()));
        }
    }
    Ok(all)
}
