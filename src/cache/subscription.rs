//! What one volume needs of the cache: it reads, it is told, and it lets go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer_provider::{
    Caller, ErrorKind, Life, ObjectRef, ProviderError, Secret, Sharing, Source, Version,
};
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::info;

use super::entry::{Entry, Held, Key, State};
use super::{Inner, LINGER, Subscriber};
use crate::clock;
use crate::error::PublishError;
use crate::flight::{Flight, Item, Outcome, ReadFailure, STORE_DEADLINE};
use crate::identity::Identity;
use crate::pacer::Urgency;
use crate::schedule::Strategy;
use crate::spec::VolumeSource;
use crate::volume::Record;

/// What a source of a volume tells by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The source with this number may have something new.
    Changed(usize),
    /// It will not tell any more.
    Ended(usize),
}

/// What the sources of a volume tell.
pub type Tidings = BoxStream<'static, Told>;

/// What a volume needs of the cache, for as long as it is there.
pub struct Subscription {
    pub(super) cache: Arc<Inner>,
    pub(super) id: u64,
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) parts: Vec<Part>,
    pub(super) max_stale: Duration,
}

/// One source of a volume.
pub(super) struct Part {
    pub(super) provider: &'static str,
    pub(super) source: Arc<dyn Source>,
    pub(super) objects: Vec<Wanted>,
    pub(super) strategy: Strategy,
    /// Who may use the login.
    pub(super) sharing: Sharing,
}

pub(super) struct Wanted {
    pub(super) key: Arc<Key>,
    pub(super) object: ObjectRef,
    /// All that the volume takes out of the same answer of the store.
    pub(super) of_one_answer: Arc<[ObjectRef]>,
    /// The volume can do without it where the store does not have it.
    pub(super) optional: bool,
    /// Its name in the record of the volume.
    pub(super) recorded_as: String,
}

/// An object as a volume gets it: nothing, where the store does not have it and the volume can do without.
pub type Given = Option<Secret>;

/// What the cache has for a volume.
pub enum Look {
    /// These versions, by the names of the objects in the record of the volume. Objects that their stores
    /// do not have are not among them.
    Versions(BTreeMap<String, Version>),
    /// Something has not been read yet: the subscriber is told when it is.
    Waiting,
    /// Something could not be read when it was last tried: the subscriber is told when it can.
    Failing(PublishError),
}

impl Part {
    pub(super) fn new(
        source: &VolumeSource,
        identity: &Identity,
        share_all: bool,
        strategy: Strategy,
    ) -> Self {
        let mut answers = BTreeMap::<&str, Vec<ObjectRef>>::new();
        for object in &source.objects {
            let answer = answers.entry(source.source.answer_of(object));
            answer.or_default().push(object.clone());
        }
        let whole = |(answer, mut objects): (_, Vec<ObjectRef>)| {
            objects.sort_by(|a, b| a.request.cmp(&b.request));
            (answer, (hash_of(&objects), Arc::<[_]>::from(objects)))
        };
        let answers: BTreeMap<_, _> = answers.into_iter().map(whole).collect();
        let wanted = |object: &ObjectRef| {
            let (together, of_one_answer) = &answers[source.source.answer_of(object)];
            Wanted {
                key: Arc::new(Key {
                    provider: source.provider,
                    identity: identity.clone(),
                    request: object.request.clone(),
                    together: *together,
                    share_all,
                }),
                object: object.clone(),
                of_one_answer: of_one_answer.clone(),
                optional: source.can_lack(object),
                recorded_as: source.object_key(object),
            }
        };
        Self {
            provider: source.provider,
            source: source.source.clone(),
            objects: source.objects.iter().map(wanted).collect(),
            strategy,
            sharing: identity.login_sharing(),
        }
    }
}

/// The same for the same requests.
fn hash_of(objects: &[ObjectRef]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for object in objects {
        hash.update((object.request.len() as u64).to_be_bytes());
        hash.update(&object.request);
    }
    hash.finalize().into()
}

impl Subscription {
    /// Everything that the volume needs, as fresh as its class wants it, in the order of its sources.
    /// What is not there is read from the stores; what somebody else is reading is waited for. Can be
    /// dropped at any time without harm to others who wait.
    ///
    /// # Errors
    /// The first object that could not be read.
    pub async fn read(&self) -> Result<Vec<Vec<Given>>, PublishError> {
        let requester = self.subscriber.requester();
        let callers: Vec<Caller> = self
            .parts
            .iter()
            .map(|part| requester.caller(&*part.source, part.sharing))
            .collect::<Result<_, _>>()?;
        let mut answers: Vec<Vec<Option<Given>>> = self
            .parts
            .iter()
            .map(|part| vec![None; part.objects.len()])
            .collect();
        loop {
            let flights = self.plan(&callers, &mut answers)?;
            if flights.is_empty() {
                let whole = answers.into_iter().map(|part| part.into_iter().flatten());
                return Ok(whole.map(Iterator::collect).collect());
            }
            for flight in &flights {
                let outcomes = flight.landed().await;
                self.take(&outcomes, &mut answers)?;
            }
        }
    }

    /// Fills in what there is; for the rest, whom to wait for.
    fn plan(
        &self,
        callers: &[Caller],
        answers: &mut [Vec<Option<Given>>],
    ) -> Result<Vec<Arc<Flight>>, PublishError> {
        let now = clock::now();
        let mut state = self.cache.state();
        let mut flights: Vec<Arc<Flight>> = Vec::new();
        for ((part, caller), answers) in self.parts.iter().zip(callers).zip(answers) {
            let mut lead = Vec::new();
            let anew = self.read_anew(&mut state, part, answers, now);
            for (wanted, answer) in part.objects.iter().zip(answers) {
                let together = anew.contains(&wanted.key.together);
                if answer.is_some() && !together {
                    continue;
                }
                let key = self.effective(&state, wanted);
                let used = state.tick();
                let entry = state.entry(&key);
                entry.used = used;
                let fresh = entry.fresh(part.strategy.ttl(), now);
                if let Some(fresh) = fresh.filter(|_| !together) {
                    self.cache.metrics.cache_hits.inc();
                    *answer = Some(Some(fresh));
                } else if let Some(failed) = entry.failed.as_ref().filter(|f| now < f.until) {
                    let error = failed.error.clone();
                    *answer = Some(self.instead(entry, part, wanted, &error, now)?);
                } else if let Some(flight) = entry.in_flight() {
                    flight.hurry();
                    flights.push(flight);
                } else {
                    *answer = None;
                    if entry.due.is_some() && entry.held.is_none() && entry.failed.is_none() {
                        // The look that it is due for is this one, unless it is given up.
                        state.set_due(&key, Some(now + STORE_DEADLINE));
                    }
                    lead.push(Item::new(key, wanted.object.clone()));
                }
            }
            if !lead.is_empty() {
                let flight =
                    self.cache
                        .lead(&mut state, &part.source, caller, lead, Urgency::Mount);
                flights.push(flight);
            }
        }
        Ok(flights)
    }

    /// The answers of the store that are asked for once more: a part of them is not there, and it has to
    /// be of the same answer as the others.
    fn read_anew(
        &self,
        state: &mut State,
        part: &Part,
        answers: &[Option<Given>],
        now: Instant,
    ) -> BTreeSet<[u8; 32]> {
        let mut anew = BTreeSet::new();
        for (wanted, answer) in part.objects.iter().zip(answers) {
            let key = self.effective(state, wanted);
            let entry = state.entry(&key);
            let failing = entry.failed.as_ref().is_some_and(|f| now < f.until);
            if answer.is_none() && !failing && entry.fresh(part.strategy.ttl(), now).is_none() {
                anew.insert(wanted.key.together);
            }
        }
        anew
    }

    fn take(
        &self,
        outcomes: &HashMap<Arc<Key>, Outcome>,
        answers: &mut [Vec<Option<Given>>],
    ) -> Result<(), PublishError> {
        let now = clock::now();
        let mut state = self.cache.state();
        for (part, answers) in self.parts.iter().zip(answers) {
            for (wanted, answer) in part.objects.iter().zip(answers) {
                let key = self.effective(&state, wanted);
                match outcomes.get(&key) {
                    Some(Outcome::Read(secret)) => {
                        answer.get_or_insert_with(|| Some(secret.clone()));
                    }
                    Some(Outcome::Failed(ReadFailure::Store(error))) if answer.is_none() => {
                        let entry = state.entry(&key);
                        *answer = Some(self.instead(entry, part, wanted, error, now)?);
                    }
                    Some(Outcome::Failed(ReadFailure::QueueFull)) if answer.is_none() => {
                        return Err(PublishError::QueueFull {
                            provider: part.provider.to_owned(),
                        });
                    }
                    // Asked again, of the pod's own entry or of one that says it is the same.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What the volume gets where the store has failed.
    fn instead(
        &self,
        entry: &Entry,
        part: &Part,
        wanted: &Wanted,
        error: &ProviderError,
        now: Instant,
    ) -> Result<Given, PublishError> {
        if wanted.is_lacking(error) {
            return Ok(None);
        }
        let kept = self.stale(entry, part, error, now);
        kept.map(Some)
            .ok_or_else(|| provider_error(part, error.clone()))
    }

    /// The last answer, where the store is away and the class takes an older one.
    fn stale(
        &self,
        entry: &Entry,
        part: &Part,
        error: &ProviderError,
        now: Instant,
    ) -> Option<Secret> {
        let away = matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded
        );
        let age = part.strategy.ttl() + self.max_stale;
        let usable = away && !self.max_stale.is_zero();
        usable.then(|| entry.fresh(age, now)).flatten()
    }

    /// Where the answer for this volume is kept: with its pod, if the store gives each pod its own.
    pub(super) fn effective(&self, state: &State, wanted: &Wanted) -> Arc<Key> {
        let shared = state.entries.get(&wanted.key);
        match shared.is_some_and(|entry| entry.per_pod) {
            false => wanted.key.clone(),
            true => wanted.key.of_pod(&self.subscriber.requester().pod.uid),
        }
    }

    /// What there is now, without asking anybody.
    #[must_use]
    pub fn look(&self) -> Look {
        let mut state = self.cache.state();
        let mut versions = BTreeMap::new();
        for part in &self.parts {
            for wanted in &part.objects {
                let key = self.effective(&state, wanted);
                let entry = state.entry(&key);
                match (&entry.failed, &entry.held) {
                    (Some(failed), _) if wanted.is_lacking(&failed.error) => {}
                    (Some(failed), _) => {
                        return Look::Failing(provider_error(part, failed.error.clone()));
                    }
                    (None, Some(held)) => {
                        versions.insert(wanted.recorded_as.clone(), held.version.clone());
                    }
                    (None, None) => return Look::Waiting,
                }
            }
        }
        Look::Versions(versions)
    }

    /// Every value, without asking anybody: `None` if one had to make room. It is read again then, and the
    /// subscriber is told.
    #[must_use]
    pub fn values(&self) -> Option<Vec<Vec<Given>>> {
        let now = clock::now();
        let mut state = self.cache.state();
        let mut whole = true;
        let mut values = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut secrets = Vec::with_capacity(part.objects.len());
            for wanted in &part.objects {
                let key = self.effective(&state, wanted);
                let used = state.tick();
                let entry = state.entry(&key);
                entry.used = used;
                let failed = entry.failed.as_ref();
                match entry.held.as_ref().and_then(|held| held.left(now)) {
                    _ if failed.is_some_and(|failed| wanted.is_lacking(&failed.error)) => {
                        secrets.push(None);
                    }
                    Some(secret) => secrets.push(Some(secret)),
                    None => {
                        entry.held = None;
                        state.set_due(&key, Some(now));
                        whole = false;
                    }
                }
            }
            values.push(secrets);
        }
        if !whole {
            self.cache.wake.notify_one();
        }
        whole.then_some(values)
    }

    /// How long ago the oldest of the values was read, or found to be the newest still; `None` where nothing
    /// is known of one.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let now = clock::now();
        let mut state = self.cache.state();
        let mut oldest = Duration::ZERO;
        for wanted in self.parts.iter().flat_map(|part| &part.objects) {
            let key = self.effective(&state, wanted);
            let entry = state.entry(&key);
            match &entry.held {
                Some(held) => oldest = oldest.max(now.duration_since(held.at)),
                // The store does not have it.
                None if entry.failed.is_some() => {}
                None => return None,
            }
        }
        Some(oldest)
    }

    /// Believes what an earlier process wrote into the volume: nothing is read until it is due, in an
    /// order that is spread over the interval.
    pub fn adopt(&self, record: &Record) {
        let now = clock::now();
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut state = self.cache.state();
        for part in &self.parts {
            for wanted in &part.objects {
                let known = record.objects.get(&wanted.recorded_as);
                let ends = known.and_then(|known| known.expires);
                let left = ends.map(|ends| Duration::from_secs(ends).saturating_sub(since_1970));
                let version = known.and_then(|known| Version::new(known.version.clone()).ok());
                let once = known.is_some_and(|known| known.once);
                let key = match left.is_some() || once {
                    // What ends by itself, or is the only one, was made for one pod.
                    true if !wanted.key.share_all => {
                        state.part_by_pod(&wanted.key, now);
                        self.effective(&state, wanted)
                    }
                    _ => self.effective(&state, wanted),
                };
                let life = match once {
                    true => Life::Once,
                    false => left.map_or(Life::Static, Life::Expires),
                };
                // Another volume, or this process, knows more of it.
                let is_known = state.entry(&key).held.is_some();
                if let Some(version) = version.filter(|_| !is_known) {
                    state.entry(&key).held = Some(Held {
                        secret: None,
                        version,
                        ends: left.map(|left| now + left),
                        life,
                        at: now,
                    });
                }
                let due = match part.strategy {
                    // Nobody has watched meanwhile.
                    Strategy::Watch if state.entry(&key).can_change() => Some(now),
                    _ if is_known => state.entry(&key).due,
                    _ => state.next_look(&key, now, &self.cache.settings),
                };
                state.set_due(&key, due);
            }
        }
        drop(state);
        self.cache.wake.notify_one();
    }

    /// The store may have something new of this source.
    pub fn mark_due(&self, source: usize) {
        let now = clock::now();
        let mut state = self.cache.state();
        for wanted in self.parts.get(source).iter().flat_map(|part| &part.objects) {
            let key = self.effective(&state, wanted);
            if state.entry(&key).can_change() {
                state.set_due(&key, Some(now));
            }
        }
        drop(state);
        self.cache.wake.notify_one();
    }

    /// Everything is to be looked at because of an annotation: once, however many volumes of the class
    /// bring it, one after the other.
    pub fn marked(&self, mark: &str) {
        let now = clock::now();
        let mut state = self.cache.state();
        for part in &self.parts {
            for wanted in &part.objects {
                let key = self.effective(&state, wanted);
                let entry = state.entry(&key);
                if entry.mark.as_deref() != Some(mark) {
                    entry.mark = Some(mark.to_owned());
                    state.set_due(&key, Some(now));
                }
            }
        }
        drop(state);
        self.cache.wake.notify_one();
    }

    /// A source does not tell of changes any more: it is asked instead, from now on.
    pub fn ask_instead(&mut self, source: usize, interval: Duration) {
        if let Some(part) = self.parts.get_mut(source) {
            part.strategy = Strategy::Cache(interval);
            info!(volume.id = %self.subscriber.volume_id, provider = part.provider, interval_s = interval.as_secs(), "the store does not tell of changes any more: it is asked instead");
            let mut state = self.cache.state();
            let pod = self.subscriber.requester().pod.uid.clone();
            for wanted in &part.objects {
                for key in [wanted.key.clone(), wanted.key.of_pod(&pod)] {
                    let entry = state.entries.get_mut(&key);
                    if let Some(user) = entry.and_then(|entry| entry.users.get_mut(&self.id)) {
                        user.strategy = part.strategy;
                    }
                }
            }
        }
        self.mark_due(source);
    }

    /// The kubelet has published the volume again: there may be a new token, and the strategy Get looks
    /// now.
    pub fn republished(&self) {
        let now = clock::now();
        let mut state = self.cache.state();
        let mut woken = false;
        for part in &self.parts {
            for wanted in &part.objects {
                let key = self.effective(&state, wanted);
                let entry = state.entry(&key);
                let looks = part.strategy == Strategy::Get && entry.can_change();
                if looks || entry.token_misses.is_some() {
                    state.set_due(&key, Some(now));
                    woken = true;
                }
            }
        }
        drop(state);
        if woken {
            self.cache.wake.notify_one();
        }
    }

    /// Whether the pod's tokens are those of another identity than its secrets are kept under, which is why
    /// nobody can look at them any more.
    #[must_use]
    pub fn is_outlived(&self) -> bool {
        let requester = self.subscriber.requester();
        let state = self.cache.state();
        let untended = |wanted: &&Wanted| {
            let entry = state.entries.get(&self.effective(&state, wanted));
            entry.is_some_and(|entry| entry.token_misses.is_some())
        };
        self.parts.iter().any(|part| {
            part.objects.iter().find(untended).is_some_and(|wanted| {
                let caller = requester.caller(&*part.source, part.sharing);
                caller.is_ok_and(|caller| !wanted.key.identity.admits(&caller))
            })
        })
    }

    fn own_key(&self, wanted: &Wanted) -> Arc<Key> {
        wanted.key.of_pod(&self.subscriber.requester().pod.uid)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let now = clock::now();
        let mut state = self.cache.state();
        for part in &self.parts {
            let linger = match part.strategy {
                // Nobody watches it from now on.
                Strategy::Watch => Duration::ZERO,
                _ => LINGER,
            };
            for wanted in &part.objects {
                for key in [wanted.key.clone(), self.own_key(wanted)] {
                    state.leave(&key, self.id, now + linger);
                }
            }
        }
        drop(state);
        self.cache.wake.notify_one();
    }
}

fn provider_error(part: &Part, error: ProviderError) -> PublishError {
    PublishError::Provider {
        provider: part.provider.to_owned(),
        error,
    }
}

impl Wanted {
    /// Whether it is left out of the volume for this. A store that says no is not one that has nothing.
    pub(super) fn is_lacking(&self, error: &ProviderError) -> bool {
        self.optional && error.kind() == ErrorKind::NotFound
    }
}
