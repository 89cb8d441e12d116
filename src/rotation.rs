//! Rotation: whatever may have changed a volume makes its publisher look at it again.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::Changes;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::cache::{Subscriber, Tidings};
use crate::error::PublishError;
use crate::publish::Publisher;
use crate::volume::Outcome;

/// After a look that failed: the next one, and the longest wait after many. Stores have a back-off of
/// their own in the cache.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When a replaced generation is removed: readers had their second, and a little more.
const SWEEP: Duration = Duration::from_secs(2);

/// Follows one volume for as long as it is published. Without `tidings` (a volume that an earlier
/// process made) it looks at once, otherwise at `look_at` if nothing is told before.
pub(crate) async fn follow(
    publisher: Arc<Publisher>,
    volume: Arc<Subscriber>,
    mut class: Option<Changes>,
    mut tidings: Option<Tidings>,
    look_at: Option<Instant>,
) {
    let volume_id = volume.volume_id.as_str();
    let taken_over = tidings.is_none();
    let mut look_at = taken_over.then(Instant::now).or(look_at);
    let mut sweep_at = taken_over.then(|| Instant::now() + SWEEP);
    let mut retry = RETRY;
    let mut failing = None;
    loop {
        tokio::select! {
            Some(()) = next(&mut class) => {}
            () = volume.changed() => {}
            Some(told) = next(&mut tidings) => {
                let _ = attempt(publisher.told(volume_id, told)).await;
                continue;
            }
            () = at(look_at) => {}
            () = at(sweep_at) => {
                let swept = attempt(sweep(&publisher, volume_id)).await;
                sweep_at = swept.unwrap_or_else(|_| Some(Instant::now() + RETRY_MAX));
                continue;
            }
        }
        look_at = None;
        let rotated = attempt(publisher.rotate(volume_id, &mut tidings)).await;
        match rotated.flatten() {
            Ok(looked) => {
                look_at = looked.look_again;
                retry = RETRY;
                if failing.take().is_some() {
                    info!(volume.id = %volume_id, "volume is looked after again");
                }
                match looked.outcome {
                    Outcome::TooSoon(wait) => look_at = Some(Instant::now() + wait),
                    Outcome::Rotated => {
                        info!(volume.id = %volume_id, "volume rotated");
                        sweep_at = Some(Instant::now() + SWEEP);
                    }
                    Outcome::Mounted | Outcome::Unchanged => {
                        debug!(volume.id = %volume_id, "volume unchanged");
                    }
                }
            }
            Err(error) => {
                if matches!(error, PublishError::Volume(_)) {
                    // It may have been replaced before that.
                    sweep_at = sweep_at.or(Some(Instant::now() + SWEEP));
                }
                if !waits_for_its_class(&error) {
                    look_at = Some(Instant::now() + retry);
                    retry = (retry * 2).min(RETRY_MAX);
                }
                let reason = error.reason().as_str();
                let message = error.to_string();
                if failing.as_ref() == Some(&message) {
                    debug!(volume.id = %volume_id, reason, error = message, "volume still not rotated");
                } else {
                    warn!(volume.id = %volume_id, reason, error = message, "volume not rotated, it keeps what it has");
                    failing = Some(message);
                }
            }
        }
    }
}

/// A panic takes one attempt along, not what follows the volume (R11). What it leaves half done is the
/// volume's turn, which is given back as after any error.
async fn attempt<T>(work: impl Future<Output = T>) -> Result<T, PublishError> {
    let worked = AssertUnwindSafe(work).catch_unwind().await;
    worked.map_err(|_| PublishError::Panicked)
}

/// Only a change of the class can help, and that is told.
fn waits_for_its_class(error: &PublishError) -> bool {
    matches!(
        error,
        PublishError::ClassNotFound(_)
            | PublishError::InvalidClass { .. }
            | PublishError::ClassesUnknown
            | PublishError::Parameters { .. }
            | PublishError::Immutable(_)
            | PublishError::LeaseCannotStay(_)
    )
}

async fn sweep(publisher: &Arc<Publisher>, volume_id: &str) -> Option<Instant> {
    match publisher.sweep(volume_id).await {
        Ok(Outcome::TooSoon(wait)) => Some(Instant::now() + wait),
        Ok(_) => None,
        Err(PublishError::Unpublished) => None,
        Err(error) => {
            debug!(volume.id = %volume_id, %error, "volume not swept");
            Some(Instant::now() + RETRY_MAX)
        }
    }
}

/// The next item. A stream that has ended is gone: many of them must not be polled once more.
async fn next<T>(stream: &mut Option<impl Stream<Item = T> + Unpin>) -> Option<T> {
    let next = stream.as_mut()?.next().await;
    if next.is_none() {
        *stream = None;
    }
    next
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[tokio::test]
    async fn a_stream_that_has_ended_is_not_asked_again() {
        let once = stream::unfold(true, async |first| first.then_some(((), false)));
        let mut stream = Some(Box::pin(once));
        assert_eq!(next(&mut stream).await, Some(()));
        for _ in 0..3 {
            assert_eq!(next(&mut stream).await, None);
        }
    }
}
