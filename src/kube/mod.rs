//! The edge to the API server.

#[cfg(feature = "aws")]
mod accounts;
mod classes;
mod client;
pub mod crd;
mod events;
mod installed;
#[cfg(feature = "aws")]
mod node;
mod secrets;
mod statuses;
mod taint;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;

use crate::classes::Classes;
use crate::events::Events;
use crate::statuses::Statuses;
use crate::telemetry::Metrics;
#[cfg(feature = "aws")]
pub use accounts::Accounts;
pub use client::RequestError;
pub use secrets::{Live, LiveMeta, Owner, Secrets, Write};

/// The API server of the cluster. Nothing of the driver waits for it at its start.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    /// That of the cluster that this pod runs in, or the one that a kubeconfig names. It is not asked yet.
    ///
    /// # Errors
    /// When there is no configuration to reach one with.
    pub async fn of(kubeconfig: Option<&Path>) -> anyhow::Result<Self> {
        let client = client::connect(kubeconfig).await?;
        Ok(Self { client })
    }

    #[cfg(test)]
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Follows the classes of the cluster. Until the API server has answered, classes are unknown.
    #[must_use]
    pub fn classes(&self) -> Classes {
        classes::follow(self.client.clone())
    }

    /// Events, written one after the other by a task of their own.
    #[must_use]
    pub fn events(
        &self,
        driver_name: &str,
        node_id: &str,
        interval: Duration,
        metrics: Arc<Metrics>,
    ) -> Events {
        let reporter = events::Reporter {
            driver_name: driver_name.to_owned(),
            node_id: node_id.to_owned(),
        };
        let (events, queue) = Events::new(interval, metrics.clone());
        tokio::spawn(events::write(self.client.clone(), reporter, queue, metrics));
        events
    }

    /// Status objects of the volumes of this node, written by a task of their own.
    #[must_use]
    pub fn statuses(&self, node_id: &str, metrics: Arc<Metrics>) -> Statuses {
        let (statuses, outbox) = Statuses::new();
        let writer = statuses::Writer::new(self.client.clone(), node_id, metrics);
        tokio::spawn(writer.write(outbox));
        statuses
    }

    /// The annotations of ServiceAccounts. None is asked for yet.
    #[cfg(feature = "aws")]
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        Accounts::new(self.client.clone())
    }

    /// Looks at the installed CRDs, and says so where they do not know our fields.
    pub fn check_crds(&self, metrics: Arc<Metrics>) {
        tokio::spawn(installed::look(self.client.clone(), metrics));
    }

    /// The Secrets of the cluster, written in the name of this driver.
    #[must_use]
    pub fn secrets(&self, driver_name: &str) -> Secrets {
        Secrets::new(self.client.clone(), driver_name)
    }
}
