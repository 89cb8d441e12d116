//! What a cluster could change on the machine, looked at before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cache::Cache;
use super::cgroup;

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
        // Where state folders are made.
        things.extend(
            entries("folder", &std::env::temp_dir())?
                .into_iter()
                .filter(|entry| entry.contains("coffer-e2e-")),
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

/// Processes that a cluster could have started: those of programs in the cache, and those that name a state folder.
fn processes() -> Result<Vec<String>> {
    let cache = Cache::open()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(id) = name
            .to_str()
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        // A process may end between the listing and the look.
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if program.starts_with(cache.root())
            || line.contains("/coffer-e2e-")
            || line.contains("/coffer-cluster/")
        {
            found.push(format!(
                "process {id}: {}",
                line.chars().take(120).collect::<String>()
            ));
        }
    }
    Ok(found)
}

/// The groups at the top of each hierarchy: what lies below those that were there is not ours.
fn control_groups() -> Result<Vec<String>> {
    let mut groups = Vec::new();
    for hierarchy in cgroup::hierarchies()? {
        groups.extend(entries("control group", &hierarchy)?);
    }
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
