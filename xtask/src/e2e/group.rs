//! Who may read: a pod that is not root gets its files by its fsGroup, as from a Secret volume.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::source;
use crate::cluster::BUSYBOX;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("group")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(CLASS)?;
    namespace.apply(&pod(
        "member",
        "runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000",
    ))?;
    namespace.apply(&pod("stranger", "runAsUser: 1000, runAsGroup: 1000"))?;
    namespace.wait_for_pod("member", SOON)?;
    namespace.wait_for_pod("stranger", SOON)?;

    let read = ["cat", "/secrets/password"];
    let look = ["stat", "-L", "-c", "%u:%g %a", "/secrets/password"];
    ensure!(namespace.exec("member", &read)? == "first");
    let seen = namespace.exec("member", &look)?;
    ensure!(seen.trim() == "0:2000 440", "the group's file is {seen}");

    let refused = namespace.exec("stranger", &read);
    ensure!(refused.is_err(), "a file of mode 0400 is there for all");
    let seen = namespace.exec("stranger", &look)?;
    ensure!(seen.trim() == "0:0 400", "without a group it is {seen}");

    driver.store(&namespace, "password", "second")?;
    driver.wait_for_value(&namespace, "member", "/secrets/password", "second")?;
    let seen = namespace.exec("member", &look)?;
    ensure!(seen.trim() == "0:2000 440", "after a rotation it is {seen}");

    namespace.delete_pod("member")?;
    namespace.delete_pod("stranger")
}

const CLASS: &str = r"
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: shop}
spec:
  provider: file
  defaultMode: 0400
";

fn pod(name: &str, security: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{{security}}}
  containers:
  - name: reader
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
    - {{name: secrets, mountPath: /secrets, readOnly: true}}
  volumes:
  - name: secrets
    {source}
",
        source = source("shop")
    )
}
