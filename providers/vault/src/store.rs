//! The stores that classes lead to, shared by all classes that lead there in the same way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coffer_provider::ProviderError;
use tokio::sync::Semaphore;

use crate::http::Connection;
use crate::login::{Login, LoginKey, Logins};
use crate::mounts::Mounts;
use crate::parameters::Class;
use crate::returns::Returns;
use crate::settings::Rules;
use crate::version::VersionKey;

/// One address with one way to trust it.
pub(crate) struct Store {
    pub(crate) connection: Connection,
    pub(crate) mounts: Mounts,
}

/// All that outlives a class.
pub(crate) struct Stores {
    pub(crate) rules: Arc<Rules>,
    pub(crate) logins: Logins,
    pub(crate) version_key: VersionKey,
    open: Mutex<Open>,
    returns: Returns,
}

/// Kept by the logins: a store that no identity uses any more is closed.
#[derive(Default)]
struct Open {
    stores: HashMap<String, Weak<Store>>,
    /// One for each address, however it is trusted.
    gates: HashMap<String, Weak<Semaphore>>,
}

impl Stores {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            version_key: VersionKey::new(rules.version_key.as_ref(), rules.cluster_key.as_ref()),
            rules: Arc::new(rules),
            logins: Logins::default(),
            open: Mutex::default(),
            returns: Returns::default(),
        }
    }

    /// The store of a class. Nothing is sent before it is asked something.
    fn of(&self, class: &Class) -> Result<Arc<Store>, ProviderError> {
        let origin = class.origin.to_string();
        let key = format!("{origin}{}", class.tls.fingerprint());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.stores.get(&key).and_then(Weak::upgrade) {
            return Ok(store);
        }
        open.stores.retain(|_, store| store.strong_count() > 0);
        open.gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = open.gates.get(&origin).and_then(Weak::upgrade);
        let gate = gate.unwrap_or_else(|| {
            Arc::new(Semaphore::new(self.rules.settings.limits.parallel.max(1)))
        });
        open.gates.insert(origin, Arc::downgrade(&gate));
        let rules = self.rules.clone();
        let connection = Connection::new(class.origin.clone(), &class.tls, gate, rules)?;
        let store = Arc::new(Store {
            connection,
            mounts: Mounts::default(),
        });
        open.stores.insert(key, Arc::downgrade(&store));
        Ok(store)
    }

    /// The login of an identity, made where there is none. It sends nothing yet.
    pub(crate) fn login(&self, key: LoginKey, class: &Class) -> Result<Arc<Login>, ProviderError> {
        self.logins.of(key, || {
            let returns = self.returns.clone();
            Ok(Login::new(self.of(class)?, class, returns))
        })
    }
}
