//! Kubernetes Secrets that the driver makes of volumes. One file is one story.

pub(super) mod environment;
pub(super) mod fence;
pub(super) mod foreign;
pub(super) mod namespaces;
pub(super) mod owners;
pub(super) mod quiet;
pub(super) mod rotation;
pub(super) mod two_classes;

use anyhow::{Context as _, Result};

use crate::cluster::{BUSYBOX, Cluster, Namespace};

/// A class of the file provider with these objects, and Secrets: the list below `secretObjects`, as JSON.
fn class(name: &str, objects: &[&str], secrets: &str) -> String {
    let plain = super::manifests::class(name, objects);
    format!("{}\n  secretObjects: {secrets}\n", plain.trim_end())
}

/// One Secret with the file `object` as the key `key`, as a class lists it.
fn secret(name: &str, object: &str, key: &str) -> String {
    format!(
        r#"{{"secretName": "{name}", "type": "Opaque", "labels": {{"environment": "test"}}, "data": [{{"objectName": "{object}", "key": "{key}"}}]}}"#
    )
}

/// What a pod is made by: a container that has the volume of `class`, and `more` in it.
fn pod_spec(class: &str, more: &str) -> String {
    let spec = format!(
        r#"{{"terminationGracePeriodSeconds": 1, "containers": [{{
    "name": "reader", "image": "{BUSYBOX}", "imagePullPolicy": "Never", {more}
    "volumeMounts": [{{"name": "secrets", "mountPath": "/secrets", "readOnly": true}}]}}],
  "volumes": [{{"name": "secrets", {volume}}}]}}"#,
        volume = volume(class)
    );
    // Within YAML, which looks at where lines begin.
    spec.replace('\n', "")
}

fn volume(class: &str) -> String {
    format!(
        r#""csi": {{"driver": "secrets-store.csi.k8s.io", "readOnly": true, "volumeAttributes": {{"secretProviderClass": "{class}"}}}}"#
    )
}

/// The environment of a container: one variable from the key of a Secret.
fn variable(name: &str, secret: &str, key: &str) -> String {
    format!(
        r#"{{"name": "{name}", "valueFrom": {{"secretKeyRef": {{"name": "{secret}", "key": "{key}"}}}}}}"#
    )
}

/// What prints a variable of a container's environment; its busybox has no printenv.
fn print(variable: &str) -> [&str; 5] {
    ["sh", "-c", r#"eval "echo \$$1""#, "sh", variable]
}

/// A Deployment of two replicas whose container has `SECRET_USERNAME` from the Secret `foosecret`.
fn deployment(name: &str, class: &str) -> String {
    let env = format!(
        r#""env": [{}],"#,
        variable("SECRET_USERNAME", "foosecret", "username")
    );
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {}
"#,
        pod_spec(class, &env)
    )
}

/// One field of a Secret, by its JSONPath.
fn field(namespace: &Namespace<'_>, secret: &str, path: &str) -> Result<String> {
    namespace.kubectl(&["get", "secret", secret, &format!("-o=jsonpath={{{path}}}")])
}

/// How many owners a Secret has.
fn owners(namespace: &Namespace<'_>, secret: &str) -> Result<usize> {
    let uids = field(namespace, secret, ".metadata.ownerReferences[*].uid")?;
    Ok(uids.split_whitespace().count())
}

fn is_gone(namespace: &Namespace<'_>, secret: &str) -> Result<bool> {
    let found = namespace.kubectl(&["get", "secret", secret, "--ignore-not-found", "-o=name"])?;
    Ok(found.trim().is_empty())
}

/// How many requests the API server has had that could have written a Secret. The cluster itself deletes some, of
/// stories before, and the driver may not.
fn writes(cluster: &Cluster) -> Result<u64> {
    let scrape = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let lines = scrape.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"secrets\"")
            && ["POST", "PUT", "PATCH", "APPLY"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    });
    lines
        .map(|line| {
            let count = line.rsplit(' ').next().unwrap_or_default();
            let count: f64 = count.parse().with_context(|| line.to_owned())?;
            Ok(count as u64)
        })
        .sum()
}
