//! The status objects that are to be written, on their way from the publisher to the edge: per volume only the
//! newest, so that an API server that is slow or away makes nobody wait and nothing grow.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::pod_status::VolumeStatus;

/// What is to happen to the object of a volume.
pub enum Change {
    /// It says this.
    Put(Box<VolumeStatus>),
    /// It goes.
    Remove,
}

/// Takes the statuses of volumes. Clones are the same one; the default is one that nobody reads.
#[derive(Clone, Default)]
pub struct Statuses(Option<Arc<Inner>>);

/// The end that they leave by.
pub struct Outbox {
    inner: Arc<Inner>,
    /// The volume that left last: those behind it have their turn, also when it comes again.
    last: String,
    /// By volume, when its change may leave again: those of the others do not wait for it.
    held: HashMap<String, Instant>,
}

#[derive(Default)]
struct Inner {
    /// By volume. There is none for a volume that is neither published nor just gone.
    changes: Mutex<BTreeMap<String, Change>>,
    changed: Notify,
}

impl Statuses {
    /// Statuses, and the end that they leave by.
    #[must_use]
    pub fn new() -> (Self, Outbox) {
        let inner = Arc::new(Inner::default());
        let outbox = Outbox {
            inner: inner.clone(),
            last: String::new(),
            held: HashMap::new(),
        };
        (Self(Some(inner)), outbox)
    }

    /// From now on the object of the volume is to say this. Never waits; may be called as often as one likes.
    pub fn put(&self, volume_id: &str, status: VolumeStatus) {
        self.change(volume_id, Change::Put(Box::new(status)));
    }

    /// The volume is gone, and its object has to go.
    pub fn remove(&self, volume_id: &str) {
        self.change(volume_id, Change::Remove);
    }

    fn change(&self, volume_id: &str, change: Change) {
        if let Some(inner) = &self.0 {
            inner.changes().insert(volume_id.to_owned(), change);
            inner.changed.notify_one();
        }
    }
}

impl Outbox {
    /// Waits for a change.
    pub async fn next(&mut self) -> (String, Change) {
        loop {
            let now = Instant::now();
            self.held.retain(|_, until| *until > now);
            if let Some((volume_id, change)) = self.inner.after(&self.last, &self.held) {
                self.last.clone_from(&volume_id);
                return (volume_id, change);
            }
            let changed = self.inner.changed.notified();
            match self.held.values().min() {
                None => changed.await,
                // Late is as good: somebody's time has come.
                Some(until) => timeout_at(*until, changed).await.unwrap_or_default(),
            }
        }
    }

    /// Takes back what could not be done, unless something newer has come.
    pub fn again(&self, volume_id: String, change: Change) {
        self.inner.changes().entry(volume_id).or_insert(change);
        self.inner.changed.notify_one();
    }

    /// The same, and neither this change nor a newer one of the volume leaves before `until`.
    pub fn hold(&mut self, volume_id: String, change: Change, until: Instant) {
        self.held.insert(volume_id.clone(), until);
        self.again(volume_id, change);
    }
}

impl Inner {
    /// Takes the change behind this volume's, or else the first one, of those that are not held.
    fn after(&self, volume_id: &str, held: &HashMap<String, Instant>) -> Option<(String, Change)> {
        let mut changes = self.changes();
        let behind = (Bound::Excluded(volume_id), Bound::Unbounded);
        let in_turn = changes.range::<str, _>(behind).chain(changes.iter());
        let mut free = in_turn.filter(|(volume_id, _)| !held.contains_key(*volume_id));
        let next = free.next()?.0.clone();
        changes.remove_entry(&next)
    }

    fn changes(&self) -> MutexGuard<'_, BTreeMap<String, Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::time::Duration;

    #[tokio::test]
    async fn of_a_volume_the_newest_change_alone_is_done() {
        let (statuses, mut outbox) = Statuses::new();
        assert!(outbox.next().now_or_never().is_none());
        for volume in ["a", "b", "a"] {
            statuses.remove(volume);
        }
        let (a, change) = outbox.next().await;
        assert_eq!(a, "a");
        outbox.again(a, change);
        assert_eq!(outbox.next().await.0, "b", "the others are not held up");
        assert_eq!(outbox.next().await.0, "a", "what failed comes again");
        assert!(outbox.next().now_or_never().is_none());
        // Where nobody reads them, nothing is kept.
        Statuses::default().remove("a");
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_is_held_comes_when_its_time_has_come_and_holds_up_nobody() {
        let (statuses, mut outbox) = Statuses::new();
        let start = Instant::now();
        let later = Duration::from_secs(300);
        for volume in ["a", "b"] {
            statuses.remove(volume);
        }
        let (a, change) = outbox.next().await;
        outbox.hold(a, change, start + later);
        statuses.remove("a");
        assert_eq!(outbox.next().await.0, "b");
        assert!(outbox.next().now_or_never().is_none());
        assert_eq!(outbox.next().await.0, "a");
        assert!((later..later + Duration::from_secs(1)).contains(&start.elapsed()));
        assert!(outbox.next().now_or_never().is_none());
    }
}
