//! Upstream's case C15: a rotation reaches the files and the Secret.

use anyhow::{Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::super::manifests::reader;
use super::{class, field, secret};

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-rotation")?;
    driver.store(&namespace, "foo", "secret")?;
    let secret = secret("rotationsecret", "foo", "username");
    namespace.apply(&class("shop", &["foo"], &format!("[{secret}]")))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    ensure!(field(&namespace, "rotationsecret", ".data.username")? == "c2VjcmV0");

    driver.store(&namespace, "foo", "rotated")?;
    driver.wait_for_value(&namespace, "reader", "/secrets/foo", "rotated")?;
    // In the same step, and before the files.
    ensure!(field(&namespace, "rotationsecret", ".data.username")? == "cm90YXRlZA==");
    namespace.delete_pod("reader")
}
