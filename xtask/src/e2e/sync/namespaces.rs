//! Upstream's cases C11 and C12: a class of the same name in another Namespace has nothing to do with it.

use anyhow::{Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::{class, deployment, field, is_gone, owners, print, secret};

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let other = driver.namespace("sync-other")?;
    other.apply(
        "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
         metadata: {name: sync}\nspec: {provider: invalid}\n",
    )?;
    let namespace = driver.namespace("sync-namespaced")?;
    driver.store(&namespace, "foo", "secret")?;
    namespace.apply(&class(
        "sync",
        &["foo"],
        &format!("[{}]", secret("foosecret", "foo", "username")),
    ))?;
    namespace.apply(&deployment("web", "sync"))?;
    namespace.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    let read =
        |what: &[&str]| namespace.kubectl(&[&["exec", "deployment/web", "--"], what].concat());
    ensure!(read(&["cat", "/secrets/foo"])? == "secret");
    ensure!(read(&print("SECRET_USERNAME"))?.trim() == "secret");
    ensure!(field(&namespace, "foosecret", ".data.username")? == "c2VjcmV0");
    ensure!(owners(&namespace, "foosecret")? == 1);
    ensure!(
        is_gone(&other, "foosecret")?,
        "a Secret of another Namespace"
    );

    namespace.kubectl(&["delete", "deployment", "web", "--timeout=60s"])?;
    driver
        .cluster()
        .wait_until("the Secret goes with its owner", SOON, || {
            is_gone(&namespace, "foosecret")
        })
}
