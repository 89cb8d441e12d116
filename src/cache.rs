//! The secrets that the volumes of this node use, each read once for everybody whom its store cannot
//! tell apart, and looked at again when the schedule or the store says so.
//!
//! An [`Entry`](Entry) belongs to one identity and one request. Volumes subscribe to entries; when one
//! changes, its subscribers are told and write their volumes again. Values that nobody uses any more are
//! wiped.

mod entry;
mod facts;
mod subscription;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use coffer_provider::{Caller, ErrorKind, Lease, Life, ProviderError, Secret, Sharing, Source};
use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(crate) use self::entry::Key;
use self::entry::{Entry, Failed, Held, State, TooLate, User, ends};
pub use self::facts::Fact;
use self::subscription::Part;
pub use self::subscription::{Given, Look, Subscription, Tidings, Told};
use crate::class::RefreshStrategy;
use crate::clock;
use crate::error::PublishError;
use crate::flight::{Answer, Flight, Item, Outcome, ReadFailure};
use crate::identity::Requester;
use crate::pacer::{self, Pacer, Rate, Urgency};
use crate::schedule::{self, Backoff, Strategy};
use crate::spec::VolumeSpec;
use crate::telemetry::Metrics;

/// How long an entry without a volume is kept: a pod that replaces another one finds it.
const LINGER: Duration = Duration::from_secs(30);

/// What is due while it is asked for is looked at again this much later, if no answer has come before.
const IN_FLIGHT: Duration = Duration::from_secs(1);

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

/// A volume as the cache knows it.
pub struct Subscriber {
    /// Its id.
    pub volume_id: String,
    requester: RwLock<Arc<Requester>>,
    changed: Notify,
    gives_back: AtomicBool,
}

impl Subscriber {
    /// A volume of this pod.
    #[must_use]
    pub fn new(volume_id: String, requester: Arc<Requester>) -> Arc<Self> {
        Arc::new(Self {
            volume_id,
            requester: RwLock::new(requester),
            changed: Notify::new(),
            gives_back: AtomicBool::new(true),
        })
    }

    /// Whether leases and logins that it has no more use for are given back. Without that they end by themselves:
    /// its pod may still hold what hangs on them.
    pub fn set_gives_back(&self, gives_back: bool) {
        self.gives_back.store(gives_back, Ordering::Relaxed);
    }

    fn gives_back(&self) -> bool {
        self.gives_back.load(Ordering::Relaxed)
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

    /// Has the secrets of a provider looked at now: it has gone, or come back, and their pods are to know.
    pub fn look_at(&self, provider: &str) {
        let now = clock::now();
        let mut state = self.0.state();
        let of_it = state.entries.iter();
        let is_of_it = |key: &Key, entry: &Entry| key.provider == provider && entry.can_change();
        let of_it = of_it.filter(|(key, entry)| is_of_it(key, entry) && !entry.users.is_empty());
        let keys: Vec<_> = of_it.map(|(key, _)| key.clone()).collect();
        for key in keys {
            state.set_due(&key, Some(now));
        }
        drop(state);
        self.0.wake.notify_one();
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let now = clock::now();
        let state = self.0.state();
        let used = || state.entries.values().filter(|e| !e.users.is_empty());
        // What has a life of its own is looked at by that, however long it is.
        let oldest = used()
            .filter(|entry| entry.can_change())
            .filter_map(|entry| entry.held.as_ref())
            .map(|held| now.saturating_duration_since(held.at).as_secs())
            .max();
        let ends = |entry: &Entry| {
            let held = entry.held.as_ref()?;
            let is_replaced = matches!(held.life, Life::Rotates(_));
            let ends = held.ends.filter(|_| !is_replaced)?;
            Some(ends.saturating_duration_since(now))
        };
        let seconds = |left: Option<Duration>| left.map_or(-1, |left| left.as_secs() as i64);
        let next_end = used().filter_map(ends).min();
        let failing_end = used().filter(|e| e.failed.is_some()).filter_map(ends).min();
        let failing = used()
            .filter(|entry| entry.failed.is_some() && !entry.is_lacked())
            .count();
        let metrics = &self.0.metrics;
        metrics.cache_entries.set(state.entries.len() as i64);
        metrics.cache_bytes.set(state.bytes as i64);
        metrics.cache_failing.set(failing as i64);
        metrics.oldest_look.set(oldest.unwrap_or(0) as i64);
        metrics.next_expiry.set(seconds(next_end));
        metrics.failing_expiry.set(seconds(failing_end));
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => clock::sleep_towards(next).await,
        None => std::future::pending().await,
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
                    optional: wanted.optional,
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
            let entry = state.entry(&key);
            entry.flight = Arc::downgrade(&flight);
            // What was news before is in its answer.
            entry.again = false;
        }
        flight
    }

    /// Takes down what a store answered, and tells whom it concerns: all at once, so that no volume sees
    /// a part of it.
    pub(crate) fn settle(
        &self,
        source: &Arc<dyn Source>,
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
        let mut replaced = Vec::new();
        let settled = items.iter().zip(answers).map(|(item, answer)| {
            let mut key = item.key.clone();
            let own = parted.contains(&key.together) && !key.share_all;
            if own && key.identity == key.identity.without_pod() {
                state.part_by_pod(&key, clock::now());
                key = key.of_pod(&caller.pod.uid);
            }
            let entry = state.entry(&key);
            if entry.users.is_empty() && entry.last_user.is_none() {
                let together = items
                    .iter()
                    .filter(|other| other.key.together == key.together);
                entry.too_late = Some(TooLate {
                    source: source.clone(),
                    pod: caller.pod.clone(),
                    of_one_answer: together.map(|other| other.object.clone()).collect(),
                });
            }
            self.settle_one(&mut state, key, answer, &mut replaced)
        });
        settled.collect()
    }

    fn settle_one(
        &self,
        state: &mut State,
        key: Arc<Key>,
        answer: Answer,
        replaced: &mut Vec<Lease>,
    ) -> (Arc<Key>, Outcome) {
        let now = clock::now();
        let outcome = match answer {
            Answer::Fetched(secret) => {
                let changed = self.keep(state, &key, &secret, now, replaced);
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

    fn keep(
        &self,
        state: &mut State,
        key: &Arc<Key>,
        secret: &Secret,
        now: Instant,
        replaced: &mut Vec<Lease>,
    ) -> bool {
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
            && user.subscriber.gives_back()
            && !matches!(&secret.life, Life::Leased { lease: now, .. } if now == lease)
            // Several objects are of one lease.
            && !replaced.contains(lease)
        {
            replaced.push(lease.clone());
            let (source, lease) = (user.source.clone(), lease.clone());
            let caller = key
                .identity
                .departed(user.subscriber.requester().pod.clone());
            // The volumes have the new one in a moment, and their readers open connections anew.
            let left = before.ends.map(|ends| ends.saturating_duration_since(now));
            let grace = left.map_or(LEASE_GRACE, |left| left.min(LEASE_GRACE));
            tokio::spawn(async move { source.release(&caller, &[lease], grace).await });
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
        entry.landed();
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
        entry.landed();
        entry.again = false;
        let chance = key.chance(self.settings.seed, entry.looks);
        let strategies: Vec<_> = entry.users.values().map(|user| user.strategy).collect();
        let strategies = || strategies.iter().copied();
        let retry_after = error.retry_after();
        let backoff = self.settings.backoff;
        let wait = schedule::after_failure(backoff, count, retry_after, strategies(), chance);
        entry.failed = Some(Failed {
            error: error.clone(),
            count,
            until: now + schedule::remembered(wait),
        });
        let next = match (entry.users.is_empty(), entry.is_lacked()) {
            (true, _) => Some(LINGER),
            // Nobody waits for it: it is looked for as if it were there.
            (false, true) => schedule::next_look(&Life::Static, strategies(), false, chance),
            (false, false) => Some(wait),
        };
        if count == 1 {
            entry.tell();
        }
        state.set_due(key, next.map(|next| now + next));
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
            if entry.users.is_empty() && entry.in_flight().is_some() {
                // What comes may have to be given back.
                state.set_due(&key, Some(now + IN_FLIGHT));
            } else if entry.users.is_empty() {
                self.forget(&mut state, &key);
            } else if entry.per_pod {
                // Its pods have entries of their own.
            } else if entry.in_flight().is_some() {
                // The answer to come may be older than the news. It need not come at all: those who wait for
                // it can give it up.
                entry.again = true;
                state.set_due(&key, Some(now + IN_FLIGHT));
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
        let user = entry.last_user;
        let gives_back = user
            .as_ref()
            .is_none_or(|user| user.subscriber.gives_back());
        let last_user = user.map(|user| TooLate {
            source: user.source,
            pod: user.subscriber.requester().pod.clone(),
            of_one_answer: user.of_one_answer,
        });
        let Some(was_for) = last_user.or(entry.too_late) else {
            return;
        };
        let source = was_for.source;
        let caller = key.identity.departed(was_for.pod);
        if !gives_back {
            if last {
                source.let_go(&caller);
            }
            return;
        }
        let of_one_answer = was_for.of_one_answer;
        let lease = lease.filter(|lease| !state.is_leased_elsewhere(key, &of_one_answer, lease));
        if !last && lease.is_none() {
            return;
        }
        // Best effort, and a store that hangs does not keep the token for long.
        tokio::spawn(tokio::time::timeout(GIVE_BACK, async move {
            let at_once = Duration::ZERO;
            let release = source.release(&caller, lease.as_slice(), at_once);
            match last {
                // Not one after the other: the store may hang. What is released needs the login, so that is
                // begun with.
                true => drop(join(release, source.log_out(&caller)).await),
                false => release.await,
            }
        }));
    }
}

/// How long a store may take to take something back.
const GIVE_BACK: Duration = Duration::from_secs(5);
