//! Writes Events, one after the other.

use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, PostParams};
use coffer_provider::clean_text;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::client::{Backoff, RequestError, in_time, is_final};
use crate::events::PodEvent;
use crate::telemetry::Metrics;

/// Between two of them: 1,000 volumes of one store that is away are no burst at the API server.
const APART: Duration = Duration::from_millis(50);

/// How often one Event is tried that is answered with an error, or not in time: it may be something that stands in the
/// way of one Namespace alone, and the others wait behind it.
const TRIES: usize = 3;

/// An Event that could not be written for so long, since the API server is away, is of no more interest: it keeps them
/// for an hour itself.
const WORTH: SignedDuration = SignedDuration::from_hours(1);

/// Who reports. Both are cut to the 128 bytes that the API server takes.
pub(super) struct Reporter {
    pub(super) driver_name: String,
    pub(super) node_id: String,
}

/// Writes what comes by `queue` until nobody can send any more.
pub(super) async fn write(
    client: Client,
    reporter: Reporter,
    mut queue: mpsc::Receiver<PodEvent>,
    metrics: Arc<Metrics>,
) {
    let mut told = false;
    while let Some(event) = queue.recv().await {
        let api = Api::namespaced(client.clone(), &event.pod.namespace);
        let outcome = match post(&api, &reporter.event(&event), event.at).await {
            Ok(()) => "written",
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "an event could not be written; further ones are counted only");
                }
                "failed"
            }
        };
        metrics.reports.event(event.reason, outcome);
        sleep(APART).await;
    }
}

async fn post(api: &Api<Event>, event: &Event, told: Timestamp) -> Result<(), RequestError> {
    let mut backoff = Backoff::default();
    let mut tries = 0;
    loop {
        let error = match in_time(api.create(&PostParams::default(), event)).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        debug!(%error, "event not written yet");
        if !matches!(error, RequestError::Away(_)) {
            tries += 1;
        }
        let late = Timestamp::now().duration_since(told) > WORTH;
        if late || tries == TRIES || is_final(&error) {
            return Err(error);
        }
        backoff.wait().await;
    }
}

impl Reporter {
    fn event(&self, event: &PodEvent) -> Event {
        let pod = &event.pod;
        Event {
            metadata: ObjectMeta {
                // A dot at its end, as in the names of kubelet events, would not be taken here.
                generate_name: Some(format!("{}-", pod.name)),
                namespace: Some(pod.namespace.clone()),
                ..Default::default()
            },
            regarding: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..Default::default()
            }),
            event_time: Some(MicroTime(event.at)),
            type_: Some(event.reason.severity().into()),
            reason: Some(event.reason.as_str().into()),
            action: Some(event.reason.action().into()),
            note: Some(event.note.clone()),
            reporting_controller: Some(clean_text(&self.driver_name, 128)),
            reporting_instance: Some(clean_text(&self.node_id, 128)),
            ..Default::default()
        }
    }
}
