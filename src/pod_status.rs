//! SecretProviderClassPodStatus: what a volume holds, for people and tools that look from outside. Its types,
//! and when a change of them is worth a write. Pure; `kube/statuses.rs` writes.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use coffer_provider::{Pod, Version, clean_text};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cache::Fact;
use crate::class::ClassName;
use crate::clock;
use crate::error::PublishError;
use crate::registry::Published;
use crate::spec::VolumeSpec;
use crate::volume::Record;

/// The longest name of an object that is shown, in bytes.
const ID_BYTES: usize = 512;

/// The longest error that is shown, in bytes.
const ERROR_BYTES: usize = 512;

/// Two writes that only correct the end of a lease, or the words of an error, are at least so far apart.
const CORRECTED: Duration = Duration::from_secs(600);

/// `status` of the object. The fields up to `objects` are those of secrets-store-csi-driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// The class of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_provider_class_name: Option<String>,
    /// Whether the volume is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted: Option<bool>,
    /// The target path of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_path: Option<String>,
    /// What is in the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<ObjectStatus>>,
    /// `Refreshed`: the last look at the stores went well. `Stale`: what the volume holds is older than its
    /// class allows, or has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

/// One object of a volume. Looks that find nothing new write nothing: the times are those of the last write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its version, by the store or by a keyed hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When the store had last answered for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_fetch_time: Option<Timestamp>,
    /// When the store was to be asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_fetch_time: Option<Timestamp>,
    /// When it ends by itself. A lease that is renewed is written again before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expiration_time: Option<Timestamp>,
    /// Why it could not be read when it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// As in other objects of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is said.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word for the cause.
    pub reason: String,
    /// A sentence.
    #[serde(default)]
    pub message: String,
    /// When `status` became what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_transition_time: Option<Timestamp>,
}

/// The object that a volume is to have.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// The pod, which the object goes with.
    pub pod: Pod,
    /// The class of the volume.
    pub class: ClassName,
    /// The name of the volume in the pod; none where the target path does not tell it.
    pub volume: Option<String>,
    /// Its status.
    pub status: PodStatus,
}

/// What of a class is in the status of its volumes, also of one that does not follow it any more.
pub struct Shown {
    class: ClassName,
    /// By its name in the record of the volume, what an object is called.
    ids: BTreeMap<String, String>,
}

impl Shown {
    /// Of a volume that is kept like this.
    #[must_use]
    pub fn of(spec: &VolumeSpec) -> Self {
        let sources = spec.sources();
        let objects = sources
            .iter()
            .flat_map(|source| source.objects.iter().map(move |object| (source, object)));
        let ids = objects.map(|(source, object)| {
            let name = match object.name.as_str() {
                "" => source.provider,
                name => name,
            };
            let id = match sources.len() {
                1 => name.to_owned(),
                _ => format!("{}/{name}", source.name),
            };
            (source.object_key(object), clean_text(&id, ID_BYTES))
        });
        Self {
            class: spec.class_name().clone(),
            ids: ids.collect(),
        }
    }
}

impl VolumeStatus {
    /// What is to be said of a volume after a look that ended so; nothing as long as it is not known what is in
    /// it, as after a restart without its class.
    pub(crate) fn of(
        published: &Published,
        looked: Result<(), &PublishError>,
        facts: &[Fact],
    ) -> Option<Self> {
        let (request, shown) = (&published.request, published.shown.as_ref()?);
        let record = published.record.as_ref()?;
        let facts: HashMap<_, _> = facts
            .iter()
            .map(|fact| (fact.recorded_as.as_str(), fact))
            .collect();
        Some(Self {
            pod: request.requester.pod.clone(),
            class: shown.class.clone(),
            volume: request.target.volume().map(str::to_owned),
            status: PodStatus {
                pod_name: Some(request.requester.pod.name.clone()),
                secret_provider_class_name: Some(shown.class.name.clone()),
                mounted: Some(true),
                target_path: Some(request.target.to_string()),
                objects: Some(objects(shown, record, &facts, &held_by_plugins(published))),
                conditions: Some(conditions(looked, &facts)),
            },
        })
    }
}

/// By the name of its object in the record: what a plugin says that it gave.
fn held_by_plugins(published: &Published) -> HashMap<String, Vec<(String, String)>> {
    let followed = published.followed.iter();
    let sources = followed.flat_map(|followed| followed.spec.sources());
    let held = sources.filter_map(|source| {
        let [object] = source.objects.as_slice() else {
            return None;
        };
        let holds = source.source.holds();
        (!holds.is_empty()).then(|| (source.object_key(object), holds))
    });
    held.collect()
}

fn objects(
    shown: &Shown,
    record: &Record,
    facts: &HashMap<&str, &Fact>,
    by_plugins: &HashMap<String, Vec<(String, String)>>,
) -> Vec<ObjectStatus> {
    let mut objects: Vec<_> = shown
        .ids
        .iter()
        .filter_map(|(key, id)| {
            let held = record.objects.get(key)?;
            let fact = facts.get(key.as_str());
            let ends = fact.and_then(|fact| fact.ends).map(at);
            let recorded = held.expires.and_then(|ends| i64::try_from(ends).ok());
            let recorded = recorded.and_then(|ends| Timestamp::from_second(ends).ok());
            let error = fact.and_then(|fact| fact.error.as_ref());
            let status = ObjectStatus {
                id: Some(id.clone()),
                version: Some(held.version.clone()),
                last_fetch_time: fact.and_then(|fact| fact.answered).map(at),
                next_fetch_time: fact.and_then(|fact| fact.due).map(at),
                expiration_time: ends.or(recorded),
                last_error: error.map(|error| clean_text(&error.to_string(), ERROR_BYTES)),
            };
            Some((key, status))
        })
        .flat_map(|(key, status)| match by_plugins.get(key) {
            None => vec![status],
            Some(held) => held
                .iter()
                .map(|(id, version)| ObjectStatus {
                    id: Some(clean_text(id, ID_BYTES)),
                    version: Some(clean_text(version, Version::MAX_BYTES)),
                    ..status.clone()
                })
                .collect(),
        })
        .collect();
    objects.sort_by(|one, other| one.id.cmp(&other.id));
    objects
}

/// By the wall clock, in whole seconds.
fn at(instant: Instant) -> Timestamp {
    let now = clock::now();
    let wall = SystemTime::now();
    let time = match instant.checked_duration_since(now) {
        Some(ahead) => wall.checked_add(ahead),
        None => wall.checked_sub(now.duration_since(instant)),
    };
    let since_1970 = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let seconds = since_1970.map_or(0, |since| since.as_secs() as i64);
    Timestamp::from_second(seconds).unwrap_or_default()
}

fn conditions(looked: Result<(), &PublishError>, facts: &HashMap<&str, &Fact>) -> Vec<Condition> {
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| Condition {
        kind: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: clean_text(message, ERROR_BYTES),
        last_transition_time: None,
    };
    let refreshed = match looked {
        Err(error) => condition(
            "Refreshed",
            false,
            error.reason().as_str(),
            &error.to_string(),
        ),
        Ok(()) if facts.values().any(|fact| fact.waits_for_token) => {
            condition("Refreshed", false, "NoToken", NO_TOKEN)
        }
        Ok(()) => condition("Refreshed", true, "UpToDate", ""),
    };
    let stale = match facts.values().any(|fact| fact.stale) {
        true => condition("Stale", true, "PastItsTime", STALE),
        false => condition("Stale", false, "InTime", ""),
    };
    vec![refreshed, stale]
}

/// Something is due, and the kubelet has brought nothing to ask for it with.
pub(crate) const NO_TOKEN: &str = "a secret is due, and no valid token of the pod has come to ask for it: the volume keeps what it has";

/// The store has been away for longer than the class allows.
pub(crate) const STALE: &str = "a secret has ended, or is older than refresh.interval and refresh.maxStale of its class allow: the volume keeps what it has until its store can be read again";

impl PodStatus {
    /// Takes the times of those conditions that have not changed from what was written before.
    pub fn continues(&mut self, before: Option<&Self>, now: Timestamp) {
        let before = before.and_then(|before| before.conditions.as_ref());
        for condition in self.conditions.iter_mut().flatten() {
            let same = before
                .into_iter()
                .flatten()
                .find(|known| known.kind == condition.kind && known.status == condition.status);
            let since = same.and_then(|known| known.last_transition_time);
            condition.last_transition_time = Some(since.unwrap_or(now));
        }
    }

    /// Whether what was written `ago` says something else, or will before it is looked at again. Times alone are
    /// no news: otherwise each look at a store would be a write. Nor are other words for a store that is away, at
    /// once.
    #[must_use]
    pub fn is_news(&self, written: &Self, ago: Duration) -> bool {
        if self.outline(false) != written.outline(false) {
            return true;
        }
        let objects = |status: &Self| status.objects.clone().unwrap_or_default();
        let (now, before) = (objects(self), objects(written));
        let ends_too_soon = now.iter().zip(&before).any(|(now, before)| {
            let seen_again = now.next_fetch_time.or(now.expiration_time);
            before.expiration_time != now.expiration_time && before.expiration_time < seen_again
        });
        let says_else = self.outline(true) != written.outline(true);
        (ends_too_soon || says_else) && ago >= CORRECTED
    }

    /// The status without its times, and without the words of errors unless those are asked for.
    fn outline(&self, words: bool) -> Self {
        let mut status = self.clone();
        for object in status.objects.iter_mut().flatten() {
            object.last_fetch_time = None;
            object.next_fetch_time = None;
            object.expiration_time = object.expiration_time.map(|_| Timestamp::UNIX_EPOCH);
            if !words {
                object.last_error = object.last_error.as_ref().map(|_| String::new());
            }
        }
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_transition_time = None;
            if !words {
                condition.message.clear();
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn status(version: &str, looked_at: i64, ends: Option<i64>) -> PodStatus {
        let object = ObjectStatus {
            id: Some("db".into()),
            version: Some(version.into()),
            last_fetch_time: Some(time(looked_at)),
            next_fetch_time: Some(time(looked_at + 120)),
            expiration_time: ends.map(time),
            last_error: None,
        };
        let facts = HashMap::new();
        PodStatus {
            mounted: Some(true),
            objects: Some(vec![object]),
            conditions: Some(conditions(Ok(()), &facts)),
            ..PodStatus::default()
        }
    }

    #[test]
    fn times_of_looks_that_found_nothing_new_are_no_news() {
        let written = status("1", 1000, None);
        let day = Duration::from_secs(86_400);
        assert!(!status("1", 90_000, None).is_news(&written, day));
        assert!(status("2", 1000, None).is_news(&written, Duration::ZERO));
        let mut failing = status("1", 1000, None);
        let facts = HashMap::new();
        failing.conditions = Some(conditions(Err(&PublishError::NothingToMount), &facts));
        assert!(failing.is_news(&written, Duration::ZERO));
        let mut gone = status("1", 1000, None);
        gone.objects = Some(Vec::new());
        assert!(gone.is_news(&written, Duration::ZERO));
    }

    #[test]
    fn other_words_for_the_same_failure_are_no_news_for_a_while() {
        let failing = |error: &str, message: &str| {
            let mut status = status("1", 1000, None);
            for object in status.objects.iter_mut().flatten() {
                object.last_error = Some(error.into());
            }
            for condition in status.conditions.iter_mut().flatten() {
                condition.message = message.into();
            }
            status
        };
        let (refused, late) = (failing("refused", "refused"), failing("late", "late"));
        assert!(refused.is_news(&status("1", 1000, None), Duration::ZERO));
        assert!(!late.is_news(&refused, CORRECTED - Duration::from_secs(1)));
        assert!(late.is_news(&refused, CORRECTED));
        assert!(!late.is_news(&late, CORRECTED));
    }

    #[test]
    fn the_end_of_a_lease_is_corrected_before_it_has_passed_and_not_too_often() {
        let written = status("1", 1000, Some(4600));
        // Renewed: it ends later, and what is written holds until the next look.
        let renewed = status("1", 3000, Some(6600));
        assert!(!renewed.is_news(&written, Duration::from_secs(2000)));
        // It will have passed by then.
        let renewed = status("1", 4500, Some(8100));
        assert!(renewed.is_news(&written, CORRECTED));
        assert!(!renewed.is_news(&written, CORRECTED - Duration::from_secs(1)));
        // An end where there was none, and none where there was one.
        assert!(renewed.is_news(&status("1", 4500, None), Duration::ZERO));
        assert!(status("1", 4500, None).is_news(&written, Duration::ZERO));
    }

    #[test]
    fn a_condition_that_stays_keeps_its_time() {
        let facts = HashMap::new();
        let of = |looked| PodStatus {
            conditions: Some(conditions(looked, &facts)),
            ..PodStatus::default()
        };
        let since = |status: &PodStatus| -> Vec<_> {
            let conditions = status.conditions.iter().flatten();
            let since = conditions.map(|condition| condition.last_transition_time);
            since
                .map(|time| time.expect("a time").as_second())
                .collect()
        };
        let mut first = of(Ok(()));
        first.continues(None, time(1));
        assert_eq!(since(&first), [1, 1]);
        let mut failing = of(Err(&PublishError::NothingToMount));
        failing.continues(Some(&first), time(2));
        assert_eq!(since(&failing), [2, 1]);
        let mut again = of(Err(&PublishError::ClassesUnknown));
        again.continues(Some(&failing), time(3));
        assert_eq!(since(&again), [2, 1]);
    }
}
