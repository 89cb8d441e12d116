//! Leases: what the driver is given to name one by, and what a renewal says.

use std::sync::Arc;
use std::time::Duration;

use coffer_provider::{Caller, ErrorKind, Lease, Life, ProviderError};
use futures_util::future::{BoxFuture, join_all};
use rustify::errors::ClientError;
use tracing::debug;
use zeroize::Zeroizing;

use crate::answer::Object;
use crate::calls::Call;
use crate::error;
use crate::headers::Headers;
use crate::http::Reply;
use crate::login::Login;

/// What has to be known about a lease to renew it. As text: `7 3600 database/creds/app/…`.
pub(crate) struct LeaseHandle {
    /// The serial of the token that it dies with.
    pub(crate) token: u64,
    /// What it was given at first, in whole seconds: what is asked for again.
    pub(crate) asked: Duration,
    pub(crate) id: Zeroizing<String>,
}

impl LeaseHandle {
    pub(crate) fn to_text(&self) -> String {
        format!("{} {} {}", self.token, self.asked.as_secs(), *self.id)
    }

    fn of(lease: &Lease) -> Option<Self> {
        let mut parts = lease.expose().splitn(3, ' ');
        Some(Self {
            token: parts.next()?.parse().ok()?,
            asked: Duration::from_secs(parts.next()?.parse().ok()?),
            id: Zeroizing::new(parts.next()?.to_owned()),
        })
    }
}

/// Prolongs a lease for as long as it had at first. One that gets less has met its end: it is told as
/// not renewable, so that another one is fetched in time.
pub(crate) async fn renew(
    login: &Arc<Login>,
    namespace: &str,
    caller: &Caller,
    lease: &Lease,
) -> Result<Life, ProviderError> {
    let gone = || ProviderError::new(ErrorKind::NotFound, "the lease has ended with its token");
    let handle = LeaseHandle::of(lease).ok_or_else(gone)?;
    // First the token: its end is the lease's, too.
    let token = login.token_for(caller, handle.asked).await?;
    if token.serial != handle.token {
        return Err(gone());
    }
    let call = Call::renew_lease(&handle.id, handle.asked.as_secs()).map_err(unbuilt)?;
    let reply = login
        .store
        .connection
        .call(&call, &token.headers(namespace))
        .await?;
    if !reply.status.is_success() {
        return Err(refusal(&reply));
    }
    let unreadable = || error::unreadable("sys/leases/renew", "the store's answer has no duration");
    let body = Object::parse(&reply.body).ok_or_else(unreadable)?;
    let given = body.seconds("lease_duration").ok_or_else(unreadable)?;
    let truncated = given * 10 < handle.asked * 9;
    let duration = token.remaining().map_or(given, |token| token.min(given));
    Ok(Life::Leased {
        lease: lease.clone(),
        duration,
        renewable: body.is_true("renewable") && !truncated,
    })
}

/// The sentence of a refusal never names the lease.
fn refusal(reply: &Reply) -> ProviderError {
    match reply.status.as_u16() {
        400 | 404 => ProviderError::new(
            ErrorKind::NotFound,
            "the store does not know the lease any more, or cannot renew it",
        ),
        403 => ProviderError::new(
            ErrorKind::PermissionDenied,
            "the store does not allow sys/leases/renew to the role",
        ),
        _ => error::common("sys/leases/renew", reply, ""),
    }
}

/// Gives leases back, to end after `grace`: each once, with the token that there is. Nobody logs in for it.
pub(crate) async fn release(
    login: &Arc<Login>,
    namespace: &str,
    leases: &[Lease],
    grace: Duration,
) {
    let mut ids: Vec<Zeroizing<String>> = Vec::new();
    for handle in leases.iter().filter_map(LeaseHandle::of) {
        if !ids.contains(&handle.id) {
            ids.push(handle.id);
        }
    }
    let ends = ids
        .into_iter()
        .map(|id| login.returns.give(end(login, namespace, id, grace)));
    join_all(ends).await;
}

/// A lease that nobody knows of yet: unless it is handed over, it is given back, also where whoever asked
/// for it gives up.
pub(crate) struct Unclaimed {
    login: Arc<Login>,
    namespace: String,
    id: Zeroizing<String>,
    claimed: bool,
}

impl Unclaimed {
    pub(crate) fn new(login: &Arc<Login>, namespace: &str, id: Zeroizing<String>) -> Self {
        Self {
            login: login.clone(),
            namespace: namespace.to_owned(),
            id,
            claimed: false,
        }
    }

    /// Somebody has it.
    pub(crate) fn claim(mut self) {
        self.claimed = true;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if !self.claimed {
            let id = self.id.clone();
            let end = end(&self.login, &self.namespace, id, Duration::ZERO);
            drop(self.login.returns.start(end));
        }
    }
}

/// Ends a lease after `grace`. What everybody may do is to renew a lease for as long as that, which the
/// store keeps to by itself; where it cannot be renewed, only those may end it whose policy says so, and
/// somebody has to wait until then. `true` is that there is no more to be done.
fn end(
    login: &Arc<Login>,
    namespace: &str,
    id: Zeroizing<String>,
    grace: Duration,
) -> impl Fn() -> BoxFuture<'static, bool> + Send + 'static {
    let (login, namespace) = (login.clone(), namespace.to_owned());
    move || {
        let (login, namespace, id) = (login.clone(), namespace.clone(), id.clone());
        Box::pin(async move {
            // A lease ends with its token.
            let Some(token) = login.unended().await else {
                return true;
            };
            let headers = token.headers(&namespace);
            let renewed = Call::renew_lease(&id, grace.as_secs().max(1));
            match said(&login, renewed, &headers).await {
                Said::Done => return true,
                Said::NotNow => return false,
                Said::No => {}
            }
            let revoke = async move {
                tokio::time::sleep(grace).await;
                said(&login, Call::revoke_lease(&id), &headers).await != Said::NotNow
            };
            match grace.is_zero() {
                true => revoke.await,
                false => {
                    tokio::spawn(revoke);
                    true
                }
            }
        })
    }
}

#[derive(PartialEq, Eq)]
enum Said {
    Done,
    No,
    NotNow,
}

async fn said(login: &Login, call: Result<Call, ClientError>, headers: &Headers) -> Said {
    let Ok(call) = call else { return Said::No };
    match login.store.connection.call(&call, headers).await {
        Ok(reply) if reply.status.is_success() => Said::Done,
        Ok(reply) if reply.may_pass() => Said::NotNow,
        Ok(_) => Said::No,
        Err(error) => {
            debug!(%error, "a lease cannot be given back now");
            Said::NotNow
        }
    }
}

fn unbuilt(_: ClientError) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidParameters, "the request cannot be built")
}
