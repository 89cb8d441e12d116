//! Names to addresses, looked at before anybody connects to them.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use hyper_util::client::legacy::connect::dns::Name;

use crate::address;
use crate::settings::Rules;

/// Looks a name up and refuses what no store is at. The connection goes to what was looked at, so a
/// name that leads elsewhere a moment later gains nothing.
#[derive(Clone)]
pub(crate) struct Resolver {
    /// `None` where the administrator named the store.
    pub(crate) checks: Option<Arc<Rules>>,
}

impl tower_service::Service<Name> for Resolver {
    type Response = IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let checks = self.checks.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<_> = found.collect();
            if let Some(rules) = checks {
                let own = &rules.settings.node_addresses;
                // One bad address is enough: nobody has both by accident.
                let refused = found.iter().find_map(|at| address::refused(at.ip(), own));
                if let Some(what) = refused {
                    return Err(io::Error::other(RefusedAddress(what)));
                }
            }
            Ok(found.into_iter())
        })
    }
}

/// A store that leads to a place where none is.
#[derive(Debug)]
pub(crate) struct RefusedAddress(pub(crate) &'static str);

impl fmt::Display for RefusedAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for RefusedAddress {}
