//! Upstream's cases C8 to C10: two Deployments share a class, and its Secret lasts as long as one of them.

use anyhow::{Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::{class, deployment, field, is_gone, owners, print, secret};

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-owners")?;
    driver.store(&namespace, "foo", "secret")?;
    namespace.apply(&class(
        "sync",
        &["foo"],
        &format!("[{}]", secret("foosecret", "foo", "username")),
    ))?;
    for name in ["first", "second"] {
        namespace.apply(&deployment(name, "sync"))?;
    }
    for name in ["first", "second"] {
        namespace.kubectl(&[
            "rollout",
            "status",
            &format!("deployment/{name}"),
            "--timeout=90s",
        ])?;
        let read = |what: &[&str]| {
            let pod = format!("deployment/{name}");
            namespace.kubectl(&[&["exec", &pod, "--"], what].concat())
        };
        ensure!(read(&["cat", "/secrets/foo"])? == "secret");
        ensure!(read(&print("SECRET_USERNAME"))?.trim() == "secret");
    }
    ensure!(field(&namespace, "foosecret", ".data.username")? == "c2VjcmV0");
    ensure!(field(&namespace, "foosecret", ".metadata.labels.environment")? == "test");
    let managed = r".metadata.labels.secrets-store\.csi\.k8s\.io/managed";
    ensure!(field(&namespace, "foosecret", managed)? == "true");
    let cluster = driver.cluster();
    cluster.wait_until("both Deployments own the Secret", SOON, || {
        Ok(owners(&namespace, "foosecret")? == 2)
    })?;

    namespace.kubectl(&["delete", "deployment", "first", "--timeout=60s"])?;
    cluster.wait_until("one owner is left", SOON, || {
        Ok(owners(&namespace, "foosecret")? == 1)
    })?;
    ensure!(field(&namespace, "foosecret", ".data.username")? == "c2VjcmV0");
    namespace.kubectl(&["delete", "deployment", "second", "--timeout=60s"])?;
    cluster.wait_until("the Secret goes with its last owner", SOON, || {
        is_gone(&namespace, "foosecret")
    })
}
