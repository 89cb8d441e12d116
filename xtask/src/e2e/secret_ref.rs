//! A volume with a nodePublishSecretRef: the kubelet reads the Secret and hands its data to the driver, beside the
//! tokens, and none of it is said aloud.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("secret-ref")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    let secret = "--from-literal=clientsecret=canary-of-the-ref";
    namespace.kubectl(&["create", "secret", "generic", "credentials", secret])?;
    let with_ref = reader("reader", "shop").replace(
        "readOnly: true, volumeAttributes",
        "readOnly: true, nodePublishSecretRef: {name: credentials}, volumeAttributes",
    );
    namespace.apply(&with_ref)?;
    namespace.wait_for_pod("reader", SOON)?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/password"])? == "first");
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    driver.wait_for_log(&[
        &volume.id,
        "token_source=Secrets",
        "audiences=2",
        "secrets=1",
    ])?;
    driver.wait_for_more_log(&[&volume.id, "volume republished"])?;
    ensure!(!driver.log()?.contains("canary-of-the-ref"));
    namespace.delete_pod("reader")?;
    volume.wait_until_gone()
}
