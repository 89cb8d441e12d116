//! What is given back to a store: leases and tokens that nobody uses any more. What it cannot take now is
//! offered again, for a while; in the end everything ends by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::sleep;
use tracing::debug;

use crate::events::pause;

/// So much waits to be offered again; what is more than that is offered once.
const WAITING: usize = 512;

/// For so long, and at least this often.
const OFFERED: Duration = Duration::from_secs(15 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the stores of a provider have not taken back yet. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Returns(Arc<Semaphore>);

impl Default for Returns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WAITING)))
    }
}

impl Returns {
    /// Offers something until the store has had its say, as `offer` tells, and waits for the first answer.
    /// Who gives up waiting stops nothing.
    pub(crate) async fn give<F>(&self, offer: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = bool> + Send,
    {
        if let Some(first) = self.start(offer) {
            // It is told, unless the process is about to end.
            let _ = first.await;
        }
    }

    /// The same, for those who cannot wait. Outside of a runtime nothing is offered.
    pub(crate) fn start<F>(
        &self,
        offer: impl Fn() -> F + Send + 'static,
    ) -> Option<oneshot::Receiver<()>>
    where
        F: Future<Output = bool> + Send,
    {
        let places = self.0.clone();
        let (told, first) = oneshot::channel();
        Handle::try_current().ok()?.spawn(async move {
            let begun = Instant::now();
            let taken = offer().await;
            // Nobody may be waiting.
            let _ = told.send(());
            if taken {
                return;
            }
            let Ok(_place) = places.try_acquire() else {
                debug!("too much waits to be given back: something ends by itself");
                return;
            };
            let mut failures = 1;
            while begun.elapsed() < OFFERED {
                sleep(pause(failures, LONGEST_PAUSE)).await;
                if offer().await {
                    return;
                }
                failures += 1;
            }
            debug!("a store has not taken something back: it ends by itself");
        });
        Some(first)
    }
}
