//! The Node service: converts, calls, converts back.

use std::sync::Arc;
use std::time::Duration;

use coffer_proto::csi::node_server::Node;
use coffer_proto::csi::node_service_capability::{self, Rpc, rpc};
use coffer_proto::csi::volume_usage::Unit;
use coffer_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeUsage,
};
use coffer_provider::clean_text;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::{debug, error, info, warn};

use super::convert;
use super::status::status;
use crate::error::{PublishError, Reason};
use crate::publish::{Done, Publisher};
use crate::tokens::{TokenSource, Tokens};
use crate::volume::Outcome;

/// How much of a volume's id is logged; the kubelet's have 68 bytes.
const SHOWN: usize = 128;

pub(super) struct NodeService {
    pub(super) node_id: String,
    /// Told when the kubelet asks who this is.
    pub(super) registered: Arc<Notify>,
    pub(super) token_source: TokenSource,
    /// How long a publish waits for its stores, unless the kubelet waits less.
    pub(super) publish_timeout: Duration,
    pub(super) publisher: Arc<Publisher>,
    /// Operations outlive a caller who gives up: they end here.
    pub(super) operations: TaskTracker,
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let started = Instant::now();
        let deadline = started + time_for_stores(request.metadata(), self.publish_timeout);
        let request = request.into_inner();
        let volume_id = clean_text(&request.volume_id, SHOWN);
        let (publisher, token_source) = (self.publisher.clone(), self.token_source);
        let publish = async move {
            let rules = publisher.volumes().rules();
            let request = convert::publish_request(request, rules, token_source)?;
            // Never more of the tokens than where they came from and how many there are.
            let audiences = request.requester.tokens.as_ref().map_or(0, Tokens::len);
            let secrets = request.requester.secrets.len();
            debug!(volume.id = %request.volume_id, ?token_source, audiences, secrets, "volume asked for");
            publisher.publish(request, deadline).await
        };
        let done = self.to_its_end(publish).await;
        let took = started.elapsed();
        self.publisher.metrics().published(done.as_ref(), took);
        log_publish(&volume_id, &done, took);
        match done {
            Ok(_) => Ok(Response::new(NodePublishVolumeResponse {})),
            Err(error) => Err(status(&error)),
        }
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        let volume_id = clean_text(&request.volume_id, SHOWN);
        let publisher = self.publisher.clone();
        let unpublish = async move {
            let rules = publisher.volumes().rules();
            let (volume_id, target) = convert::unpublish_request(request, rules)?;
            publisher.unpublish(volume_id, target).await
        };
        let done = self.to_its_end(unpublish).await;
        self.publisher.metrics().unpublished(&done);
        let duration_ms = started.elapsed().as_millis() as u64;
        match done {
            Ok(()) => {
                info!(volume.id = %volume_id, duration_ms, "volume unpublished");
                Ok(Response::new(NodeUnpublishVolumeResponse {}))
            }
            Err(error) => {
                let reason = error.reason().as_str();
                warn!(volume.id = %volume_id, reason, %error, duration_ms, "volume not unpublished");
                Err(status(&error))
            }
        }
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id: is missing"));
        }
        if request.volume_path.is_empty() {
            return Err(Status::invalid_argument("volume_path: is missing"));
        }
        let not_there = || Status::not_found("volume_path: there is no volume");
        let volumes = self.publisher.volumes().clone();
        let target = convert::target("volume_path", request.volume_path, volumes.rules());
        let target = target.map_err(|_| not_there())?;
        let usage = tokio::task::spawn_blocking(move || volumes.usage(&target)).await;
        let usage = usage.map_err(|_| failed())?.map_err(|_| not_there())?;
        let of = |unit, total: u64, free: u64| VolumeUsage {
            available: free as i64,
            total: total as i64,
            used: total.saturating_sub(free) as i64,
            unit: unit as i32,
        };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![
                of(Unit::Bytes, usage.bytes, usage.bytes_free),
                of(Unit::Inodes, usage.inodes, usage.inodes_free),
            ],
            volume_condition: None,
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc {
                r#type: kind as i32,
            })),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: vec![
                capability(rpc::Type::GetVolumeStats),
                capability(rpc::Type::VolumeMountGroup),
            ],
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        self.registered.notify_one();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("inline volumes are not staged"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("inline volumes are not staged"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("secrets volumes do not grow"))
    }
}

impl NodeService {
    /// Runs an operation that a caller who gives up does not stop, and that takes only itself along
    /// if it panics.
    async fn to_its_end<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, PublishError>> + Send + 'static,
    ) -> Result<T, PublishError> {
        let done = self.operations.spawn(operation).await;
        done.unwrap_or(Err(PublishError::Panicked))
    }
}

fn failed() -> Status {
    Status::internal("the driver failed on this request: see its log on the node")
}

fn log_publish(volume_id: &str, done: &Result<Done, PublishError>, took: Duration) {
    let duration_ms = took.as_millis() as u64;
    match done {
        Ok(done) if done.outcome == Outcome::Unchanged => {
            debug!(volume.id = %volume_id, duration_ms, "volume republished");
        }
        Ok(_) => info!(volume.id = %volume_id, duration_ms, "volume published"),
        Err(error) => {
            let reason = error.reason();
            let detail = error.detail().unwrap_or_default();
            match reason {
                Reason::NodeFailure => {
                    error!(volume.id = %volume_id, reason = reason.as_str(), %error, detail, duration_ms, "volume not published");
                }
                _ => {
                    warn!(volume.id = %volume_id, reason = reason.as_str(), %error, detail, duration_ms, "volume not published");
                }
            }
        }
    }
}

/// The kubelet waits 2 minutes and says so in `grpc-timeout`. A few seconds of that are left for the
/// answer to arrive.
pub(crate) fn time_for_stores(metadata: &MetadataMap, most: Duration) -> Duration {
    let timeout = metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    let Some(timeout) = timeout.and_then(parse_timeout) else {
        return most;
    };
    let reserve = Duration::from_secs(5).min(timeout / 2);
    most.min(timeout - reserve)
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = Some(digits)
        .filter(|digits| digits.len() <= 8)?
        .parse()
        .ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::STORE_DEADLINE;

    #[test]
    fn the_deadline_leaves_time_to_answer() {
        let time = |timeout: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", timeout.parse().expect("ascii"));
            time_for_stores(&metadata, STORE_DEADLINE)
        };
        let none = MetadataMap::new();
        assert_eq!(time_for_stores(&none, STORE_DEADLINE), STORE_DEADLINE);
        let short = Duration::from_secs(1);
        assert_eq!(time_for_stores(&none, short), short);
        for (timeout, seconds) in [
            ("2M", 60.0),
            ("119999999u", 60.0),
            ("20S", 15.0),
            ("4S", 2.0),
            ("500m", 0.25),
            ("nonsense", 60.0),
            ("S", 60.0),
            ("", 60.0),
            ("123456789S", 60.0),
        ] {
            assert_eq!(time(timeout).as_secs_f64(), seconds, "{timeout}");
        }
    }
}
