//! Cases of secrets-store-csi-driver's own end-to-end tests that need no story of their own: what tools and people
//! rely on. (C8 to C12, C14 and C15 are about synced Secrets.)

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};

/// Both kinds are established, under both versions.
pub(super) fn c2_c3(driver: &Driver<'_>) -> Result<()> {
    for kind in ["secretproviderclasses", "secretproviderclasspodstatuses"] {
        let crd = format!("crd/{kind}.secrets-store.csi.x-k8s.io");
        let established = ["wait", "--for=condition=Established", "--timeout=60s", &crd];
        driver.kubectl(&established)?;
        let versions = "-o=jsonpath={.spec.versions[?(@.served==true)].name}";
        ensure!(driver.kubectl(&["get", &crd, versions])? == "v1 v1alpha1");
    }
    Ok(())
}

/// Roles and bindings have the names that administrators have bound rights to.
pub(super) fn c4(driver: &Driver<'_>) -> Result<()> {
    for name in [
        "clusterrole/secretproviderclasses-admin-role",
        "clusterrole/secretproviderclasses-role",
        "clusterrole/secretproviderclasses-viewer-role",
        "clusterrole/secretproviderclasspodstatuses-viewer-role",
        "clusterrolebinding/secretproviderclasses-rolebinding",
    ] {
        driver.kubectl(&["get", name])?;
    }
    Ok(())
}

/// A class of the deprecated version can be made, and a pod uses it.
pub(super) fn c5(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("bats-c5")?;
    driver.store(&namespace, "foo", "secret")?;
    namespace.apply(&class("old", &["foo"]).replace("x-k8s.io/v1\n", "x-k8s.io/v1alpha1\n"))?;
    namespace.apply(&reader("reader", "old"))?;
    namespace.wait_for_pod("reader", SOON)?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/foo"])? == "secret");
    namespace.delete_pod("reader")
}

/// Two files of an inline volume, and an unmount that leaves no error in the log.
pub(super) fn c6_c7(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("bats-c6")?;
    // Those of earlier stories are not of this one.
    let errors = || -> Result<usize> {
        let words = ["ERROR", "failed to clean and unmount target path"];
        let log = driver.log()?;
        let errors = log
            .lines()
            .filter(|line| words.iter().any(|word| line.contains(word)));
        Ok(errors.count())
    };
    let before = errors()?;
    let key = "-----BEGIN PUBLIC KEY-----\nmock\n-----END PUBLIC KEY-----";
    driver.store(&namespace, "foo", "secret")?;
    driver.store(&namespace, "fookey", key)?;
    namespace.apply(&class("shop", &["foo", "fookey"]))?;
    namespace.apply(&reader("reader", "shop"))?;
    namespace.wait_for_pod("reader", SOON)?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/foo"])? == "secret");
    ensure!(namespace.exec("reader", &["cat", "/secrets/fookey"])? == key);
    namespace.delete_pod("reader")?;
    ensure!(errors()? == before, "the driver has logged an error");
    Ok(())
}

/// A pod in a Namespace without the class fails with the words that people look for.
pub(super) fn c13(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("negative-test-ns")?;
    namespace.apply(&reader("reader", "e2e-provider"))?;
    let words = "failed to get secretproviderclass negative-test-ns/e2e-provider";
    driver
        .cluster()
        .wait_until("the pod says why it waits", SOON, || {
            let described = namespace.kubectl(&["describe", "pod", "reader"])?;
            let line = described
                .lines()
                .find(|line| line.contains("FailedMount") && line.contains(words));
            Ok(line.is_some_and(|line| line.contains("not found")))
        })?;
    namespace.delete_pod("reader")
}

/// Metrics have upstream's names.
pub(super) fn c16(driver: &Driver<'_>) -> Result<()> {
    let scrape = driver.cluster().ask_driver("/metrics")?;
    for name in [
        "node_publish_total",
        "node_unpublish_total",
        "rotation_reconcile_total",
    ] {
        let counted = scrape.lines().any(|line| line.starts_with(name));
        ensure!(counted, "there is no {name}");
    }
    Ok(())
}
