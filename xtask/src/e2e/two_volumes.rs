//! Two volumes in one pod: a mount each, and what changes in one leaves the other alone.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, source};
use crate::cluster::BUSYBOX;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("two-volumes")?;
    driver.store(&namespace, "database", "first")?;
    driver.store(&namespace, "queue", "first")?;
    namespace.apply(&class("database", &["database"]))?;
    namespace.apply(&class("queue", &["queue"]))?;
    namespace.apply(&pod())?;
    namespace.wait_for_pod("shop", SOON)?;

    let database = driver.volume(&namespace, "shop", "database")?;
    let queue = driver.volume(&namespace, "shop", "queue")?;
    ensure!(database.mount_id()? != queue.mount_id()?);
    ensure!(namespace.exec("shop", &["ls", "/database"])?.trim() == "database");
    ensure!(namespace.exec("shop", &["ls", "/queue"])?.trim() == "queue");

    let generation = queue.generation()?;
    driver.store(&namespace, "database", "second")?;
    driver.wait_for_value(&namespace, "shop", "/database/database", "second")?;
    ensure!(namespace.exec("shop", &["cat", "/queue/queue"])? == "first");
    ensure!(
        queue.generation()? == generation,
        "the other volume was written too"
    );

    namespace.delete_pod("shop")?;
    database.wait_until_gone()?;
    queue.wait_until_gone()
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
    - {{name: database, mountPath: /database, readOnly: true}}
    - {{name: queue, mountPath: /queue, readOnly: true}}
  volumes:
  - name: database
    {database}
  - name: queue
    {queue}
",
        database = source("database"),
        queue = source("queue")
    )
}
