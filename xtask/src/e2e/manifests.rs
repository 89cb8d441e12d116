//! What most stories apply. A story that is about something else in a manifest has one of its own.

use crate::cluster::BUSYBOX;

/// A class of the file provider: these objects, as files of the same names.
pub(super) fn class(name: &str, objects: &[&str]) -> String {
    let objects: String = objects
        .iter()
        .map(|object| format!("      - {object}\n"))
        .collect();
    format!(
        r"
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {{name: {name}}}
spec:
  provider: file
  parameters:
    objects: |
{objects}
"
    )
}

/// A pod that has the volume `secrets` of a class at `/secrets`, and waits to be asked.
pub(super) fn reader(pod: &str, class: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {pod}}}
spec:
  terminationGracePeriodSeconds: 1
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
        source = source(class)
    )
}

/// The source of a volume: what stands below its name.
pub(super) fn source(class: &str) -> String {
    format!(
        "csi: {{driver: secrets-store.csi.k8s.io, readOnly: true, volumeAttributes: {{secretProviderClass: {class}}}}}"
    )
}
