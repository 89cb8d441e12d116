//! The store's tokens: one for each identity, for as long as a pod of it is on the node. An identity is a
//! ServiceAccount, or a pod of it where the class says so.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use coffer_provider::{Caller, ErrorKind, ProviderError, ServiceAccountToken, Sharing};
use http::StatusCode;
use tracing::{debug, warn};
use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest,
};
use zeroize::Zeroize as _;

use crate::error;
use crate::events::Feed;
use crate::headers::{Headers, inline_headers};
use crate::http::Reply;
use crate::parameters::Class;
use crate::store::Store;
use crate::token::StoreToken;

/// A pod's token that ends sooner is not sent: it would not live to be looked at.
const MIN_LIFE: Duration = Duration::from_secs(10);

/// Whom a token was given to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct LoginKey {
    store: String,
    role: String,
    audience: String,
    namespace: String,
    service_account: String,
    uid: Option<String>,
    /// The pod, where each is logged in by itself.
    pod: Option<String>,
}

impl LoginKey {
    pub(crate) fn new(store: &str, class: &Class, caller: &Caller) -> Self {
        Self {
            store: store.to_owned(),
            role: class.role.clone(),
            audience: class.audience.clone(),
            namespace: caller.pod.namespace.clone(),
            service_account: caller.pod.service_account.name.clone(),
            uid: caller.pod.service_account.uid.clone(),
            pod: match caller.sharing {
                Sharing::ServiceAccount => None,
                Sharing::Pod => Some(caller.pod.uid.clone()),
            },
        }
    }
}

/// All logins of a provider.
#[derive(Default)]
pub(crate) struct Logins(Mutex<HashMap<LoginKey, Arc<Login>>>);

impl Logins {
    /// The login of an identity, made by `make` where there is none.
    pub(crate) fn of(
        &self,
        key: LoginKey,
        make: impl FnOnce() -> Result<Login, ProviderError>,
    ) -> Result<Arc<Login>, ProviderError> {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(login) = logins.get(&key) {
            return Ok(login.clone());
        }
        let login = Arc::new(make()?);
        logins.insert(key, login.clone());
        Ok(login)
    }

    /// The login of an identity, if there is one.
    pub(crate) fn known(&self, key: &LoginKey) -> Option<Arc<Login>> {
        let logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logins.get(key).cloned()
    }

    pub(crate) fn forget(&self, key: &LoginKey) -> Option<Arc<Login>> {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logins.remove(key)
    }
}

/// What a denial with a token means.
pub(crate) enum Denial {
    /// The store knows the token: its policy says no.
    Policy,
    /// The token had ended. Here is another one.
    Retry(Arc<StoreToken>),
}

/// The one login of an identity.
pub(crate) struct Login {
    /// Open for as long as somebody is logged in.
    pub(crate) store: Arc<Store>,
    mount: String,
    namespace: String,
    role: String,
    audience: String,
    /// The pod's token goes with each request, and there is no token of the store.
    inline: bool,
    state: tokio::sync::Mutex<State>,
    /// Mounts whose metadata the policy keeps to itself.
    no_metadata: Mutex<HashSet<String>>,
    /// By namespace, for as long as somebody follows them.
    feeds: Mutex<HashMap<String, Weak<Feed>>>,
    /// The store has no events for this login.
    pub(crate) tells_nothing: AtomicBool,
}

#[derive(Default)]
struct State {
    token: Option<Arc<StoreToken>>,
    /// Replaced ones that leases still hang on.
    older: Vec<Arc<StoreToken>>,
    serial: u64,
    /// When the last login failed, and why: whoever waited for it need not try again.
    failure: Option<(Instant, ProviderError)>,
}

impl Login {
    pub(crate) fn new(store: Arc<Store>, class: &Class) -> Self {
        Self {
            store,
            mount: class.auth_mount.clone(),
            namespace: class.auth_namespace.clone(),
            role: class.role.clone(),
            audience: class.audience.clone(),
            inline: class.inline_auth,
            state: tokio::sync::Mutex::default(),
            no_metadata: Mutex::default(),
            feeds: Mutex::default(),
            tells_nothing: AtomicBool::default(),
        }
    }

    /// The events of a namespace, which `caller` may follow. Needs a tokio runtime.
    pub(crate) fn feed(self: &Arc<Self>, namespace: &str, caller: &Caller) -> Arc<Feed> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(namespace).and_then(Weak::upgrade) {
            return feed;
        }
        let namespace = namespace.to_owned();
        let feed = Feed::start(self.clone(), namespace.clone(), caller.clone());
        let feed = Arc::new(feed);
        feeds.insert(namespace, Arc::downgrade(&feed));
        feed
    }

    /// Whether the role is known not to see the metadata of a mount.
    pub(crate) fn may_not(&self, mount: &str) -> bool {
        let mounts = self
            .no_metadata
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        mounts.contains(mount)
    }

    pub(crate) fn remember_denial(&self, mount: String) {
        let mut mounts = self
            .no_metadata
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        mounts.insert(mount);
    }

    /// A token that is good now: the one there is, renewed or replaced where that is due.
    pub(crate) async fn token(&self, caller: &Caller) -> Result<Arc<StoreToken>, ProviderError> {
        if self.inline {
            return self.inline_token(caller);
        }
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        match state.token.clone() {
            Some(token) if token.is_over() => {}
            Some(token) if token.is_due() => {
                return Ok(self.refresh(&mut state, token, caller).await);
            }
            Some(token) => return Ok(token),
            None => {}
        }
        self.log_in(&mut state, caller, asked).await
    }

    /// What to make of a 403 to `token`.
    pub(crate) async fn denied(
        &self,
        token: &StoreToken,
        caller: &Caller,
    ) -> Result<Denial, ProviderError> {
        if self.inline {
            return Ok(Denial::Policy);
        }
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        match &state.token {
            // Somebody else has found out.
            Some(current) if current.serial != token.serial => {
                return Ok(Denial::Retry(current.clone()));
            }
            Some(_) if token.is_proven() => return Ok(Denial::Policy),
            Some(_) => {
                let call = LookupTokenSelfRequest {};
                let headers = token.headers(&self.namespace);
                let reply = self.store.connection.call(&call, &headers).await?;
                if reply.status.is_success() {
                    token.looked_up();
                }
                if reply.status != StatusCode::FORBIDDEN {
                    return Ok(Denial::Policy);
                }
            }
            None => {}
        }
        if let Some(token) = state.token.take() {
            self.retire(&mut state, token);
        }
        self.log_in(&mut state, caller, asked)
            .await
            .map(Denial::Retry)
    }

    /// Ends every token of the identity, and with them their leases.
    pub(crate) async fn log_out(&self) {
        let mut state = self.state.lock().await;
        let tokens = state.older.drain(..).collect::<Vec<_>>();
        let tokens = tokens.into_iter().chain(state.token.take());
        for token in tokens {
            self.revoke(&token).await;
        }
    }

    /// Renews a token that is still good, or gets another one. Where neither can be had, it serves on.
    async fn refresh(
        &self,
        state: &mut State,
        token: Arc<StoreToken>,
        caller: &Caller,
    ) -> Arc<StoreToken> {
        let token = match token.renewable {
            true => self.renew(&token).await.map_or(token, Arc::new),
            false => token,
        };
        let kept = if !token.is_due() && !token.is_near_its_end() {
            token
        } else {
            match self.log_in(state, caller, Instant::now()).await {
                Ok(fresh) => {
                    self.retire(state, token);
                    return fresh;
                }
                Err(error) => {
                    warn!(%error, "the store's token is near its end, and there is no other");
                    // It is not tried again for each request.
                    Arc::new(token.put_off())
                }
            }
        };
        state.token = Some(kept.clone());
        kept
    }

    async fn renew(&self, token: &StoreToken) -> Option<StoreToken> {
        let call = RenewTokenSelfRequest::default();
        let headers = token.headers(&self.namespace);
        let reply = self.store.connection.call(&call, &headers).await;
        let reply = reply.ok().filter(|reply| reply.status.is_success())?;
        token.renewed(&reply)
    }

    /// Keeps a replaced token while leases hang on it; one that nothing hangs on is ended.
    fn retire(&self, state: &mut State, token: Arc<StoreToken>) {
        state.older.retain(|token| !token.is_over());
        if token.holds_leases() {
            state.older.push(token);
        } else if token.stored {
            let call = RevokeTokenSelfRequest {};
            let headers = token.headers(&self.namespace);
            let store = self.store.clone();
            // Nobody has to wait for it, and if it fails the token ends by itself.
            tokio::spawn(async move { store.connection.call(&call, &headers).await.is_ok() });
        }
    }

    async fn revoke(&self, token: &StoreToken) {
        if !token.stored {
            return;
        }
        let call = RevokeTokenSelfRequest {};
        let reply = self
            .store
            .connection
            .call(&call, &token.headers(&self.namespace))
            .await;
        if let Err(error) = reply {
            debug!(%error, "a token of the store could not be revoked: it ends by itself");
        }
    }

    /// Logs in, unless somebody who was waited for since `asked` has just failed to.
    async fn log_in(
        &self,
        state: &mut State,
        caller: &Caller,
        asked: Instant,
    ) -> Result<Arc<StoreToken>, ProviderError> {
        match &state.failure {
            Some((when, error)) if *when >= asked => return Err(error.clone()),
            _ => {}
        }
        match self.try_log_in(state.serial + 1, caller).await {
            Ok(token) => {
                let token = Arc::new(token);
                state.serial = token.serial;
                state.failure = None;
                state.token = Some(token.clone());
                Ok(token)
            }
            Err(error) => {
                state.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn try_log_in(&self, serial: u64, caller: &Caller) -> Result<StoreToken, ProviderError> {
        let jwt = self.jwt(caller)?;
        // JWT mounts take the same call.
        let mut call = LoginWithKubernetesRequest {
            mount: self.mount.clone(),
            role: self.role.clone(),
            jwt: jwt.expose().to_owned(),
        };
        let request = self.store.connection.request(&call);
        call.jwt.zeroize();
        let headers = Headers {
            namespace: self.namespace.clone(),
            ..Headers::default()
        };
        let reply = self.store.connection.send(request?, &headers).await?;
        if !reply.status.is_success() {
            return Err(self.refusal(&reply));
        }
        StoreToken::from_login(&reply, serial).ok_or_else(|| {
            error::unreadable(
                &self.path(),
                "the store's answer holds no token; roles with MFA cannot be used",
            )
        })
    }

    /// The pod's token, if it is there and will live to be looked at.
    fn jwt<'a>(&self, caller: &'a Caller) -> Result<&'a ServiceAccountToken, ProviderError> {
        let unauthenticated = |what: String| ProviderError::new(ErrorKind::Unauthenticated, what);
        let audience = &self.audience;
        let jwt = caller.token.as_ref().ok_or_else(|| {
            unauthenticated(format!(
                "the pod has no token for audience {audience}: tokenRequests of the CSIDriver has to list it"
            ))
        })?;
        if jwt.expires() < SystemTime::now() + MIN_LIFE {
            return Err(unauthenticated(format!(
                "the pod's token for audience {audience} has expired: the kubelet brings another one"
            )));
        }
        Ok(jwt)
    }

    /// What stands in for a token where each request logs in by itself. It is not kept.
    fn inline_token(&self, caller: &Caller) -> Result<Arc<StoreToken>, ProviderError> {
        let jwt = self.jwt(caller)?;
        let parameters = [("role", self.role.as_str()), ("jwt", jwt.expose())];
        let credentials = inline_headers(&self.path(), &self.namespace, &parameters);
        let credentials = credentials.ok_or_else(|| {
            error::unreadable(
                &self.path(),
                "the role and the token do not fit into headers",
            )
        })?;
        Ok(Arc::new(StoreToken::inline(credentials)))
    }

    fn path(&self) -> String {
        format!("auth/{}/login", self.mount)
    }

    /// Why the store did not log somebody in.
    pub(crate) fn refusal(&self, reply: &Reply) -> ProviderError {
        error::login(&self.path(), &self.role, &self.audience, reply)
    }
}
