//! How fast one service of one region is asked: never faster than a node should, and slower for as long as
//! AWS says that the account is asking too often.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::gather::lock;

/// Whoever would wait for longer is sent away: their secret has a schedule of its own to come back by.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The least, in requests in a second: somebody has to find out that the throttling is over.
const LEAST: f64 = 0.2;

/// After this time without a throttle the pace is twice what it was, after twice the time sixteen times, and so
/// on: careful where the limit is near, and soon back to normal where it has gone.
const DOUBLES: Duration = Duration::from_secs(15);

/// Throttles that come this close together are one: their requests were sent at one pace.
const ONE_THROTTLE: Duration = Duration::from_secs(1);

/// The time that the pace of what was sent is measured over.
const MEASURED: Duration = Duration::from_secs(5);

/// A token bucket that slows down when it is told to.
pub(crate) struct Pace {
    most: f64,
    state: Mutex<State>,
    /// Whoever waits for the bucket holds it: first come, first served.
    first: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

struct State {
    /// Requests that can be sent at once.
    level: f64,
    at: Instant,
    /// How many were sent lately.
    sent: f64,
    slowed: Option<Slowed>,
}

/// Requests in a second, after a throttle.
struct Slowed {
    rate: f64,
    since: Instant,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pace {
    /// At most so many requests in a second, and as many at once after a rest.
    pub(crate) fn new(most: f64) -> Self {
        let state = State {
            level: most,
            at: Instant::now(),
            sent: 0.0,
            slowed: None,
        };
        Self {
            most,
            state: Mutex::new(state),
            first: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for the turn to send one request.
    ///
    /// # Errors
    /// Where the turn is too far away: how far.
    pub(crate) async fn turn(&self) -> Result<(), Duration> {
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.take(ahead as f64, false).or_else(not_too_long)?;
        let _first = self.first.lock().await;
        loop {
            match self.take(0.0, true) {
                Ok(()) => return Ok(()),
                Err(wait) => {
                    not_too_long(wait)?;
                    sleep(wait).await;
                }
            }
        }
    }

    /// AWS said that it was asked too often.
    pub(crate) fn throttled(&self) {
        let mut state = self.state();
        let now = state.at;
        // What was saved up is what was too much.
        state.level = state.level.min(0.0);
        let last = state.slowed.as_ref().map(|slowed| slowed.since);
        if last.is_some_and(|last| now.duration_since(last) < ONE_THROTTLE) {
            return;
        }
        let rate = self.rate(&state).min(state.sent / MEASURED.as_secs_f64());
        state.slowed = Some(Slowed {
            rate: (rate / 2.0).max(LEAST),
            since: now,
        });
    }

    /// Looks for one request behind so many others, and takes it if it is to be sent; otherwise says how long it
    /// is until there is one.
    fn take(&self, ahead: f64, send: bool) -> Result<(), Duration> {
        let mut state = self.state();
        let missing = 1.0 + ahead - state.level;
        if missing > 0.0 {
            let wait = Duration::from_secs_f64(missing / self.rate(&state));
            // A hair more than computed, so that rounding does not ask again at the same instant.
            return Err(wait + Duration::from_millis(1));
        }
        if send {
            state.level -= 1.0;
            state.sent += 1.0;
        }
        Ok(())
    }

    fn rate(&self, state: &State) -> f64 {
        let Some(slowed) = &state.slowed else {
            return self.most;
        };
        let passed = state.at.duration_since(slowed.since).as_secs_f64() / DOUBLES.as_secs_f64();
        (slowed.rate * (passed * passed).exp2()).min(self.most)
    }

    /// What there is now.
    fn state(&self) -> MutexGuard<'_, State> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.at = now;
        let rate = self.rate(&state);
        if rate >= self.most {
            state.slowed = None;
        }
        // Nothing is saved up while the rate is not the full one.
        let room = if state.slowed.is_none() {
            self.most
        } else {
            1.0
        };
        state.level = (state.level + passed * rate).min(room);
        state.sent *= (-passed / MEASURED.as_secs_f64()).exp();
        state
    }
}

fn not_too_long(wait: Duration) -> Result<(), Duration> {
    match wait > LONGEST_WAIT {
        true => Err(wait),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt;

    /// How many turns there are within `time`, one after the other.
    async fn turns(pace: &Pace, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut turns = 0;
        while pace.turn().await.is_ok() && Instant::now() <= end {
            turns += 1;
        }
        turns
    }

    #[tokio::test(start_paused = true)]
    async fn rule_s11_a_pace_has_a_burst_and_then_its_rate() {
        let pace = Pace::new(20.0);
        let turns = turns(&pace, Duration::from_secs(10)).await;
        assert!((200..=221).contains(&turns), "{turns}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttle_halves_the_pace_and_time_gives_it_back() {
        let pace = Pace::new(20.0);
        turns(&pace, Duration::from_secs(10)).await;
        let mut last = f64::MAX;
        for _ in 0..4 {
            // Answers to requests of one moment.
            pace.throttled();
            pace.throttled();
            let rate = pace.rate(&pace.state());
            assert!(
                (0.4..0.6).contains(&(rate / last)) || last == f64::MAX,
                "{rate}"
            );
            last = rate;
            tokio::time::advance(ONE_THROTTLE).await;
        }
        let slow = turns(&pace, Duration::from_secs(5)).await;
        assert!((2..=10).contains(&slow), "{slow}");
        tokio::time::advance(3 * DOUBLES).await;
        let fast = turns(&pace, Duration::from_secs(5)).await;
        assert!((95..=125).contains(&fast), "{fast}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_would_wait_for_too_long_is_told_how_long() {
        let pace = Pace::new(1.0);
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(pace.turn())).collect();
        let now = waiting.iter_mut().filter_map(|turn| turn.now_or_never());
        let (let_in, sent_away): (Vec<_>, Vec<_>) = now.partition(Result::is_ok);
        assert_eq!(let_in.len(), 1);
        assert_eq!(sent_away.len(), 10, "nine wait");
        let far = |turn: &Result<(), Duration>| turn.is_err_and(|wait| wait > LONGEST_WAIT);
        assert!(sent_away.iter().all(far));

        drop(waiting);
        pace.throttled();
        assert!(pace.turn().await.is_ok(), "nobody waits any more");
    }
}
