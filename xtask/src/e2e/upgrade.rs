//! The driver is killed, its pod deleted, its image upgraded and rolled back, all under a running pod: the pod
//! keeps the mount it has (T7), and whoever serves next goes on with the rotation.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("upgrade")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    let mount = volume.mount_id()?;

    type Change = fn(&Driver<'_>) -> Result<()>;
    let changes: [(&str, Change); 4] = [
        ("kill", |driver| driver.signal("KILL")),
        ("delete", |driver| {
            driver.kubectl(&["delete", "pod", &driver.pod()?])?;
            Ok(())
        }),
        ("upgrade", |driver| driver.upgrade()),
        ("rollback", |driver| driver.roll_back()),
    ];
    for (change, make) in changes {
        let (before, generation) = (driver.process()?, volume.generation()?);
        make(driver)?;
        driver.wait_until_restarted(&before)?;
        // The kubelet asks the new one for what is there already.
        driver.wait_for_log(&[&volume.id, "volume taken over"])?;
        driver.wait_for_log(&[&volume.id, "volume republished"])?;
        ensure!(volume.mount_id()? == mount, "after {change} it is another");
        ensure!(
            volume.generation()? == generation,
            "after {change} it was written anew, with nothing new"
        );

        let value = format!("after-{change}");
        driver.store(&namespace, "password", &value)?;
        driver.wait_for_value(&namespace, "reader", "/secrets/password", &value)?;
        ensure!(volume.mount_id()? == mount, "the rotation mounted it anew");
    }

    let restarts = "-o=jsonpath={.status.containerStatuses[*].restartCount}";
    let restarts = namespace.kubectl(&["get", "pod", "reader", restarts])?;
    ensure!(restarts == "0", "the pod itself was restarted");
    namespace.delete_pod("reader")?;
    volume.wait_until_gone()
}
