//! One question to a store, and all who wait for its answer.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::{
    Caller, ErrorKind, Lease, Life, ObjectRef, ProviderError, Secret, Source, Version, clean_text,
};
use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use crate::cache::{Inner, Key};
use crate::pacer::Urgency;
use crate::schedule;

/// How long a store may take for one question.
pub const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// One object to ask for.
pub(crate) struct Item {
    pub(crate) key: Arc<Key>,
    pub(crate) object: ObjectRef,
    /// Nothing needs to be read while the store has this version.
    pub(crate) version: Option<Version>,
    /// A lease to renew, and how long it was.
    pub(crate) renew: Option<(Lease, Duration)>,
}

impl Item {
    pub(crate) fn new(key: Arc<Key>, object: ObjectRef) -> Self {
        Self {
            key,
            object,
            version: None,
            renew: None,
        }
    }
}

/// What a store says about an item.
pub(crate) enum Answer {
    Fetched(Secret),
    Same,
    Renewed(Life),
    Failed(ProviderError),
}

/// What those who wait get to know.
#[derive(Clone)]
pub(crate) enum Outcome {
    Read(Secret),
    Same,
    Failed(ReadFailure),
}

#[derive(Clone)]
pub(crate) enum ReadFailure {
    Store(ProviderError),
    QueueFull,
}

type Outcomes = Arc<HashMap<Arc<Key>, Outcome>>;

/// A question on its way. It is given up when nobody waits for it any more.
pub(crate) struct Flight {
    /// Somebody waits for it that has no answer yet.
    hurry: Arc<Notify>,
    outcomes: watch::Receiver<Option<Outcomes>>,
    keys: Vec<Arc<Key>>,
    _task: AbortOnDropHandle<()>,
}

impl Flight {
    pub(crate) fn start(
        cache: Arc<Inner>,
        source: Arc<dyn Source>,
        caller: Caller,
        items: Vec<Item>,
        urgency: Urgency,
    ) -> Arc<Self> {
        let (land, outcomes) = watch::channel(None);
        let keys = items.iter().map(|item| item.key.clone()).collect();
        let hurry = Arc::new(Notify::new());
        let hurried = hurry.clone();
        let task = tokio::spawn(async move {
            let outcomes = fly(&cache, &source, &caller, items, urgency, &hurried).await;
            let _ = land.send(Some(Arc::new(outcomes)));
        });
        Arc::new(Self {
            hurry,
            outcomes,
            keys,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// From now on it waits for its store among the first mounts, if it is a refresh.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    pub(crate) fn has_landed(&self) -> bool {
        self.outcomes.borrow().is_some()
    }

    /// Waits for the answer.
    pub(crate) async fn landed(&self) -> Outcomes {
        let mut outcomes = self.outcomes.clone();
        if let Ok(landed) = outcomes.wait_for(Option::is_some).await {
            return landed.clone().expect("it was waited for");
        }
        // The task is gone without an answer: it has panicked.
        let error = failed_inside();
        let failed = |key: &Arc<Key>| {
            let failure = ReadFailure::Store(error.clone());
            (key.clone(), Outcome::Failed(failure))
        };
        Arc::new(self.keys.iter().map(failed).collect())
    }
}

async fn fly(
    cache: &Inner,
    source: &Arc<dyn Source>,
    caller: &Caller,
    items: Vec<Item>,
    urgency: Urgency,
    hurried: &Notify,
) -> HashMap<Arc<Key>, Outcome> {
    let Some(first) = items.first() else {
        return HashMap::new();
    };
    let pacer = cache.pacer(&first.key);
    let permit = tokio::select! {
        biased;
        permit = pacer.enter(urgency, items.len()) => permit,
        () = hurried.notified(), if urgency == Urgency::Refresh => {
            match pacer.enter(Urgency::Mount, items.len()).await {
                Ok(permit) => Ok(permit),
                // Those who have it already are not sent away.
                Err(_) => pacer.enter(urgency, items.len()).await,
            }
        }
    };
    let Ok(_permit) = permit else {
        let full = || Outcome::Failed(ReadFailure::QueueFull);
        return items.into_iter().map(|item| (item.key, full())).collect();
    };
    let asked = Instant::now();
    // A provider that panics has failed, and is asked again like any other (R11).
    let asking = AssertUnwindSafe(ask(&**source, caller, &items)).catch_unwind();
    let answers = timeout(STORE_DEADLINE, asking).await;
    let took = asked.elapsed();
    cache.metrics.answered(first.key.provider, took);
    let answers = match answers {
        Ok(Ok(answers)) => answers,
        Ok(Err(_panicked)) => {
            let failed = || Answer::Failed(failed_inside());
            items.iter().map(|_| failed()).collect()
        }
        Err(_) => {
            let problem = format!(
                "the store did not answer within {} s",
                STORE_DEADLINE.as_secs()
            );
            let late = || ProviderError::new(ErrorKind::DeadlineExceeded, &problem);
            items.iter().map(|_| Answer::Failed(late())).collect()
        }
    };
    for (item, answer) in items.iter().zip(&answers) {
        audit(cache, caller, item, answer);
    }
    cache.settle(source, caller, &items, answers)
}

fn failed_inside() -> ProviderError {
    ProviderError::new(
        ErrorKind::InvalidAnswer,
        "the provider failed inside the driver: please report this",
    )
}

/// Renews what can be renewed, compares versions where they are known, and reads the rest in one go.
async fn ask(source: &dyn Source, caller: &Caller, items: &[Item]) -> Vec<Answer> {
    let mut answers: Vec<Option<Answer>> = Vec::with_capacity(items.len());
    let mut leases: Vec<(&Lease, Result<Life, ProviderError>)> = Vec::new();
    for item in items {
        let Some((lease, before)) = &item.renew else {
            answers.push(None);
            continue;
        };
        // Several objects are of one lease.
        if !leases.iter().any(|(renewed, _)| *renewed == lease) {
            leases.push((lease, source.renew(caller, lease).await));
        }
        let (_, renewal) = leases
            .iter()
            .find(|(renewed, _)| *renewed == lease)
            .expect("it is there");
        answers.push(match renewal {
            Ok(life) => still_leased(life, *before).then(|| Answer::Renewed(life.clone())),
            // A store that says no says so of the lease: there may be another one.
            Err(error) if is_no(error.kind()) => None,
            Err(error) => Some(Answer::Failed(error.clone())),
        });
    }
    let known = open(items, &answers, |item| item.version.is_some());
    if !known.is_empty() {
        let objects: Vec<_> = known.iter().map(|at| items[*at].object.clone()).collect();
        let versions = source.versions(caller, &objects).await;
        for (at, version) in known.into_iter().zip(versions) {
            if version.is_some() && version == items[at].version {
                answers[at] = Some(Answer::Same);
            }
        }
    }
    // What is taken out of one answer stays together.
    let unread = open(items, &answers, |_| true).into_iter();
    let unread: BTreeSet<_> = unread.map(|at| items[at].key.together).collect();
    for (item, answer) in items.iter().zip(&mut answers) {
        if unread.contains(&item.key.together) {
            *answer = None;
        }
    }
    let unread = open(items, &answers, |_| true);
    if !unread.is_empty() {
        let objects: Vec<_> = unread.iter().map(|at| items[*at].object.clone()).collect();
        let read = source.fetch(caller, &objects).await;
        for (at, read) in unread.into_iter().zip(read) {
            answers[at] = Some(match read {
                Ok(secret) => Answer::Fetched(secret),
                Err(error) => Answer::Failed(error),
            });
        }
    }
    let missing = || {
        Answer::Failed(ProviderError::new(
            ErrorKind::InvalidAnswer,
            "the provider gave fewer answers than it was asked for",
        ))
    };
    let answers = answers.into_iter();
    answers
        .map(|answer| answer.unwrap_or_else(missing))
        .collect()
}

fn open(items: &[Item], answers: &[Option<Answer>], which: impl Fn(&Item) -> bool) -> Vec<usize> {
    let open = items.iter().zip(answers).enumerate();
    open.filter(|(_, (item, answer))| answer.is_none() && which(item))
        .map(|(at, _)| at)
        .collect()
}

/// Whether a store has said no, and not that it cannot say anything.
fn is_no(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PermissionDenied | ErrorKind::NotFound)
}

/// A lease that comes back much shorter has reached the longest life that its store allows.
fn still_leased(life: &Life, before: Duration) -> bool {
    match life {
        Life::Leased {
            duration,
            renewable,
            ..
        } => *renewable && !schedule::is_truncated(before, *duration),
        Life::Static | Life::Expires(_) | Life::Rotates(_) | Life::Once => false,
    }
}

/// One line for everything that was read on behalf of somebody: who, what, which version, how it ended.
fn audit(cache: &Inner, caller: &Caller, item: &Item, answer: &Answer) {
    let outcome = match answer {
        Answer::Fetched(_) => "read",
        Answer::Same => "unchanged",
        Answer::Renewed(_) => "renewed",
        Answer::Failed(error) => crate::error::kind_reason(error.kind()).as_str(),
    };
    cache.metrics.asked(item.key.provider, outcome);
    if matches!(answer, Answer::Same | Answer::Renewed(_)) {
        debug!(provider = item.key.provider, outcome, "store asked");
        return;
    }
    let name = match item.object.name.as_str() {
        "" => &item.object.request,
        name => name,
    };
    let version = match answer {
        Answer::Fetched(secret) => secret.version.as_str(),
        _ => "",
    };
    info!(
        target: "coffer::audit",
        provider = item.key.provider,
        pod.namespace = %caller.pod.namespace,
        pod.name = %caller.pod.name,
        service_account = %caller.pod.service_account.name,
        object = %clean_text(name, 128),
        version,
        outcome,
        "secret asked for"
    );
}
