//! Events on pods: what has become of their volumes, told when it changes and never on the way of a publish.
//!
//! Here it is decided what is told; `kube/events.rs` writes it. Without an API server nothing is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coffer_provider::{Pod, clean_text};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::telemetry::Metrics;

/// How many Events wait to be written. What comes on top is counted and dropped.
const QUEUE: usize = 1024;

/// How many volumes are remembered. A node has some hundred pods.
const VOLUMES: usize = 4096;

/// What the API server takes in `note`.
const NOTE_BYTES: usize = 1024;

/// Why a pod has an Event of ours: a closed list, for people and for alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventReason {
    /// The volume is mounted, after tries that failed or after a long wait.
    MountedLate,
    /// The files of the volume are other ones now.
    Rotated,
    /// The volume could not be looked after, and keeps what it has.
    RotationFailed,
    /// What the volume holds is older than its class allows, or has ended.
    Stale,
    /// The store refuses this identity.
    Denied,
    /// The pod gives a parameter that its class gives too: the class wins.
    AttributeOverridden,
    /// The volume is immutable, and its class has changed.
    ChangeRefused,
    /// A container mounts a file by subPath, which no rotation reaches.
    SubPathNotReached,
    /// A Kubernetes Secret could not be made of the volume's files. The name is that of
    /// secrets-store-csi-driver.
    SecretNotSynced,
}

impl EventReason {
    /// The word in `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MountedLate => "SecretsMountedLate",
            Self::Rotated => "SecretsRotated",
            Self::RotationFailed => "SecretsRotationFailed",
            Self::Stale => "SecretsStale",
            Self::Denied => "SecretsAccessDenied",
            Self::AttributeOverridden => "VolumeAttributeOverridden",
            Self::ChangeRefused => "ImmutableChangeRefused",
            Self::SubPathNotReached => "SubPathNotRotated",
            Self::SecretNotSynced => "FailedToCreateSecret",
        }
    }

    /// The word in `type`.
    #[must_use]
    pub fn severity(self) -> &'static str {
        match self.happens() || self == Self::MountedLate {
            true => "Normal",
            false => "Warning",
        }
    }

    /// The word in `action`: what the driver was about to do.
    #[must_use]
    pub fn action(self) -> &'static str {
        match self {
            Self::MountedLate | Self::AttributeOverridden => "Mount",
            Self::SecretNotSynced => "SyncSecret",
            _ => "Rotate",
        }
    }

    /// Whether it is over as soon as it is told. All others are states, and told again only when they have
    /// been something else.
    fn happens(self) -> bool {
        self == Self::Rotated
    }
}

/// One Event, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod.
    pub pod: Pod,
    /// Why.
    pub reason: EventReason,
    /// One sentence: at most 1024 bytes, clean, the same for the same cause.
    pub note: String,
    /// When it was told.
    pub at: Timestamp,
}

/// Takes what is to be told of volumes. Clones are the same one; the default is one that nobody reads.
#[derive(Clone, Default)]
pub struct Events(Option<Arc<Inner>>);

struct Inner {
    queue: mpsc::Sender<PodEvent>,
    told: Mutex<HashMap<String, BTreeMap<EventReason, Told>>>,
    /// Of one volume and reason, nothing more is told for so long.
    interval: Duration,
    metrics: Arc<Metrics>,
}

/// What was told of one volume for one reason.
struct Told {
    at: Instant,
    /// The sentence, for as long as it holds.
    holds: Option<String>,
}

impl Events {
    /// Events, of one volume and reason one in each `interval` at most, and the queue that they leave by.
    #[must_use]
    pub fn new(interval: Duration, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<PodEvent>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let inner = Inner {
            queue,
            told: Mutex::default(),
            interval,
            metrics,
        };
        (Self(Some(Arc::new(inner))), events)
    }

    /// Whether anybody can read them.
    #[must_use]
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Tells the owner of `pod` that `reason` holds for its volume, in a sentence without values, times, counts
    /// or ids of requests. Call it as often as it is found to be so: it leads to an Event when it is new, and to
    /// one in each interval at most. Never waits.
    pub fn tell(&self, pod: &Pod, volume_id: &str, reason: EventReason, note: &str) {
        let Some(inner) = &self.0 else { return };
        let note = clean_text(note, NOTE_BYTES);
        let now = Instant::now();
        let mut told = inner.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= VOLUMES && !told.contains_key(volume_id) {
            told.retain(|_, of_volume| {
                of_volume
                    .values()
                    .any(|told| told.is_recent(now, inner.interval))
            });
        }
        if told.len() >= VOLUMES && !told.contains_key(volume_id) {
            inner.metrics.reports.event(reason, "dropped");
            return;
        }
        let of_volume = told.entry(volume_id.to_owned()).or_default();
        if let Some(before) = of_volume.get(&reason)
            && (before.holds.as_ref() == Some(&note) || before.is_recent(now, inner.interval))
        {
            return;
        }
        let event = PodEvent {
            pod: pod.clone(),
            reason,
            note: note.clone(),
            at: Timestamp::now(),
        };
        if inner.queue.try_send(event).is_err() {
            // Not told: whoever finds it to be so once more tries again.
            inner.metrics.reports.event(reason, "dropped");
            return;
        }
        let holds = (!reason.happens()).then_some(note);
        of_volume.insert(reason, Told { at: now, holds });
    }

    /// It is not so any more: when it is again, that is news.
    pub fn over(&self, volume_id: &str, reasons: &[EventReason]) {
        let Some(inner) = &self.0 else { return };
        let mut told = inner.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_volume) = told.get_mut(volume_id) else {
            return;
        };
        for reason in reasons {
            if let Some(told) = of_volume.get_mut(reason) {
                told.holds = None;
            }
        }
    }

    /// The volume is gone.
    pub fn forget(&self, volume_id: &str) {
        let Some(inner) = &self.0 else { return };
        let mut told = inner.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(volume_id);
    }
}

impl Told {
    fn is_recent(&self, now: Instant, interval: Duration) -> bool {
        now < self.at + interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::ServiceAccount;
    use tokio::time::advance;

    const AT_MOST_EVERY: Duration = Duration::from_secs(600);

    fn pod() -> Pod {
        Pod {
            name: "web".into(),
            namespace: "shop".into(),
            uid: "u".into(),
            service_account: ServiceAccount {
                name: "web".into(),
                uid: None,
            },
        }
    }

    struct Listener {
        events: Events,
        queue: mpsc::Receiver<PodEvent>,
        metrics: Arc<Metrics>,
    }

    impl Listener {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::default());
            let (events, queue) = Events::new(AT_MOST_EVERY, metrics.clone());
            Self {
                events,
                queue,
                metrics,
            }
        }

        /// Tells it, and whether that led to an Event.
        fn tells(&mut self, volume_id: &str, reason: EventReason, note: &str) -> bool {
            self.events.tell(&pod(), volume_id, reason, note);
            let event = self.queue.try_recv().ok();
            event.is_some_and(|event| {
                assert_eq!((event.reason, event.note.as_str()), (reason, note));
                assert_eq!(event.pod, pod());
                true
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rule_s2_a_state_is_told_when_it_is_new_and_once_in_ten_minutes() {
        use EventReason::{RotationFailed, Stale};
        let mut told = Listener::new();
        assert!(told.tells("a", RotationFailed, "the store is away"));
        // As long as it is the same, however long.
        for _ in 0..3 {
            assert!(!told.tells("a", RotationFailed, "the store is away"));
            advance(AT_MOST_EVERY).await;
        }
        assert!(told.tells("b", RotationFailed, "the store is away"));
        assert!(told.tells("a", Stale, "the store is away"));
        // It changes: the first time at once, the second time when ten minutes have passed.
        assert!(told.tells("a", RotationFailed, "the store says no"));
        advance(AT_MOST_EVERY - Duration::from_secs(1)).await;
        assert!(!told.tells("a", RotationFailed, "the store is away"));
        advance(Duration::from_secs(1)).await;
        assert!(told.tells("a", RotationFailed, "the store is away"));
        // It was over, and is back.
        told.events.over("a", &[RotationFailed]);
        assert!(!told.tells("a", RotationFailed, "the store is away"));
        advance(AT_MOST_EVERY).await;
        assert!(told.tells("a", RotationFailed, "the store is away"));
        // Another volume may have the id of one that is gone.
        told.events.forget("a");
        assert!(told.tells("a", RotationFailed, "the store is away"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_is_told_again_after_ten_minutes() {
        let mut told = Listener::new();
        for _ in 0..3 {
            assert!(told.tells("a", EventReason::Rotated, "new files"));
            assert!(!told.tells("a", EventReason::Rotated, "new files"));
            advance(AT_MOST_EVERY).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_and_counts_and_holds_up_nobody() {
        let mut told = Listener::new();
        let tell = |events: &Events, n: usize| {
            events.tell(&pod(), &format!("v{n}"), EventReason::Stale, "old");
        };
        for n in 0..QUEUE + 3 {
            tell(&told.events, n);
        }
        let dropped = "coffer_events_total{reason=\"SecretsStale\",outcome=\"dropped\"} 3";
        assert!(
            told.metrics.text().contains(dropped),
            "{}",
            told.metrics.text()
        );
        while told.queue.try_recv().is_ok() {}
        tell(&told.events, QUEUE + 1);
        let event = told
            .queue
            .try_recv()
            .expect("what was dropped is not taken for told");
        assert_eq!(event.note, "old");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_volumes_are_remembered_than_a_node_can_have() {
        let mut told = Listener::new();
        for n in 0..VOLUMES {
            assert!(told.tells(&format!("v{n}"), EventReason::Stale, "old"));
        }
        assert!(!told.tells("one more", EventReason::Stale, "old"));
        advance(AT_MOST_EVERY).await;
        assert!(told.tells("one more", EventReason::Stale, "old"));
    }

    #[test]
    fn sentences_are_clean_and_short_and_without_a_reader_there_is_none() {
        let metrics = Arc::new(Metrics::default());
        let (events, mut queue) = Events::new(AT_MOST_EVERY, metrics);
        let note = format!("a\u{1b}[31mb{}", "x".repeat(2000));
        events.tell(&pod(), "a", EventReason::Denied, &note);
        let event = queue.try_recv().expect("told");
        assert!(event.note.starts_with("a\\u{1b}[31mb") && event.note.len() <= NOTE_BYTES);
        let off = Events::default();
        off.tell(&pod(), "a", EventReason::Denied, "x");
        assert!(!off.are_on() && events.are_on());
    }

    #[test]
    fn what_asks_for_nothing_is_normal() {
        use EventReason::*;
        let all = [
            MountedLate,
            Rotated,
            RotationFailed,
            Stale,
            Denied,
            AttributeOverridden,
            ChangeRefused,
            SubPathNotReached,
            SecretNotSynced,
        ];
        let normal: Vec<_> = all
            .into_iter()
            .filter(|reason| reason.severity() == "Normal")
            .map(EventReason::as_str)
            .collect();
        assert_eq!(normal, ["SecretsMountedLate", "SecretsRotated"]);
    }
}
