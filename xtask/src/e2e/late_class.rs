//! A pod without its class waits, its events say for what, and it starts once the class is there.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("late-class")?;
    driver.store(&namespace, "password", "first")?;
    let failures = |pod: &str| {
        let of_pod = format!("--field-selector=involvedObject.name={pod},reason=FailedMount");
        namespace.kubectl(&["get", "events", &of_pod, "-o=jsonpath={.items[*].message}"])
    };

    // In one go, the pod first: that is no failure.
    let both = format!(
        "{}---{}",
        reader("early", "shop"),
        class("shop", &["password"])
    );
    namespace.apply(&both)?;
    namespace.wait_for_pod("early", SOON)?;
    let failed = failures("early")?;
    ensure!(failed.is_empty(), "class and pod came together: {failed}");

    namespace.apply(&reader("late", "later"))?;
    driver
        .cluster()
        .wait_until("an event says what is missing", SOON, || {
            let said = failures("late")?;
            Ok(said.contains("ClassNotFound") && said.contains("later"))
        })?;
    namespace.apply(&class("later", &["password"]))?;
    namespace.wait_for_pod("late", SOON)?;
    ensure!(namespace.exec("late", &["cat", "/secrets/password"])? == "first");

    namespace.delete_pod("early")?;
    namespace.delete_pod("late")
}
