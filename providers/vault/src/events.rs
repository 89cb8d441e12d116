//! Changes that a store tells by itself: the events of Vault Enterprise, over one WebSocket for each login
//! and namespace, however many volumes follow it. Some may get lost, so they only say "look again".

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_provider::{Caller, Changes, ErrorKind, ProviderError, ServiceAccountToken};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;

use crate::answer::Object;
use crate::calls::Call;
use crate::login::{Denial, Login};
use crate::token::StoreToken;

/// So many connections in a row may fail, or last for less than a minute.
const TRIES: u32 = 5;
const LASTING: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A store that did not let somebody follow may do so later, with another token or another policy.
const LEFT_ALONE: Duration = Duration::from_secs(600);

/// One that knows no events may be replaced by another one some day.
const NO_EVENTS: Duration = Duration::from_secs(24 * 3600);

/// A connection on which nothing comes for so long is asked for a sign of life, and given up after as long again.
const QUIET: Duration = Duration::from_secs(30);

/// The longest event.
const MAX_EVENT: usize = 64 << 10;

/// Events that a follower may be behind by; one who has missed some looks at everything.
const BEHIND: usize = 256;

/// What followers are told.
#[derive(Clone)]
enum Told {
    /// The secret at this path has changed.
    Path(Arc<str>),
    /// Something may have been missed.
    Anything,
    /// Nothing will be told any more.
    Ended,
}

/// The events of one namespace, for as long as somebody follows them.
pub(crate) struct Feed {
    told: broadcast::Sender<Told>,
    /// The last one who followed: the token that the first one brought does not live as long as this.
    caller: Arc<Mutex<Caller>>,
    task: JoinHandle<()>,
}

impl Feed {
    pub(crate) fn start(login: Arc<Login>, namespace: String, caller: Caller) -> Self {
        let (told, _) = broadcast::channel(BEHIND);
        let telling = told.clone();
        let caller = Arc::new(Mutex::new(caller));
        let newest = caller.clone();
        let task = tokio::spawn(async move {
            let left_alone = follow(&login, &namespace, &newest, &telling).await;
            // First, so that whoever subscribes too late to hear of it sees it.
            login.remember_that_it_tells_nothing(left_alone);
            // Nobody may be left.
            let _ = telling.send(Told::Ended);
        });
        Self { told, caller, task }
    }

    /// Somebody else follows, with a token that may be newer.
    pub(crate) fn bring(&self, caller: &Caller) {
        let expires = |caller: &Caller| caller.token.as_ref().map(ServiceAccountToken::expires);
        let mut present = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        if expires(caller) > expires(&present) {
            *present = caller.clone();
        }
    }

    /// Whether it has told that it ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An item for each time that one of `paths` may have changed; `None` where the store is known to tell nothing.
pub(crate) fn changes(
    login: &Arc<Login>,
    namespace: &str,
    caller: &Caller,
    paths: Vec<String>,
) -> Option<Changes> {
    let feed = login.feed(namespace, caller);
    let told = feed.told.subscribe();
    if login.tells_nothing() {
        return None;
    }
    let following = (feed, told, paths);
    Some(Box::pin(stream::unfold(
        following,
        |(feed, mut told, paths)| async move {
            loop {
                match told.recv().await {
                    Ok(Told::Path(path)) if !paths.iter().any(|known| **known == *path) => {}
                    Ok(Told::Path(_) | Told::Anything) | Err(RecvError::Lagged(_)) => {
                        return Some(((), (feed, told, paths)));
                    }
                    Ok(Told::Ended) | Err(RecvError::Closed) => return None,
                }
            }
        },
    )))
}

/// Tells until the store cannot. Gives for how long it is not asked again.
async fn follow(
    login: &Arc<Login>,
    namespace: &str,
    caller: &Mutex<Caller>,
    told: &broadcast::Sender<Told>,
) -> Duration {
    let mut failures = 0;
    while failures < TRIES {
        let begun = Instant::now();
        let newest = caller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match connect(login, namespace, &newest).await {
            Ok(socket) => {
                // Between the last look and now nobody listened.
                let _ = told.send(Told::Anything);
                listen(socket, told).await;
            }
            Err(error) => {
                debug!(%error, "the store's events cannot be followed");
                match error.kind() {
                    // The next pod brings another token, or somebody else logs in.
                    ErrorKind::Unavailable
                    | ErrorKind::DeadlineExceeded
                    | ErrorKind::Unauthenticated => {}
                    ErrorKind::PermissionDenied => return LEFT_ALONE,
                    _ => return NO_EVENTS,
                }
            }
        }
        failures = match begun.elapsed() > LASTING {
            true => 1,
            false => failures + 1,
        };
        sleep(pause(failures, LONGEST_PAUSE)).await;
    }
    LEFT_ALONE
}

/// Half a second at first, doubled with each failure, at least half of it: nodes that lost a store together come
/// back apart.
pub(crate) fn pause(failures: u32, longest: Duration) -> Duration {
    let mut random = [0];
    // Without randomness they come back together.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let longest = longest.min(Duration::from_millis(250) * 2_u32.pow(failures.min(16)));
    longest.mul_f64(0.5 + 0.5 * f64::from(random[0]) / 255.0)
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn connect(
    login: &Arc<Login>,
    namespace: &str,
    caller: &Caller,
) -> Result<Socket, ProviderError> {
    let call = Arc::new(Call::events());
    let open = async |token: &StoreToken| {
        let headers = token.headers(namespace);
        login.store.connection.open(&*call, &headers).await
    };
    let token = login.token(caller).await?;
    let connection = match open(&token).await {
        // The store may have lost the token.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            match login.denied(&token, caller, &call, namespace).await? {
                Denial::Policy => return Err(error),
                Denial::Retry(another) | Denial::Answered(another, _) => open(&another).await?,
            }
        }
        opened => opened?,
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_EVENT))
        .max_frame_size(Some(MAX_EVENT));
    let io = TokioIo::new(connection);
    Ok(WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await)
}

async fn listen(mut socket: Socket, told: &broadcast::Sender<Told>) {
    let mut quiet = false;
    loop {
        match timeout(QUIET, socket.next()).await {
            Ok(Some(Ok(message))) => {
                quiet = false;
                if let Message::Text(text) = message
                    && let Some(path) = changed(text.as_bytes())
                {
                    // Nobody may be left.
                    let _ = told.send(Told::Path(path));
                }
            }
            Ok(Some(Err(_)) | None) => return,
            Err(_) if quiet => return,
            Err(_) => {
                quiet = true;
                let ping = socket.send(Message::Ping(Default::default()));
                if !matches!(timeout(QUIET, ping).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }
}

/// The path of the secret that an event says has changed.
fn changed(event: &[u8]) -> Option<Arc<str>> {
    let metadata = Object::parse(event)?
        .object("data")?
        .object("event")?
        .object("metadata")?;
    if metadata
        .text("modified")
        .is_some_and(|modified| *modified == "false")
    {
        return None;
    }
    // Of KV v2, also where its versions are deleted or destroyed by a path of their own.
    let path = metadata
        .text("data_path")
        .or_else(|| metadata.text("path"))?;
    Some(path.trim_start_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_the_secret_that_was_changed() {
        for (metadata, expected) in [
            (
                r#"{"path":"secret/data/a","modified":"true"}"#,
                Some("secret/data/a"),
            ),
            (
                r#"{"path":"secret/delete/a","data_path":"secret/data/a","modified":"true"}"#,
                Some("secret/data/a"),
            ),
            (r#"{"path":"kv1/a"}"#, Some("kv1/a")),
            (r#"{"path":"secret/data/a","modified":"false"}"#, None),
            (r#"{"path":7}"#, None),
            ("{}", None),
        ] {
            let event = format!(r#"{{"data":{{"event":{{"metadata":{metadata}}}}}}}"#);
            assert_eq!(changed(event.as_bytes()).as_deref(), expected, "{metadata}");
        }
        for text in ["", "[]", "{}", "<html>", r#"{"data":null}"#] {
            assert_eq!(changed(text.as_bytes()), None, "{text}");
        }
    }
}
