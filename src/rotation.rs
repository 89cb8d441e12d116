//! Rotation: whatever may have changed a volume makes its publisher look at it again.

use std::sync::Arc;
use std::time::Duration;

use coffer_provider::Changes;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::publish::Publisher;
use crate::volume::Outcome;

/// After a look that failed: the next one, and the longest wait after many.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When a replaced generation is removed: readers had their second, and a little more.
const SWEEP: Duration = Duration::from_secs(2);

/// Follows one volume for as long as it is published. Without `changes` (a volume that an earlier
/// process made) it looks at once.
pub(crate) async fn follow(publisher: Arc<Publisher>, volume_id: String, changes: Option<Changes>) {
    let taken_over = changes.is_none();
    let mut changes: Changes = changes.unwrap_or_else(|| Box::pin(futures_util::stream::empty()));
    let mut look_at = taken_over.then(Instant::now);
    let mut sweep_at = taken_over.then(|| Instant::now() + SWEEP);
    let mut retry = RETRY;
    loop {
        tokio::select! {
            Some(()) = changes.next() => {}
            () = at(look_at) => {}
            () = at(sweep_at) => {
                sweep_at = sweep(&publisher, &volume_id).await;
                continue;
            }
        }
        look_at = None;
        let started = Instant::now();
        let looked = publisher.rotate(&volume_id).await;
        let provider = publisher.provider_of(&volume_id).await;
        publisher
            .metrics()
            .rotated(provider, &looked, started.elapsed());
        match looked {
            Ok((Outcome::TooSoon(wait), _)) => look_at = Some(Instant::now() + wait),
            Ok((outcome, from_now_on)) => {
                changes = from_now_on;
                retry = RETRY;
                if outcome == Outcome::Rotated {
                    info!(volume.id = %volume_id, provider, "volume rotated");
                    sweep_at = Some(Instant::now() + SWEEP);
                } else {
                    debug!(volume.id = %volume_id, provider, "volume unchanged");
                }
            }
            Err(error) => {
                let reason = error.reason().as_str();
                warn!(volume.id = %volume_id, provider, reason, %error, "volume not rotated, it keeps what it has");
                look_at = Some(Instant::now() + retry);
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn sweep(publisher: &Arc<Publisher>, volume_id: &str) -> Option<Instant> {
    match publisher.sweep(volume_id).await {
        Ok(Outcome::TooSoon(wait)) => Some(Instant::now() + wait),
        Ok(_) => None,
        Err(error) => {
            debug!(volume.id = %volume_id, %error, "volume not swept");
            None
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
