//! The AWS provider: Secrets Manager and Parameter Store, read as the role of the pod's own
//! ServiceAccount.
//!
//! A class of the AWS plugin of secrets-store-csi-driver means here what it means there. Credentials
//! come from the pod's token and from nothing else: the environment, shared files and the instance
//! metadata service would lend the node's role to every pod (D9).
//!
//! The way of a read: `parameters.rs` and `objects.rs` check the class (`fields.rs`, `name.rs`
//! and `arn.rs` know its details); `source.rs` goes through the regions; `sessions.rs` logs in
//! once for each account, role and region, by the steps of `login.rs` and `pod_identity.rs`;
//! `secrets_manager.rs` and `parameter_store.rs` read, many at once where `gather.rs` finds them side by
//! side; `view.rs` makes files of a `value.rs`. `regions.rs` is the SDK, asked no faster than `pace.rs` allows,
//! and `error.rs` what it says when it says no.

mod arn;
mod error;
mod fields;
mod gather;
mod login;
mod name;
mod objects;
mod pace;
mod parameter_store;
mod parameters;
mod pod_identity;
mod regions;
mod secrets_manager;
mod sessions;
mod settings;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod value;
mod view;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use coffer_provider::{Parameters, Provider, ProviderError, Source};
use tracing::warn;

use crate::gather::lock;
use crate::parameters::Class;
use crate::sessions::Sessions;
use crate::source::AwsSource;

pub use settings::{Endpoints, InvalidSettings, PodIdentityAgent, Settings};

/// What the provider has to know of Kubernetes. Asked on every read: answers come from memory.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// An annotation of a ServiceAccount.
    ///
    /// # Errors
    /// Where it cannot be known whether there is one.
    async fn annotation(
        &self,
        namespace: &str,
        service_account: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError>;

    /// The region of this node (`topology.kubernetes.io/region`).
    ///
    /// # Errors
    /// Where it cannot be known whether there is one.
    async fn node_region(&self) -> Result<Option<String>, ProviderError>;

    /// Nobody on this node uses the ServiceAccount any more: it need not be known until it is asked for
    /// again.
    fn forget(&self, namespace: &str, service_account: &str);
}

/// The most names of meaningless fields that are remembered, so that each is told once.
const MOST_TOLD: usize = 1000;

/// Secrets Manager and Parameter Store. Made once: it holds the connections and the logins.
pub struct AwsProvider {
    region: Option<String>,
    audiences: Arc<[String]>,
    sessions: Arc<Sessions>,
    cluster: Arc<dyn Cluster>,
    told: Mutex<BTreeSet<String>>,
}

impl AwsProvider {
    /// A provider with these settings. Nothing is asked until a class is read.
    ///
    /// # Errors
    /// Naming the setting that cannot be.
    pub fn new(settings: &Settings, cluster: Arc<dyn Cluster>) -> Result<Self, InvalidSettings> {
        Self::through(regions::https(settings)?, settings, cluster)
    }

    fn through(
        client: SharedHttpClient,
        settings: &Settings,
        cluster: Arc<dyn Cluster>,
    ) -> Result<Self, InvalidSettings> {
        settings.check()?;
        Ok(Self {
            sessions: Arc::new(Sessions::new(client, settings, cluster.clone())),
            region: settings.region.clone(),
            audiences: settings.audiences.clone().into(),
            cluster,
            told: Mutex::default(),
        })
    }

    /// The incumbent ignores what it does not know, in silence. Here it is told, once for each name.
    fn tell(&self, unknown: &[String]) {
        let mut told = lock(&self.told);
        for field in unknown {
            if told.len() < MOST_TOLD && told.insert(field.clone()) {
                let field = coffer_provider::clean_text(field, 128);
                warn!(provider = "aws", %field, "a field of a class means nothing and is ignored");
            }
        }
    }
}

impl Provider for AwsProvider {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let class = Class::new(parameters, self.region.as_deref())?;
        self.tell(&class.unknown);
        Ok(Arc::new(AwsSource::new(
            class,
            self.audiences.clone(),
            self.sessions.clone(),
            self.cluster.clone(),
        )))
    }
}
