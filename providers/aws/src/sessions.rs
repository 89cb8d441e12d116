//! Who is logged in: one login for each account, role and region, however many pods ask at once. Where the
//! class says so, each pod counts as an account.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_smithy_runtime_api::client::http::SharedHttpClient;
use coffer_provider::{Caller, ErrorKind, IdentifiedBy, Pod, ProviderError};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

use crate::Cluster;
use crate::arn;
use crate::error::is_outage;
use crate::gather::lock;
use crate::login::{Account, Proof, Steps};
use crate::objects::{Selector, Service};
use crate::parameter_store::ParameterStore;
use crate::parameters::{Login, NextRole, STS_AUDIENCE, Via};
use crate::pod_identity::Agent;
use crate::regions::Regions;
use crate::secrets_manager::SecretsManager;
use crate::settings::Settings;
use crate::value::{Place, Value};

/// Credentials are replaced this long before they end, or in the last quarter of a shorter life.
const EARLY: Duration = Duration::from_secs(5 * 60);

/// Where ServiceAccounts that are known by their role carry it.
const ROLE_ANNOTATION: &str = "eks.amazonaws.com/role-arn";

/// And where they name the audience that the role's trust policy wants.
const AUDIENCE_ANNOTATION: &str = "eks.amazonaws.com/audience";

type Result<T> = std::result::Result<T, ProviderError>;
type Flight = BoxFuture<'static, Result<Arc<Session>>>;

/// What makes one login another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    account: Account,
    proof: Proof,
    then: Option<NextRole>,
    region: String,
}

/// Clients with the credentials of one login, for as long as those last.
pub(crate) struct Session {
    key: Key,
    secrets: Arc<SecretsManager>,
    parameters: Arc<ParameterStore>,
    renew: Mutex<Instant>,
    ends: Instant,
}

impl Session {
    fn is_due(&self) -> bool {
        *lock(&self.renew) <= Instant::now()
    }

    fn has_ended(&self) -> bool {
        self.ends <= Instant::now()
    }

    /// A login has failed. Another one, which those who read have to wait for, is not tried at each read.
    fn put_off(&self) {
        let now = Instant::now();
        *lock(&self.renew) = now + self.ends.duration_since(now) / 4;
    }

    pub(crate) async fn value(&self, selector: &Selector) -> Result<Value> {
        match selector.service {
            Service::SecretsManager => SecretsManager::value(&self.secrets, selector).await,
            Service::ParameterStore => ParameterStore::value(&self.parameters, selector).await,
        }
    }

    /// Everything whose name starts with the selector's id, by name.
    pub(crate) async fn below(&self, selector: &Selector) -> Result<Vec<(String, Value)>> {
        match selector.service {
            Service::SecretsManager => self.secrets.below(&selector.id).await,
            Service::ParameterStore => self.parameters.below(&selector.id).await,
        }
    }

    /// The version of a secret, where that is cheaper to have than its value.
    pub(crate) async fn version(&self, selector: &Selector) -> Option<coffer_provider::Version> {
        match selector.service {
            Service::SecretsManager => self.secrets.version(selector).await,
            Service::ParameterStore => None,
        }
    }
}

/// All logins of the node.
pub(crate) struct Sessions {
    regions: Regions,
    agent: Arc<Agent>,
    cluster: Arc<dyn Cluster>,
    slots: Mutex<HashMap<Key, Arc<Mutex<Slot>>>>,
}

/// The login of one key: the last one, and the one on its way. A slot that was forgotten takes its
/// flight along, so that nothing comes back of it.
#[derive(Default)]
struct Slot {
    /// Those of the account who came and have not logged out, as the driver tells them apart.
    users: HashSet<IdentifiedBy>,
    session: Option<Arc<Session>>,
    flight: Option<WeakShared<Flight>>,
}

impl Slot {
    fn is_live(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !session.has_ended())
            || self.flight.as_ref().and_then(WeakShared::upgrade).is_some()
    }
}

impl Sessions {
    pub(crate) fn new(
        client: SharedHttpClient,
        settings: &Settings,
        cluster: Arc<dyn Cluster>,
    ) -> Self {
        Self {
            regions: Regions::new(settings, client),
            agent: Arc::new(Agent::new(settings)),
            cluster,
            slots: Mutex::default(),
        }
    }

    /// The session of a caller in a region, until [`Self::log_out`] of the same `user`. Everybody who asks
    /// meanwhile waits for the same login, and whoever stops waiting leaves it to the others.
    pub(crate) async fn session(
        &self,
        user: &IdentifiedBy,
        login: &Login,
        region: &str,
        caller: &Caller,
    ) -> Result<Arc<Session>> {
        let account = Account::of(caller)?;
        let key = Key {
            proof: self.proof(login.via, &account).await?,
            account,
            then: login.then.clone(),
            region: region.to_owned(),
        };
        let slot = self.slot(&key, user);
        let (flight, last) = {
            let mut state = lock(&slot);
            let last = state.session.clone();
            if let Some(session) = last.as_ref().filter(|last| !last.is_due()) {
                return Ok(session.clone());
            }
            let on_its_way = state.flight.as_ref().and_then(WeakShared::upgrade);
            let flight = on_its_way.unwrap_or_else(|| {
                let flight = self.flight(key, caller, slot.clone());
                state.flight = flight.downgrade();
                flight
            });
            (flight, last)
        };
        match (flight.await, last) {
            // An outage of the login is none for as long as the last one is good.
            (Err(error), Some(last)) if is_outage(&error) && !last.has_ended() => {
                last.put_off();
                Ok(last)
            }
            (result, _) => result,
        }
    }

    fn flight(&self, key: Key, caller: &Caller, slot: Arc<Mutex<Slot>>) -> Shared<Flight> {
        let steps = Steps {
            account: key.account.clone(),
            proof: key.proof.clone(),
            then: key.then.clone(),
            region: self.regions.region(&key.region),
            agent: self.agent.clone(),
        };
        let token = match &key.proof {
            Proof::WebIdentity { audience, .. } if *audience != STS_AUDIENCE => {
                caller.further_tokens.get(audience).cloned()
            }
            _ => caller.token.clone(),
        };
        let flight = async move {
            let lent = steps.take(token.as_ref()).await?;
            let left = lent
                .ends
                .duration_since(SystemTime::now())
                .unwrap_or_default();
            let place = Place {
                region: steps.region.clone(),
                role: steps.role().into(),
            };
            let credentials = lent.credentials;
            let now = Instant::now();
            let session = Arc::new(Session {
                key,
                secrets: Arc::new(SecretsManager::new(place.clone(), credentials.clone())),
                parameters: Arc::new(ParameterStore::new(place, credentials)),
                renew: Mutex::new(now + (left - EARLY.min(left / 4))),
                ends: now + left,
            });
            lock(&slot).session = Some(session.clone());
            Ok(session)
        };
        flight.boxed().shared()
    }

    fn slot(&self, key: &Key, user: &IdentifiedBy) -> Arc<Mutex<Slot>> {
        let mut slots = lock(&self.slots);
        if !slots.contains_key(key) {
            // Whoever holds one is about to use it.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(slot).is_live());
        }
        let slot = slots.entry(key.clone()).or_default();
        lock(slot).users.insert(user.clone());
        slot.clone()
    }

    /// Forgets a session whose credentials AWS does not accept any more.
    pub(crate) fn forget(&self, session: &Arc<Session>) {
        if let Some(slot) = lock(&self.slots).get(&session.key) {
            let mut slot = lock(slot);
            if slot
                .session
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, session))
            {
                slot.session = None;
            }
        }
    }

    /// Forgets the logins of an account that nobody but `user` uses, and with the last of them the account.
    pub(crate) fn log_out(&self, user: &IdentifiedBy, account: &Account) {
        let mut slots = lock(&self.slots);
        slots.retain(|key, slot| {
            let mut slot = lock(slot);
            key.account != *account || !slot.users.remove(user) || !slot.users.is_empty()
        });
        let is_same = |other: &Account| {
            (&other.namespace, &other.name) == (&account.namespace, &account.name)
        };
        if !slots.keys().any(|key| is_same(&key.account)) {
            self.cluster.forget(&account.namespace, &account.name);
        }
    }

    /// The role that the annotation of the pod's ServiceAccount names, as far as that is known.
    pub(crate) async fn role_of(&self, pod: &Pod) -> Option<String> {
        let account = &pod.service_account.name;
        let role = self
            .cluster
            .annotation(&pod.namespace, account, ROLE_ANNOTATION);
        role.await.ok().flatten()
    }

    /// Looks up what a login shows besides the token.
    async fn proof(&self, via: Via, account: &Account) -> Result<Proof> {
        if let Via::PodIdentity(family) = via {
            return Ok(Proof::PodIdentity(family));
        }
        let Account {
            namespace, name, ..
        } = account;
        let annotation = async |key| self.cluster.annotation(namespace, name, key).await;
        let problem = match annotation(ROLE_ANNOTATION).await? {
            Some(role) if arn::is_role(&role) => {
                let audience = annotation(AUDIENCE_ANNOTATION).await?;
                let audience = audience.filter(|audience| !audience.is_empty());
                return Ok(Proof::WebIdentity {
                    role,
                    audience: audience.unwrap_or_else(|| STS_AUDIENCE.to_owned()),
                });
            }
            Some(role) if !role.is_empty() => {
                " with the ARN of a role, and has something else in it"
            }
            _ => ", and has none: associate a role, or set usePodIdentity in the class",
        };
        Err(ProviderError::new(
            ErrorKind::PermissionDenied,
            format!(
                "the ServiceAccount {namespace}/{name} needs the annotation {ROLE_ANNOTATION}{problem}"
            ),
        ))
    }
}
