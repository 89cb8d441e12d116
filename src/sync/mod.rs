//! Kubernetes Secrets of a volume's files, written before the volume's publish answers: so a container that
//! takes its environment from one finds it there.
//!
//! What a Secret has to be is made by `coffer_sync`; `decide.rs` (pure) says what that means for the one
//! that is there, `stamp.rs` (pure) which of two contents is newer, `known.rs` remembers what need not be
//! asked. The store is the source of truth: a key that somebody edits or adds is put back, and a Secret that
//! somebody deletes comes back, within [`CHECK`] or with the next volume of the class. Whoever takes its
//! label [`MANAGED`] off takes it over.

mod decide;
mod known;
mod stamp;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer_provider::Pod;
use coffer_sync::{Files, SecretType};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::class::SecretProviderClass;
use crate::kube::{LiveMeta, Owner, RequestError, Secrets};
pub use decide::{CLASS, MANAGED, VERSION};
use decide::{Hindrance, Next, Wanted};
use known::{Known, Memory, missing};
pub use stamp::Stamp;

/// How often a Secret is looked at that should be as it was, give or take a tenth: as often as upstream does.
pub const CHECK: Duration = Duration::from_secs(300);

/// And one that could not be written for a reason that may pass.
const RETRY: Duration = Duration::from_secs(10);

/// The most that a publish waits for all of its Secrets.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many Secrets of a volume are looked at side by side.
const AT_ONCE: usize = 8;

/// How often a Secret is read again because somebody else has written it meanwhile.
const ATTEMPTS: usize = 5;

/// Writes Secrets. Needs no right to list, watch or delete any (K5, K7).
pub struct SecretSync {
    secrets: Secrets,
    bootstrap_tokens: bool,
    memory: Memory,
}

/// A volume whose files are to be in Secrets too. Holds secrets: no `Debug`.
pub struct SyncedVolume {
    /// What it is made by; the Secrets are in the class's Namespace, which is the pod's (K1).
    pub class: Arc<SecretProviderClass>,
    /// Whose it is.
    pub pod: Pod,
    /// What is in it.
    pub files: Files,
    /// Of which versions.
    pub stamp: Stamp,
}

/// What has become of the Secrets of a volume.
#[derive(Clone, Debug)]
pub struct Synced {
    /// What hinders, for the pod's owner: one sentence for each Secret that is not as it should be, the
    /// same for the same cause. The volume is mounted all the same (K6).
    pub problems: Vec<String>,
    /// When they are to be looked at again.
    pub due: Instant,
    /// Who keeps them: the owners of the pod; not known yet, if the API server was away.
    owners: Option<Vec<Owner>>,
}

/// Why one Secret is not as it should be.
struct Problem {
    sentence: String,
    may_pass: bool,
}

impl SecretSync {
    /// Writes through `secrets`; Secrets that let nodes join only where the administrator wants it.
    #[must_use]
    pub fn new(secrets: Secrets, bootstrap_tokens: bool) -> Self {
        Self {
            secrets,
            bootstrap_tokens,
            memory: Memory::default(),
        }
    }

    /// Makes every Secret that the volume's class wants what it should be. Without `before`, or when they
    /// are due, the API server is asked whether they still are; else only what is new is written. Never
    /// waits longer than until the deadline or for [`PATIENCE`], and fails nobody (K6).
    pub async fn write(
        &self,
        volume: SyncedVolume,
        before: Option<&Synced>,
        deadline: Instant,
    ) -> Synced {
        let pod = volume.pod.uid.clone();
        let deadline = deadline.min(Instant::now() + PATIENCE);
        let mut owners = before.and_then(|before| before.owners.clone());
        let looked = before.map(|before| before.due);
        let written = timeout_at(deadline, self.write_all(volume, &mut owners, looked)).await;
        let problems = written.unwrap_or_else(|_| vec![late()]);
        let may_pass = problems.iter().any(|problem| problem.may_pass);
        let sentences = problems.into_iter().map(|problem| problem.sentence);
        Synced {
            problems: sentences.collect(),
            due: Instant::now() + spread(if may_pass { RETRY } else { CHECK }, &pod),
            owners,
        }
    }

    async fn write_all(
        &self,
        volume: SyncedVolume,
        owners: &mut Option<Vec<Owner>>,
        due: Option<Instant>,
    ) -> Vec<Problem> {
        if owners.is_none() {
            let pod = &volume.pod;
            let found = self
                .secrets
                .owners_of_pod(&pod.namespace, &pod.name, &pod.uid);
            match found.await {
                Ok(Some(found)) => *owners = Some(found),
                // Nobody is left who could use a Secret.
                Ok(None) => return Vec::new(),
                Err(error) => return vec![answer("its pod could not be read", &error)],
            }
        }
        let owners = owners.as_deref().unwrap_or_default();
        let written = stream::iter(self.wanted(volume).await).map(async |wanted| {
            let wanted = wanted?;
            let written = self.write_one(&wanted, owners, due).await;
            written.map_err(|problem| problem.of(&wanted.name))
        });
        let written: Vec<_> = written.buffered(AT_ONCE).collect().await;
        written.into_iter().filter_map(Result::err).collect()
    }

    /// The Secrets of a volume with their content, or what is wrong with them.
    async fn wanted(&self, volume: SyncedVolume) -> Vec<Result<Wanted, Problem>> {
        let bootstrap_tokens = self.bootstrap_tokens;
        // Opening a key store takes a moment, and is meant to.
        let made = tokio::task::spawn_blocking(move || {
            let class = &volume.class;
            let all = class.secret_objects.iter().enumerate();
            all.map(|(index, object)| {
                let field = format!("SecretProviderClass {}: spec.secretObjects[{index}]", class.name);
                let wrong = |problem: String| Problem {
                    sentence: format!("{field}.{problem}"),
                    may_pass: false,
                };
                let object = object.as_ref().map_err(|error| wrong(error.to_string()))?;
                if object.kind == SecretType::BootstrapToken && !bootstrap_tokens {
                    return Err(wrong("type: lets nodes join the cluster: the administrator has to allow it (--sync-bootstrap-tokens)".to_owned()));
                }
                let namespace = &class.name.namespace;
                let data = object.contents(namespace, &volume.files, SystemTime::now());
                let data = data.map_err(|error| wrong(error.to_string()))?;
                let stamp = volume.stamp.clone();
                Ok(Wanted::new(namespace, &class.name.name, object, data, stamp))
            })
            .collect()
        });
        match made.await {
            Ok(made) => made,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn write_one(
        &self,
        wanted: &Wanted,
        owners: &[Owner],
        due: Option<Instant>,
    ) -> Result<(), Problem> {
        let slot = self.memory.slot(&wanted.namespace, &wanted.name);
        let mut known = slot.lock().await;
        let same = known
            .as_ref()
            .filter(|known| known.was(&wanted.hash, owners));
        if let Some(same) = same {
            let now = Instant::now();
            // Another volume of the class may have looked a moment ago.
            let looked = due.is_some_and(|due| now < due || now < same.at + CHECK / 2);
            if looked {
                return Ok(());
            }
            let found = self.secrets.metadata(&wanted.namespace, &wanted.name).await;
            let found = found.map_err(|error| answer("could not be read", &error))?;
            if let (Some(found), Some(known)) = (found, known.as_mut())
                && known.is(&found)
            {
                known.at = now;
                return Ok(());
            }
        }
        *known = None;
        for _ in 0..ATTEMPTS {
            match self.bring_about(wanted, owners).await? {
                Found::AsItShouldBe(live) => {
                    *known = Some(Known {
                        live,
                        hash: wanted.hash,
                        at: Instant::now(),
                    });
                    return Ok(());
                }
                Found::Newer => return Ok(()),
                Found::ChangedMeanwhile => {}
            }
        }
        Err(Problem {
            sentence: "is written by others at the same time: it is tried again".to_owned(),
            may_pass: true,
        })
    }

    /// One look and what follows from it.
    async fn bring_about(&self, wanted: &Wanted, owners: &[Owner]) -> Result<Found, Problem> {
        let (namespace, name) = (wanted.namespace.as_str(), wanted.name.as_str());
        let found = self.secrets.get(namespace, name).await;
        let found = found.map_err(|error| answer("could not be read", &error))?;
        let next = wanted.next(found.as_ref());
        let newer = matches!(next, Next::KeepNewer);
        let live = match (next, found) {
            (Next::Leave(hindrance), _) => {
                return Err(Problem {
                    sentence: hindrance.to_string(),
                    may_pass: hindrance == Hindrance::Deleting,
                });
            }
            (Next::Create, _) | (_, None) => {
                let created = self.secrets.create(&wanted.write(false), owners).await;
                unless_conflict(created)?
            }
            (Next::Keep | Next::KeepNewer, Some(live)) => Some(live.meta),
            (Next::Write(surplus), Some(live)) => {
                let write = wanted.write(live.immutable);
                match unless_conflict(self.secrets.apply(&write, &live.meta).await)? {
                    Some(applied) if !surplus.is_empty() => {
                        let removed = self
                            .secrets
                            .remove_keys(namespace, name, &surplus, &applied);
                        unless_conflict(removed.await)?
                    }
                    applied => applied,
                }
            }
        };
        let mut live = match live {
            Some(live) => live,
            None => return Ok(Found::ChangedMeanwhile),
        };
        while let Some(owner) = missing(owners, &live) {
            let added = self.secrets.add_owner(namespace, name, owner, &live).await;
            live = match unless_conflict(added)? {
                Some(added) if missing(std::slice::from_ref(owner), &added).is_none() => added,
                _ => return Ok(Found::ChangedMeanwhile),
            };
        }
        Ok(match newer {
            true => Found::Newer,
            false => Found::AsItShouldBe(live),
        })
    }
}

/// How a Secret is after a look at it.
enum Found {
    AsItShouldBe(LiveMeta),
    /// It has newer content than the volume, which is left. Not remembered: what is older now may be newer
    /// at the next look.
    Newer,
    /// Somebody else was faster: it has to be looked at again.
    ChangedMeanwhile,
}

impl Problem {
    fn of(self, secret: &str) -> Self {
        Self {
            sentence: format!("Secret {secret} {}", self.sentence),
            ..self
        }
    }
}

/// Somebody else has made, changed or deleted the Secret meanwhile: it is looked at again.
fn unless_conflict(answered: Result<LiveMeta, RequestError>) -> Result<Option<LiveMeta>, Problem> {
    match answered {
        Ok(live) => Ok(Some(live)),
        Err(error) if error.is_conflict() => Ok(None),
        Err(error) => Err(answer("could not be written", &error)),
    }
}

fn answer(what: &str, error: &RequestError) -> Problem {
    let (why, may_pass) = match error {
        RequestError::Late | RequestError::Away(_) => (
            "the API server could not be reached, it is tried again".to_owned(),
            true,
        ),
        RequestError::Answered {
            code: 403, message, ..
        } => (
            format!(
                "the driver may not ({message}): does the chart have syncSecret.enabled, and this Namespace among syncSecret.namespaces?"
            ),
            false,
        ),
        RequestError::Answered { code, message, .. } => (
            message.clone(),
            *code >= 500 || matches!(code, 401 | 408 | 429),
        ),
    };
    Problem {
        sentence: format!("{what}: {why}"),
        may_pass,
    }
}

fn late() -> Problem {
    Problem {
        sentence: "the API server took too long for the Secrets of the class, it is tried again"
            .to_owned(),
        may_pass: true,
    }
}

/// Give or take a tenth: what came together does not stay together.
fn spread(time: Duration, pod: &str) -> Duration {
    let random = RandomState::new().hash_one(pod) % 200;
    time.mul_f64(0.9 + random as f64 / 1000.0)
}
