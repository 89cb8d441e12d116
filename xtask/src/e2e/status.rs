//! What people see of a volume from outside: status objects, Events, and classes that are refused before they do harm.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, source};
use crate::cluster::{BUSYBOX, Namespace};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("status")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&pod())?;
    namespace.wait_for_pod("web", SOON)?;
    // The API server's own description of what it serves says so.
    for kind in ["SecretProviderClass", "SecretProviderClassPodStatus"] {
        driver.wait_for_log(&[
            "the installed CRD has all fields",
            &format!("kind=\"{kind}\""),
        ])?;
    }

    let uid = namespace.kubectl(&["get", "pod", "web", "-o=jsonpath={.metadata.uid}"])?;
    let node = driver.cluster().node_name();
    // Which of two volumes is written first, and has no name appended, is left to chance.
    let mut names = Vec::new();
    driver
        .cluster()
        .wait_until("both volumes have their status", SOON, || {
            let there =
                namespace.kubectl(&["get", "spcps", "-o=jsonpath={.items[*].metadata.name}"])?;
            names = there.split_whitespace().map(str::to_owned).collect();
            Ok(names.len() == 2)
        })?;
    ensure!(
        names[0] == "web-status-shop"
            && ["web-status-shop-more", "web-status-shop-secrets"].contains(&names[1].as_str()),
        "{names:?}"
    );
    for name in &names {
        field_is(driver, &namespace, name, "{.status.mounted}", "true")?;
        for (path, value) in [
            (
                r"{.metadata.labels.internal\.secrets-store\.csi\.k8s\.io/node-name}",
                node.as_str(),
            ),
            ("{.metadata.ownerReferences[*].uid}", &uid),
            ("{.status.podName}", "web"),
            ("{.status.secretProviderClassName}", "shop"),
            ("{.status.objects[*].id}", "password"),
            (
                r#"{.status.conditions[?(@.type=="Refreshed")].status}"#,
                "True",
            ),
            (
                r#"{.status.conditions[?(@.type=="Stale")].status}"#,
                "False",
            ),
        ] {
            field_is(driver, &namespace, name, path, value)?;
        }
    }
    let target = |name| field(&namespace, name, "{.status.targetPath}");
    ensure!(
        target(&names[0])? != target(&names[1])?,
        "two volumes have one target path"
    );
    let table = namespace.kubectl(&["get", "spcps"])?;
    ensure!(
        table.contains("REFRESHED") && table.contains("UpToDate"),
        "{table}"
    );

    let before = field(&namespace, &names[0], "{.status.objects[0].version}")?;
    driver.store(&namespace, "password", "second")?;
    driver.wait_for_value(&namespace, "web", "/secrets/password", "second")?;
    driver
        .cluster()
        .wait_until("the version is another", SOON, || {
            Ok(field(&namespace, &names[0], "{.status.objects[0].version}")? != before)
        })?;
    heard(
        driver,
        &namespace,
        "SecretsRotated",
        "replaced by newer ones",
    )?;

    namespace.kubectl(&["delete", "spc", "shop"])?;
    heard(
        driver,
        &namespace,
        "SecretsRotationFailed",
        "not found, create it",
    )?;
    let refreshed = r#"{.status.conditions[?(@.type=="Refreshed")].reason}"#;
    field_is(driver, &namespace, &names[0], refreshed, "ClassNotFound")?;
    // `describe` finds them by the pod's uid.
    let described = namespace.kubectl(&["describe", "pod", "web"])?;
    ensure!(described.contains("SecretsRotationFailed"), "{described}");

    refuses(driver, &namespace)?;
    namespace.delete_pod("web")?;
    driver
        .cluster()
        .wait_until("the objects are gone", SOON, || {
            Ok(namespace
                .kubectl(&["get", "spcps", "--output=name"])?
                .is_empty())
        })
}

/// A class that upstream takes is taken, and one that could not be mounted is refused with its field.
fn refuses(driver: &Driver<'_>, namespace: &Namespace<'_>) -> Result<()> {
    let manifest = |version: &str, spec: &str| {
        format!(
            "apiVersion: secrets-store.csi.x-k8s.io/{version}\nkind: SecretProviderClass\n\
             metadata: {{name: trial, namespace: {}}}\nspec: {spec}\n",
            namespace.name()
        )
    };
    for spec in [
        "{}",
        "{provider: ''}",
        "{provider: azure, parameters: {usePodIdentity: 'false', objects: \"array:\\n- |\\n  objectName: a\\n\"}}",
        "{provider: vault, parameters: {}, secretObjects: [{secretName: a, type: Opaque, labels: {a: b}, data: [{objectName: a/b, key: a}, {}]}, {}]}",
        "{provider: null, parameters: null, secretObjects: []}",
    ] {
        for version in ["v1", "v1alpha1"] {
            driver.cluster().dry_run(&manifest(version, spec))?;
        }
    }
    for spec in [
        "{sources: [{name: a, provider: file}, {name: b, provider: vault, parameters: {roleName: x}}], sharing: Pod}",
        "{provider: file, items: [{object: a, path: a/..b/.c, mode: 256}, {object: a, path: .hidden}, {object: a, path: x...y}]}",
        "{provider: file, refresh: {strategy: Cache, interval: 1m30s, maxStale: 0s}}",
    ] {
        driver.cluster().dry_run(&manifest("v1", spec))?;
    }
    for (spec, field) in [
        (
            "{provider: a, sources: [{name: b, provider: b}]}",
            "cannot stand beside",
        ),
        (
            "{sources: [{name: b, provider: b}, {name: b, provider: c}]}",
            "spec.sources[1]",
        ),
        (
            "{sources: [{name: b, provider: ''}]}",
            "spec.sources[0].provider",
        ),
        (
            "{provider: file, items: [{object: a}]}",
            "spec.items[0].path",
        ),
        (
            "{provider: file, items: [{object: a, path: /a}]}",
            "spec.items[0].path",
        ),
        (
            "{provider: file, items: [{object: a, path: a/../b}]}",
            "spec.items[0].path",
        ),
        (
            "{provider: file, items: [{object: a, path: ..a}]}",
            "spec.items[0].path",
        ),
        (
            "{provider: file, items: [{object: a, path: a//b}]}",
            "spec.items[0].path",
        ),
        (
            "{provider: file, items: [{object: a, path: a, mode: 512}]}",
            "spec.items[0].mode",
        ),
        (
            "{provider: file, refresh: {interval: 0s}}",
            "spec.refresh.interval",
        ),
        (
            "{provider: file, refresh: {interval: soon}}",
            "spec.refresh.interval",
        ),
        (
            "{provider: file, refresh: {strategy: watch}}",
            "spec.refresh.strategy",
        ),
        ("{provider: file, sharing: Node}", "spec.sharing"),
    ] {
        let Err(refused) = driver.cluster().dry_run(&manifest("v1", spec)) else {
            anyhow::bail!("{spec} is taken");
        };
        let words = format!("{refused:#}");
        ensure!(
            words.contains(field),
            "{spec} is refused without {field}: {words}"
        );
    }
    Ok(())
}

fn field(namespace: &Namespace<'_>, name: &str, path: &str) -> Result<String> {
    namespace.kubectl(&["get", "spcps", name, &format!("-o=jsonpath={path}")])
}

fn field_is(
    driver: &Driver<'_>,
    namespace: &Namespace<'_>,
    name: &str,
    path: &str,
    value: &str,
) -> Result<()> {
    let what = format!("{path} of {name} is {value}");
    driver
        .cluster()
        .wait_until(&what, SOON, || Ok(field(namespace, name, path)? == value))
}

/// Waits until the pod has an Event of this reason, which is one.
fn heard(driver: &Driver<'_>, namespace: &Namespace<'_>, reason: &str, words: &str) -> Result<()> {
    let of_pod = format!("--field-selector=involvedObject.name=web,reason={reason}");
    let what = format!("the pod has an event {reason}");
    driver.cluster().wait_until(&what, SOON, || {
        let said =
            namespace.kubectl(&["get", "events", &of_pod, "-o=jsonpath={.items[*].message}"])?;
        Ok(said.contains(words))
    })
}

fn pod() -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
    - {{name: secrets, mountPath: /secrets, readOnly: true}}
    - {{name: more, mountPath: /more, readOnly: true}}
  volumes:
  - name: secrets
    {source}
  - name: more
    {source}
",
        source = source("shop")
    )
}
