//! The taint that keeps pods off a new node until the driver serves there.

use ::kube::api::{Api, Patch, PatchParams};
use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::json;
use tracing::{info, warn};

use super::ApiServer;
use super::client::{Backoff, RequestError, in_time, is_final};

/// Nodes can be made with it, so that no pod comes before the driver (secrets-store-csi-driver#2052).
const STARTUP_TAINT: &str = "secrets-store.csi.k8s.io/agent-not-ready";

impl ApiServer {
    /// Removes the startup taint from this node, and tries again until that is done or will never be.
    pub async fn remove_startup_taint(&self, node_id: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut backoff = Backoff::default();
        loop {
            match remove(&nodes, node_id).await {
                Ok(true) => return info!(node = node_id, "startup taint removed"),
                Ok(false) => return,
                Err(error) if is_final(&error) => {
                    return warn!(node = node_id, %error, "the startup taint stays: remove {STARTUP_TAINT} by hand");
                }
                Err(error) => warn!(node = node_id, %error, "the startup taint is still there"),
            }
            backoff.wait().await;
        }
    }
}

/// Whether there was one.
async fn remove(nodes: &Api<Node>, node_id: &str) -> Result<bool, RequestError> {
    let node = in_time(nodes.get(node_id)).await?;
    let Some(taints) = without_startup_taint(node.spec.and_then(|spec| spec.taints)) else {
        return Ok(false);
    };
    // With the version that was looked at: somebody else's taint that came since is not lost.
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": taints},
    });
    in_time(nodes.patch(node_id, &PatchParams::default(), &Patch::Merge(patch))).await?;
    Ok(true)
}

/// The other taints, where there is one of ours.
fn without_startup_taint(taints: Option<Vec<Taint>>) -> Option<Vec<Taint>> {
    let (ours, others): (Vec<_>, Vec<_>) = taints
        .unwrap_or_default()
        .into_iter()
        .partition(|taint| taint.key == STARTUP_TAINT);
    (!ours.is_empty()).then_some(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_taint_but_ours_stays() {
        let taint = |key: &str, effect: &str| Taint {
            key: key.into(),
            effect: effect.into(),
            ..Taint::default()
        };
        let others = vec![taint("gpu", "NoSchedule"), taint("gpu", "NoExecute")];
        assert_eq!(without_startup_taint(None), None);
        assert_eq!(without_startup_taint(Some(others.clone())), None);
        let mut all = others.clone();
        all.insert(1, taint(STARTUP_TAINT, "NoSchedule"));
        all.push(taint(STARTUP_TAINT, "NoExecute"));
        assert_eq!(without_startup_taint(Some(all)), Some(others));
    }
}
