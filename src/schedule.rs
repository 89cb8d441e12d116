//! When a cached secret is looked at again. Pure: it is handed the times, and the chance.

use std::time::Duration;

use coffer_provider::Life;

/// Under [`Strategy::Watch`] a store is asked this often all the same: a remote change of a network
/// file system, for one, wakes no watcher.
pub const WATCH_LOOK: Duration = Duration::from_secs(600);

/// How long a failure is remembered, at most: who asks again in that time gets the same answer (C5).
pub const REMEMBERED: Duration = Duration::from_secs(5);

/// How long a store that failed is left alone: `first` at most after the first failure, twice as long
/// after each further one, up to `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// After many.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(60),
        }
    }
}

/// The longest time for which a store can ask to be left alone.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// How changes of a value that does not end by itself are noticed: the kubelet's own three ways
/// (`configMapAndSecretChangeDetectionStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The store tells.
    Watch,
    /// The store is asked once in each interval.
    Cache(Duration),
    /// The store is asked after each republish.
    Get,
}

impl Strategy {
    /// For how long an answer may be given to a further pod.
    #[must_use]
    pub fn ttl(self) -> Duration {
        match self {
            Self::Watch => WATCH_LOOK,
            Self::Cache(interval) => interval,
            Self::Get => Duration::ZERO,
        }
    }

    /// How long until the next look: never by itself for [`Self::Get`].
    ///
    /// Within the interval, since "interval plus a second" is what is promised. The first look comes
    /// anywhere in it, so that volumes that came together part; each later one in its last fifth.
    fn next(self, first: bool, chance: f64) -> Option<Duration> {
        let interval = match self {
            Self::Watch | Self::Cache(_) => self.ttl(),
            Self::Get => return None,
        };
        let share = if first {
            0.1 + 0.9 * chance
        } else {
            0.8 + 0.2 * chance
        };
        Some(interval.mul_f64(share))
    }
}

/// How long until a secret with this `life` is looked at again, for the strictest of `strategies`. A
/// life of its own overrides them. `chance` is in 0..1.
#[must_use]
pub fn next_look(
    life: &Life,
    strategies: impl Iterator<Item = Strategy>,
    first: bool,
    chance: f64,
) -> Option<Duration> {
    let part_of = |life: Duration, part: f64| Some(life.mul_f64(part).max(SHORTEST_LIFE));
    match life {
        Life::Static => strategies
            .filter_map(|strategy| strategy.next(first, chance))
            .min(),
        // Just after the store has put another one there.
        Life::Rotates(left) => Some(*left + AFTER_ROTATION.mul_f64(1.0 + 2.0 * chance)),
        Life::Once => None,
        Life::Expires(life)
        | Life::Leased {
            duration: life,
            renewable: true,
            ..
        } => part_of(*life, 0.6 + 0.1 * chance),
        Life::Leased { duration, .. } => part_of(*duration, 0.6 + 0.2 * chance),
    }
}

/// No life is taken for shorter: by a clock that is wrong a certificate has ended when it is made.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// The least time that a store gets for putting another value in the place of one.
const AFTER_ROTATION: Duration = Duration::from_secs(1);

/// The longest pause between looks at a value that should be another one by now.
const OVERDUE_MAX: Duration = Duration::from_secs(30);

/// How long until the next look at a value that the store should have replaced, after so many looks that
/// found it still there.
#[must_use]
pub fn next_look_for_overdue(looks: u32) -> Duration {
    (2 * AFTER_ROTATION)
        .saturating_mul(1 << looks.saturating_sub(1).min(4))
        .min(OVERDUE_MAX)
}

/// The part of a lease after which it is not renewed any more, but made anew.
const RENEW_UNTIL: f64 = 0.85;

/// Whether a lease of this length can still be renewed when it is this old.
#[must_use]
pub fn can_renew(duration: Duration, age: Duration) -> bool {
    age < duration.mul_f64(RENEW_UNTIL)
}

/// Whether a renewal gave so much less than before that the lease is about to end for good.
#[must_use]
pub fn is_truncated(before: Duration, renewed: Duration) -> bool {
    renewed < before.mul_f64(0.9)
}

/// How long until the next try after so many failures in a row: exponential, with full jitter, no longer
/// than the shortest interval of `strategies`, since all is to be fresh an interval after the store is
/// back, and not before the store wants to be asked again. `chance` is in 0..1.
#[must_use]
pub fn after_failure(
    backoff: Backoff,
    failures: u32,
    retry_after: Option<Duration>,
    strategies: impl Iterator<Item = Strategy>,
    chance: f64,
) -> Duration {
    let intervals = strategies.filter_map(|strategy| match strategy {
        Strategy::Cache(interval) => Some(interval),
        Strategy::Watch | Strategy::Get => None,
    });
    let longest = intervals.fold(backoff.longest, Duration::min);
    let doubled = backoff
        .first
        .saturating_mul(1 << failures.saturating_sub(1).min(16));
    let jittered = doubled.min(longest).mul_f64(chance);
    let wanted = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    // Never in a tight loop, whatever chance says.
    jittered.max(wanted).max(backoff.first / 10)
}

/// Until when a failure is answered from memory: no longer than until the next try.
#[must_use]
pub fn remembered(until_retry: Duration) -> Duration {
    until_retry.min(REMEMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::Lease;

    const MINUTE: Duration = Duration::from_secs(60);
    const CHANCES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 0.999];

    #[test]
    fn a_life_that_is_over_at_once_is_not_looked_at_without_a_pause() {
        let lease = Life::Leased {
            lease: Lease::new("a".into()),
            duration: Duration::ZERO,
            renewable: false,
        };
        for life in [Life::Expires(Duration::ZERO), lease] {
            let next = next_look(&life, std::iter::empty(), false, 0.0);
            assert_eq!(next, Some(SHORTEST_LIFE));
        }
    }

    #[test]
    fn a_static_value_is_looked_at_within_its_interval_by_the_strictest_strategy() {
        for chance in CHANCES {
            for first in [true, false] {
                let look = |strategies: &[Strategy]| {
                    next_look(&Life::Static, strategies.iter().copied(), first, chance)
                };
                let cached = look(&[Strategy::Cache(MINUTE)]).expect("by itself");
                assert!(cached <= MINUTE);
                assert!(cached >= MINUTE.mul_f64(if first { 0.1 } else { 0.8 }));
                assert_eq!(
                    look(&[Strategy::Watch, Strategy::Cache(MINUTE)]),
                    Some(cached)
                );
                assert!(look(&[Strategy::Watch]).expect("now and then") > MINUTE / 2);
                assert_eq!(look(&[Strategy::Get]), None);
                assert_eq!(look(&[]), None);
            }
        }
    }

    #[test]
    fn a_life_of_its_own_overrides_the_strategy() {
        let leased = |renewable| Life::Leased {
            lease: Lease::new("id".into()),
            duration: MINUTE,
            renewable,
        };
        for (life, latest) in [
            (Life::Expires(MINUTE), 0.7),
            (leased(true), 0.7),
            (leased(false), 0.8),
        ] {
            for chance in CHANCES {
                let strategy = [Strategy::Cache(Duration::from_secs(10)), Strategy::Get];
                let look = next_look(&life, strategy.into_iter(), true, chance).expect("it ends");
                assert!(look >= MINUTE.mul_f64(0.6) && look <= MINUTE.mul_f64(latest));
            }
        }
        assert!(can_renew(MINUTE, MINUTE.mul_f64(0.7)) && !can_renew(MINUTE, MINUTE.mul_f64(0.9)));
        assert!(is_truncated(MINUTE, MINUTE / 2) && !is_truncated(MINUTE, MINUTE));
    }

    #[test]
    fn what_the_store_replaces_is_looked_at_just_after_and_then_in_growing_pauses() {
        for chance in CHANCES {
            let strategy = [Strategy::Cache(Duration::from_secs(10)), Strategy::Get];
            let look = |life| next_look(&life, strategy.into_iter(), false, chance);
            let after = look(Life::Rotates(MINUTE)).expect("it rotates") - MINUTE;
            assert!(after >= AFTER_ROTATION && after <= 3 * AFTER_ROTATION);
            assert_eq!(look(Life::Once), None);
        }
        let pauses = [1, 2, 3, 4, 5, u32::MAX].map(|looks| next_look_for_overdue(looks).as_secs());
        assert_eq!(pauses, [2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn failures_back_off_up_to_a_limit_and_a_store_can_ask_for_more() {
        let usual = Backoff::default();
        let patient = Backoff {
            first: Duration::from_secs(3),
            longest: Duration::from_secs(100),
        };
        for backoff in [usual, patient] {
            let Backoff { first, longest } = backoff;
            let most = |failures| after_failure(backoff, failures, None, [].into_iter(), 0.999_999);
            assert!(most(1) <= first && most(1) > first / 2);
            assert!(most(2) > first && most(2) <= 2 * first);
            assert!(most(8) <= longest && most(u32::MAX) > longest.mul_f64(0.99));
            assert!(after_failure(backoff, 1, None, [].into_iter(), 0.0) > Duration::ZERO);
        }
        assert_eq!(
            (usual.first, usual.longest),
            (Duration::from_millis(500), MINUTE)
        );
        let asked = |after| after_failure(usual, 1, Some(after), [].into_iter(), 0.5);
        assert_eq!(asked(MINUTE), MINUTE);
        assert_eq!(asked(1000 * MINUTE), RETRY_AFTER_MAX);
        let impatient = [
            Strategy::Watch,
            Strategy::Cache(20 * usual.first),
            Strategy::Get,
        ];
        let within =
            |after| after_failure(usual, u32::MAX, after, impatient.into_iter(), 0.999_999);
        assert!(within(None) <= 20 * usual.first && within(None) > 19 * usual.first);
        assert_eq!(within(Some(MINUTE)), MINUTE, "but a store is heard");
        assert_eq!(remembered(MINUTE), REMEMBERED);
        assert_eq!(remembered(usual.first), usual.first);
    }
}
