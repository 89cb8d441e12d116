//! A store in memory with switches for everything that a store can do wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::watch;

use crate::{
    Caller, Changes, ErrorKind, Format, IdentifiedBy, Life, ObjectRef, Parameters, Provider,
    ProviderError, Secret, SecretBytes, SecretFile, Sharing, Source, Version,
};

/// What an object of the script answers.
#[derive(Clone)]
pub enum Answer {
    /// One file of the object's name.
    Value(Vec<u8>),
    /// These files, with the modes that the store wants.
    Files(Vec<(String, Vec<u8>, Option<u32>)>),
    /// A refusal.
    Error(ErrorKind, String),
    /// Nothing, ever.
    Hang,
}

/// A provider whose parameter `objects` is a list of names with commas between them. Clones are the
/// same provider.
#[derive(Clone)]
pub struct ScriptedProvider(Arc<Script>);

struct Script {
    answers: Mutex<BTreeMap<String, (u64, Answer)>>,
    latency: Mutex<Duration>,
    changes: watch::Sender<u64>,
    fetches: AtomicUsize,
    identified_by: IdentifiedBy,
}

impl Default for ScriptedProvider {
    fn default() -> Self {
        Self::identified_by(IdentifiedBy::Namespace)
    }
}

impl ScriptedProvider {
    /// An empty store that tells callers apart in this way.
    #[must_use]
    pub fn identified_by(identified_by: IdentifiedBy) -> Self {
        Self(Arc::new(Script {
            answers: Mutex::default(),
            latency: Mutex::default(),
            changes: watch::Sender::new(0),
            fetches: AtomicUsize::new(0),
            identified_by,
        }))
    }

    /// From now on `object` gives `answer`, as a new version; watchers are told.
    pub fn set(&self, object: &str, answer: Answer) {
        let mut revision = 0;
        self.0.changes.send_modify(|changes| {
            *changes += 1;
            revision = *changes;
        });
        lock(&self.0.answers).insert(object.to_owned(), (revision, answer));
    }

    /// From now on `object` is `value`.
    pub fn set_value(&self, object: &str, value: &str) {
        self.set(object, Answer::Value(value.as_bytes().to_vec()));
    }

    /// From now on every fetch takes this long.
    pub fn set_latency(&self, latency: Duration) {
        *lock(&self.0.latency) = latency;
    }

    /// How many objects were asked for until now.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.0.fetches.load(Ordering::SeqCst)
    }
}

impl Provider for ScriptedProvider {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let names = parameters.get("objects").map(String::as_str).unwrap_or("");
        let objects: Vec<_> = names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| ObjectRef {
                name: name.to_owned(),
                request: name.to_owned(),
            })
            .collect();
        if objects.is_empty() {
            return Err(ProviderError::parameter(
                "parameters.objects",
                "must name an object",
            ));
        }
        Ok(Arc::new(ScriptedSource {
            script: self.0.clone(),
            objects,
        }))
    }
}

struct ScriptedSource {
    script: Arc<Script>,
    objects: Vec<ObjectRef>,
}

#[async_trait]
impl Source for ScriptedSource {
    fn identified_by(&self) -> &IdentifiedBy {
        &self.script.identified_by
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    async fn fetch(&self, _: &Caller, objects: &[ObjectRef]) -> Vec<Result<Secret, ProviderError>> {
        self.script
            .fetches
            .fetch_add(objects.len(), Ordering::SeqCst);
        let latency = *lock(&self.script.latency);
        // Even no sleep at all would last until the next tick of the timer, a millisecond.
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut answers = Vec::with_capacity(objects.len());
        for object in objects {
            answers.push(self.script.answer(object).await);
        }
        answers
    }

    async fn versions(&self, _: &Caller, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        let answers = lock(&self.script.answers);
        let revision =
            |object: &ObjectRef| Version::new(answers.get(&object.request)?.0.to_string()).ok();
        objects.iter().map(revision).collect()
    }

    fn watch(&self, _: &Caller) -> Option<Changes> {
        let changes = self.script.changes.subscribe();
        Some(Box::pin(stream::unfold(changes, |mut changes| async {
            changes.changed().await.ok()?;
            Some(((), changes))
        })))
    }
}

impl Script {
    async fn answer(&self, object: &ObjectRef) -> Result<Secret, ProviderError> {
        let answer = lock(&self.answers).get(&object.request).cloned();
        let (revision, answer) = answer.ok_or_else(|| {
            ProviderError::new(
                ErrorKind::NotFound,
                format!("{} does not exist", object.name),
            )
        })?;
        let files = match answer {
            Answer::Value(value) => vec![(object.name.clone(), value, None)],
            Answer::Files(files) => files,
            Answer::Error(kind, message) => return Err(ProviderError::new(kind, message)),
            Answer::Hang => std::future::pending().await,
        };
        let files = files.into_iter().map(|(name, bytes, mode)| SecretFile {
            name,
            bytes: SecretBytes::new(bytes),
            format: Format::Json,
            mode,
        });
        Ok(Secret {
            files: files.collect(),
            version: Version::new(revision.to_string())?,
            life: Life::Static,
            sharing: Sharing::ServiceAccount,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
