//! The whole life of a volume, and that the kubelet's repeated calls go unnoticed.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};
use super::volume::mounts;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("life")?;
    driver.store(&namespace, "user", "shop")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["user", "password"]))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;

    ensure!(namespace.exec("reader", &["cat", "/secrets/password"])? == "first");
    ensure!(namespace.exec("reader", &["cat", "/secrets/user"])? == "shop");
    let link = namespace.exec("reader", &["readlink", "/secrets/password"])?;
    ensure!(
        link.trim() == "..data/password",
        "a file leads to {link:?}: a Secret volume looks otherwise"
    );
    let write = namespace.exec("reader", &["touch", "/secrets/mine"]);
    ensure!(write.is_err(), "the pod can write into its volume");
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    // In the container the runtime leaves `ro` of them.
    let options = volume.mount()?.options;
    for option in ["nosuid", "nodev", "noexec"] {
        ensure!(options.split(',').any(|has| has == option), "{options}");
    }
    let (mount, generation) = (volume.mount_id()?, volume.generation()?);
    // The kubelet asks again each five to eight seconds, and nothing of that is to be seen.
    for _ in 0..2 {
        driver.wait_for_more_log(&[&volume.id, "volume republished"])?;
    }
    ensure!(volume.mount_id()? == mount, "a republish mounted it anew");
    ensure!(
        volume.generation()? == generation,
        "a republish wrote it anew"
    );

    driver.store(&namespace, "password", "second")?;
    driver.wait_for_value(&namespace, "reader", "/secrets/password", "second")?;
    ensure!(volume.mount_id()? == mount, "a rotation mounted it anew");
    ensure!(volume.generation()? != generation);
    ensure!(namespace.exec("reader", &["cat", "/secrets/user"])? == "shop");

    namespace.delete_pod("reader")?;
    volume.wait_until_gone()?;
    let seen = mounts(driver.cluster(), &driver.process()?)?;
    ensure!(
        seen.iter().all(|mount| mount.at != volume.target),
        "the driver's own container still has the mount"
    );
    Ok(())
}
