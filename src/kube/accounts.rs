//! The annotations of the ServiceAccounts in use, each by a watch of its own, so that a mount asks nobody.
//!
//! A watch begins with the first question about its account and ends when the account is forgotten. While
//! the API server is away, what was read last stays known.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::kube::Client;
use ::kube::api::Api;
use ::kube::core::PartialObjectMeta;
use ::kube::runtime::watcher::watch_object;
use coffer_provider::{ErrorKind, ProviderError};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ServiceAccount;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::client::cause;

/// Between two tries to list or to watch, while they fail.
const BACKOFF: Duration = Duration::from_secs(1);

/// How long the first answer about an account is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of an account, as far as it has annotations.
type Account = PartialObjectMeta<ServiceAccount>;

/// What the node knows of ServiceAccounts.
pub struct Accounts {
    client: Client,
    watched: Mutex<HashMap<(String, String), Watched>>,
}

struct Watched {
    known: watch::Receiver<Known>,
    _feeds: AbortOnDropHandle<()>,
}

#[derive(Default)]
enum Known {
    #[default]
    Nothing,
    /// The API server said no, and has never said anything else.
    Refused(String),
    /// None where there is no such account.
    Annotations(BTreeMap<String, String>),
}

impl Accounts {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            watched: Mutex::default(),
        }
    }

    /// An annotation of an account, from memory but for the first time; needs a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], as long as the API server has never said what there is.
    pub async fn annotation(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError> {
        let mut known = self.known(namespace, name);
        let said = known.wait_for(|known| !matches!(known, Known::Nothing));
        let problem = match tokio::time::timeout(PATIENCE, said).await {
            Ok(Ok(known)) => match &*known {
                Known::Annotations(annotations) => return Ok(annotations.get(key).cloned()),
                Known::Refused(problem) => format!(
                    "{problem}; the driver needs the right to get, list and watch serviceaccounts, \
                     which the chart gives with providers.aws.enabled"
                ),
                Known::Nothing => "the API server has not answered yet".to_owned(),
            },
            // It was forgotten meanwhile.
            Ok(Err(_)) => "the API server was not asked to the end".to_owned(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        Err(ProviderError::new(
            ErrorKind::Unavailable,
            format!(
                "the annotations of the ServiceAccount {namespace}/{name} are not known: {problem}"
            ),
        ))
    }

    /// Nobody uses the account any more: its watch ends.
    pub fn forget(&self, namespace: &str, name: &str) {
        let account = (namespace.to_owned(), name.to_owned());
        self.watched().remove(&account);
    }

    fn known(&self, namespace: &str, name: &str) -> watch::Receiver<Known> {
        let account = (namespace.to_owned(), name.to_owned());
        let mut watched = self.watched();
        let watched = watched.entry(account).or_insert_with(|| {
            let api = Api::namespaced(self.client.clone(), namespace);
            let (feed, known) = watch::channel(Known::default());
            let feeds = tokio::spawn(feed_from(api, name.to_owned(), feed));
            Watched {
                known,
                _feeds: AbortOnDropHandle::new(feeds),
            }
        });
        watched.known.clone()
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<(String, String), Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn feed_from(api: Api<Account>, name: String, feed: watch::Sender<Known>) {
    let mut said = pin!(watch_object(api, &name));
    while let Some(said) = said.next().await {
        match said {
            Ok(account) => {
                let annotations = account.and_then(|account| account.metadata.annotations);
                feed.send_replace(Known::Annotations(annotations.unwrap_or_default()));
            }
            Err(error) => {
                let error = cause(&error);
                debug!(service_account = name, error, "watch of a ServiceAccount");
                feed.send_if_modified(|known| {
                    let is_news = !matches!(known, Known::Annotations(_));
                    if is_news {
                        *known = Known::Refused(error);
                    }
                    is_news
                });
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use axum::body::Body;
    use axum::http::{Request, Response, StatusCode};
    use futures_util::stream;
    use serde_json::{Value, json};
    use tower::service_fn;

    const KEY: &str = "eks.amazonaws.com/role-arn";

    fn account(role: &str) -> Value {
        json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": {
                "name": "web", "namespace": "shop", "resourceVersion": "2", "annotations": {KEY: role},
            },
        })
    }

    /// An API server: what it answers to a list, and what a watch says after that and never ends.
    fn accounts(
        list: impl Fn() -> (StatusCode, Value) + Send + Sync + 'static,
        event: Option<Value>,
    ) -> (Accounts, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (list, sees) = (Arc::new(list), asked.clone());
        let service = service_fn(move |request: Request<::kube::client::Body>| {
            let uri = request.uri().to_string();
            sees.lock().expect("whole").push(uri.clone());
            let event = event.clone().map(|event| format!("{event}\n"));
            let list = list.clone();
            async move {
                let (status, body) = match uri.contains("watch=true") {
                    false => {
                        let (status, body) = list();
                        (status, Body::from(body.to_string()))
                    }
                    true => {
                        let events = stream::iter(event.map(Ok::<_, axum::Error>));
                        let and_more = events.chain(stream::pending());
                        (StatusCode::OK, Body::from_stream(and_more))
                    }
                };
                let mut response = Response::new(body);
                *response.status_mut() = status;
                Ok::<_, axum::Error>(response)
            }
        });
        (Accounts::new(Client::new(service, "default")), asked)
    }

    fn listed(items: Value) -> (StatusCode, Value) {
        let list = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": {"resourceVersion": "1"}, "items": items,
        });
        (StatusCode::OK, list)
    }

    #[tokio::test]
    async fn aws_statement_2_an_account_is_asked_for_once_and_its_changes_arrive() {
        let event = json!({"type": "MODIFIED", "object": account("new")});
        let (accounts, asked) = accounts(|| listed(json!([account("old")])), Some(event));
        let role = async || accounts.annotation("shop", "web", KEY).await;
        let first = role().await.expect("known");
        assert!(["old", "new"].map(Some).contains(&first.as_deref()));
        while role().await.expect("known").as_deref() != Some("new") {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            assert_eq!(role().await.expect("known").as_deref(), Some("new"));
        }
        let asked_for = |asked: &Mutex<Vec<String>>| asked.lock().expect("whole").clone();
        let requests = asked_for(&asked);
        assert_eq!(requests.len(), 2, "a list and a watch: {requests:?}");
        for uri in requests {
            assert!(
                uri.starts_with("/api/v1/namespaces/shop/serviceaccounts?"),
                "{uri}"
            );
            assert!(uri.contains("fieldSelector=metadata.name%3Dweb"), "{uri}");
        }

        accounts.forget("shop", "web");
        assert!(accounts.watched().is_empty());
        role().await.expect("known");
        assert!(asked_for(&asked).len() > 2, "it is asked for anew");
    }

    #[tokio::test]
    async fn an_account_that_is_not_there_has_no_annotations_and_a_refusal_says_which_right_is_missing()
     {
        let (nobody, _) = accounts(|| listed(json!([])), None);
        let none = nobody.annotation("shop", "web", KEY).await;
        assert_eq!(none.ok(), Some(None));

        let no = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "serviceaccounts is forbidden",
        });
        let (refused, _) = accounts(move || (StatusCode::FORBIDDEN, no.clone()), None);
        let error = refused.annotation("shop", "web", KEY).await;
        let error = error.expect_err("nothing is known");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        for part in ["shop/web", "forbidden", "providers.aws.enabled"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_never_answers_is_not_waited_for() {
        let service = service_fn(|_: Request<::kube::client::Body>| {
            std::future::pending::<Result<Response<Body>, axum::Error>>()
        });
        let accounts = Accounts::new(Client::new(service, "default"));
        let error = accounts.annotation("shop", "web", KEY).await;
        let error = error.expect_err("nothing is known").to_string();
        assert!(error.ends_with("the API server does not answer"), "{error}");
    }
}
