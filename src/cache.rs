//! The secrets that the volumes of this node use, each read once for everybody whom its store cannot
//! tell apart, and looked at again when the schedule or the store says so.
//!
//! An [`Entry`](Entry) belongs to one identity and one request. Volumes subscribe to entries; when one
//! changes, its subscribers are told and write their volumes again. Values that nobody uses any more are
//! wiped.

mod facts;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use coffer_provider::{
    Caller, ErrorKind, Life, ObjectRef, ProviderError, Secret, Sharing, Source, Version,
};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::facts::Fact;
use crate::class::RefreshStrategy;
use crate::clock;
use crate::error::PublishError;
use crate::flight::{Answer, Flight, Item, Outcome, ReadFailure};
use crate::identity::{Identity, Requester};
use crate::pacer::{self, Pacer, Rate, Urgency};
use crate::schedule::{self, Backoff, Strategy};
use crate::spec::{VolumeSource, VolumeSpec};
use crate::telemetry::Metrics;
use crate::volume::Record;

/// How long an entry without a volume is kept: a pod that replaces another one finds it.
const LINGER: Duration = Duration::from_secs(30);

/// The schedule turns this often, whether anything is due or not.
const TURN: Duration = Duration::from_secs(20);

/// How long a lease stays after another one took its place in the volumes.
const LEASE_GRACE: Duration = Duration::from_secs(60);

/// How many tokens in a row may be missing before somebody hears of it (D3).
const TOKEN_MISSES: u32 = 2;

/// What the cache may hold and ask.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most bytes of values.
    pub bytes: usize,
    /// How fast one store is asked.
    pub rate: Rate,
    /// How many requests one store has at one time.
    pub slots: usize,
    /// How many first mounts wait for one store.
    pub queue: usize,
    /// How long a store that failed is left alone.
    pub backoff: Backoff,
    /// Moves the schedule of this node against that of others.
    pub seed: u64,
    /// Whether each pod is asked for by itself, whatever its class says.
    pub pods_apart: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bytes: 32 << 20,
            rate: Rate::default(),
            slots: pacer::SLOTS,
            queue: pacer::QUEUE,
            backoff: Backoff::default(),
            seed: 0,
            pods_apart: false,
        }
    }
}

/// The cache. Clones are the same one.
#[derive(Clone)]
pub struct SecretCache(Arc<Inner>);

pub(crate) struct Inner {
    settings: Settings,
    state: Mutex<State>,
    /// Something became due earlier than it was.
    wake: Notify,
    pacers: Mutex<HashMap<(&'static str, String), Arc<Pacer>>>,
    /// When the schedule last turned.
    turned: Mutex<Option<Instant>>,
    pub(crate) metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Arc<Key>, Entry>,
    due: BTreeSet<(Instant, Arc<Key>)>,
    /// How many entries an identity has with a provider: with the last one it is logged out.
    logins: HashMap<(&'static str, Identity), usize>,
    bytes: usize,
    next_subscription: u64,
    next_use: u64,
}

/// What an answer is kept under: who may have it, and everything that decides what it is (I5).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) provider: &'static str,
    pub(crate) identity: Identity,
    request: String,
    /// The requests of all that a volume takes out of the same answer of the store, as a hash. Who takes
    /// something else out of it has another answer, so that nobody has parts of two.
    pub(crate) together: [u8; 32],
    /// Whether the class has leases and certificates shared too.
    share_all: bool,
}

#[derive(Default)]
struct Entry {
    users: BTreeMap<u64, User>,
    held: Option<Held>,
    failed: Option<Failed>,
    flight: Weak<Flight>,
    due: Option<Instant>,
    /// Whoever used it last, for the time that nobody does.
    last_user: Option<User>,
    /// The store gives each pod an answer of its own: they are kept under their pods.
    per_pod: bool,
    /// Somebody wants it looked at once more when the present look is over.
    again: bool,
    /// How often it was looked at: the chance of the schedule follows from it.
    looks: u64,
    /// How often in a row the store had still the value that it was to replace by itself.
    overdue: u32,
    used: u64,
    /// It is due, and no user has a token that could be sent.
    token_misses: Option<u32>,
    /// The annotation of a class that it was last made due for.
    mark: Option<String>,
}

/// One volume's use of an entry.
#[derive(Clone)]
struct User {
    subscriber: Arc<Subscriber>,
    source: Arc<dyn Source>,
    object: ObjectRef,
    /// It, and what is looked at together with it.
    of_one_answer: Arc<[ObjectRef]>,
    strategy: Strategy,
}

struct Held {
    /// The value, unless it had to make room, or was never read by this process.
    secret: Option<Secret>,
    version: Version,
    life: Life,
    /// When the store gave it, or last said that it is still the same.
    at: Instant,
    ends: Option<Instant>,
}

struct Failed {
    error: ProviderError,
    count: u32,
    /// Until then it is answered from memory.
    until: Instant,
}

/// A volume as the cache knows it.
pub struct Subscriber {
    /// Its id.
    pub volume_id: String,
    requester: RwLock<Arc<Requester>>,
    changed: Notify,
}

impl Subscriber {
    /// A volume of this pod.
    #[must_use]
    pub fn new(volume_id: String, requester: Arc<Requester>) -> Arc<Self> {
        Arc::new(Self {
            volume_id,
            requester: RwLock::new(requester),
            changed: Notify::new(),
        })
    }

    /// The pod, with the newest tokens.
    #[must_use]
    pub fn requester(&self) -> Arc<Requester> {
        let requester = self.requester.read();
        requester.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the volume look at what there is.
    pub fn tell(&self) {
        self.changed.notify_one();
    }

    /// Takes newer tokens. Those that are there are not given away for none, or for what cannot be read.
    pub fn renew(&self, requester: Arc<Requester>) {
        if !requester.brings_tokens() && self.requester().brings_tokens() {
            return;
        }
        let mut present = self
            .requester
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *present = requester;
    }

    /// Resolves once a secret of the volume has changed, or can be read again.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

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
    cache: Arc<Inner>,
    id: u64,
    subscriber: Arc<Subscriber>,
    parts: Vec<Part>,
    max_stale: Duration,
}

/// One source of a volume.
struct Part {
    provider: &'static str,
    source: Arc<dyn Source>,
    objects: Vec<Wanted>,
    strategy: Strategy,
    /// Who may use the login.
    sharing: Sharing,
}

struct Wanted {
    key: Arc<Key>,
    object: ObjectRef,
    /// All that the volume takes out of the same answer of the store.
    of_one_answer: Arc<[ObjectRef]>,
    /// The volume can do without it where the store does not have it.
    optional: bool,
    /// Its name in the record of the volume.
    recorded_as: String,
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

impl SecretCache {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            settings,
            state: Mutex::default(),
            wake: Notify::new(),
            pacers: Mutex::default(),
            turned: Mutex::default(),
            metrics,
        }))
    }

    /// Subscribes a volume to everything that `spec` needs. Nothing is read yet.
    ///
    /// # Errors
    /// When the pod has no token that says who it is.
    pub fn subscribe(
        &self,
        spec: &VolumeSpec,
        subscriber: &Arc<Subscriber>,
    ) -> Result<(Subscription, Tidings), PublishError> {
        let requester = subscriber.requester();
        let sharing = match self.0.settings.pods_apart {
            true => Some(Sharing::Pod),
            false => spec.sharing(),
        };
        let mut parts = Vec::new();
        let mut told = Vec::new();
        for (index, source) in spec.sources().iter().enumerate() {
            let identity = requester.identity(&*source.source, sharing)?;
            let identity = identity.known_as(source.known_as.as_ref());
            let watch = match spec.refresh().strategy {
                None | Some(RefreshStrategy::Watch) => {
                    let sharing = identity.login_sharing();
                    let caller = requester.caller(&*source.source, sharing).ok();
                    caller.and_then(|caller| source.source.watch(&caller))
                }
                Some(RefreshStrategy::Cache | RefreshStrategy::Get) => None,
            };
            let strategy = match (spec.refresh().strategy, &watch) {
                (Some(RefreshStrategy::Get), _) => Strategy::Get,
                (Some(RefreshStrategy::Watch), Some(_)) => Strategy::Watch,
                (None, Some(_)) if identity.store().is_empty() => Strategy::Watch,
                // What comes over a network may get lost: it is looked at all the same.
                (_, _) => Strategy::Cache(spec.interval()),
            };
            if let Some(watch) = watch {
                let changed = watch.map(move |()| Told::Changed(index));
                let ended = stream::once(async move { Told::Ended(index) });
                told.push(changed.chain(ended).boxed());
            }
            let share_all = sharing == Some(Sharing::ServiceAccount);
            parts.push(Part::new(source, &identity, share_all, strategy));
        }
        let subscription = self.0.enroll(parts, subscriber, spec.refresh().max_stale);
        Ok((subscription, stream::select_all(told).boxed()))
    }

    /// Looks at what is due and wipes what nobody uses, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            *self.0.turned() = Some(Instant::now());
            let next = self.0.look_at_what_is_due();
            let woken = self.0.wake.notified();
            tokio::select! {
                () = sleep_until(next) => {}
                // Also when nothing is due: whoever asks sees that it turns.
                () = tokio::time::sleep(TURN) => {}
                () = woken => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// When [`Self::run`] last looked for what is due; it does so every 20 s at least.
    #[must_use]
    pub fn last_turn(&self) -> Option<Instant> {
        *self.0.turned()
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let now = clock::now();
        let state = self.0.state();
        let held = state.entries.values().filter(|e| !e.users.is_empty());
        let oldest = held
            .filter_map(|entry| entry.held.as_ref())
            .map(|held| now.saturating_duration_since(held.at).as_secs())
            .max();
        let ends = |entry: &Entry| Some(entry.held.as_ref()?.ends?.saturating_duration_since(now));
        let next_end = state.entries.values().filter_map(ends).min();
        let failing = state.entries.values().filter(|e| e.failed.is_some());
        let metrics = &self.0.metrics;
        metrics.cache_entries.set(state.entries.len() as i64);
        metrics.cache_bytes.set(state.bytes as i64);
        metrics.cache_failing.set(failing.count() as i64);
        metrics.oldest_look.set(oldest.unwrap_or(0) as i64);
        metrics
            .next_expiry
            .set(next_end.map_or(-1, |left| left.as_secs() as i64));
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => clock::sleep_towards(next).await,
        None => std::future::pending().await,
    }
}

impl Part {
    fn new(
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
                    flights.push(flight);
                } else {
                    *answer = None;
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
    fn effective(&self, state: &State, wanted: &Wanted) -> Arc<Key> {
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
                        state.part_by_pod(&wanted.key);
                        self.effective(&state, wanted)
                    }
                    _ => self.effective(&state, wanted),
                };
                let life = match once {
                    true => Life::Once,
                    false => left.map_or(Life::Static, Life::Expires),
                };
                if let Some(version) = version.filter(|_| state.entry(&key).held.is_none()) {
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
    fn is_lacking(&self, error: &ProviderError) -> bool {
        self.optional && error.kind() == ErrorKind::NotFound
    }
}

impl Key {
    fn of_pod(&self, uid: &str) -> Arc<Self> {
        Arc::new(Self {
            identity: self.identity.of_pod(uid),
            ..self.clone()
        })
    }

    /// The same for all entries of an identity that were read together, so that they stay together.
    fn chance(&self, seed: u64, looks: u64) -> f64 {
        let mut hasher = DefaultHasher::new();
        (seed, looks, self.provider, &self.identity).hash(&mut hasher);
        (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Held {
    /// The value, with what is left of its life.
    fn left(&self, now: Instant) -> Option<Secret> {
        let mut secret = self.secret.clone()?;
        if let Some(ends) = self.ends {
            let left = ends.saturating_duration_since(now);
            match &mut secret.life {
                Life::Static | Life::Once => {}
                Life::Expires(life) | Life::Rotates(life) | Life::Leased { duration: life, .. } => {
                    *life = left;
                }
            }
        }
        Some(secret)
    }
}

impl Entry {
    /// The value, if the store gave it within `ttl`, or it has not come to its own end.
    fn fresh(&self, ttl: Duration, now: Instant) -> Option<Secret> {
        let held = self.held.as_ref()?;
        let good = match held.life {
            Life::Once => true,
            _ => now < held.ends.unwrap_or(held.at + ttl),
        };
        good.then(|| held.left(now)).flatten()
    }

    /// Whether somebody may change it in the store: what has a life of its own is looked at by that.
    fn can_change(&self) -> bool {
        let held = self.held.as_ref();
        held.is_none_or(|held| matches!(held.life, Life::Static))
    }

    fn is_the_only_one(&self) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| matches!(held.life, Life::Once))
    }

    fn tell(&self) {
        for user in self.users.values() {
            user.subscriber.tell();
        }
    }

    /// The question that is on its way for it.
    fn in_flight(&self) -> Option<Arc<Flight>> {
        self.flight.upgrade().filter(|flight| !flight.has_landed())
    }

    fn bytes(&self) -> usize {
        let secret = self.held.as_ref().and_then(|held| held.secret.as_ref());
        secret.map_or(0, |secret| {
            secret.files.iter().map(|file| file.bytes.len()).sum()
        })
    }
}

impl State {
    /// What is looked at together with an entry: all that its volumes take out of the same answer.
    fn of_the_same_answer<'a>(&self, key: &Key, user: &'a User) -> Vec<(Arc<Key>, &'a ObjectRef)> {
        let others = user.of_one_answer.iter();
        let others = others.filter(|other| other.request != user.object.request);
        let others = others.map(|object| {
            let key = Key {
                request: object.request.clone(),
                ..key.clone()
            };
            (Arc::new(key), object)
        });
        // Where there is no entry, no volume uses it.
        let used = |key: &Arc<Key>| self.entries.get(key).is_some_and(|e| !e.users.is_empty());
        others.filter(|(key, _)| used(key)).collect()
    }

    /// Whether what an entry holds would be lost by another look at its answer.
    fn stays(&self, key: &Arc<Key>, now: Instant) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            let is_due = entry.due.is_some_and(|due| due <= now);
            !entry.can_change() && entry.failed.is_none() && !is_due
        })
    }

    fn tick(&mut self) -> u64 {
        self.next_use += 1;
        self.next_use
    }

    fn entry(&mut self, key: &Arc<Key>) -> &mut Entry {
        let logins = &mut self.logins;
        self.entries.entry(key.clone()).or_insert_with(|| {
            let login = (key.provider, key.identity.without_pod());
            *logins.entry(login).or_default() += 1;
            Entry::default()
        })
    }

    fn set_due(&mut self, key: &Arc<Key>, due: Option<Instant>) {
        let entry = self.entry(key);
        if let Some(before) = std::mem::replace(&mut entry.due, due) {
            self.due.remove(&(before, key.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, key.clone()));
        }
    }

    /// When an entry with what it holds now is looked at again.
    fn next_look(&mut self, key: &Arc<Key>, now: Instant, settings: &Settings) -> Option<Instant> {
        let entry = self.entry(key);
        let strategies = entry.users.values().map(|user| user.strategy);
        let life = entry.held.as_ref().map_or(&Life::Static, |held| &held.life);
        let chance = key.chance(settings.seed, entry.looks);
        let after = match entry.overdue {
            0 => schedule::next_look(life, strategies, entry.looks <= 1, chance),
            overdue => Some(schedule::next_look_for_overdue(overdue)),
        };
        after.map(|after| now + after)
    }

    /// From now on each pod has an entry of its own.
    fn part_by_pod(&mut self, shared: &Arc<Key>) {
        let entry = self.entry(shared);
        if std::mem::replace(&mut entry.per_pod, true) {
            return;
        }
        let users = entry.users.clone();
        self.wipe(shared);
        self.set_due(shared, None);
        for (id, user) in users {
            let own = shared.of_pod(&user.subscriber.requester().pod.uid);
            self.entry(&own).users.insert(id, user);
        }
    }

    fn leave(&mut self, key: &Arc<Key>, subscription: u64, gone_at: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Some(user) = entry.users.remove(&subscription) else {
            return;
        };
        if entry.users.is_empty() {
            entry.last_user = Some(user);
            self.set_due(key, Some(gone_at));
        }
    }

    /// Puts a value where `key` is, and makes room for it elsewhere if need be.
    fn hold(&mut self, key: &Arc<Key>, held: Held, limit: usize) -> Option<Held> {
        let used = self.tick();
        let entry = self.entry(key);
        let before = entry.bytes();
        entry.used = used;
        let replaced = entry.held.replace(held);
        let after = entry.bytes();
        self.bytes = self.bytes + after - before;
        while self.bytes > limit && self.evict(key) {}
        replaced
    }

    /// Wipes the value that was not used for the longest time, but for the newest one.
    fn evict(&mut self, newest: &Arc<Key>) -> bool {
        let others = self
            .entries
            .iter_mut()
            .filter(|(key, entry)| *key != newest && entry.bytes() > 0);
        // What there is only one of goes last.
        let order = |entry: &Entry| (entry.is_the_only_one(), entry.used);
        let Some((_, entry)) = others.min_by_key(|(_, entry)| order(entry)) else {
            return false;
        };
        let bytes = entry.bytes();
        if let Some(held) = &mut entry.held {
            held.secret = None;
        }
        self.bytes -= bytes;
        true
    }

    fn wipe(&mut self, key: &Arc<Key>) -> Option<Held> {
        let entry = self.entries.get_mut(key)?;
        let bytes = entry.bytes();
        let held = entry.held.take();
        self.bytes -= bytes;
        held
    }
}

impl Inner {
    fn turned(&self) -> MutexGuard<'_, Option<Instant>> {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enroll(
        self: &Arc<Self>,
        parts: Vec<Part>,
        subscriber: &Arc<Subscriber>,
        max_stale: Duration,
    ) -> Subscription {
        let mut state = self.state();
        let id = state.next_subscription;
        state.next_subscription += 1;
        let subscription = Subscription {
            cache: self.clone(),
            id,
            subscriber: subscriber.clone(),
            parts,
            max_stale,
        };
        for part in &subscription.parts {
            for wanted in &part.objects {
                let user = User {
                    subscriber: subscriber.clone(),
                    source: part.source.clone(),
                    object: wanted.object.clone(),
                    of_one_answer: wanted.of_one_answer.clone(),
                    strategy: part.strategy,
                };
                let own = subscription.effective(&state, wanted);
                for key in [&wanted.key, &own] {
                    let entry = state.entry(key);
                    entry.users.insert(id, user.clone());
                    entry.last_user = None;
                }
                // It may have had nobody who wants it looked at, or somebody with more patience.
                let entry = state.entry(&own);
                let at = entry.held.as_ref().map(|held| held.at);
                let (due, failing) = (entry.due, entry.failed.is_some());
                if let Some(at) = at.filter(|_| !failing) {
                    let look = state.next_look(&own, at, &self.settings);
                    let sooner = look.filter(|look| due.is_none_or(|due| *look < due));
                    state.set_due(&own, sooner.or(due).or(look));
                }
            }
        }
        drop(state);
        self.wake.notify_one();
        subscription
    }

    pub(crate) fn pacer(&self, key: &Key) -> Arc<Pacer> {
        /// Stores that are remembered although nobody asks them.
        const IDLE: usize = 64;
        let mut pacers = self.pacers.lock().unwrap_or_else(PoisonError::into_inner);
        if pacers.len() > IDLE {
            pacers.retain(|_, pacer| Arc::strong_count(pacer) > 1);
        }
        let store = (key.provider, key.identity.store().to_owned());
        let pacer = pacers.entry(store).or_insert_with(|| {
            // Files of the node are nobody's load.
            let rate = match key.identity.is_local() {
                true => Rate::UNLIMITED,
                false => self.settings.rate,
            };
            let Settings { slots, queue, .. } = self.settings;
            Arc::new(Pacer::new(rate, slots, queue))
        });
        pacer.clone()
    }

    fn lead(
        self: &Arc<Self>,
        state: &mut State,
        source: &Arc<dyn Source>,
        caller: &Caller,
        items: Vec<Item>,
        urgency: Urgency,
    ) -> Arc<Flight> {
        let keys: Vec<_> = items.iter().map(|item| item.key.clone()).collect();
        let flight = Flight::start(self.clone(), source.clone(), caller.clone(), items, urgency);
        for key in keys {
            state.entry(&key).flight = Arc::downgrade(&flight);
        }
        flight
    }

    /// Takes down what a store answered, and tells whom it concerns: all at once, so that no volume sees
    /// a part of it.
    pub(crate) fn settle(
        &self,
        caller: &Caller,
        items: &[Item],
        answers: Vec<Answer>,
    ) -> HashMap<Arc<Key>, Outcome> {
        let mut state = self.state();
        let of_a_pod = |answer: &Answer| matches!(answer, Answer::Fetched(secret) if secret.sharing == Sharing::Pod);
        // What an answer does not have is kept with what it has.
        let parted = items
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| of_a_pod(answer));
        let parted: BTreeSet<_> = parted.map(|(item, _)| item.key.together).collect();
        let settled = items.iter().zip(answers).map(|(item, answer)| {
            let mut key = item.key.clone();
            let own = parted.contains(&key.together) && !key.share_all;
            if own && key.identity == key.identity.without_pod() {
                state.part_by_pod(&key);
                key = key.of_pod(&caller.pod.uid);
            }
            self.settle_one(&mut state, key, answer)
        });
        settled.collect()
    }

    fn settle_one(&self, state: &mut State, key: Arc<Key>, answer: Answer) -> (Arc<Key>, Outcome) {
        let now = clock::now();
        let outcome = match answer {
            Answer::Fetched(secret) => {
                let changed = self.keep(state, &key, &secret, now);
                self.succeeded(state, &key, now, changed);
                Outcome::Read(secret)
            }
            Answer::Same => {
                if let Some(held) = &mut state.entry(&key).held {
                    held.at = now;
                }
                self.succeeded(state, &key, now, false);
                Outcome::Same
            }
            Answer::Renewed(life) => {
                if let Some(held) = &mut state.entry(&key).held {
                    held.at = now;
                    held.ends = ends(&life, now);
                    if let Some(secret) = &mut held.secret {
                        secret.life = life.clone();
                    }
                    held.life = life;
                }
                // It ends later now, which those who report on it have to know.
                self.succeeded(state, &key, now, true);
                Outcome::Same
            }
            Answer::Failed(error) => {
                self.failed(state, &key, &error, now);
                Outcome::Failed(ReadFailure::Store(error))
            }
        };
        (key, outcome)
    }

    fn keep(&self, state: &mut State, key: &Arc<Key>, secret: &Secret, now: Instant) -> bool {
        let held = Held {
            secret: Some(secret.clone()),
            version: secret.version.clone(),
            life: secret.life.clone(),
            at: now,
            ends: ends(&secret.life, now),
        };
        let Some(before) = state.hold(key, held, self.settings.bytes) else {
            return true;
        };
        let entry = state.entry(key);
        let user = entry.users.values().next().or(entry.last_user.as_ref());
        if let (Life::Leased { lease, .. }, Some(user)) = (&before.life, user)
            && !matches!(&secret.life, Life::Leased { lease: now, .. } if now == lease)
        {
            let (source, requester) = (user.source.clone(), user.subscriber.requester());
            let (lease, sharing) = (lease.clone(), key.identity.login_sharing());
            // The volumes have the new one in a moment, and their readers open connections anew.
            let left = before.ends.map(|ends| ends.saturating_duration_since(now));
            let grace = left.map_or(LEASE_GRACE, |left| left.min(LEASE_GRACE));
            tokio::spawn(async move {
                if let Ok(caller) = requester.caller(&*source, sharing) {
                    source.release(&caller, &[lease], grace).await;
                }
            });
        }
        let same_version = before.version == secret.version && !before.version.as_str().is_empty();
        let was_to_go =
            matches!(before.life, Life::Rotates(_)) && before.ends.is_some_and(|ends| ends <= now);
        entry.overdue = match was_to_go && same_version {
            true => entry.overdue + 1,
            false => 0,
        };
        let files = |secret: &Secret| -> Vec<_> {
            let files = secret.files.iter();
            files
                .map(|file| (file.name.clone(), file.bytes.clone(), file.mode))
                .collect()
        };
        let same_files = || {
            before.secret.as_ref().is_some_and(|before| {
                let (before, now) = (files(before), files(secret));
                before.len() == now.len()
                    && before
                        .iter()
                        .zip(&now)
                        .all(|(a, b)| a.0 == b.0 && a.1.expose() == b.1.expose() && a.2 == b.2)
            })
        };
        !same_version && !same_files()
    }

    fn succeeded(&self, state: &mut State, key: &Arc<Key>, now: Instant, changed: bool) {
        let entry = state.entry(key);
        entry.looks += 1;
        let missed = entry.token_misses.take().unwrap_or(0) >= TOKEN_MISSES;
        if entry.failed.take().is_some() || changed || missed {
            entry.tell();
        }
        let next = match (entry.users.is_empty(), std::mem::take(&mut entry.again)) {
            (true, _) => Some(now + LINGER),
            (false, true) => Some(now),
            (false, false) => state.next_look(key, now, &self.settings),
        };
        state.set_due(key, next);
        self.wake.notify_one();
    }

    fn failed(&self, state: &mut State, key: &Arc<Key>, error: &ProviderError, now: Instant) {
        // A store that says no is believed: the value is not given to anybody any more (C4).
        if matches!(
            error.kind(),
            ErrorKind::PermissionDenied | ErrorKind::NotFound
        ) {
            state.wipe(key);
        }
        let entry = state.entry(key);
        let count = entry.failed.as_ref().map_or(0, |failed| failed.count) + 1;
        entry.looks += 1;
        let chance = key.chance(self.settings.seed, entry.looks);
        let strategies = entry.users.values().map(|user| user.strategy);
        let retry_after = error.retry_after();
        let backoff = self.settings.backoff;
        let wait = schedule::after_failure(backoff, count, retry_after, strategies, chance);
        entry.failed = Some(Failed {
            error: error.clone(),
            count,
            until: now + schedule::remembered(wait),
        });
        if count == 1 {
            entry.tell();
        }
        let next = if entry.users.is_empty() { LINGER } else { wait };
        state.set_due(key, Some(now + next));
        self.wake.notify_one();
    }

    /// Starts what is due, and says when the next is.
    fn look_at_what_is_due(self: &Arc<Self>) -> Option<Instant> {
        let now = clock::now();
        let mut state = self.state();
        let mut batches: Vec<(User, Caller, Vec<Item>)> = Vec::new();
        while let Some((_, key)) = state.due.first().filter(|(at, _)| *at <= now).cloned() {
            state.set_due(&key, None);
            let entry = state.entry(&key);
            if entry.users.is_empty() {
                self.forget(&mut state, &key);
            } else if entry.per_pod {
                // Its pods have entries of their own.
            } else if entry.in_flight().is_some() {
                entry.again = true;
            } else if let Some((user, caller)) = entry.newest_user(&key.identity) {
                let mut items = vec![entry.item(&key, &user.object, now)];
                let failing = entry.failed.is_some();
                let others = state.of_the_same_answer(&key, &user);
                if failing && others.iter().any(|(key, _)| state.stays(key, now)) {
                    // It is not in an answer that would be another one next time.
                    continue;
                }
                for (key, object) in others {
                    items.push(state.entry(&key).item(&key, object, now));
                    state.set_due(&key, None);
                }
                let same = batches.iter_mut().find(|(leader, _, _)| {
                    Arc::ptr_eq(&leader.source, &user.source)
                        && Arc::ptr_eq(&leader.subscriber, &user.subscriber)
                });
                match same {
                    Some((_, _, more)) => more.extend(items),
                    None => batches.push((user, caller, items)),
                }
            } else {
                let misses = entry.token_misses.map_or(0, |misses| misses + 1);
                entry.token_misses = Some(misses);
                if misses == TOKEN_MISSES {
                    warn!(
                        provider = key.provider,
                        volumes = entry.users.len(),
                        "no valid token has come for a secret that is due: volumes keep what they have"
                    );
                }
                if misses >= TOKEN_MISSES {
                    // Their pods hear of it, and that what they have gets old.
                    state.entry(&key).tell();
                }
            }
        }
        for (user, caller, items) in batches {
            let flight = self.lead(&mut state, &user.source, &caller, items, Urgency::Refresh);
            tokio::spawn(async move { drop(flight.landed().await) });
        }
        state.due.first().map(|(at, _)| *at)
    }

    /// Wipes an entry that nobody has used for a while, and gives back what the store gave for it.
    fn forget(self: &Arc<Self>, state: &mut State, key: &Arc<Key>) {
        let held = state.wipe(key);
        let Some(entry) = state.entries.remove(key) else {
            return;
        };
        let login = (key.provider, key.identity.without_pod());
        let left = state.logins.get_mut(&login).map(|entries| {
            *entries -= 1;
            *entries
        });
        let last = left == Some(0);
        if last {
            state.logins.remove(&login);
        }
        let lease = match held.map(|held| held.life) {
            Some(Life::Leased { lease, .. }) => Some(lease),
            _ => None,
        };
        let Some(user) = entry.last_user.filter(|_| last || lease.is_some()) else {
            return;
        };
        let sharing = key.identity.login_sharing();
        // Best effort, and a store that hangs does not keep the token for long.
        tokio::spawn(tokio::time::timeout(GIVE_BACK, async move {
            let requester = user.subscriber.requester();
            let Ok(caller) = requester.caller(&*user.source, sharing) else {
                return;
            };
            let at_once = Duration::ZERO;
            user.source
                .release(&caller, lease.as_slice(), at_once)
                .await;
            if last {
                user.source.log_out(&caller).await;
            }
        }));
    }
}

/// How long a store may take to take something back.
const GIVE_BACK: Duration = Duration::from_secs(5);

impl Entry {
    /// The user with the token that lasts longest, if any has one that can be sent.
    fn newest_user(&self, identity: &Identity) -> Option<(User, Caller)> {
        let mut users: Vec<_> = self.users.values().collect();
        users.sort_by_cached_key(|user| {
            std::cmp::Reverse(user.subscriber.requester().token_expires(&*user.source))
        });
        users.into_iter().find_map(|user| {
            let requester = user.subscriber.requester();
            let caller = requester
                .caller(&*user.source, identity.login_sharing())
                .ok()?;
            identity.admits(&caller).then(|| (user.clone(), caller))
        })
    }

    /// What to ask for: the cheapest question that the store may be able to answer.
    fn item(&self, key: &Arc<Key>, object: &ObjectRef, now: Instant) -> Item {
        let mut item = Item::new(key.clone(), object.clone());
        if let Some(held) = self.held.as_ref() {
            if !held.version.as_str().is_empty() {
                item.version = Some(held.version.clone());
            }
            if let Life::Leased {
                lease,
                duration,
                renewable: true,
            } = &held.life
                && schedule::can_renew(*duration, now.saturating_duration_since(held.at))
            {
                item.renew = Some((lease.clone(), *duration));
            }
            // A life of its own ends: the same version is of no use.
            if held.ends.is_some() {
                item.version = None;
            }
        }
        item
    }
}

fn ends(life: &Life, now: Instant) -> Option<Instant> {
    match life {
        Life::Static | Life::Once => None,
        Life::Expires(left) | Life::Rotates(left) | Life::Leased { duration: left, .. } => {
            Some(now + *left)
        }
    }
}
