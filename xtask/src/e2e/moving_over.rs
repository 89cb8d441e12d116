//! A release of secrets-store-csi-driver becomes one of Coffer by `helm upgrade`, and no pod notices: its volumes are
//! there, mounted and filled as that driver and the plugins of its stores do it, or left empty.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader};
use super::volume::Volume;
use crate::cluster::Namespace;

/// How each pod's volume was left, as a script for the folder of the mount.
const VOLUMES: [(&str, &str); 3] = [
    (
        "own-layout",
        "mkdir ..2026_11_21_10_00_00.1 && printf old > ..2026_11_21_10_00_00.1/password \
         && ln -s ..2026_11_21_10_00_00.1 ..data && ln -s ..data/password password",
    ),
    ("plain-files", "printf old > password && printf old > gone"),
    ("empty", "true"),
];

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let cluster = driver.cluster();
    driver.replace_by_the_incumbent()?;
    let namespace = driver.namespace("moving-over")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    let mut volumes = Vec::new();
    for (pod, script) in VOLUMES {
        namespace.apply(&reader(pod, "shop"))?;
        let volume = driver.volume(&namespace, pod, "secrets")?;
        let mount = r#"mkdir -p -m 750 "$(dirname "$0")" && mkdir -m 750 "$0" && mount -t tmpfs tmpfs "$0" && cd "$0" && "#;
        cluster.on_node(&["sh", "-c", &format!("{mount}{script}"), &volume.target])?;
        volumes.push((pod, volume.mount()?.device, volume));
    }
    let kept = leave_objects(&namespace, &volumes[0].2)?;

    driver.upgrade_the_incumbent()?;

    for (pod, device, volume) in &volumes {
        namespace.wait_for_pod(pod, SOON)?;
        driver.wait_for_value(&namespace, pod, "/secrets/password", "first")?;
        ensure!(&volume.mount()?.device == device, "{pod}: another volume");
        let names = namespace.exec(pod, &["ls", "/secrets"])?;
        ensure!(names.trim() == "password", "{pod} has {names}");
    }
    driver.store(&namespace, "password", "second")?;
    for (pod, ..) in &volumes {
        driver.wait_for_value(&namespace, pod, "/secrets/password", "second")?;
    }
    ensure!(objects(&namespace)? == kept, "an object was made anew");
    for (pod, _, volume) in &volumes {
        namespace.delete_pod(pod)?;
        volume.wait_until_gone()?;
    }
    Ok(())
}

/// A status object of the first pod and a Secret, as that driver makes them. Gives what must stay of them.
fn leave_objects(namespace: &Namespace<'_>, volume: &Volume<'_>) -> Result<String> {
    let (pod, _) = VOLUMES[0];
    let uid = namespace.kubectl(&["get", "pod", pod, "-o=jsonpath={.metadata.uid}"])?;
    let target = &volume.target;
    namespace.apply(&format!(
        r"
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClassPodStatus
metadata:
  name: {pod}-moving-over-shop
  labels: {{internal.secrets-store.csi.k8s.io/node-name: elsewhere}}
  ownerReferences: [{{apiVersion: v1, kind: Pod, name: {pod}, uid: {uid}}}]
status:
  podName: {pod}
  secretProviderClassName: shop
  mounted: true
  targetPath: {target}
  objects: [{{id: secret/password, version: v1}}]
---
apiVersion: v1
kind: Secret
metadata:
  name: synced
  labels: {{secrets-store.csi.k8s.io/managed: 'true'}}
stringData: {{password: old}}
"
    ))?;
    objects(namespace)
}

fn objects(namespace: &Namespace<'_>) -> Result<String> {
    let (pod, _) = VOLUMES[0];
    let status = format!("secretproviderclasspodstatus/{pod}-moving-over-shop");
    let uids = "-o=jsonpath={.items[*].metadata.uid} {.items[1].data}";
    namespace.kubectl(&["get", &status, "secret/synced", uids])
}
