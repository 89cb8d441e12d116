//! What a driver on this node relies on: its mounts reach the node and stay there when the kubelet restarts, and
//! a reboot takes the mounts and leaves the folders.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::{BUSYBOX, Cluster, Namespace};

const SOON: Duration = Duration::from_secs(90);

pub(super) fn run(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace("node")?;
    let shared = cluster.kubelet_root().join("shared");
    let shared = shared.to_str().unwrap_or_default();

    namespace.apply(&mounter(&cluster.kubelet_root(), shared))?;
    namespace.kubectl(&["rollout", "status", "daemonset/mounter", "--timeout=90s"])?;
    let word = format!("{shared}/word");
    cluster.wait_until("the DaemonSet's mount is on the node", SOON, || {
        cluster
            .on_node(&["cat", &word])
            .map(|word| word == "mounted\n")
    })?;
    ensure!(
        !Path::new(&word).exists(),
        "the mount has left the node and is on the machine itself"
    );

    namespace.apply(&diary())?;
    namespace.wait_for_pod("diary", SOON)?;
    ensure!(starts(&namespace)? == [1, 1]);

    cluster.restart_kubelet()?;
    ensure!(
        cluster.on_node(&["cat", &word])? == "mounted\n",
        "the kubelet's restart took a mount"
    );
    ensure!(
        starts(&namespace)? == [1, 1],
        "the kubelet's restart took a container"
    );

    cluster.reboot_node()?;
    cluster.wait_until("the pod has started again", SOON, || {
        Ok(starts(&namespace)?[0] == 2)
    })?;
    ensure!(
        starts(&namespace)? == [2, 1],
        "memory has outlived the reboot"
    );
    namespace.delete_pod("diary")
}

/// How often the diary's container started, told by a file on the disk and by one in memory.
fn starts(namespace: &Namespace<'_>) -> Result<[usize; 2]> {
    let lines =
        |file| Ok::<_, anyhow::Error>(namespace.exec("diary", &["cat", file])?.lines().count());
    Ok([lines("/disk/starts")?, lines("/memory/starts")?])
}

fn mounter(kubelet_root: &Path, shared: &str) -> String {
    format!(
        r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: mounter}}
spec:
  selector: {{matchLabels: {{app: mounter}}}}
  template:
    metadata: {{labels: {{app: mounter}}}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - name: mounter
        image: {BUSYBOX}
        imagePullPolicy: Never
        securityContext: {{privileged: true}}
        command: [sh, -c, 'mkdir -p {shared} && mount -t tmpfs none {shared} && echo mounted > {shared}/word && sleep 3600']
        volumeMounts:
        - {{name: kubelet, mountPath: {kubelet_root}, mountPropagation: Bidirectional}}
      volumes:
      - name: kubelet
        hostPath: {{path: {kubelet_root}}}
",
        kubelet_root = kubelet_root.display()
    )
}

fn diary() -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: diary}}
spec:
  containers:
  - name: diary
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sh, -c, 'echo started >> /disk/starts; echo started >> /memory/starts; exec sleep 3600']
    volumeMounts:
    - {{name: disk, mountPath: /disk}}
    - {{name: memory, mountPath: /memory}}
  volumes:
  - name: disk
    emptyDir: {{}}
  - name: memory
    emptyDir: {{medium: Memory}}
"
    )
}
