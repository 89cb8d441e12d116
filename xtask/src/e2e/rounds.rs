//! Pods come and go, again and again, and afterwards node and driver have what they had before (T15).

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};
use super::volume::mounts;
use crate::cluster::Namespace;

const ROUNDS: usize = 4;
const PODS: usize = 15;

/// What a round may leave of memory in the driver: pages that its allocator keeps.
const SLACK_KIB: usize = 4096;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("rounds")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;

    // The first round warms up: thread pools and connections are there from then on.
    round(driver, &namespace)?;
    // An idle thread of the driver's pool ends after ten seconds.
    thread::sleep(Duration::from_secs(12));
    let process = driver.process()?;
    let before = Usage::of(driver, &process)?;
    for _ in 1..ROUNDS {
        round(driver, &namespace)?;
    }
    driver
        .cluster()
        .wait_until("the driver has what it had before", SOON, || {
            let now = Usage::of(driver, &process)?;
            ensure!(now.fits_in(&before), "{now:?} instead of {before:?}");
            Ok(true)
        })
}

fn round(driver: &Driver<'_>, namespace: &Namespace<'_>) -> Result<()> {
    let names: Vec<_> = (0..PODS).map(|at| format!("reader-{at}")).collect();
    let pods: Vec<_> = names.iter().map(|name| reader(name, "shop")).collect();
    namespace.apply(&pods.join("---"))?;
    namespace.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "--timeout=180s",
        "pods",
        "--all",
    ])?;
    namespace.kubectl(&[
        "delete",
        "pods",
        "--all",
        "--grace-period=1",
        "--timeout=180s",
    ])?;
    driver
        .cluster()
        .wait_until("no volume is left on the node", SOON, || {
            Ok(mounts(driver.cluster(), "self")?.is_empty())
        })
}

/// What the driver's process has of what could pile up.
#[derive(Debug)]
struct Usage {
    mounts: usize,
    descriptors: usize,
    threads: usize,
    memory_kib: usize,
}

impl Usage {
    fn of(driver: &Driver<'_>, process: &str) -> Result<Self> {
        let cluster = driver.cluster();
        let status = cluster.on_node(&["cat", &format!("/proc/{process}/status")])?;
        let number = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|line| line.split_whitespace().next());
            let number = number.with_context(|| format!("no {field} in {status}"))?;
            anyhow::Ok(number.parse::<usize>()?)
        };
        let descriptors = cluster.on_node(&["ls", &format!("/proc/{process}/fd")])?;
        Ok(Self {
            mounts: mounts(cluster, process)?.len(),
            descriptors: descriptors.lines().count(),
            threads: number("Threads:")?,
            memory_kib: number("RssAnon:")?,
        })
    }

    fn fits_in(&self, before: &Self) -> bool {
        self.mounts <= before.mounts
            && self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.memory_kib <= before.memory_kib + SLACK_KIB
    }
}
