//! The kubelet restarts under a running pod: it knows nothing of the volume and asks for it again, and the pod
//! notices nothing. A pod that was deleted meanwhile is cleared away.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("restart-kubelet")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&reader("stays", "shop"))?;
    namespace.apply(&reader("goes", "shop"))?;
    namespace.wait_for_pod("stays", SOON)?;
    namespace.wait_for_pod("goes", SOON)?;
    let stays = driver.volume(&namespace, "stays", "secrets")?;
    let goes = driver.volume(&namespace, "goes", "secrets")?;
    let mount = stays.mount_id()?;

    driver.cluster().stop_kubelet()?;
    // Files go on changing without a kubelet.
    driver.store(&namespace, "password", "second")?;
    let file = format!("{}/password", stays.target);
    driver
        .cluster()
        .wait_until("the volume is rotated", SOON, || {
            Ok(driver.cluster().on_node(&["cat", &file])? == "second")
        })?;
    namespace.kubectl(&["delete", "pod", "goes", "--force", "--grace-period=0"])?;
    driver.cluster().start_kubelet()?;
    driver.wait_until_ready()?;

    goes.wait_until_gone()?;
    driver.wait_for_more_log(&[&stays.id, "volume republished"])?;
    ensure!(stays.mount_id()? == mount, "it was mounted anew");
    driver.store(&namespace, "password", "third")?;
    driver.wait_for_value(&namespace, "stays", "/secrets/password", "third")?;
    ensure!(stays.mount_id()? == mount, "it was mounted anew");

    namespace.delete_pod("stays")?;
    stays.wait_until_gone()
}
