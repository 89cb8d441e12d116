//! The control group below which all pods of a cluster lie, in every hierarchy of the machine.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Makes the group `name` at the top of each hierarchy: the kubelet wants to find its cgroup root.
pub(crate) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        if group.exists() {
            continue;
        }
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        // A new cpuset is empty, and nothing can run in it (version 1 only).
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.join(file))
                && group.join(file).exists()
                && hierarchy.join("tasks").exists()
            {
                fs::write(group.join(file), all)?;
            }
        }
    }
    Ok(())
}

/// Removes the group `name` and all below it. Its processes must be over.
pub(crate) fn remove(name: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        // The kernel lets go of a dead process's group a little after its parent has heard of the death.
        while let Err(error) = remove_tree(&group) {
            ensure!(
                Instant::now() < deadline,
                "cannot remove the control group {}: {error}",
                group.display()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Where the hierarchies are mounted: one for version 2, several for version 1.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let hierarchies: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let fields: Vec<_> = mount.split(' ').collect();
            let whole = fields.get(3) == Some(&"/");
            (whole && source.starts_with("cgroup")).then(|| PathBuf::from(fields[4]))
        })
        .collect();
    ensure!(
        !hierarchies.is_empty(),
        "no control groups are mounted on this machine"
    );
    Ok(hierarchies)
}
