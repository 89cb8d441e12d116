//! How requests to the API server are made: with a deadline, again after a wait, and with errors that quote
//! nothing else.

use std::path::Path;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// After a failure: the first wait and the longest one.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A client for the cluster that this pod runs in, or for the one that a kubeconfig names. Asks nobody.
///
/// # Errors
/// When there is no configuration to reach an API server with.
pub(super) async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        None => Config::incluster().context(
            "this is not a pod with a ServiceAccount: give --classes DIR or --kubeconfig FILE",
        )?,
        Some(file) => {
            let read = Kubeconfig::read_from(file);
            let read = read.with_context(|| format!("--kubeconfig {}", file.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
        }
    };
    Client::try_from(config).context("cannot make a client for the API server")
}

/// Why a request came to nothing. Holds no part of an answer but the API server's own sentence.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There was no answer in time.
    #[error("the API server did not answer within {} s", DEADLINE.as_secs())]
    Late,
    /// The API server said no.
    #[error("{code} {reason}: {message}")]
    Answered {
        /// The HTTP code.
        code: u16,
        /// One word.
        reason: String,
        /// One sentence, cleaned and cut.
        message: String,
    },
    /// The API server could not be asked.
    #[error("{0}")]
    Away(String),
}

impl RequestError {
    /// The code that the API server answered with.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Answered { code, .. } => Some(*code),
            Self::Late | Self::Away(_) => None,
        }
    }
}

impl RequestError {
    /// Whether the object is gone, or another one, or another version than the request was about.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Answered {
                code: 404 | 409, ..
            } => true,
            // What a patch with another object's UID is told: the UID cannot be changed.
            Self::Answered {
                code: 422, message, ..
            } => message.contains("metadata.uid:"),
            _ => false,
        }
    }
}

impl From<::kube::Error> for RequestError {
    fn from(error: ::kube::Error) -> Self {
        match error {
            ::kube::Error::Api(status) => Self::Answered {
                code: status.code,
                reason: status.reason,
                // Long enough for what follows the longest name.
                message: coffer_provider::clean_text(&status.message, 512),
            },
            // A parser's message may quote what it read, which here may be a Secret.
            ::kube::Error::SerdeError(_) => Self::Away("its answer cannot be read".to_owned()),
            error => Self::Away(cause(&error)),
        }
    }
}

/// Waits for an answer, but not for ever.
pub(super) async fn in_time<T>(
    request: impl Future<Output = Result<T, ::kube::Error>>,
) -> Result<T, RequestError> {
    match timeout(DEADLINE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Late),
    }
}

/// Whether the same request would be answered in the same way.
pub(super) fn is_final(error: &RequestError) -> bool {
    let code = error.code();
    code.is_some_and(|code| (400..500).contains(&code) && !matches!(code, 401 | 408 | 409 | 429))
}

/// The innermost of an error's causes: the rest is the client's own wrapping.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Waits that get longer, with chance in them: nodes do not come back together.
pub(super) struct Backoff {
    next: Duration,
    last: Instant,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: BACKOFF,
            last: Instant::now(),
        }
    }
}

impl Backoff {
    pub(super) async fn wait(&mut self) {
        self.wait_at_most(BACKOFF_MAX).await;
    }

    pub(super) async fn wait_at_most(&mut self, longest: Duration) {
        let wait = self.next.min(longest);
        sleep(wait / 2 + wait.mul_f64(chance() / 2.0)).await;
        self.next = (self.next * 2).min(BACKOFF_MAX);
        self.last = Instant::now();
    }

    /// The same, or a new one where the last wait was over so long ago.
    pub(super) fn if_since(self, ago: Duration) -> Self {
        match self.last.elapsed() < ago {
            true => self,
            false => Self::default(),
        }
    }
}

/// Something between 0 and 1. It keeps nodes apart, and guards nothing.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0);
    (random >> 11) as f64 / (1u64 << 53) as f64
}
