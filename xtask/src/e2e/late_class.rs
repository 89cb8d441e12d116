//! A pod without its class waits, its events say for what, and it starts once the class is there.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::{Driver, failed_mounts};
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("late-class")?;
    driver.store(&namespace, "password", "first")?;

    // In one go, the pod first: that is no failure, unless the class comes some seconds after it.
    let mut failed = String::new();
    for attempt in 0..3 {
        let (pod, shop) = (format!("early-{attempt}"), format!("shop-{attempt}"));
        let both = format!("{}---{}", reader(&pod, &shop), class(&shop, &["password"]));
        namespace.apply(&both)?;
        namespace.wait_for_pod(&pod, SOON)?;
        failed = failed_mounts(&namespace, &pod)?;
        namespace.delete_pod(&pod)?;
        if failed.is_empty() {
            break;
        }
    }
    ensure!(failed.is_empty(), "class and pod came together: {failed}");

    namespace.apply(&reader("late", "later"))?;
    driver
        .cluster()
        .wait_until("an event says what is missing", SOON, || {
            let said = failed_mounts(&namespace, "late")?;
            Ok(said.contains("ClassNotFound") && said.contains("later"))
        })?;
    namespace.apply(&class("later", &["password"]))?;
    namespace.wait_for_pod("late", SOON)?;
    ensure!(namespace.exec("late", &["cat", "/secrets/password"])? == "first");

    namespace.delete_pod("late")
}
