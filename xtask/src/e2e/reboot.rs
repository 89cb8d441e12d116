//! The node loses its power: mounts are gone, folders are left. A pod that is still wanted gets its volume anew;
//! of one that was deleted meanwhile the kubelet has only a folder, which unpublish takes away (T9).

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let cluster = driver.cluster();
    let namespace = driver.namespace("reboot")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&reader("stays", "shop"))?;
    namespace.apply(&reader("goes", "shop"))?;
    namespace.wait_for_pod("stays", SOON)?;
    namespace.wait_for_pod("goes", SOON)?;
    let stays = driver.volume(&namespace, "stays", "secrets")?;
    let goes = driver.volume(&namespace, "goes", "secrets")?;
    let before = driver.process()?;

    // Too late for the kubelet to hear of it before the lights go out.
    cluster.stop_kubelet()?;
    namespace.kubectl(&["delete", "pod", "goes", "--force", "--grace-period=0"])?;
    driver.store(&namespace, "password", "second")?;
    cluster.reboot_without_kubelet()?;
    let left = cluster.on_node(&["sh", "-c", r#"ls -A "$0""#, &goes.target]);
    ensure!(
        left.is_ok_and(|left| left.is_empty()),
        "what the story is about, a folder with nothing on it, is not there"
    );
    cluster.start_kubelet()?;

    driver.wait_until_restarted(&before)?;
    goes.wait_until_gone()?;
    driver.wait_for_log(&[&goes.id, "volume unpublished"])?;
    namespace.wait_for_pod("stays", SOON)?;
    driver.wait_for_value(&namespace, "stays", "/secrets/password", "second")?;
    stays.mount_id()?;
    driver.store(&namespace, "password", "third")?;
    driver.wait_for_value(&namespace, "stays", "/secrets/password", "third")?;

    namespace.delete_pod("stays")?;
    stays.wait_until_gone()
}
