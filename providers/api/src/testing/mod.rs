//! A provider that does as a test says, and the suite that every provider has to pass.

mod conformance;
mod scripted;

pub use conformance::{Subject, conformance};
pub use scripted::{Answer, ScriptedProvider};

use std::collections::BTreeMap;

use crate::{Caller, Forwarded, Pod, ServiceAccount, Sharing};

/// A caller without a token: pod `web-0` of the ServiceAccount `web` in `namespace`.
#[must_use]
pub fn caller(namespace: &str) -> Caller {
    Caller {
        pod: Pod {
            name: "web-0".into(),
            namespace: namespace.into(),
            uid: "5a1a9c3e-0c4b-4c39-9d5c-2f8f1b1d7a10".into(),
            service_account: ServiceAccount {
                name: "web".into(),
                uid: None,
            },
        },
        token: None,
        further_tokens: BTreeMap::new(),
        sharing: Sharing::ServiceAccount,
        secrets: BTreeMap::new(),
        forwarded: Forwarded::default(),
    }
}
