//! What becomes of volumes, put into words for those who look at the cluster. Nothing here waits: what is told
//! goes into queues.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cache::Fact;
use crate::error::{PublishError, Reason};
use crate::events::{EventReason, Events};
use crate::pod_status::{NO_TOKEN, STALE, VolumeStatus};
use crate::publish::PublishRequest;
use crate::registry::Published;
use crate::spec::VolumeSpec;
use crate::statuses::Statuses;
use crate::volume::Outcome;

/// A first mount that takes longer is worth a word.
const LATE: Duration = Duration::from_secs(10);

/// How many volumes are remembered that could not be mounted so far. The kubelet does not say which of them it
/// has given up.
const WAITING: usize = 1024;

/// What a look at a volume that found nothing wrong puts an end to.
const LOOKED_AFTER: [EventReason; 3] = [
    EventReason::RotationFailed,
    EventReason::Denied,
    EventReason::ChangeRefused,
];

/// Whom the publisher tells. Clones are the same one.
#[derive(Clone, Default)]
pub struct Reports(Arc<Inner>);

#[derive(Default)]
struct Inner {
    events: Events,
    statuses: Statuses,
    /// Volumes that could not be mounted when it was last tried, and why.
    waiting: Mutex<HashMap<String, Reason>>,
}

impl Reports {
    /// Reports by Events and by status objects.
    #[must_use]
    pub fn new(events: Events, statuses: Statuses) -> Self {
        Self(Arc::new(Inner {
            events,
            statuses,
            waiting: Mutex::default(),
        }))
    }

    /// Where there are Events.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// It is known what a first mount asks of whom.
    pub(crate) fn resolved(&self, request: &PublishRequest, spec: &VolumeSpec) {
        let overridden = spec.overridden(&request.attributes);
        if !overridden.is_empty() {
            let note = format!(
                "volumeAttributes of the pod give {}, and so does its SecretProviderClass: the class wins; remove them from the pod, or let pods win (--pod-attributes-win)",
                overridden.join(", ")
            );
            let (pod, volume_id) = (&request.requester.pod, &request.volume_id);
            let reason = EventReason::AttributeOverridden;
            self.0.events.tell(pod, volume_id, reason, &note);
        }
    }

    /// A first mount has ended; `published` is the volume, if it is there.
    pub(crate) fn mounted(
        &self,
        request: &PublishRequest,
        published: Option<&Published>,
        mounted: &Result<Outcome, PublishError>,
        took: Duration,
    ) {
        if !self.0.events.are_on() {
            return;
        }
        let tell = |reason, note: &str| {
            let pod = &request.requester.pod;
            self.0.events.tell(pod, &request.volume_id, reason, note);
        };
        match mounted {
            Ok(_) => {
                let before = self.waiting(|waiting| waiting.remove(&request.volume_id));
                match before {
                    Some(reason) => tell(
                        EventReason::MountedLate,
                        &format!(
                            "the volume is mounted; before, it could not be: {}",
                            reason.as_str()
                        ),
                    ),
                    None if took > LATE => tell(
                        EventReason::MountedLate,
                        "the volume is mounted; its stores took their time",
                    ),
                    None => {}
                }
                if let Some(published) = published {
                    self.put_status(published, Ok(()), &facts(published));
                }
                self.0.events.over(&request.volume_id, &LOOKED_AFTER);
            }
            Err(PublishError::Unpublished | PublishError::Busy) => {}
            // The kubelet has an Event for each try that failed. This one is told once, under a reason of its own.
            Err(error) => {
                let reason = error.reason();
                if reason == Reason::PermissionDenied {
                    tell(EventReason::Denied, &error.to_string());
                }
                self.waiting(|waiting| {
                    if waiting.len() >= WAITING && !waiting.contains_key(&request.volume_id) {
                        waiting.clear();
                    }
                    waiting.insert(request.volume_id.clone(), reason);
                });
            }
        }
    }

    /// A published volume was looked at.
    pub(crate) fn looked(
        &self,
        published: Option<&Published>,
        looked: &Result<Outcome, PublishError>,
    ) {
        let (Some(published), true) = (published, self.0.events.are_on()) else {
            return;
        };
        let error = match looked {
            // It is looked at again in a second.
            Ok(Outcome::TooSoon(_)) | Err(PublishError::Unpublished) => return,
            // A driver that has just started. Nothing could be told before they are known.
            Err(PublishError::ClassesUnknown) => return,
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let facts = facts(published);
        self.put_status(published, error.map_or(Ok(()), Err), &facts);
        let request = &published.request;
        let (pod, volume_id) = (&request.requester.pod, request.volume_id.as_str());
        let events = &self.0.events;
        let tell = |reason, note: &str| events.tell(pod, volume_id, reason, note);
        match error {
            Some(error @ PublishError::Immutable(_)) => {
                tell(EventReason::ChangeRefused, &error.to_string());
            }
            Some(error) => {
                let reason = match error.reason() {
                    Reason::PermissionDenied => EventReason::Denied,
                    _ => EventReason::RotationFailed,
                };
                tell(reason, &format!("{error}; the volume keeps what it has"));
            }
            None if facts.iter().any(|fact| fact.waits_for_token) => {
                tell(EventReason::RotationFailed, NO_TOKEN);
            }
            None => events.over(volume_id, &LOOKED_AFTER),
        }
        match facts.iter().any(|fact| fact.stale) {
            true => tell(EventReason::Stale, STALE),
            false => events.over(volume_id, &[EventReason::Stale]),
        }
        if matches!(looked, Ok(Outcome::Rotated)) {
            tell(
                EventReason::Rotated,
                "the files of the volume were replaced by newer ones",
            );
        }
    }

    fn put_status(&self, published: &Published, looked: Result<(), &PublishError>, facts: &[Fact]) {
        if let Some(status) = VolumeStatus::of(published, looked, facts) {
            self.0.statuses.put(&published.request.volume_id, status);
        }
    }

    /// A volume is not there any more.
    pub(crate) fn gone(&self, volume_id: &str) {
        self.0.events.forget(volume_id);
        self.0.statuses.remove(volume_id);
        self.waiting(|waiting| waiting.remove(volume_id));
    }

    fn waiting<T>(&self, then: impl FnOnce(&mut HashMap<String, Reason>) -> T) -> T {
        let waiting = self.0.waiting.lock();
        then(&mut waiting.unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the cache knows of a volume; nothing, where it does not look after it any more.
fn facts(published: &Published) -> Vec<Fact> {
    let followed = published.followed.as_ref();
    let facts = followed.map(|followed| followed.subscription.facts());
    facts.unwrap_or_default()
}
