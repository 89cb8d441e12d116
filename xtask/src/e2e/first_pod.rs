//! The cluster itself: what every other story takes for granted.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::{BUSYBOX, Cluster};

pub(super) fn run(cluster: &Cluster) -> Result<()> {
    let version = cluster.kubectl(&["version"])?;
    ensure!(
        version.contains("Server Version: v1.36."),
        "another Kubernetes: {version}"
    );
    let releases = cluster.helm(&["list", "--all-namespaces", "--short"])?;
    ensure!(
        releases.trim().is_empty(),
        "a new cluster has the releases {releases}"
    );

    let namespace = cluster.namespace("first-pod")?;
    namespace.apply(&format!(
        r"
apiVersion: v1
kind: ServiceAccount
metadata: {{name: reader}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: letter}}
data: {{greeting: hello}}
---
apiVersion: v1
kind: Pod
metadata: {{name: reader}}
spec:
  serviceAccountName: reader
  hostNetwork: true
  containers:
  - name: reader
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
    - {{name: letter, mountPath: /letter}}
  volumes:
  - name: letter
    configMap: {{name: letter}}
"
    ))?;
    namespace.wait_for_pod("reader", Duration::from_secs(90))?;

    ensure!(namespace.exec("reader", &["cat", "/letter/greeting"])? == "hello");
    let token = namespace.exec(
        "reader",
        &["cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"],
    )?;
    ensure!(
        token.split('.').count() == 3,
        "the pod's own token is no JWT"
    );

    // What every client library looks for, and what kubectl has just been using.
    let address = [
        "sh",
        "-c",
        "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT",
    ];
    let address = namespace.exec("reader", &address)?;
    let kubeconfig = cluster.kubectl(&["config", "view", "--minify"])?;
    ensure!(
        kubeconfig.contains(&format!("server: https://{address}")),
        "the pod's own API server is {address}"
    );

    namespace.delete_pod("reader")
}
