//! What is kept: an entry for each identity and request, who uses it, and when it is due.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;

use coffer_provider::{
    Caller, ErrorKind, Lease, Life, ObjectRef, Pod, ProviderError, Secret, Source, Version,
};
use tokio::time::Instant;

use super::{LINGER, Settings, Subscriber};
use crate::flight::{Flight, Item};
use crate::identity::Identity;
use crate::schedule::{self, Strategy};

#[derive(Default)]
pub(super) struct State {
    pub(super) entries: HashMap<Arc<Key>, Entry>,
    pub(super) due: BTreeSet<(Instant, Arc<Key>)>,
    /// How many entries an identity has with a provider: with the last one it is logged out.
    pub(super) logins: HashMap<(&'static str, Identity), usize>,
    pub(super) bytes: usize,
    pub(super) next_subscription: u64,
    pub(super) next_use: u64,
}

/// What an answer is kept under: who may have it, and everything that decides what it is (I5).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) provider: &'static str,
    pub(crate) identity: Identity,
    pub(super) request: String,
    /// The requests of all that a volume takes out of the same answer of the store, as a hash. Who takes
    /// something else out of it has another answer, so that nobody has parts of two.
    pub(crate) together: [u8; 32],
    /// Whether the class has leases and certificates shared too.
    pub(super) share_all: bool,
}

#[derive(Default)]
pub(super) struct Entry {
    pub(super) users: BTreeMap<u64, User>,
    pub(super) held: Option<Held>,
    pub(super) failed: Option<Failed>,
    pub(super) flight: Weak<Flight>,
    pub(super) due: Option<Instant>,
    /// Whoever used it last, for the time that nobody does.
    pub(super) last_user: Option<User>,
    /// For whom an answer was that came when nobody used it any more.
    pub(super) too_late: Option<TooLate>,
    /// The store gives each pod an answer of its own: they are kept under their pods.
    pub(super) per_pod: bool,
    /// Somebody wants it looked at once more when the present look is over.
    pub(super) again: bool,
    /// How often it was looked at: the chance of the schedule follows from it.
    pub(super) looks: u64,
    /// How often in a row the store had still the value that it was to replace by itself.
    pub(super) overdue: u32,
    pub(super) used: u64,
    /// It is due, and no user has a token that could be sent.
    pub(super) token_misses: Option<u32>,
    /// The annotation of a class that it was last made due for.
    pub(super) mark: Option<String>,
}

/// What is needed to give back what came too late.
pub(super) struct TooLate {
    pub(super) source: Arc<dyn Source>,
    pub(super) pod: Pod,
    pub(super) of_one_answer: Arc<[ObjectRef]>,
}

/// One volume's use of an entry.
#[derive(Clone)]
pub(super) struct User {
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) source: Arc<dyn Source>,
    pub(super) object: ObjectRef,
    /// It, and what is looked at together with it.
    pub(super) of_one_answer: Arc<[ObjectRef]>,
    /// The volume can do without it.
    pub(super) optional: bool,
    pub(super) strategy: Strategy,
}

pub(super) struct Held {
    /// The value, unless it had to make room, or was never read by this process.
    pub(super) secret: Option<Secret>,
    pub(super) version: Version,
    pub(super) life: Life,
    /// When the store gave it, or last said that it is still the same.
    pub(super) at: Instant,
    pub(super) ends: Option<Instant>,
}

pub(super) struct Failed {
    pub(super) error: ProviderError,
    pub(super) count: u32,
    /// Until then it is answered from memory.
    pub(super) until: Instant,
}

impl Key {
    pub(super) fn of_pod(&self, uid: &str) -> Arc<Self> {
        Arc::new(Self {
            identity: self.identity.of_pod(uid),
            ..self.clone()
        })
    }

    /// The same for all entries of an identity that were read together, so that they stay together.
    pub(super) fn chance(&self, seed: u64, looks: u64) -> f64 {
        let mut hasher = DefaultHasher::new();
        (seed, looks, self.provider, &self.identity).hash(&mut hasher);
        (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Held {
    /// The value, with what is left of its life.
    pub(super) fn left(&self, now: Instant) -> Option<Secret> {
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
    pub(super) fn fresh(&self, ttl: Duration, now: Instant) -> Option<Secret> {
        let held = self.held.as_ref()?;
        let good = match held.life {
            Life::Once => true,
            _ => now < held.ends.unwrap_or(held.at + ttl),
        };
        good.then(|| held.left(now)).flatten()
    }

    /// Whether somebody may change it in the store: what has a life of its own is looked at by that.
    pub(super) fn can_change(&self) -> bool {
        let held = self.held.as_ref();
        held.is_none_or(|held| matches!(held.life, Life::Static))
    }

    pub(super) fn is_the_only_one(&self) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| matches!(held.life, Life::Once))
    }

    /// Whether the store does not have it, and all its volumes do without it.
    pub(super) fn is_lacked(&self) -> bool {
        let failed = self.failed.as_ref();
        failed.is_some_and(|failed| failed.error.kind() == ErrorKind::NotFound)
            && self.users.values().all(|user| user.optional)
    }

    pub(super) fn tell(&self) {
        for user in self.users.values() {
            user.subscriber.tell();
        }
    }

    /// An answer has been taken down: whatever becomes due from now on is not in it.
    pub(super) fn landed(&mut self) {
        self.looks += 1;
        self.flight = Weak::new();
    }

    /// The question that is on its way for it.
    pub(super) fn in_flight(&self) -> Option<Arc<Flight>> {
        self.flight.upgrade().filter(|flight| !flight.has_landed())
    }

    pub(super) fn bytes(&self) -> usize {
        let secret = self.held.as_ref().and_then(|held| held.secret.as_ref());
        secret.map_or(0, |secret| {
            secret.files.iter().map(|file| file.bytes.len()).sum()
        })
    }
}

impl State {
    /// What is looked at together with an entry: all that its volumes take out of the same answer.
    pub(super) fn of_the_same_answer<'a>(
        &self,
        key: &Key,
        user: &'a User,
    ) -> Vec<(Arc<Key>, &'a ObjectRef)> {
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

    /// Whether something else that was taken out of the same answer is still there, and of this lease.
    pub(super) fn is_leased_elsewhere(
        &self,
        key: &Key,
        of_one_answer: &[ObjectRef],
        lease: &Lease,
    ) -> bool {
        of_one_answer.iter().any(|object| {
            let other = Key {
                request: object.request.clone(),
                ..key.clone()
            };
            let entry = self.entries.get(&other).filter(|_| other != *key);
            let held = entry.and_then(|entry| entry.held.as_ref());
            held.is_some_and(
                |held| matches!(&held.life, Life::Leased { lease: its, .. } if its == lease),
            )
        })
    }

    /// Whether what an entry holds would be lost by another look at its answer.
    pub(super) fn stays(&self, key: &Arc<Key>, now: Instant) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            let is_due = entry.due.is_some_and(|due| due <= now);
            !entry.can_change() && entry.failed.is_none() && !is_due
        })
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.next_use += 1;
        self.next_use
    }

    pub(super) fn entry(&mut self, key: &Arc<Key>) -> &mut Entry {
        let logins = &mut self.logins;
        self.entries.entry(key.clone()).or_insert_with(|| {
            let login = (key.provider, key.identity.without_pod());
            *logins.entry(login).or_default() += 1;
            Entry::default()
        })
    }

    pub(super) fn set_due(&mut self, key: &Arc<Key>, due: Option<Instant>) {
        let entry = self.entry(key);
        if let Some(before) = std::mem::replace(&mut entry.due, due) {
            self.due.remove(&(before, key.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, key.clone()));
        }
    }

    /// When an entry with what it holds now is looked at again.
    pub(super) fn next_look(
        &mut self,
        key: &Arc<Key>,
        now: Instant,
        settings: &Settings,
    ) -> Option<Instant> {
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

    /// From now on each pod has an entry of its own. Who waits for an answer asks for its own; the volumes that
    /// are there already have theirs looked at in a while.
    pub(super) fn part_by_pod(&mut self, shared: &Arc<Key>, now: Instant) {
        let entry = self.entry(shared);
        if std::mem::replace(&mut entry.per_pod, true) {
            return;
        }
        let users = entry.users.clone();
        self.wipe(shared);
        // Where nobody is, it goes like any other.
        self.set_due(shared, users.is_empty().then(|| now + LINGER));
        for (id, user) in users {
            let own = shared.of_pod(&user.subscriber.requester().pod.uid);
            let entry = self.entry(&own);
            entry.users.insert(id, user);
            if entry.held.is_none() && entry.due.is_none() {
                self.set_due(&own, Some(now + LINGER));
            }
        }
    }

    pub(super) fn leave(&mut self, key: &Arc<Key>, subscription: u64, gone_at: Instant) {
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
    pub(super) fn hold(&mut self, key: &Arc<Key>, held: Held, limit: usize) -> Option<Held> {
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
    pub(super) fn evict(&mut self, newest: &Arc<Key>) -> bool {
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

    pub(super) fn wipe(&mut self, key: &Arc<Key>) -> Option<Held> {
        let entry = self.entries.get_mut(key)?;
        let bytes = entry.bytes();
        let held = entry.held.take();
        self.bytes -= bytes;
        held
    }
}

impl Entry {
    /// The user with the token that lasts longest, if any has one that can be sent.
    pub(super) fn newest_user(&self, identity: &Identity) -> Option<(User, Caller)> {
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
    pub(super) fn item(&self, key: &Arc<Key>, object: &ObjectRef, now: Instant) -> Item {
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

pub(super) fn ends(life: &Life, now: Instant) -> Option<Instant> {
    match life {
        Life::Static | Life::Once => None,
        Life::Expires(left) | Life::Rotates(left) | Life::Leased { duration: left, .. } => {
            Some(now + *left)
        }
    }
}
