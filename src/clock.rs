//! The clock of the schedule: it counts the time that the machine was suspended (CLOCK_BOOTTIME), which
//! tokio's does not, and nobody can set it (R8).

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::time::{Instant, sleep};

/// No sleep is longer, so that what fell due in a suspension is not late by its length.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The time by the schedule's clock.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
        + suspended(
            clock_gettime(ClockId::Monotonic),
            clock_gettime(ClockId::Boottime),
        )
}

/// Sleeps until `at` on the schedule's clock, or wakes earlier to look at that clock again.
pub async fn sleep_towards(at: Instant) {
    sleep(at.saturating_duration_since(now()).min(LONGEST_SLEEP)).await;
}

/// How long the machine has been suspended, in whole seconds: the two clocks are not read at once.
fn suspended(monotonic: Timespec, boottime: Timespec) -> Duration {
    let nanoseconds =
        |time: Timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    let apart = (nanoseconds(boottime) - nanoseconds(monotonic)) / 1_000_000_000;
    Duration::from_secs(u64::try_from(apart).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_r8_time_in_suspension_counts_and_the_wall_clock_does_not() {
        let at = |seconds, nanoseconds| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        for (monotonic, boottime, seconds) in [
            (at(5, 0), at(5, 0), 0),
            (at(5, 0), at(5, 900), 0),
            (at(5, 900), at(5, 0), 0),
            (at(5, 0), at(3605, 10), 3600),
        ] {
            assert_eq!(suspended(monotonic, boottime).as_secs(), seconds);
        }
        let (before, clock) = (Instant::now(), now());
        assert!(clock >= before);
    }
}
