//! What one store is asked at most: so many requests at a time and so many in a second, first mounts
//! ahead of refreshes, and no store takes anything from another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

/// Requests to one store at one time. Refreshes can take half of them at most: the rest is for pods that
/// wait for their first mount.
pub const SLOTS: usize = 16;
/// First mounts that wait for one store, before further ones are sent away.
pub const QUEUE: usize = 1000;

/// For whom a store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A pod that does not start without the answer.
    Mount,
    /// A pod that has an answer already.
    Refresh,
}

/// The rate at which a store is asked: a bucket that fills at `per_second` and holds `burst`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests in a second, in the long run.
    pub per_second: f64,
    /// Requests at once, after a rest.
    pub burst: f64,
}

impl Rate {
    /// For what costs nobody anything.
    pub const UNLIMITED: Self = Self {
        per_second: 1e9,
        burst: 1e9,
    };
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            per_second: 50.0,
            burst: 100.0,
        }
    }
}

/// A token bucket. Pure: it is handed the time.
struct Bucket {
    rate: Rate,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            level: rate.burst,
            at: now,
        }
    }

    /// Takes `requests` and leaves at least `reserve`; otherwise says how long to wait. A batch that is
    /// larger than the bucket goes once the bucket is full, and is paid for by those who come after it.
    fn take(&mut self, requests: f64, reserve: f64, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate.per_second).min(self.rate.burst);
        self.at = now;
        let needed = (requests + reserve).min(self.rate.burst);
        if self.level >= needed {
            self.level -= requests;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((needed - self.level) / self.rate.per_second);
        // A hair more than computed, so that rounding does not ask again at the same instant.
        Err(wait + Duration::from_millis(1))
    }
}

/// The way to one store.
pub struct Pacer {
    slots: Semaphore,
    refresh_slots: Semaphore,
    bucket: Mutex<Bucket>,
    /// Whoever waits for the bucket holds one: first come, first served.
    mounts: tokio::sync::Mutex<()>,
    refreshes: tokio::sync::Mutex<()>,
    mounts_waiting: AtomicUsize,
    queue: usize,
}

/// Too many wait for the store already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// The right to ask a store, for as long as it is held.
pub struct Permit<'a>(
    #[expect(dead_code, reason = "held for its drop")] SemaphorePermit<'a>,
    #[expect(dead_code, reason = "held for its drop")] Option<SemaphorePermit<'a>>,
);

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pacer {
    /// A store that has not been asked yet.
    #[must_use]
    pub fn new(rate: Rate, slots: usize, queue: usize) -> Self {
        Self {
            slots: Semaphore::new(slots),
            refresh_slots: Semaphore::new(slots.div_ceil(2)),
            queue,
            bucket: Mutex::new(Bucket::new(rate, Instant::now())),
            mounts: tokio::sync::Mutex::default(),
            refreshes: tokio::sync::Mutex::default(),
            mounts_waiting: AtomicUsize::new(0),
        }
    }

    /// Waits until the store may be asked `requests` times.
    ///
    /// # Errors
    /// [`QueueFull`] for a first mount behind too many others.
    pub async fn enter(&self, urgency: Urgency, requests: usize) -> Result<Permit<'_>, QueueFull> {
        let _waiting = match urgency {
            Urgency::Mount => Some(self.queue_up()?),
            Urgency::Refresh => None,
        };
        let (queue, reserve) = match urgency {
            Urgency::Mount => (&self.mounts, 0.0),
            Urgency::Refresh => (&self.refreshes, self.reserve()),
        };
        let refresh = match urgency {
            Urgency::Mount => None,
            Urgency::Refresh => Some(acquire(&self.refresh_slots).await),
        };
        let slot = acquire(&self.slots).await;
        let _first = queue.lock().await;
        loop {
            let taken = self.bucket(|bucket| bucket.take(requests as f64, reserve, Instant::now()));
            match taken {
                Ok(()) => return Ok(Permit(slot, refresh)),
                Err(wait) => sleep(wait).await,
            }
        }
    }

    fn queue_up(&self) -> Result<Waiting<'_>, QueueFull> {
        let before = self.mounts_waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.mounts_waiting);
        match before < self.queue {
            true => Ok(waiting),
            false => Err(QueueFull),
        }
    }

    fn reserve(&self) -> f64 {
        self.bucket(|bucket| bucket.rate.burst / 2.0)
    }

    fn bucket<T>(&self, with: impl FnOnce(&mut Bucket) -> T) -> T {
        with(&mut self.bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn acquire(semaphore: &Semaphore) -> SemaphorePermit<'_> {
    semaphore.acquire().await.expect("it is never closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const RATE: Rate = Rate {
        per_second: 10.0,
        burst: 20.0,
    };

    #[tokio::test(start_paused = true)]
    async fn rule_s12_no_more_than_the_cap_whatever_is_due() {
        let pacer = Pacer::new(RATE, SLOTS, QUEUE);
        let start = Instant::now();
        for _ in 0..120 {
            drop(pacer.enter(Urgency::Refresh, 1).await.expect("room"));
        }
        // The first ten of a full bucket are free; the reserve stays with the mounts.
        let took = start.elapsed().as_secs_f64();
        assert!((11.0..11.3).contains(&took), "{took}");
        let mounts = async {
            for _ in 0..10 {
                drop(pacer.enter(Urgency::Mount, 1).await.expect("room"));
            }
        };
        assert!(mounts.now_or_never().is_some(), "mounts do not wait");
        let start = Instant::now();
        drop(pacer.enter(Urgency::Mount, 1000).await.expect("room"));
        drop(pacer.enter(Urgency::Mount, 1).await.expect("room"));
        assert!(start.elapsed() > Duration::from_secs(90), "a batch is paid");
    }

    #[tokio::test(start_paused = true)]
    async fn refreshes_take_no_place_in_the_queue_of_first_mounts() {
        let pacer = Pacer::new(RATE, 2, 1);
        let _refresh = pacer.enter(Urgency::Refresh, 1).await;
        let mut waiting = Box::pin(pacer.enter(Urgency::Refresh, 1));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(pacer.enter(Urgency::Mount, 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hung_store_holds_its_slots_and_refreshes_only_half_of_them() {
        let rate = Rate {
            per_second: 1000.0,
            burst: 1000.0,
        };
        let pacer = Pacer::new(rate, SLOTS, QUEUE);
        let mut held = Vec::new();
        while let Some(permit) = pacer.enter(Urgency::Refresh, 1).now_or_never() {
            held.push(permit.expect("room"));
        }
        assert_eq!(held.len(), SLOTS / 2);
        while let Some(permit) = pacer.enter(Urgency::Mount, 1).now_or_never() {
            held.push(permit.expect("room"));
        }
        assert_eq!(held.len(), SLOTS);
        held.pop();
        assert!(pacer.enter(Urgency::Mount, 1).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_behind_a_thousand_is_sent_away() {
        let pacer = Pacer::new(RATE, SLOTS, QUEUE);
        let mut held = Vec::new();
        for _ in 0..SLOTS {
            held.push(pacer.enter(Urgency::Mount, 1).await.expect("room"));
        }
        let mut queue = Vec::new();
        for _ in 0..QUEUE {
            let mut wait = Box::pin(pacer.enter(Urgency::Mount, 1));
            assert!(wait.as_mut().now_or_never().is_none());
            queue.push(wait);
        }
        let full = pacer.enter(Urgency::Mount, 1).await.err();
        assert_eq!(full, Some(QueueFull));
        queue.clear();
        held.clear();
        assert!(pacer.enter(Urgency::Mount, 1).await.is_ok());
    }
}
