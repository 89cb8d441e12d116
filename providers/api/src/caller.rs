//! Who asks: the pod as the kubelet names it, and what tells one caller from another.

use std::collections::BTreeMap;

use crate::{SecretBytes, ServiceAccountToken, Sharing};

/// A pod, in the words of the kubelet (`podInfoOnMount`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// `csi.storage.k8s.io/pod.name`
    pub name: String,
    /// `csi.storage.k8s.io/pod.namespace`
    pub namespace: String,
    /// `csi.storage.k8s.io/pod.uid`
    pub uid: String,
    /// `csi.storage.k8s.io/serviceAccount.name`
    pub service_account: ServiceAccount,
}

/// The ServiceAccount that a pod runs as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    /// Its name, in the Namespace of the pod.
    pub name: String,
    /// Its UID, known only from the claims of a token: an account that was deleted and made anew is
    /// another one.
    pub uid: Option<String>,
}

/// The pod on whose behalf a store is asked. Holds secrets, hence no `Debug`.
#[derive(Clone)]
pub struct Caller {
    /// The pod itself.
    pub pod: Pod,
    /// The pod's token for the audience that the source declared, and for no other.
    pub token: Option<ServiceAccountToken>,
    /// Those of its tokens for [`crate::Source::further_audiences`] that there are, by audience.
    pub further_tokens: BTreeMap<String, ServiceAccountToken>,
    /// Who may use what the store gives the caller to be known by: every pod of the ServiceAccount, or
    /// this one alone, where the store tells the pods of an account apart.
    pub sharing: Sharing,
    /// The data of the Secret that the volume's `nodePublishSecretRef` names.
    pub secrets: BTreeMap<String, SecretBytes>,
    /// What a source gets that hands the request on; empty for every other one.
    pub forwarded: Forwarded,
}

/// What only whoever hands a request on needs to see. Holds secrets, hence no `Debug`.
#[derive(Clone, Default)]
pub struct Forwarded {
    /// The kubelet's target path of the volume, where nothing needs to be mounted yet.
    pub target_path: String,
    /// The pod's tokens by audience: those that [`crate::Source::forwards`] names, as far as there are any.
    pub tokens: BTreeMap<String, ServiceAccountToken>,
}

/// The audiences of tokens that are handed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audiences {
    /// Every one but the empty one: a token without an audience is good for the API server itself.
    All,
    /// These; one that starts with `*` stands for all that end like it. The empty one only where it is listed.
    Listed(Vec<String>),
}

impl Audiences {
    /// Whether a token for this audience is handed on.
    #[must_use]
    pub fn admit(&self, audience: &str) -> bool {
        match self {
            Self::All => !audience.is_empty(),
            Self::Listed(listed) => listed.iter().any(|one| match one.strip_prefix('*') {
                Some(end) => !end.is_empty() && audience.ends_with(end),
                None => one == audience,
            }),
        }
    }
}

/// What a store tells callers apart by: the driver makes the identity of a cache entry of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdentifiedBy {
    /// The ServiceAccount, proven by a token. The driver adds the account's Namespace, name and UID.
    Token {
        /// The audience that the token must have; the CSIDriver object has to list it.
        audience: String,
        /// Where the token goes: the store's address, with its namespace or region where it has one.
        store: String,
        /// What the store is asked to make of the token: its role.
        role: String,
    },
    /// The pod: the rules are known to somebody else, such as a plugin.
    Pod,
    /// The pod's Namespace; no token is needed.
    Namespace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_d5_the_empty_audience_is_handed_on_only_by_name() {
        let listed =
            |all: &[&str]| Audiences::Listed(all.iter().map(|&one| one.to_owned()).collect());
        for (audiences, admitted, refused) in [
            (Audiences::All, &["vault", "x"][..], &[""][..]),
            (listed(&["vault"]), &["vault"], &["", "vault2", "x"]),
            (listed(&["vault", ""]), &["vault", ""], &["x"]),
            (
                listed(&["*.svc.id.goog"]),
                &["shop.svc.id.goog"],
                &["", "svc.id.goog", "shop.svc.id.goog.example"],
            ),
            (listed(&["*"]), &[], &["", "x"]),
            (listed(&[]), &[], &["", "x"]),
        ] {
            for audience in admitted {
                assert!(audiences.admit(audience), "{audiences:?} {audience:?}");
            }
            for audience in refused {
                assert!(!audiences.admit(audience), "{audiences:?} {audience:?}");
            }
        }
    }
}
