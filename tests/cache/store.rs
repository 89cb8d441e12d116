//! A store that knows who asks: it lets in whom its policy lets in, and takes down every request.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use coffer_provider::{
    Caller, ErrorKind, Format, IdentifiedBy, Lease, Life, ObjectRef, Parameters, Provider,
    ProviderError, Secret, SecretBytes, SecretFile, Sharing, Source, Version,
};
use tokio::time::Instant;

use crate::pods::AUDIENCE;

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetch {
    pub(crate) account: String,
    pub(crate) pod: String,
    pub(crate) request: String,
    pub(crate) at: Instant,
}

#[derive(Default)]
pub(crate) struct State {
    /// By object: how often it was changed.
    pub(crate) versions: HashMap<String, u64>,
    /// Accounts (or pods) that may not read an object.
    pub(crate) denied: BTreeSet<(String, String)>,
    /// Objects that are not there.
    pub(crate) missing: BTreeSet<String>,
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) looks: Vec<Instant>,
    pub(crate) latency: Duration,
    pub(crate) down: bool,
    pub(crate) hangs: bool,
    pub(crate) panics: bool,
    pub(crate) size: usize,
    /// What a renewal gives; `None`, it is refused.
    pub(crate) renews: Option<Duration>,
    /// Leases are unknown to it.
    pub(crate) gone: bool,
    pub(crate) renewals: usize,
    /// Leases that were given back, and for how long they were left.
    pub(crate) released: Vec<(String, Duration)>,
    /// The static role.
    pub(crate) role: Option<Role>,
    pub(crate) logged_out: Vec<String>,
    leases: usize,
}

/// A role whose password the store replaces.
#[derive(Clone, Copy)]
pub(crate) struct Role {
    pub(crate) since: Instant,
    pub(crate) period: Duration,
    /// How late it does.
    pub(crate) late: Duration,
}

impl Role {
    /// How often the password was replaced.
    fn version(self) -> u64 {
        let since = self.since.elapsed().saturating_sub(self.late);
        since.as_secs() / self.period.as_secs()
    }

    fn left(self) -> Duration {
        let next = self.period * u32::try_from(self.version() + 1).unwrap();
        next.saturating_sub(self.since.elapsed())
    }
}

/// The role that a store gives to pods, and not to their account.
pub(crate) const BOUND_TO_PODS: &str = "bound-to-pods";

/// The store. Clones are the same one. Objects are static values, but for those named `lease…` (an hour,
/// one for each pod), `cert…` (a day, shared), `once…` (another one for whoever asks, one for each pod) and
/// `role…` (what the store replaces). What stands before a slash is one answer: `lease/user,lease/password`.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<State>>);

impl Store {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn change(&self, object: &str) {
        *self.state().versions.entry(object.into()).or_default() += 1;
    }

    pub(crate) fn deny(&self, account: &str, object: &str) {
        self.state().denied.insert((account.into(), object.into()));
    }

    pub(crate) fn allow(&self, account: &str, object: &str) {
        self.state().denied.remove(&(account.into(), object.into()));
    }

    pub(crate) fn fetches(&self) -> usize {
        self.state().fetches.len()
    }

    /// All that the store was asked for in any way.
    pub(crate) fn requests(&self) -> usize {
        let state = self.state();
        state.fetches.len() + state.looks.len()
    }
}

impl Provider for Store {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let value = |name: &str, default: &str| {
            let given = parameters.get(name);
            given.map_or(default, String::as_str).to_owned()
        };
        let identified_by = match value("identifiedBy", "token").as_str() {
            "namespace" => IdentifiedBy::Namespace,
            "pod" => IdentifiedBy::Pod,
            _ => IdentifiedBy::Token {
                audience: value("audience", AUDIENCE),
                store: value("address", "https://store"),
                role: value("role", "reader"),
            },
        };
        let method = value("method", "GET");
        let objects = value("objects", "");
        let objects = objects.split(',').map(|name| ObjectRef {
            name: name.to_owned(),
            request: format!("{method} {name}"),
        });
        Ok(Arc::new(Reader {
            store: self.clone(),
            identified_by,
            objects: objects.collect(),
        }))
    }
}

struct Reader {
    store: Store,
    identified_by: IdentifiedBy,
    objects: Vec<ObjectRef>,
}

/// What the store calls whoever asks: it believes the token, and nothing else.
fn account(identified_by: &IdentifiedBy, caller: &Caller) -> String {
    match identified_by {
        IdentifiedBy::Namespace => caller.pod.namespace.clone(),
        IdentifiedBy::Pod => caller.pod.uid.clone(),
        IdentifiedBy::Token { .. } => {
            assert!(caller.token.is_some(), "no token was sent");
            caller.pod.service_account.uid.clone().unwrap()
        }
    }
}

fn answer(name: &str) -> &str {
    name.split_once('/').map_or(name, |(answer, _)| answer)
}

impl Reader {
    fn answer(
        &self,
        caller: &Caller,
        object: &ObjectRef,
        leases: &mut HashMap<String, usize>,
    ) -> Result<Secret, ProviderError> {
        let mut state = self.store.state();
        let who = account(&self.identified_by, caller);
        let error = |kind, text: &str| Err(ProviderError::new(kind, text));
        if state.down {
            return error(ErrorKind::Unavailable, "the store is away");
        }
        let name = object.name.clone();
        if state.missing.contains(&name) {
            return error(ErrorKind::NotFound, "there is none");
        }
        let may = |who: &str| !state.denied.contains(&(who.to_owned(), name.clone()));
        let by_pod = matches!(&self.identified_by, IdentifiedBy::Token { role, .. } if role == BOUND_TO_PODS);
        if !may(&who) || (by_pod && !may(&caller.pod.uid)) {
            return error(ErrorKind::PermissionDenied, "permission denied");
        }
        let version = *state.versions.entry(name.clone()).or_default();
        let (mut value, mut life, mut sharing) = (
            format!("{} of {who} v{version}", object.request),
            Life::Static,
            Sharing::ServiceAccount,
        );
        let mut version = version.to_string();
        if name.starts_with("cert") {
            life = Life::Expires(Duration::from_secs(24 * 3600));
        }
        if let Some(role) = state.role.filter(|_| name.starts_with("role")) {
            version = role.version().to_string();
            value = format!("{value} rotated {version}");
            life = Life::Rotates(role.left());
        }
        if name.starts_with("once") {
            state.leases += 1;
            version = format!("once-{}", state.leases);
            value = format!("{value} {version}");
            sharing = Sharing::Pod;
            life = Life::Once;
        }
        if name.starts_with("lease") {
            let lease = leases.entry(answer(&name).to_owned()).or_insert_with(|| {
                state.leases += 1;
                state.leases
            });
            version = format!("lease-{lease}");
            value = format!("{value} {version} for {}", caller.pod.uid);
            sharing = Sharing::Pod;
            life = Life::Leased {
                lease: Lease::new(version.clone()),
                duration: Duration::from_secs(3600),
                renewable: state.renews.is_some(),
            };
        }
        let mut bytes = value.into_bytes();
        bytes.resize(bytes.len().max(state.size), b'.');
        Ok(Secret {
            files: vec![SecretFile {
                name,
                bytes: SecretBytes::new(bytes),
                format: Format::Opaque,
                mode: None,
            }],
            version: Version::new(version)?,
            life,
            sharing,
        })
    }
}

#[async_trait]
impl Source for Reader {
    fn identified_by(&self) -> &IdentifiedBy {
        &self.identified_by
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    fn answer_of<'a>(&'a self, object: &'a ObjectRef) -> &'a str {
        answer(&object.request)
    }

    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        let (latency, hangs, panics) = {
            let mut state = self.store.state();
            for object in objects {
                state.fetches.push(Fetch {
                    account: account(&self.identified_by, caller),
                    pod: caller.pod.uid.clone(),
                    request: object.request.clone(),
                    at: Instant::now(),
                });
            }
            (state.latency, state.hangs, state.panics)
        };
        assert!(!panics, "as it was told");
        if hangs {
            std::future::pending::<()>().await;
        }
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut leases = HashMap::new();
        let answers = objects.iter();
        answers
            .map(|object| self.answer(caller, object, &mut leases))
            .collect()
    }

    async fn versions(&self, caller: &Caller, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        let now = Instant::now();
        let mut state = self.store.state();
        state.looks.extend(objects.iter().map(|_| now));
        let who = account(&self.identified_by, caller);
        let version = |object: &ObjectRef| {
            let denies = |who: &str| {
                state
                    .denied
                    .contains(&(who.to_owned(), object.name.clone()))
            };
            let denied = denies(&who) || denies(&caller.pod.uid);
            let version = state.versions.get(&object.name).copied().unwrap_or(0);
            let known = !denied && !state.down;
            known
                .then(|| Version::new(version.to_string()).ok())
                .flatten()
        };
        objects.iter().map(version).collect()
    }

    async fn renew(&self, _: &Caller, lease: &Lease) -> Result<Life, ProviderError> {
        let mut state = self.store.state();
        state.renewals += 1;
        if state.gone {
            return Err(ProviderError::new(ErrorKind::NotFound, "no such lease"));
        }
        match state.renews {
            Some(duration) if !state.down => Ok(Life::Leased {
                lease: lease.clone(),
                duration,
                renewable: true,
            }),
            _ => Err(ProviderError::new(ErrorKind::Unavailable, "not now")),
        }
    }

    async fn release(&self, _: &Caller, leases: &[Lease], grace: Duration) {
        let released = leases
            .iter()
            .map(|lease| (lease.expose().to_owned(), grace));
        let hangs = {
            let mut state = self.store.state();
            state.released.extend(released);
            state.hangs
        };
        if hangs {
            std::future::pending::<()>().await;
        }
    }

    async fn log_out(&self, caller: &Caller) {
        let who = match (caller.sharing, &self.identified_by) {
            (Sharing::ServiceAccount, IdentifiedBy::Token { .. }) => {
                caller.pod.service_account.uid.clone().unwrap()
            }
            (Sharing::ServiceAccount, _) => account(&self.identified_by, caller),
            (Sharing::Pod, _) => caller.pod.uid.clone(),
        };
        self.store.state().logged_out.push(who);
    }
}
