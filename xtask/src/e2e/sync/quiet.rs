//! 500 Secrets that nobody changes: ten rounds of the kubelet and of the store, a new driver process, and not one
//! write at the API server.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::super::manifests::reader;
use super::{class, secret, writes};

const SECRETS: usize = 500;
const ROUNDS: usize = 10;

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-quiet")?;
    driver.store(&namespace, "foo", "secret")?;
    let mut secrets = String::new();
    for at in 0..SECRETS {
        let _ = write!(
            secrets,
            "{}, ",
            secret(&format!("s-{at}"), "foo", "username")
        );
    }
    let secrets = format!("[{}]", secrets.trim_end_matches(", "));
    namespace.apply(&class("shop", &["foo"], &secrets))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    let cluster = driver.cluster();
    let names = || {
        let marked = "--selector=secrets-store.csi.k8s.io/managed=true";
        let names = namespace.kubectl(&["get", "secrets", marked, "-o=name"])?;
        anyhow::Ok(names.lines().count())
    };
    // The publish waits ten seconds for all of them at most; what is left is made up for.
    cluster.wait_until("all Secrets are there", SOON, || Ok(names()? == SECRETS))?;
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    driver.wait_for_more_log(&[&volume.id, "volume republished"])?;

    let before = writes(cluster)?;
    for round in 0..ROUNDS {
        // The store is asked anew, and the kubelet comes by.
        let mark = format!("secrets-store.csi.x-k8s.io/refresh={round}");
        namespace.kubectl(&[
            "annotate",
            "--overwrite",
            "secretproviderclass",
            "shop",
            &mark,
        ])?;
        driver.wait_for_more_log(&[&volume.id, "volume republished"])?;
    }
    ensure!(writes(cluster)? == before, "unchanged Secrets were written");
    // A new process reads each of them once, and finds it as it should be.
    let process = driver.process()?;
    driver.signal("TERM")?;
    driver.wait_until_restarted(&process)?;
    driver.wait_for_log(&[&volume.id, "Secrets looked at"])?;
    let after = writes(cluster)?;
    ensure!(
        after == before,
        "a new process wrote {} times",
        after - before
    );
    namespace.delete_pod("reader")
}
