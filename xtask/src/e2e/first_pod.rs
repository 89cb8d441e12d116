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

    namespace.delete_pod("reader")
}
