//! A second container of the pod, which does not mount the volume, sees nothing of it.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, source};
use crate::cluster::BUSYBOX;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("neighbour")?;
    driver.store(&namespace, "signing-key", "key")?;
    namespace.apply(&class("shop", &["signing-key"]))?;
    namespace.apply(&pod())?;
    namespace.wait_for_pod("shop", SOON)?;

    let in_container = |container: &str, command: &str| {
        let container = format!("--container={container}");
        namespace.kubectl(&["exec", "shop", &container, "--", "sh", "-c", command])
    };
    ensure!(in_container("signer", "cat /secrets/signing-key")? == "key");
    let found = in_container(
        "frontend",
        "find / -name 'signing-key*' 2>/dev/null || true",
    )?;
    ensure!(found.is_empty(), "the frontend finds {found}");
    // Nor is the tmpfs anywhere in its mounts, be it under another name.
    let device = driver
        .volume(&namespace, "shop", "secrets")?
        .mount()?
        .device;
    let has_it = |container| {
        let table = in_container(container, "cat /proc/self/mountinfo")?;
        anyhow::Ok(table.contains(&format!(" {device} ")))
    };
    ensure!(has_it("signer")?, "one tmpfs has two numbers");
    ensure!(!has_it("frontend")?, "the frontend has the mount");

    namespace.delete_pod("shop")
}

fn pod() -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: shop}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: signer
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
    - {{name: secrets, mountPath: /secrets, readOnly: true}}
  - name: frontend
    image: {BUSYBOX}
    imagePullPolicy: Never
  volumes:
  - name: secrets
    {source}
",
        source = source("shop")
    )
}
