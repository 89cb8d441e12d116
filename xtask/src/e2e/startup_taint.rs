//! A node that was made with the startup taint takes pods once the driver serves there, and the driver's right to change
//! Nodes ends at that.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

const TAINT: &str = "secrets-store.csi.k8s.io/agent-not-ready";

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let told = tell(driver);
    // However it went, the next story gets the node and the driver as they were.
    let (cluster, node) = (driver.cluster(), driver.cluster().node_name());
    for taint in [TAINT, "story"] {
        // Those that are gone are an error.
        let _ = cluster.kubectl(&["taint", "node", &node, &format!("{taint}-")]);
    }
    let ready = driver.wait_until_ready();
    let undone = ready.and_then(|()| driver.set("linux.removeStartupTaint=false"));
    told.and(undone)
}

fn tell(driver: &Driver<'_>) -> Result<()> {
    let cluster = driver.cluster();
    let node = cluster.node_name();
    let namespace = driver.namespace("startup-taint")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;

    driver.set("linux.removeStartupTaint=true")?;
    for taint in [
        format!("{TAINT}=:NoSchedule"),
        "story=:PreferNoSchedule".to_owned(),
    ] {
        cluster.kubectl(&["taint", "node", &node, &taint])?;
    }
    namespace.apply(&reader("reader", "shop"))?;
    let before = driver.process()?;
    driver.kubectl(&["delete", "pod", &driver.pod()?])?;
    driver.wait_until_restarted(&before)?;
    namespace.wait_for_pod("reader", SOON)?;
    let taints = "-o=jsonpath={.spec.taints[*].key}";
    let taints = cluster.kubectl(&["get", "node", &node, taints])?;
    ensure!(taints == "story", "the taints are {taints:?}");

    // As the driver, and from no node: nothing of it may change.
    for patch in [
        r#"{"metadata": {"labels": {"mine": "yes"}}}"#,
        r#"{"spec": {"unschedulable": true}}"#,
        r#"{"spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}}"#,
    ] {
        let driver_itself = "--as=system:serviceaccount:kube-system:secrets-store-csi-driver";
        let patched = cluster.kubectl(&["patch", "node", &node, driver_itself, "--patch", patch]);
        let refused = patched.err().map(|error| format!("{error:#}"));
        let refused = refused.unwrap_or_default();
        ensure!(refused.contains("the driver may"), "{patch}: {refused:?}");
    }
    namespace.delete_pod("reader")
}
