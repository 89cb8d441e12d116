//! The provider aws, from its flags, and what it has to know of the cluster.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::{ErrorKind, ProviderError};
use coffer_provider_aws::{AwsProvider, Cluster, Endpoints, PodIdentityAgent, Settings};
use tokio::sync::OnceCell;
use tracing::warn;

use crate::catalog::Catalog;
use crate::class_folder;
use crate::config::{AwsArgs, Config, Patience};
use crate::kube::{Accounts, ApiServer};

/// Where a node carries its region.
const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// The same catalog with the provider `aws`, unless there is nobody to be trusted for AWS. `place` says
/// where ServiceAccounts are. Needs a tokio runtime.
///
/// # Errors
/// When the provider cannot be with these flags.
pub fn with_aws(
    catalog: Catalog,
    args: &AwsArgs,
    store: Patience,
    place: Place,
) -> anyhow::Result<Catalog> {
    let cluster: Arc<dyn Cluster> = match place {
        Place::Cluster { api, node } => Arc::new(InCluster {
            accounts: api.accounts(),
            api,
            node,
            region: OnceCell::new(),
        }),
        Place::Folder(folder) => Arc::new(Folder(folder)),
    };
    let roots = match &args.ca_file {
        Some(file) => {
            fs::read(file).with_context(|| format!("cannot read --ca-file {}", file.display()))?
        }
        None => machine_roots(),
    };
    if roots.is_empty() && args.ca_file.is_none() {
        warn!(
            "no CA certificates on this machine, so there is no provider aws: give --ca-file FILE"
        );
        return Ok(catalog);
    }
    let provider = AwsProvider::new(&settings(args, store, roots), cluster);
    let provider = provider.context("the provider aws, by its flags and --ca-file")?;
    Ok(catalog.with("aws", Arc::new(provider)))
}

/// Where ServiceAccounts are.
pub enum Place {
    /// In a cluster, with this node.
    Cluster {
        /// Its API server.
        api: ApiServer,
        /// The node's name.
        node: String,
    },
    /// As manifests in a folder of classes. The node has no region there.
    Folder(PathBuf),
}

impl Place {
    /// In the folder of the classes, where there is no API server.
    pub(super) fn of(config: &Config, api: Option<&ApiServer>) -> Self {
        match api {
            Some(api) => Self::Cluster {
                api: api.clone(),
                node: config.node_id.clone(),
            },
            None => Self::Folder(config.classes.clone().unwrap_or_default()),
        }
    }
}

struct InCluster {
    accounts: Accounts,
    api: ApiServer,
    node: String,
    /// Once there is one, it is not another one any more.
    region: OnceCell<String>,
}

#[async_trait]
impl Cluster for InCluster {
    async fn annotation(
        &self,
        namespace: &str,
        service_account: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError> {
        let accounts = &self.accounts;
        accounts.annotation(namespace, service_account, key).await
    }

    async fn node_region(&self) -> Result<Option<String>, ProviderError> {
        let read = async || match self.api.node_label(&self.node, REGION_LABEL).await {
            Ok(Some(region)) => Ok(region),
            Ok(None) => Err(None),
            Err(error) => Err(Some(error)),
        };
        match self.region.get_or_try_init(read).await {
            Ok(region) => Ok(Some(region.clone())),
            // A node can be there before its label is: nothing is remembered.
            Err(None) => Ok(None),
            Err(Some(error)) => Err(error),
        }
    }

    fn forget(&self, namespace: &str, service_account: &str) {
        self.accounts.forget(namespace, service_account);
    }
}

struct Folder(PathBuf);

#[async_trait]
impl Cluster for Folder {
    async fn annotation(
        &self,
        namespace: &str,
        service_account: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError> {
        let unknown = |problem: String| ProviderError::new(ErrorKind::Unavailable, problem);
        let (folder, namespace) = (self.0.clone(), namespace.to_owned());
        let name = service_account.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            class_folder::service_account_annotations(&folder, &namespace, &name)
        });
        let read = read.await.map_err(|error| unknown(error.to_string()))?;
        let annotations = read.map_err(|error| unknown(error.to_string()))?;
        Ok(annotations.and_then(|mut annotations| annotations.remove(key)))
    }

    async fn node_region(&self) -> Result<Option<String>, ProviderError> {
        Ok(None)
    }

    /// Nothing of an account is kept.
    fn forget(&self, _: &str, _: &str) {}
}

fn settings(args: &AwsArgs, store: Patience, roots: Vec<u8>) -> Settings {
    let agent = PodIdentityAgent::default();
    Settings {
        connect_timeout: store.connect,
        timeout: store.attempt,
        region: args.aws_region.clone(),
        audiences: args.aws_audience.clone(),
        endpoints: Endpoints {
            secrets_manager: args.aws_endpoint_secretsmanager.clone(),
            parameter_store: args.aws_endpoint_ssm.clone(),
            sts: args.aws_endpoint_sts.clone(),
        },
        pod_identity: PodIdentityAgent {
            ipv4: args.aws_pod_identity_ipv4.clone().unwrap_or(agent.ipv4),
            ipv6: args.aws_pod_identity_ipv6.clone().unwrap_or(agent.ipv6),
        },
        fips: args.aws_fips,
        ..Settings::new(roots)
    }
}

/// The certificates that the image (or the machine) trusts, in PEM.
fn machine_roots() -> Vec<u8> {
    let found = rustls_native_certs::load_native_certs().certs;
    let pem = found.iter().map(|certificate| {
        let text = STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    });
    pem.collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use axum::http::{Request, Response};
    use serde_json::json;
    use tower::service_fn;

    #[tokio::test]
    async fn aws_statement_2_the_region_of_the_node_is_read_once_as_soon_as_it_has_one() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counts = asked.clone();
        let api = service_fn(move |request: Request<_>| {
            assert_eq!(request.uri().path(), "/api/v1/nodes/n1");
            let labels = match counts.fetch_add(1, Ordering::SeqCst) {
                0 => json!({"kubernetes.io/hostname": "n1"}),
                _ => json!({REGION_LABEL: "eu-west-1"}),
            };
            let node = json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "n1", "labels": labels},
            });
            std::future::ready(Ok::<_, axum::Error>(Response::new(Body::from(
                node.to_string(),
            ))))
        });
        let api = ApiServer::new(::kube::Client::new(api, "default"));
        let cluster = InCluster {
            accounts: api.accounts(),
            api,
            node: "n1".into(),
            region: OnceCell::new(),
        };
        assert_eq!(cluster.node_region().await.ok(), Some(None), "a new node");
        for _ in 0..10 {
            let region = cluster.node_region().await.ok().flatten();
            assert_eq!(region.as_deref(), Some("eu-west-1"));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_flag_that_cannot_be_ends_the_start_and_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, content: &str| {
            let file = folder.path().join(name);
            fs::write(&file, content).expect("written");
            Some(file)
        };
        let authority = rcgen::generate_simple_self_signed(["nowhere.example".to_owned()]);
        let authority = authority.expect("a certificate").cert.pem();
        let good = || AwsArgs {
            ca_file: file("ca.pem", &authority),
            ..AwsArgs::default()
        };
        let started = |args: &AwsArgs| {
            let nobody = Place::Folder(PathBuf::new());
            let catalog = with_aws(Catalog::default(), args, Patience::default(), nobody);
            catalog
                .map(|catalog| catalog.names())
                .map_err(|error| format!("{error:#}"))
        };
        assert_eq!(started(&good()), Ok(vec!["aws"]));
        for (args, says) in [
            (
                AwsArgs {
                    ca_file: Some(folder.path().join("none.pem")),
                    ..good()
                },
                "cannot read --ca-file",
            ),
            (
                AwsArgs {
                    ca_file: file("empty.pem", ""),
                    ..good()
                },
                "--ca-file: roots of",
            ),
            (
                AwsArgs {
                    aws_region: Some("us west".into()),
                    ..good()
                },
                "region of",
            ),
            (
                AwsArgs {
                    aws_endpoint_sts: Some("sts.example".into()),
                    ..good()
                },
                "sts.example must start with https://",
            ),
        ] {
            let error = started(&args).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn a_folder_of_classes_has_the_roles_of_accounts_in_their_manifests() {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = Folder(folder.path().to_owned());
        let role = async |name| {
            cluster
                .annotation("shop", name, "eks.amazonaws.com/role-arn")
                .await
        };
        assert_eq!(role("web").await.ok(), Some(None), "no manifest");
        let manifests = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: other, annotations: {eks.amazonaws.com/role-arn: another}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop, annotations: {eks.amazonaws.com/role-arn: shop}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: plain, namespace: shop}
";
        let file = folder.path().join("accounts.yaml");
        fs::write(&file, manifests).expect("written");
        let found = role("web").await.ok().flatten();
        assert_eq!(found.as_deref(), Some("shop"));
        assert_eq!(role("plain").await.ok(), Some(None));
        fs::write(&file, "a: [").expect("written");
        let error = role("web").await.expect_err("who knows what was in it");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("accounts.yaml"), "{error}");
    }
}
