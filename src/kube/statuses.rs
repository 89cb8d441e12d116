//! Writes SecretProviderClassPodStatus objects, one after the other, and only what is news.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, DeleteParams, DynamicObject, PostParams, Preconditions};
use ::kube::core::{ApiResource, GroupVersionKind, ObjectMeta};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::client::{Backoff, RequestError, in_time, is_final};
use super::crd::{GROUP, VERSION};
use crate::pod_status::{PodStatus, VolumeStatus};
use crate::statuses::{Change, Outbox};
use crate::telemetry::Metrics;

/// Says which node an object is of; the label of secrets-store-csi-driver.
const NODE: &str = "internal.secrets-store.csi.k8s.io/node-name";

/// The longest name of an object, and the longest value of a label.
const NAME_BYTES: usize = 253;
const LABEL_BYTES: usize = 63;

/// For so long nothing is written in a Namespace that has said no, be it for want of a right, by a quota or by an
/// admission policy. The newest status of each of its volumes waits.
const DENIED: Duration = Duration::from_secs(300);

/// The same where a write has failed or was not answered in time, as with a webhook that is away.
const TROUBLED: Duration = Duration::from_secs(30);

/// The volume that met it waits for longer than the others of its Namespace: it may be alone in that.
const LAST: Duration = Duration::from_secs(5);

/// How often somebody else may get in between a read and a write.
const TRIES: usize = 3;

/// Writes the objects of one node.
pub(super) struct Writer {
    client: Client,
    resource: ApiResource,
    node: String,
    metrics: Arc<Metrics>,
    /// By volume, what its object was when it was last read or written.
    written: HashMap<String, Written>,
    /// By Namespace, until when nothing is written in it.
    put_off: HashMap<String, Instant>,
    /// An administrator who has not given the right hears of it once.
    told: bool,
}

/// An object at the API server.
struct Written {
    metadata: ObjectMeta,
    status: PodStatus,
    at: Instant,
}

impl Writer {
    pub(super) fn new(client: Client, node_id: &str, metrics: Arc<Metrics>) -> Self {
        let kind = GroupVersionKind::gvk(GROUP, VERSION, "SecretProviderClassPodStatus");
        Self {
            client,
            resource: ApiResource::from_gvk_with_plural(&kind, "secretproviderclasspodstatuses"),
            node: within(node_id, LABEL_BYTES),
            metrics,
            written: HashMap::new(),
            put_off: HashMap::new(),
            told: false,
        }
    }

    /// Writes what comes, for as long as anybody can send.
    pub(super) async fn write(mut self, mut outbox: Outbox) {
        let mut backoff = Backoff::default();
        loop {
            let (volume_id, change) = outbox.next().await;
            let namespace = self.namespace(&volume_id, &change);
            let now = Instant::now();
            self.put_off.retain(|_, until| *until > now);
            if let Some(until) = self.put_off.get(&namespace) {
                outbox.hold(volume_id, change, *until);
                continue;
            }
            let done = match &change {
                Change::Put(status) => self.put(&volume_id, status).await,
                Change::Remove => self.remove(&volume_id).await,
            };
            match done {
                Ok(()) => backoff = Backoff::default(),
                Err(error) if is_final(&error) && !is_denied(&error) => {
                    debug!(%error, "status of a volume not written");
                }
                Err(error) => {
                    if is_denied(&error) && !std::mem::replace(&mut self.told, true) {
                        warn!(%error, "status objects cannot be written: give the driver's role the right to them, or see what else refuses them in this Namespace");
                    }
                    debug!(%error, "status of a volume not written yet");
                    match put_off_by(&error) {
                        None => outbox.again(volume_id, change),
                        Some(wait) => {
                            let until = Instant::now() + wait;
                            self.put_off.insert(namespace, until);
                            outbox.hold(volume_id, change, until + LAST);
                        }
                    }
                    // It gets longer where one Namespace after the other says so, and nothing can be written.
                    backoff = backoff.if_since(TROUBLED / 2);
                    backoff.wait().await;
                }
            }
        }
    }

    /// The Namespace of the object; none where a volume is gone that has no object.
    fn namespace(&self, volume_id: &str, change: &Change) -> String {
        let namespace = match change {
            Change::Put(status) => Some(&status.pod.namespace),
            Change::Remove => {
                let written = self.written.get(volume_id);
                written.and_then(|written| written.metadata.namespace.as_ref())
            }
        };
        namespace.cloned().unwrap_or_default()
    }

    async fn put(&mut self, volume_id: &str, wanted: &VolumeStatus) -> Result<(), RequestError> {
        let api = self.api(&wanted.pod.namespace);
        let mut tries = 0;
        loop {
            tries += 1;
            let (metadata, known) = match self.written.remove(volume_id) {
                Some(known) => (known.metadata.clone(), Some(known)),
                None => self.find(&api, wanted).await?,
            };
            let mut status = wanted.status.clone();
            let before = known.as_ref().map(|known| &known.status);
            status.continues(before, now());
            if let Some(known) = known
                && !status.is_news(&known.status, known.at.elapsed())
            {
                self.written.insert(volume_id.to_owned(), known);
                return Ok(());
            }
            let object = self.object(metadata, wanted, &status);
            let name = object.metadata.name.clone().unwrap_or_default();
            let params = PostParams::default();
            let before_is_known = object.metadata.resource_version.is_some();
            let put = match &object.metadata.resource_version {
                Some(_) => in_time(api.replace(&name, &params, &object)).await,
                None => in_time(api.create(&params, &object)).await,
            };
            self.count(&put);
            match put {
                Ok(object) => {
                    let mut known = Written::of(object);
                    // What was sent, and not what an old CRD has left of it: otherwise it would be news for ever.
                    known.status = status;
                    self.written.insert(volume_id.to_owned(), known);
                    return Ok(());
                }
                Err(error) => {
                    // Somebody else was faster, or has deleted what was to be replaced.
                    let code = error.code();
                    let overtaken = code == Some(409) || code == Some(404) && before_is_known;
                    if !overtaken || tries == TRIES {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// What the object of the volume is or is to be called, and the object that is there by that name.
    ///
    /// Two volumes of a pod can have one class. The second one has its own name appended; which one that is, is
    /// remembered nowhere but in the objects.
    async fn find(
        &self,
        api: &Api<DynamicObject>,
        wanted: &VolumeStatus,
    ) -> Result<(ObjectMeta, Option<Written>), RequestError> {
        let (pod, class) = (&wanted.pod, &wanted.class.name);
        let plain = format!("{}-{}-{class}", pod.name, pod.namespace);
        let there = async |name: String| {
            let object = in_time(api.get_opt(&name)).await?.map(Written::of);
            let metadata = object.as_ref().map(|object| object.metadata.clone());
            let called = || ObjectMeta {
                name: Some(name),
                namespace: Some(pod.namespace.clone()),
                ..ObjectMeta::default()
            };
            Ok((metadata.unwrap_or_else(called), object))
        };
        let (metadata, known) = there(within(&plain, NAME_BYTES)).await?;
        let mut owners = metadata.owner_references.iter().flatten();
        let of_pod = owners.any(|owner| owner.uid == pod.uid);
        let other = known
            .as_ref()
            .is_some_and(|known| of_pod && known.status.target_path != wanted.status.target_path);
        match wanted.volume.as_ref().filter(|_| other) {
            None => Ok((metadata, known)),
            Some(volume) => there(within(&format!("{plain}-{volume}"), NAME_BYTES)).await,
        }
    }

    async fn remove(&mut self, volume_id: &str) -> Result<(), RequestError> {
        let Some(known) = self.written.get(volume_id) else {
            // Nothing was written, or by an earlier process: the object goes with its pod.
            return Ok(());
        };
        let params = DeleteParams {
            // A pod of the same name may be on another node by now, and the object that one's.
            preconditions: Some(Preconditions {
                uid: known.metadata.uid.clone(),
                resource_version: known.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let namespace = known.metadata.namespace.as_deref().unwrap_or_default();
        let name = known.metadata.name.as_deref().unwrap_or_default();
        let removed = in_time(self.api(namespace).delete(name, &params)).await;
        self.count(&removed);
        match removed {
            Err(error) if !matches!(error.code(), Some(404 | 409)) => Err(error),
            _ => {
                self.written.remove(volume_id);
                Ok(())
            }
        }
    }

    fn api(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource)
    }

    fn count<T>(&self, done: &Result<T, RequestError>) {
        self.metrics.reports.status_written(match done {
            Ok(_) => "written",
            Err(_) => "failed",
        });
    }

    /// The object anew: what others have put on it stays.
    fn object(
        &self,
        metadata: ObjectMeta,
        wanted: &VolumeStatus,
        status: &PodStatus,
    ) -> DynamicObject {
        let pod = &wanted.pod;
        let mut labels = metadata.labels.unwrap_or_default();
        labels.insert(NODE.to_owned(), self.node.clone());
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            ..OwnerReference::default()
        };
        let mut object = DynamicObject::new("", &self.resource).data(json!({"status": status}));
        object.metadata = ObjectMeta {
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..metadata
        };
        object
    }
}

/// In whole seconds, as times of Kubernetes are.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

/// Whether it is for want of a right, and not since the Namespace is about to go.
fn is_denied(error: &RequestError) -> bool {
    error.code() == Some(403) && !error.to_string().contains("being terminated")
}

/// For how long nothing more is written in the Namespace where this happened; not given where it is no matter of one.
fn put_off_by(error: &RequestError) -> Option<Duration> {
    match error {
        error if is_denied(error) => Some(DENIED),
        RequestError::Answered {
            code: 401 | 429, ..
        }
        | RequestError::Away(_) => None,
        RequestError::Answered { .. } | RequestError::Late => Some(TROUBLED),
    }
}

impl Written {
    fn of(object: DynamicObject) -> Self {
        let status = object.data.get("status").cloned().unwrap_or_default();
        Self {
            metadata: ObjectMeta {
                managed_fields: None,
                ..object.metadata
            },
            // Whatever cannot be read is another than ours, and is written anew.
            status: serde_json::from_value(status).unwrap_or_default(),
            at: Instant::now(),
        }
    }
}

/// The same text, or where it is too long its beginning and a hash of all of it. Ends as a name has to.
fn within(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let hash = Sha256::digest(text);
    let hash = hash[..8].iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let kept: String = text.chars().take(bytes - hash.len() - 1).collect();
    let kept = kept.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    format!("{kept}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_too_long_end_in_a_hash() {
        assert_eq!(within("web-shop-db", NAME_BYTES), "web-shop-db");
        let (one, other) = ("n".repeat(70), "n".repeat(71));
        let (one, other) = (within(&one, LABEL_BYTES), within(&other, LABEL_BYTES));
        assert_eq!((one.len(), other.len()), (63, 63));
        assert_ne!(one, other);
        let name = within(&format!("a{}b", ".".repeat(70)), LABEL_BYTES);
        assert!(name.starts_with("a-"), "{name}");
    }
}
