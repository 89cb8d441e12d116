//! Names to addresses, looked at before anybody connects to them.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::address;
use crate::settings::Rules;

/// Lookups at one time. Each takes a thread until the C library gives up, whoever still waits for it, and the process
/// has few of them. Those of names that classes give do not hold up the administrator's.
const LOOKUPS: usize = 4;
static OF_THE_ADMINISTRATOR: Semaphore = Semaphore::const_new(LOOKUPS);
static OF_CLASSES: Semaphore = Semaphore::const_new(LOOKUPS);

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
            let turns = match checks {
                None => &OF_THE_ADMINISTRATOR,
                Some(_) => &OF_CLASSES,
            };
            // Who asks has a deadline, which ends this wait too.
            let turn = turns.acquire().await.map_err(io::Error::other)?;
            let look_up = move || {
                let _turn = turn;
                (name.as_str(), 0).to_socket_addrs()
            };
            let found: Vec<_> = spawn_blocking(look_up).await??.collect();
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]

    use futures_util::FutureExt;
    use tower_service::Service;

    use super::*;
    use crate::settings::Settings;

    #[tokio::test]
    async fn lookups_wait_for_four_others_and_names_of_classes_hold_up_no_others() {
        let rules = Rules::new(Settings::default()).ok().unwrap();
        let mut of_a_class = Resolver {
            checks: Some(Arc::new(rules)),
        };
        let mut of_the_administrator = Resolver { checks: None };
        let name: Name = "localhost".parse().unwrap();
        let others = OF_CLASSES.acquire_many(LOOKUPS as u32).await.unwrap();
        let mut waits = of_a_class.call(name.clone());
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(of_the_administrator.call(name).await.unwrap().count() > 0);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(others);
        // It is this node, where no store of a class is.
        let refused = waits.await.err().unwrap();
        assert!(refused.get_ref().unwrap().is::<RefusedAddress>());
        assert_eq!(OF_CLASSES.available_permits(), LOOKUPS);
    }
}
