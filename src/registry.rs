//! The volumes published on this node, and the turn that each operation on one of them takes.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::cache::{Subscriber, Subscription};
use crate::pod_status::Shown;
use crate::publish::PublishRequest;
use crate::spec::VolumeSpec;
use crate::sync::Synced;
use crate::volume::Record;

/// What this process knows of its volumes. There is no list of all of them to walk: each is reached
/// by its id, whatever their number.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<HashMap<String, Arc<Slot>>>>);

#[derive(Default)]
struct Slot {
    volume: Arc<tokio::sync::Mutex<Option<Published>>>,
    /// Ends whatever waits on behalf of the volume. A new one takes its place at each unpublish.
    given_up: Mutex<CancellationToken>,
}

/// A volume that is on the node.
pub struct Published {
    /// The newest request for it.
    pub request: Arc<PublishRequest>,
    /// What is in it; unknown for one that was taken over without a record.
    pub record: Option<Record>,
    /// What its status says of its class; not known yet for one that was taken over.
    pub shown: Option<Shown>,
    /// What has become of the Kubernetes Secrets made of it; nothing yet, or there are none.
    pub synced: Option<Synced>,
    /// It was said that a container mounts some of it by subPath.
    pub told_of_subpaths: bool,
    /// The volume as the cache knows it.
    pub subscriber: Arc<Subscriber>,
    /// What it is kept like; not known yet for one that was taken over.
    pub followed: Option<Followed>,
    /// Writes it again when something changes; ends with it.
    pub follower: AbortOnDropHandle<()>,
}

/// The class that a volume is kept like.
pub struct Followed {
    /// What it was resolved to.
    pub spec: VolumeSpec,
    /// The secrets that it needs.
    pub subscription: Subscription,
}

/// The right to operate on a volume, alone; and what is known of the volume.
pub struct Turn {
    volume: Option<OwnedMutexGuard<Option<Published>>>,
    given_up: CancellationToken,
    registry: Registry,
    id: String,
    slot: Arc<Slot>,
}

impl Registry {
    /// Waits for the turn on a volume: first come, first served.
    pub async fn turn(&self, volume_id: &str) -> Turn {
        let slot = lock(&self.0)
            .entry(volume_id.to_owned())
            .or_default()
            .clone();
        // Taken on arrival: an unpublish ends the publishes before it, and none after it.
        let given_up = lock(&slot.given_up).clone();
        let mut turn = Turn {
            volume: None,
            given_up,
            registry: self.clone(),
            id: volume_id.to_owned(),
            slot,
        };
        turn.volume = Some(turn.slot.volume.clone().lock_owned().await);
        turn
    }

    /// Ends every wait for a store on behalf of the volume, of operations that run or wait now.
    pub fn give_up(&self, volume_id: &str) {
        let slot = lock(&self.0).get(volume_id).cloned();
        if let Some(slot) = slot {
            std::mem::take(&mut *lock(&slot.given_up)).cancel();
        }
    }

    /// How many volumes have a turn or are published.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Turn {
    /// Resolves once the volume is not wanted any more.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Deref for Turn {
    type Target = Option<Published>;

    fn deref(&self) -> &Self::Target {
        self.volume
            .as_ref()
            .expect("a turn that was given holds its volume")
    }
}

impl DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.volume
            .as_mut()
            .expect("a turn that was given holds its volume")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.volume = None;
        let mut slots = lock(&self.registry.0);
        // The map and this turn: nobody else can come, since slots are handed out under the lock.
        let nobody_waits = Arc::strong_count(&self.slot) == 2;
        if nobody_waits
            && self
                .slot
                .volume
                .try_lock()
                .is_ok_and(|volume| volume.is_none())
        {
            slots.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn one_operation_at_a_time_and_nothing_is_left_behind() {
        let registry = Registry::default();
        let first = registry.turn("a").await;
        let mut second = Box::pin(registry.turn("a"));
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        assert!(
            registry.turn("b").now_or_never().is_some(),
            "another volume does not"
        );
        drop(first);
        let second = second.now_or_never().expect("its turn");
        drop(second);
        assert!(registry.is_empty());
        let waiting = registry.turn("a").await;
        let mut dropped = Box::pin(registry.turn("a"));
        assert!(dropped.as_mut().now_or_never().is_none());
        drop(waiting);
        drop(dropped);
        assert!(registry.is_empty(), "a wait that was cut short");
    }

    #[tokio::test]
    async fn giving_up_ends_what_came_before_and_nothing_after() {
        let registry = Registry::default();
        let first = registry.turn("a").await;
        registry.give_up("a");
        first.given_up().await;
        drop(first);
        let second = registry.turn("a").await;
        assert!(second.given_up().now_or_never().is_none());
    }
}
