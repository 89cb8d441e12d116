//! A Secret that somebody else has made survives byte for byte, its volume is mounted, and the owner is told (K3).

use anyhow::{Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::super::manifests::reader;
use super::{class, secret};

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-foreign")?;
    driver.store(&namespace, "foo", "ours")?;
    namespace.kubectl(&[
        "create",
        "secret",
        "generic",
        "theirs",
        "--from-literal=username=theirs",
    ])?;
    let whole = || {
        namespace.kubectl(&[
            "get",
            "secret",
            "theirs",
            "-o=json",
            "--show-managed-fields",
        ])
    };
    let before = whole()?;
    let secret = secret("theirs", "foo", "username");
    namespace.apply(&class("shop", &["foo"], &format!("[{secret}]")))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/foo"])? == "ours");
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    driver.wait_for_log(&[
        &volume.id,
        "Secret not synced",
        "Secret theirs is there already",
    ])?;
    let failed = "--field-selector=reason=FailedToCreateSecret";
    let notes = ["get", "events", failed, "-o=jsonpath={.items[*].message}"];
    driver
        .cluster()
        .wait_until("an Event tells the pod's owner", SOON, || {
            let said = namespace.kubectl(&notes)?;
            Ok(said.contains("Secret theirs is there already"))
        })?;
    driver.store(&namespace, "foo", "ours again")?;
    driver.wait_for_value(&namespace, "reader", "/secrets/foo", "ours again")?;
    ensure!(whole()? == before, "somebody else's Secret was touched");
    namespace.delete_pod("reader")
}
