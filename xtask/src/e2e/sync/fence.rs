//! What the driver's ServiceAccount may do to Secrets, whoever acts in its name: make and change those that are
//! marked as the driver's, of types that are its own to make, and delete none (K2, K3, K5).

use anyhow::{Result, ensure};

use super::super::driver::Driver;
use crate::cluster::Namespace;

const DRIVER: &str = "--as=system:serviceaccount:kube-system:secrets-store-csi-driver";
const MANAGED: &str = "secrets-store.csi.k8s.io/managed";

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-fence")?;
    for (verb, may) in [
        ("create", true),
        ("get", true),
        ("patch", true),
        ("list", false),
        ("watch", false),
        ("update", false),
        ("delete", false),
        ("deletecollection", false),
    ] {
        // kubectl says it by its exit code too.
        let answer = namespace.kubectl(&["auth", "can-i", verb, "secrets", DRIVER]);
        ensure!(answer.is_ok() == may, "{verb}: {answer:?}");
    }

    namespace.kubectl(&[
        "create",
        "secret",
        "generic",
        "theirs",
        "--from-literal=a=b",
    ])?;
    let label = |secret: &str, value: &str| {
        let patch = format!(r#"{{"metadata": {{"labels": {{"{MANAGED}": {value}}}}}}}"#);
        namespace.kubectl(&[
            "patch",
            "secret",
            secret,
            "--type=merge",
            "--patch",
            &patch,
            DRIVER,
        ])
    };
    ensure_denied(
        label("theirs", "\"true\""),
        "takes over a Secret by marking it",
    )?;
    ensure_denied(
        make(&namespace, "unmarked", "Opaque", "{}"),
        "makes one that is not marked",
    )?;
    let marked = format!(r#"{{"{MANAGED}": "true"}}"#);
    for kind in [
        "kubernetes.io/service-account-token",
        "bootstrap.kubernetes.io/token",
        "x.k8s.io/y",
    ] {
        ensure_denied(make(&namespace, "wrong", kind, &marked), kind)?;
    }
    for (name, kind) in [("plain", "Opaque"), ("custom", "example.com/mine")] {
        make(&namespace, name, kind, &marked)?;
    }
    ensure_denied(label("plain", "null"), "takes the mark off")
}

fn make(namespace: &Namespace<'_>, name: &str, kind: &str, labels: &str) -> Result<String> {
    let annotations = r#"{"kubernetes.io/service-account.name": "default"}"#;
    let secret = format!(
        r#"{{"apiVersion": "v1", "kind": "Secret", "type": "{kind}", "data": {{"a": "Yg=="}},
            "metadata": {{"name": "{name}", "labels": {labels}, "annotations": {annotations}}}}}"#
    );
    namespace.kubectl_given(&["create", "-f", "-", DRIVER], &secret)
}

/// By the policy, and not because there is no right to it.
fn ensure_denied(answer: Result<String>, what: &str) -> Result<()> {
    let refusal = answer
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(
        refusal.contains("ValidatingAdmissionPolicy"),
        "the driver's ServiceAccount {what}: {refusal:?}"
    );
    Ok(())
}
