//! Leases: what the driver is given to name one by, and what a renewal says.

use std::sync::Arc;
use std::time::Duration;

use coffer_provider::{Caller, ErrorKind, Lease, Life, ProviderError};
use futures_util::future::join_all;
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
    login: &Login,
    namespace: &str,
    caller: &Caller,
    lease: &Lease,
) -> Result<Life, ProviderError> {
    let gone = || ProviderError::new(ErrorKind::NotFound, "the lease has ended with its token");
    let handle = LeaseHandle::of(lease).ok_or_else(gone)?;
    // First the token: its end is the lease's, too.
    let token = login.token(caller).await?;
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

/// Gives leases back, to end after `grace`. What everybody may do is to renew a lease for as long as
/// that, which the store keeps to by itself; where it cannot be renewed, only those may end it whose
/// policy says so, and somebody has to wait until then.
pub(crate) async fn release(
    login: &Arc<Login>,
    namespace: &str,
    caller: &Caller,
    leases: &[Lease],
    grace: Duration,
) {
    let Ok(token) = login.token(caller).await else {
        debug!("leases are left to end by themselves: there is no token to end them with");
        return;
    };
    let headers = token.headers(namespace);
    let ends = leases.iter().filter_map(LeaseHandle::of).map(|handle| {
        let headers = &headers;
        async move {
            if is_done(
                login,
                Call::renew_lease(&handle.id, grace.as_secs().max(1)),
                headers,
            )
            .await
            {
                return;
            }
            let (login, headers) = (login.clone(), headers.clone());
            let revoke = async move {
                tokio::time::sleep(grace).await;
                is_done(&login, Call::revoke_lease(&handle.id), &headers).await
            };
            match grace.is_zero() {
                true => drop(revoke.await),
                false => drop(tokio::spawn(revoke)),
            }
        }
    });
    join_all(ends).await;
}

/// Ends one lease at once.
pub(crate) async fn end(login: &Login, headers: &Headers, id: &str) {
    if !is_done(login, Call::renew_lease(id, 1), headers).await {
        is_done(login, Call::revoke_lease(id), headers).await;
    }
}

/// Makes a call that may fail: a lease ends by itself in the end.
async fn is_done(login: &Login, call: Result<Call, ClientError>, headers: &Headers) -> bool {
    let Ok(call) = call else { return false };
    match login.store.connection.call(&call, headers).await {
        Ok(reply) => reply.status.is_success(),
        Err(error) => {
            debug!(%error, "a lease is left to end by itself");
            false
        }
    }
}

fn unbuilt(_: ClientError) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidParameters, "the request cannot be built")
}
