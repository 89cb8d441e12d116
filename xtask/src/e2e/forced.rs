//! A pod that is deleted by force is gone from the API server at once. Its volume follows it from the node.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("forced")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    volume.mount_id()?;

    namespace.kubectl(&["delete", "pod", "reader", "--force", "--grace-period=0"])?;
    // A pod of the same name is another pod.
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    let next = driver.volume(&namespace, "reader", "secrets")?;
    ensure!(next.id != volume.id);
    volume.wait_until_gone()?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/password"])? == "first");
    namespace.delete_pod("reader")
}
