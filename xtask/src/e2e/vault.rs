//! A secret of a real OpenBao: the pod's token logs it in, since the API server says so, its rotation reaches the pod, and
//! with the pod goes what it was given.

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::{Driver, VAULT};
use super::manifests::reader;
use crate::cluster::{Cluster, Namespace};

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("vault")?;
    let store = OpenBao::start(driver.cluster())?;
    store.trust_the_cluster(&namespace)?;
    store.write("correct-horse")?;
    let before = store.tokens()?;

    namespace.apply(CLASS)?;
    namespace.apply(&reader("web", "shop"))?;
    namespace.wait_for_pod("web", SOON)?;
    let password = "/secrets/password";
    ensure!(namespace.exec("web", &["cat", password])? == "correct-horse");
    // A kubelet that asks once more before the first answer may cost another one.
    let tokens = store.tokens()?;
    ensure!(
        (before + 1..=before + 2).contains(&tokens),
        "{before} tokens have become {tokens} by one account"
    );

    store.write("battery-staple")?;
    driver.wait_for_value(&namespace, "web", password, "battery-staple")?;

    // Another ServiceAccount is somebody else, and its pod says why it does not start.
    namespace.kubectl(&["create", "serviceaccount", "stranger"])?;
    let stranger = reader("stranger", "shop");
    namespace.apply(&stranger.replace("spec:\n", "spec:\n  serviceAccountName: stranger\n"))?;
    let events = [
        "get",
        "events",
        "--field-selector=involvedObject.name=stranger",
        "-o=jsonpath={.items[*].message}",
    ];
    driver
        .cluster()
        .wait_until("the stranger's pod says why it waits", SOON, || {
            let said = namespace.kubectl(&events)?;
            Ok(said.contains("service account name not authorized"))
        })?;

    namespace.delete_pod("stranger")?;
    namespace.delete_pod("web")?;
    driver
        .cluster()
        .wait_until("the token has gone with its last pod", SOON, || {
            Ok(store.tokens()? == before)
        })?;
    let log = driver.log()?;
    for secret in ["correct-horse", "battery-staple", "eyJ"] {
        ensure!(!log.contains(secret), "{secret:?} is in the driver's log");
    }
    store.stop()
}

/// OpenBao in development mode, on the node. It ends with the node at the latest.
struct OpenBao<'a> {
    cluster: &'a Cluster,
    program: String,
}

impl<'a> OpenBao<'a> {
    fn start(cluster: &'a Cluster) -> Result<Self> {
        let store = Self {
            cluster,
            program: crate::test::bao()?.display().to_string(),
        };
        let address = VAULT.trim_start_matches("http://");
        let script = format!(
            "HOME=/tmp {} server -dev -dev-no-store-token -dev-root-token-id=root -dev-listen-address={address} \
             >/dev/null 2>&1 </dev/null &",
            store.program
        );
        cluster.on_node(&["sh", "-c", &script])?;
        cluster.wait_until("OpenBao answers", SOON, || {
            store.bao(&["read", "secret/config"]).map(|_| true)
        })?;
        Ok(store)
    }

    /// Runs its client as root, and gives what it printed.
    fn bao(&self, arguments: &[&str]) -> Result<String> {
        let address = format!("BAO_ADDR={VAULT}");
        let client = [
            "env",
            &address,
            "BAO_TOKEN=root",
            "HOME=/tmp",
            &self.program,
        ];
        self.cluster.on_node(&[&client[..], arguments].concat())
    }

    /// Has the API server say whose tokens are whose, and lets the ServiceAccount `default` read one secret.
    fn trust_the_cluster(&self, namespace: &Namespace<'_>) -> Result<()> {
        namespace.apply(REVIEWER)?;
        let reviewer = namespace.kubectl(&["create", "token", "reviewer"])?;
        let server = "-o=jsonpath={.clusters[0].cluster.server}";
        let server = self
            .cluster
            .kubectl(&["config", "view", "--minify", server])?;
        let ca = r"-o=jsonpath={.data.ca\.crt}";
        let ca = namespace.kubectl(&["get", "configmap", "kube-root-ca.crt", ca])?;
        self.bao(&["auth", "enable", "kubernetes"])?;
        self.bao(&[
            "write",
            "auth/kubernetes/config",
            &format!("kubernetes_host={server}"),
            &format!("kubernetes_ca_cert={ca}"),
            &format!("token_reviewer_jwt={}", reviewer.trim()),
            "disable_local_ca_jwt=true",
        ])?;
        let policy = r#"policy=path "secret/data/shop" { capabilities = ["read"] }"#;
        self.bao(&["write", "sys/policies/acl/shop", policy])?;
        self.bao(&[
            "write",
            "auth/kubernetes/role/shop",
            "bound_service_account_names=default",
            &format!("bound_service_account_namespaces={}", namespace.name()),
            "audience=vault",
            "token_policies=shop",
            "token_ttl=20m",
        ])?;
        Ok(())
    }

    fn write(&self, password: &str) -> Result<()> {
        let password = format!("password={password}");
        self.bao(&["kv", "put", "secret/shop", &password])?;
        Ok(())
    }

    /// How many tokens there are.
    fn tokens(&self) -> Result<usize> {
        let list = self.bao(&["list", "-format=yaml", "auth/token/accessors"])?;
        Ok(list.lines().filter(|line| line.starts_with("- ")).count())
    }

    fn stop(self) -> Result<()> {
        self.cluster
            .on_node(&["sh", "-c", "kill $(pidof -s bao)"])?;
        Ok(())
    }
}

const REVIEWER: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reviewer}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: openbao-reviewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
subjects: [{kind: ServiceAccount, name: reviewer, namespace: vault}]
";

const CLASS: &str = r"
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: shop}
spec:
  provider: vault
  refresh: {interval: 10s}
  parameters:
    roleName: shop
    objects: |
      - {objectName: password, secretPath: secret/data/shop, secretKey: password}
";
