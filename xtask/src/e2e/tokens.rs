//! Tokens come from the kubelet in the request's secrets, as the chart sets it up from Kubernetes 1.35 on. What a
//! pod's author writes in their place is not believed, and no token is ever said aloud.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::{AUDIENCES, Driver};
use super::manifests::class;
use crate::cluster::BUSYBOX;

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let settings = driver.cluster().kubectl(&[
        "get",
        "csidriver",
        "secrets-store.csi.k8s.io",
        "-o=jsonpath={.spec.serviceAccountTokenInSecrets} {.spec.tokenRequests[*].audience}",
    ])?;
    ensure!(settings == format!("true {}", AUDIENCES.join(" ")));

    let namespace = driver.namespace("tokens")?;
    driver.store(&namespace, "password", "canary-of-the-store")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&forger())?;
    namespace.wait_for_pod("forger", SOON)?;
    let volume = driver.volume(&namespace, "forger", "secrets")?;
    // Both audiences' tokens, of a source that would not have been asked had they come in the context.
    driver.wait_for_log(&[&volume.id, "token_source=Secrets", "audiences=2"])?;

    // At its most talkative, the driver said neither these tokens (a JWT begins with `{"` in base64), nor the
    // forged one, nor a value.
    let log = driver.log()?;
    ensure!(log.contains("TRACE") || log.contains("DEBUG"));
    for secret in ["eyJ", "canary"] {
        ensure!(!log.contains(secret), "{secret:?} is in the driver's log");
    }
    namespace.delete_pod("forger")
}

fn forger() -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: forger}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: forger
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
    - {{name: secrets, mountPath: /secrets, readOnly: true}}
  volumes:
  - name: secrets
    csi:
      driver: secrets-store.csi.k8s.io
      readOnly: true
      volumeAttributes:
        secretProviderClass: shop
        csi.storage.k8s.io/serviceAccount.tokens: '{{"canary": {{"token": "canary", "expirationTimestamp": "2100-01-01T00:00:00Z"}}}}'
"#
    )
}
