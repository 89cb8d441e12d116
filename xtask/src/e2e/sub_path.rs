//! subPath: the container has the one file, and keeps the one of its start, as with a Secret volume.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, source};
use crate::cluster::BUSYBOX;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sub-path")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&pod())?;
    namespace.wait_for_pod("shop", SOON)?;
    ensure!(namespace.exec("shop", &["cat", "/etc/password"])? == "first");

    driver.store(&namespace, "password", "second")?;
    driver.wait_for_value(&namespace, "shop", "/secrets/password", "second")?;
    ensure!(namespace.exec("shop", &["cat", "/etc/password"])? == "first");
    // The generation that the file belongs to is swept two seconds later. Who holds the file keeps it.
    let volume = driver.volume(&namespace, "shop", "secrets")?;
    let folders = format!("ls -A {} | grep -c '^\\.\\.2'", volume.target);
    driver
        .cluster()
        .wait_until("the first generation is swept", SOON, || {
            Ok(driver.cluster().on_node(&["sh", "-c", &folders])?.trim() == "1")
        })?;
    ensure!(namespace.exec("shop", &["cat", "/etc/password"])? == "first");

    namespace.delete_pod("shop")?;
    volume.wait_until_gone()
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
  - name: shop
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
    - {{name: secrets, mountPath: /secrets, readOnly: true}}
    - {{name: secrets, mountPath: /etc/password, subPath: password, readOnly: true}}
  volumes:
  - name: secrets
    {source}
",
        source = source("shop")
    )
}
