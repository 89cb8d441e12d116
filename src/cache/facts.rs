//! What the cache knows about the objects of a volume, without asking anybody: for reports.

use std::time::Duration;

use coffer_provider::ProviderError;
use tokio::time::Instant;

use super::{Entry, Part, Subscription, TOKEN_MISSES};
use crate::clock;
use crate::schedule::Strategy;

/// How long an answer stays fresh that is asked for after each republish: those come every 60 to 90 seconds.
const REPUBLISHED: Duration = Duration::from_secs(120);

/// What is known of one object of a volume.
pub struct Fact {
    /// The object's name in the record of the volume.
    pub recorded_as: String,
    /// When the store last gave it, or said that it is still the same.
    pub answered: Option<Instant>,
    /// When the store is asked again.
    pub due: Option<Instant>,
    /// When it ends by itself.
    pub ends: Option<Instant>,
    /// Why it could not be read when it was last tried.
    pub error: Option<ProviderError>,
    /// It has ended, or it could not be read in the time that its class gives it.
    pub stale: bool,
    /// It is due, and no token has come that could be sent.
    pub waits_for_token: bool,
}

impl Subscription {
    /// What is known of each object, in the order of the class.
    #[must_use]
    pub fn facts(&self) -> Vec<Fact> {
        let now = clock::now();
        let state = self.cache.state();
        let mut facts = Vec::new();
        for part in &self.parts {
            for wanted in &part.objects {
                let Some(entry) = state.entries.get(&self.effective(&state, wanted)) else {
                    continue;
                };
                let failed = entry.failed.as_ref().map(|failed| &failed.error);
                let error = failed.filter(|error| !wanted.is_lacking(error));
                let held = entry.held.as_ref();
                let waits_for_token = entry
                    .token_misses
                    .is_some_and(|misses| misses >= TOKEN_MISSES);
                let untended = error.is_some() || waits_for_token;
                facts.push(Fact {
                    recorded_as: wanted.recorded_as.clone(),
                    answered: held.map(|held| held.at),
                    due: entry.due,
                    ends: held.and_then(|held| held.ends),
                    error: error.cloned(),
                    stale: untended && is_stale(entry, part, self.max_stale, now),
                    waits_for_token,
                });
            }
        }
        facts
    }
}

fn is_stale(entry: &Entry, part: &Part, max_stale: Duration, now: Instant) -> bool {
    let fresh = match part.strategy {
        Strategy::Get => REPUBLISHED,
        Strategy::Watch | Strategy::Cache(_) => part.strategy.ttl(),
    };
    let held = entry.held.as_ref();
    held.is_some_and(|held| now > held.ends.unwrap_or(held.at + fresh + max_stale))
}
