//! The store's tokens: one for each identity, for as long as a pod of it is on the node. An identity is a
//! ServiceAccount, or a pod of it where the class says so.

use std::collections::{HashMap, HashSet};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use coffer_provider::{Caller, ErrorKind, ProviderError, ServiceAccountToken, Sharing};
use futures_util::future::{BoxFuture, join_all};
use http::StatusCode;
use tracing::{debug, warn};
use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::token::requests::{
    LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest,
};
use zeroize::Zeroize as _;

use crate::calls::Call;
use crate::error;
use crate::events::Feed;
use crate::headers::{Headers, inline_headers};
use crate::http::Reply;
use crate::parameters::Class;
use crate::returns::Returns;
use crate::store::Store;
use crate::token::StoreToken;

/// A pod's token that ends sooner is not sent: it would not live to be looked at.
const MIN_LIFE: Duration = Duration::from_secs(10);

/// For so long it is remembered what the store does not let a role do.
const REMEMBERED: Duration = Duration::from_secs(300);

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

    /// Nobody finds the login any more, and whoever still has it gets no other token by it.
    pub(crate) fn forget(&self, key: &LoginKey) -> Option<Arc<Login>> {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let login = logins.remove(key)?;
        login.has_ended.store(true, Ordering::SeqCst);
        Some(login)
    }
}

/// What a denial with a token means.
pub(crate) enum Denial {
    /// The store knows the token: its policy says no.
    Policy,
    /// The token had ended. Somebody else has got another one.
    Retry(Arc<StoreToken>),
    /// The token had ended. This is what the store says to another one.
    Answered(Arc<StoreToken>, Reply),
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
    pub(crate) returns: Returns,
    has_ended: AtomicBool,
    state: tokio::sync::Mutex<State>,
    /// Mounts whose metadata the policy keeps to itself, by namespace and path.
    no_metadata: Mutex<HashSet<(String, String)>>,
    /// Paths whose mount the store does not tell.
    pub(crate) no_mount: Remembered,
    /// What a role was denied that may not look its tokens up, and with a new one again.
    denied: Remembered,
    /// By namespace, for as long as somebody follows them.
    feeds: Mutex<HashMap<String, Weak<Feed>>>,
    /// Until then the store has no events for this login.
    tells_nothing: Mutex<Option<Instant>>,
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

/// What there is for whoever wants a token.
enum Present {
    Good(Arc<StoreToken>),
    /// To be renewed or replaced.
    Due(Arc<StoreToken>),
    Nothing,
}

impl State {
    fn present(&self, wanted: Duration) -> Present {
        match self.token.clone() {
            None => Present::Nothing,
            Some(token) if token.is_over() => Present::Nothing,
            Some(token) if token.is_due() || token.falls_short_of(wanted) => Present::Due(token),
            Some(token) => Present::Good(token),
        }
    }

    /// The failure of somebody who was waited for since `asked`.
    fn fails_since(&self, asked: Instant) -> Result<(), ProviderError> {
        match &self.failure {
            Some((when, error)) if *when >= asked => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// What holds for a while, by namespace and path.
#[derive(Default)]
pub(crate) struct Remembered(Mutex<HashMap<(String, String), Instant>>);

impl Remembered {
    pub(crate) fn has(&self, namespace: &str, path: &str) -> bool {
        let mut paths = lock(&self.0);
        paths.retain(|_, until| Instant::now() < *until);
        paths.contains_key(&(namespace.to_owned(), path.to_owned()))
    }

    pub(crate) fn put(&self, namespace: &str, path: &str) {
        let path = (namespace.to_owned(), path.to_owned());
        lock(&self.0).insert(path, Instant::now() + REMEMBERED);
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Goes on to its end, whoever gives up waiting: what a store gives is taken down in any case, so that it can
/// be given back.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The process is about to end.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Login {
    pub(crate) fn new(store: Arc<Store>, class: &Class, returns: Returns) -> Self {
        Self {
            store,
            mount: class.auth_mount.clone(),
            namespace: class.auth_namespace.clone(),
            role: class.role.clone(),
            audience: class.audience.clone(),
            inline: class.inline_auth,
            returns,
            has_ended: AtomicBool::default(),
            state: tokio::sync::Mutex::default(),
            no_metadata: Mutex::default(),
            no_mount: Remembered::default(),
            denied: Remembered::default(),
            feeds: Mutex::default(),
            tells_nothing: Mutex::default(),
        }
    }

    /// The events of a namespace, which `caller` may follow. Needs a tokio runtime.
    pub(crate) fn feed(self: &Arc<Self>, namespace: &str, caller: &Caller) -> Arc<Feed> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        let feed = feeds.get(namespace).and_then(Weak::upgrade);
        if let Some(feed) = feed.filter(|feed| !feed.has_ended()) {
            feed.bring(caller);
            return feed;
        }
        let namespace = namespace.to_owned();
        let feed = Feed::start(self.clone(), namespace.clone(), caller.clone());
        let feed = Arc::new(feed);
        feeds.insert(namespace, Arc::downgrade(&feed));
        feed
    }

    /// Whether the role is known not to see the metadata of a mount.
    pub(crate) fn may_not(&self, namespace: &str, mount: &str) -> bool {
        let mount = (namespace.to_owned(), mount.to_owned());
        lock(&self.no_metadata).contains(&mount)
    }

    pub(crate) fn remember_denial(&self, namespace: &str, mount: String) {
        lock(&self.no_metadata).insert((namespace.to_owned(), mount));
    }

    /// Whether the store is known to have no events for this login.
    pub(crate) fn tells_nothing(&self) -> bool {
        lock(&self.tells_nothing).is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn remember_that_it_tells_nothing(&self, for_so_long: Duration) {
        *lock(&self.tells_nothing) = Some(Instant::now() + for_so_long);
    }

    /// A token that is good now: the one there is, renewed or replaced where that is due.
    pub(crate) async fn token(
        self: &Arc<Self>,
        caller: &Caller,
    ) -> Result<Arc<StoreToken>, ProviderError> {
        self.token_for(caller, Duration::ZERO).await
    }

    /// The same, for what would like to live for `wanted`, and ends with the token: that is renewed before
    /// it is due, if need be.
    pub(crate) async fn token_for(
        self: &Arc<Self>,
        caller: &Caller,
        wanted: Duration,
    ) -> Result<Arc<StoreToken>, ProviderError> {
        if self.inline {
            return self.inline_token(caller);
        }
        let asked = Instant::now();
        if let Present::Good(token) = self.state.lock().await.present(wanted) {
            return Ok(token);
        }
        let (login, caller) = (self.clone(), caller.clone());
        let token = async move {
            let mut state = login.state.lock().await;
            match state.present(wanted) {
                Present::Good(token) => Ok(token),
                Present::Due(token) => Ok(login.refresh(&mut state, token, &caller).await),
                Present::Nothing => login.log_in(&mut state, &caller, asked).await,
            }
        };
        to_its_end(token).await
    }

    /// One that has not ended, to give back with what hangs on it; none where that ends by itself, or with
    /// the login.
    pub(crate) async fn unended(&self) -> Option<Arc<StoreToken>> {
        let state = self.state.lock().await;
        let mut tokens = state.token.iter().chain(state.older.iter().rev());
        let has_ended = self.has_ended.load(Ordering::SeqCst);
        let ends = |token: &StoreToken| token.is_over() || (has_ended && token.stored);
        tokens.find(|token| !ends(token)).cloned()
    }

    /// What to make of a 403 to `call` in `namespace` with `token`.
    pub(crate) async fn denied(
        self: &Arc<Self>,
        token: &Arc<StoreToken>,
        caller: &Caller,
        call: &Arc<Call>,
        namespace: &str,
    ) -> Result<Denial, ProviderError> {
        if self.inline {
            return Ok(Denial::Policy);
        }
        let asked = Instant::now();
        let (login, token, caller) = (self.clone(), token.clone(), caller.clone());
        let (call, namespace) = (call.clone(), namespace.to_owned());
        let denied = async move {
            let mut state = login.state.lock().await;
            match &state.token {
                // Somebody else has found out.
                Some(current) if current.serial != token.serial => {
                    return Ok(Denial::Retry(current.clone()));
                }
                Some(_) if token.is_proven() => return Ok(Denial::Policy),
                Some(_) if login.denied.has(&namespace, &call.name()) => return Ok(Denial::Policy),
                Some(_) => {
                    state.fails_since(asked)?;
                    if login.is_known(&token).await? {
                        return Ok(Denial::Policy);
                    }
                }
                None => {}
            }
            let before = state.token.clone();
            let another = login.log_in(&mut state, &caller, asked).await?;
            // Nobody else has the other token yet.
            let headers = another.headers(&namespace);
            let reply = login.store.connection.call(&*call, &headers).await;
            let is_no = |reply: &Reply| reply.status == StatusCode::FORBIDDEN;
            if let Some(before) = &before
                && reply.as_ref().is_ok_and(is_no)
            {
                let known = login.is_known(&another).await;
                if !matches!(known, Ok(true)) {
                    // The role may not look its tokens up: the one before is not known to have ended, nor
                    // are its leases. It has not been proven either: another read may find out.
                    state.token = Some(before.clone());
                    login.retire(&mut state, another);
                    known?;
                    login.denied.put(&namespace, &call.name());
                    return Ok(Denial::Policy);
                }
            }
            if let Some(before) = before {
                login.retire(&mut state, before);
            }
            Ok(Denial::Answered(another, reply?))
        };
        to_its_end(denied).await
    }

    /// Whether the store knows a token: a 403 to that may also be the policy's.
    async fn is_known(&self, token: &StoreToken) -> Result<bool, ProviderError> {
        let call = LookupTokenSelfRequest {};
        let headers = token.headers(&self.namespace);
        let reply = self.store.connection.call(&call, &headers).await?;
        match reply.status {
            status if status.is_success() => {
                token.looked_up();
                Ok(true)
            }
            StatusCode::FORBIDDEN => Ok(false),
            // A store that cannot say anything now has not said no.
            _ => Err(error::look_up(&reply)),
        }
    }

    /// Ends every token of the identity that can be ended, and with them their leases. Who gives up waiting
    /// stops nothing.
    pub(crate) async fn log_out(self: &Arc<Self>) {
        let login = self.clone();
        let ended = async move {
            let mut state = login.state.lock().await;
            let current = state.token.take();
            let (stored, rest) = state.older.drain(..).chain(current).partition(|t| t.stored);
            state.older = rest;
            drop(state);
            let stored: Vec<_> = stored;
            join_all(stored.into_iter().map(|token| login.revoke(token))).await;
        };
        to_its_end(ended).await;
    }

    /// Renews a token that is still good, or gets another one. Where neither can be had, it serves on.
    async fn refresh(
        &self,
        state: &mut State,
        token: Arc<StoreToken>,
        caller: &Caller,
    ) -> Arc<StoreToken> {
        let early = !token.is_due();
        let renewed = match token.renewable {
            true => self.renew(&token).await,
            false => None,
        };
        let token = match renewed {
            Some(renewed) => Arc::new(renewed),
            // It is good for a while.
            None if early => return token,
            None => token,
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
            // Nobody has to wait for it.
            drop(self.returns.start(self.end(token)));
        }
    }

    async fn revoke(&self, token: Arc<StoreToken>) {
        self.returns.give(self.end(token)).await;
    }

    /// Ends a token; `true` is that there is no more to be done.
    fn end(
        &self,
        token: Arc<StoreToken>,
    ) -> impl Fn() -> BoxFuture<'static, bool> + Send + 'static {
        let (store, namespace) = (self.store.clone(), self.namespace.clone());
        move || {
            let (store, token) = (store.clone(), token.clone());
            let headers = token.headers(&namespace);
            Box::pin(async move {
                let call = RevokeTokenSelfRequest {};
                if token.is_over() {
                    return true;
                }
                match store.connection.call(&call, &headers).await {
                    Ok(reply) => !reply.may_pass(),
                    Err(error) => {
                        debug!(%error, "a token of the store cannot be revoked now");
                        false
                    }
                }
            })
        }
    }

    /// Logs in, unless somebody who was waited for since `asked` has just failed to.
    async fn log_in(
        &self,
        state: &mut State,
        caller: &Caller,
        asked: Instant,
    ) -> Result<Arc<StoreToken>, ProviderError> {
        state.fails_since(asked)?;
        if self.has_ended.load(Ordering::SeqCst) {
            let problem = "the identity was logged out in the meantime";
            return Err(ProviderError::new(ErrorKind::Unavailable, problem));
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
