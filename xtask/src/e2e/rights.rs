//! The driver's process in its pod, which Kubernetes lets do everything, has the rights that it needs and no other.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::driver::Driver;

/// CAP_CHOWN, CAP_SYS_ADMIN, and CAP_DAC_OVERRIDE: by the chart's default plugins may belong to others than root.
const CAPABILITIES: u64 = 1 | 1 << 21 | 1 << 1;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let cluster = driver.cluster();
    let process = driver.process()?;
    let threads = cluster.on_node(&["sh", "-c", &format!("ls /proc/{process}/task")])?;
    let mut seen = 0;
    for thread in threads.lines() {
        let status = format!("/proc/{process}/task/{thread}/status");
        // An idle thread may end between the listing and the look; the first one does not.
        let Ok(status) = cluster.on_node(&["cat", &status]) else {
            ensure!(thread != process, "the driver has ended");
            continue;
        };
        ensure_shed(&status).map_err(|error| anyhow!("{error}, of a thread with\n{status}"))?;
        seen += 1;
    }
    ensure!(seen > 1, "it has one thread, so nothing was inherited");

    let limits = cluster.on_node(&["cat", &format!("/proc/{process}/limits")])?;
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    ensure!(
        core.is_some_and(|core| core.split_whitespace().eq(["0", "0", "bytes"])),
        "core files: {core:?}"
    );

    // That it is not dumpable the kernel shows nowhere, but it acts on it: root without CAP_SYS_PTRACE may look into
    // a process of root that has no more capabilities than itself, such as the registrar, and not into this one.
    let registrar = driver.process_called("csi-node-driver-registrar")?;
    let look = |process: &str| {
        cluster.on_node(&[
            "setpriv",
            "--bounding-set=-sys_ptrace",
            "readlink",
            &format!("/proc/{process}/exe"),
        ])
    };
    look(&registrar).context("a process like any other, to compare with")?;
    ensure!(
        look(&process).is_err(),
        "dumpable: root without CAP_SYS_PTRACE can look into it"
    );
    Ok(())
}

fn ensure_shed(status: &str) -> Result<()> {
    let fields: BTreeMap<_, _> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(field, value)| (field, value.trim()))
        .collect();
    let value = |field| fields.get(field).copied().unwrap_or_default();
    let mask = |field| u64::from_str_radix(value(field), 16).context(field);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        ensure!(mask(set)? == CAPABILITIES, "{set} is {}", value(set));
    }
    for set in ["CapInh", "CapAmb"] {
        ensure!(mask(set)? == 0, "{set} is {}", value(set));
    }
    for (field, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Umask", "0077")] {
        ensure!(value(field) == wanted, "{field} is {}", value(field));
    }
    Ok(())
}
