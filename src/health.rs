//! What the driver says of itself to those who would restart it or send it work.
//!
//! Neither answer depends on a store, and only the second one on the API server, for a moment: an outage of theirs
//! must not become a loop of restarts that throws the cache away.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::SecretCache;
use crate::classes::Classes;

/// The schedule turns at least three times in this.
const STANDSTILL: Duration = Duration::from_secs(60);

/// A driver that could not read the classes in this time is as ready as it can be: the volumes that are there
/// are looked after, and one that upgrades a cluster without an API server is not held up for ever.
const CLASSES_WANTED: Duration = Duration::from_secs(30);

/// The health of the driver. Clones tell of the same one.
#[derive(Clone)]
pub struct Health {
    cache: SecretCache,
    classes: Classes,
    since: Instant,
}

impl Health {
    /// From now on, of a driver that serves.
    #[must_use]
    pub fn new(cache: SecretCache, classes: Classes) -> Self {
        Self {
            cache,
            classes,
            since: Instant::now(),
        }
    }

    /// Whether the driver works.
    ///
    /// # Errors
    /// A sentence about what stands still: only a restart can mend it.
    pub fn healthy(&self) -> Result<(), &'static str> {
        let last = self.cache.last_turn().unwrap_or(self.since);
        match last.elapsed() < STANDSTILL {
            true => Ok(()),
            false => Err("the schedule of the cache has stood still for a minute"),
        }
    }

    /// Whether the API server is away, so that classes are what they were.
    #[must_use]
    pub fn classes_are_stale(&self) -> bool {
        self.classes.are_stale()
    }

    /// Whether new pods can have volumes: the socket is served by then, and the classes have been read once.
    ///
    /// # Errors
    /// A sentence about what is missing.
    pub fn ready(&self) -> Result<(), &'static str> {
        self.healthy()?;
        match self.classes.are_known() || self.since.elapsed() > CLASSES_WANTED {
            true => Ok(()),
            false => Err("the SecretProviderClasses have not been read from the API server yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use tokio::time::advance;
    use tokio_util::sync::CancellationToken;

    use crate::classes::ByName;
    use crate::telemetry::Metrics;

    fn cache() -> SecretCache {
        SecretCache::new(Default::default(), Arc::new(Metrics::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn ready_with_the_classes_or_half_a_minute_without_them() {
        let cache = cache();
        tokio::spawn({
            let cache = cache.clone();
            async move { cache.run(CancellationToken::new()).await }
        });
        let (classes, feed) = Classes::new();
        let health = Health::new(cache.clone(), classes);
        assert!(health.ready().is_err() && health.healthy().is_ok());
        feed.replace(ByName::new());
        assert_eq!(health.ready(), Ok(()));

        let (classes, _feed) = Classes::new();
        let away = Health::new(cache, classes);
        tokio::time::sleep(CLASSES_WANTED).await;
        assert!(away.ready().is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(away.ready(), Ok(()));
        tokio::time::sleep(100 * STANDSTILL).await;
        assert_eq!(away.healthy(), Ok(()), "an idle schedule turns too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_schedule_that_stands_still_is_neither_healthy_nor_ready() {
        let (classes, feed) = Classes::new();
        feed.replace(ByName::new());
        // Nobody runs it.
        let health = Health::new(cache(), classes);
        advance(STANDSTILL - Duration::from_secs(1)).await;
        assert_eq!((health.healthy(), health.ready()), (Ok(()), Ok(())));
        advance(Duration::from_secs(1)).await;
        assert!(health.healthy().is_err() && health.ready().is_err());
    }
}
