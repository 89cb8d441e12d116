//! The node that the driver runs on.

use ::kube::api::Api;
use coffer_provider::{ErrorKind, ProviderError};
use k8s_openapi::api::core::v1::Node;

use super::ApiServer;
use super::client::in_time;

impl ApiServer {
    /// A label of a node, by one request.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], where the API server does not say what there is.
    pub async fn node_label(
        &self,
        node: &str,
        label: &str,
    ) -> Result<Option<String>, ProviderError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let read = in_time(api.get_metadata(node)).await.map_err(|error| {
            let problem = format!(
                "the labels of the node {node} are not known: {error}; the driver needs the right to get nodes, \
                 which the chart gives with providers.aws.enabled"
            );
            ProviderError::new(ErrorKind::Unavailable, problem)
        })?;
        let labels = read.metadata.labels.unwrap_or_default();
        Ok(labels.get(label).cloned())
    }
}
