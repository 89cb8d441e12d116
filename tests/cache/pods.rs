//! Pods with tokens, and volumes of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer::cache::{SecretCache, Settings, Subscriber, Subscription, Tidings};
use coffer::catalog::Catalog;
use coffer::class::{ClassName, SecretProviderClass};
use coffer::error::PublishError;
use coffer::identity::Requester;
use coffer::pacer::Rate;
use coffer::spec::VolumeSpec;
use coffer::telemetry::Metrics;
use coffer::tokens::{self, TokenSource, Tokens};
use coffer_provider::{Pod, Provider, Secret, ServiceAccount};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

pub(crate) const AUDIENCE: &str = "store";

/// A ServiceAccount, as far as a token tells.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Account {
    pub(crate) fn new(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
        }
    }

    /// A pod of this account, with a token that is good for a day.
    pub(crate) fn pod(&self, uid: &str) -> Arc<Requester> {
        self.pod_with(uid, Duration::from_secs(24 * 3600))
    }

    /// The same, with a token that is good for `left` of the wall clock's time.
    pub(crate) fn pod_with(&self, uid: &str, left: Duration) -> Arc<Requester> {
        self.pod_with_tokens(
            uid,
            &json!({ AUDIENCE: self.token(uid, SystemTime::now() + left) }),
        )
    }

    pub(crate) fn token(&self, pod: &str, expires: SystemTime) -> Value {
        let claims = json!({"aud": [AUDIENCE], "kubernetes.io": {
            "namespace": self.namespace,
            "serviceaccount": {"name": self.name, "uid": self.uid},
            "pod": {"name": pod, "uid": pod},
        }});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let jwt = format!(
            "{}.{}.c2lnbmF0dXJl",
            part(&json!({"alg": "none"})),
            part(&claims)
        );
        let seconds = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let expires = jiff::Timestamp::from_second(seconds.as_secs() as i64).unwrap();
        json!({"token": jwt, "expirationTimestamp": expires.to_string()})
    }

    pub(crate) fn pod_with_tokens(&self, uid: &str, tokens: &Value) -> Arc<Requester> {
        let mut secrets = HashMap::from([(tokens::KEY.to_owned(), tokens.to_string())]);
        Arc::new(Requester {
            pod: Pod {
                name: uid.into(),
                namespace: self.namespace.clone(),
                uid: uid.into(),
                service_account: ServiceAccount {
                    name: self.name.clone(),
                    uid: None,
                },
            },
            tokens: Tokens::take(TokenSource::Secrets, &mut secrets, &mut HashMap::new()),
            secrets: BTreeMap::new(),
            target_path: String::new(),
        })
    }
}

pub(crate) fn web() -> Account {
    Account::new("shop", "web", "uid-of-web")
}

/// A cache that looks at what is due, in front of a store.
pub(crate) struct Node {
    pub(crate) cache: SecretCache,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    catalog: Catalog,
    stop: CancellationToken,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(Settings {
            rate: Rate::UNLIMITED,
            ..Settings::default()
        })
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let store = Store::default();
        let metrics = Arc::new(Metrics::default());
        let cache = SecretCache::new(settings, metrics.clone());
        let stop = CancellationToken::new();
        let (running, until) = (cache.clone(), stop.clone());
        tokio::spawn(async move { running.run(until).await });
        Self {
            catalog: Catalog::default()
                .with("store", Arc::new(store.clone()))
                .with("other", Arc::new(store.clone())),
            cache,
            store,
            metrics,
            stop,
        }
    }

    /// The same with one more provider.
    pub(crate) fn and(mut self, name: &'static str, provider: Arc<dyn Provider>) -> Self {
        self.catalog = self.catalog.clone().with(name, provider);
        self
    }

    /// What a class with this `spec` asks for.
    pub(crate) fn spec(&self, spec: Value) -> VolumeSpec {
        let name = ClassName {
            namespace: "shop".into(),
            name: "shop".into(),
        };
        let class = SecretProviderClass::new(name, spec).unwrap();
        self.catalog
            .resolve(Arc::new(class), &BTreeMap::new())
            .unwrap()
    }

    pub(crate) fn volume(&self, pod: &Arc<Requester>, spec: Value) -> Volume {
        self.try_volume(pod, spec)
            .map_err(|error| error.to_string())
            .unwrap()
    }

    pub(crate) fn try_volume(
        &self,
        pod: &Arc<Requester>,
        spec: Value,
    ) -> Result<Volume, PublishError> {
        let spec = self.spec(spec);
        let subscriber = Subscriber::new(pod.pod.uid.clone(), pod.clone());
        let (subscription, tidings) = self.cache.subscribe(&spec, &subscriber)?;
        Ok(Volume {
            subscription,
            subscriber,
            _tidings: Mutex::new(tidings),
            spec,
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A volume that is on the node, as the cache sees it.
pub(crate) struct Volume {
    pub(crate) subscription: Subscription,
    pub(crate) subscriber: Arc<Subscriber>,
    _tidings: Mutex<Tidings>,
    pub(crate) spec: VolumeSpec,
}

impl Volume {
    /// Everything it needs, each value as text.
    pub(crate) async fn read(&self) -> Result<Vec<String>, PublishError> {
        Ok(texts(self.subscription.read().await?))
    }

    /// What there is without asking.
    pub(crate) fn values(&self) -> Option<Vec<String>> {
        self.subscription.values().map(texts)
    }
}

fn texts(read: Vec<Vec<Option<Secret>>>) -> Vec<String> {
    let secrets = read.iter().flatten().flatten();
    let files = secrets.flat_map(|secret| &secret.files);
    files
        .map(|file| String::from_utf8(file.bytes.expose().to_vec()).unwrap())
        .collect()
}

/// A class of one source.
pub(crate) fn class(objects: &str) -> Value {
    json!({"provider": "store", "parameters": {"objects": objects}})
}

/// The same, with fields of ours.
pub(crate) fn class_with(objects: &str, fields: Value) -> Value {
    let mut class = class(objects);
    for (name, value) in fields.as_object().unwrap() {
        class[name] = value.clone();
    }
    class
}

/// Lets time pass, in steps that let everything happen in its order.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
