//! Whose secrets are read: what a store tells callers apart by, and with it what answers are shared by.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use coffer_provider::{
    Audiences, Caller, Forwarded, IdentifiedBy, Pod, SecretBytes, ServiceAccount,
    ServiceAccountToken, Sharing, Source,
};

use crate::error::PublishError;
use crate::tokens::{self, Claims, Tokens, TokensError};

/// A token this close to its end is not sent anywhere (D3): it could end on the way.
pub const TOKEN_RESERVE: Duration = Duration::from_secs(10);

/// Those for whom one store gives one answer. Two identities never share one (I5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    namespace: String,
    /// Name and UID, where the store looks at the ServiceAccount: one that was deleted and made anew is
    /// another one (C2).
    account: Option<(String, Option<String>)>,
    login: Option<Login>,
    pod: Option<String>,
}

/// Where the token of a ServiceAccount goes, and what for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Login {
    audience: String,
    store: String,
    role: String,
    /// What somebody else than the class says that the account is to the store; empty where nobody does.
    known_as: String,
    /// The pod, where the class has each pod logged in by itself.
    pod: Option<String>,
}

impl Identity {
    /// The same identity, of one pod alone.
    #[must_use]
    pub fn of_pod(&self, uid: &str) -> Self {
        Self {
            pod: Some(uid.to_owned()),
            ..self.clone()
        }
    }

    /// The same identity, known to its store as this, where that is not in the class.
    #[must_use]
    pub fn known_as(mut self, known_as: Option<&String>) -> Self {
        if let (Some(login), Some(known_as)) = (&mut self.login, known_as) {
            login.known_as.clone_from(known_as);
        }
        self
    }

    /// The identity that a store has logged in, whichever pods share that.
    #[must_use]
    pub fn without_pod(&self) -> Self {
        Self {
            pod: None,
            ..self.clone()
        }
    }

    /// Who may use what the store gives this identity to be known by.
    #[must_use]
    pub fn login_sharing(&self) -> Sharing {
        match self.login.as_ref().and_then(|login| login.pod.as_ref()) {
            Some(_) => Sharing::Pod,
            None => Sharing::ServiceAccount,
        }
    }

    /// A pod that has gone, to give back what the store gave this identity: with nothing that proves who it
    /// was, since the store's own token does that.
    #[must_use]
    pub fn departed(&self, mut pod: Pod) -> Caller {
        if let Some((name, uid)) = self.account.clone() {
            pod.service_account = ServiceAccount { name, uid };
        }
        Caller {
            pod,
            token: None,
            further_tokens: BTreeMap::new(),
            sharing: self.login_sharing(),
            secrets: BTreeMap::new(),
            forwarded: Forwarded::default(),
        }
    }

    /// Whether this is still what the store would know `caller` as.
    #[must_use]
    pub fn admits(&self, caller: &Caller) -> bool {
        let account = &caller.pod.service_account;
        let same_account = self.account.as_ref().is_none_or(|(name, uid)| {
            *name == account.name && (uid.is_none() || *uid == account.uid)
        });
        same_account
            && self.namespace == caller.pod.namespace
            && self.pod.as_ref().is_none_or(|uid| *uid == caller.pod.uid)
    }

    /// Whether nobody outside of the node is asked.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.account.is_none() && self.pod.is_none()
    }

    /// The store that is asked, where the provider has more than one.
    #[must_use]
    pub fn store(&self) -> &str {
        self.login.as_ref().map_or("", |login| &login.store)
    }
}

/// A pod that wants a volume, with all that it can show to a store. Holds secrets: no `Debug`.
pub struct Requester {
    /// The pod, by the kubelet's word.
    pub pod: Pod,
    /// Its tokens. That they cannot be read matters only to a source that needs one.
    pub tokens: Result<Tokens, TokensError>,
    /// The data of the Secret that `nodePublishSecretRef` names.
    pub secrets: BTreeMap<String, SecretBytes>,
    /// Where the kubelet wants the volume.
    pub target_path: String,
}

impl Requester {
    /// What `source` will know this pod as. The claims of its token have to agree with what the kubelet
    /// says of the pod (I4, D1); whether the token is still good is not looked at.
    ///
    /// # Errors
    /// When there is no token for the audience, or it is somebody else's.
    pub fn identity(
        &self,
        source: &dyn Source,
        sharing: Option<Sharing>,
    ) -> Result<Identity, PublishError> {
        let uid = || Some(self.pod.uid.clone());
        let name = || self.pod.service_account.name.clone();
        let mut identity = Identity {
            namespace: self.pod.namespace.clone(),
            account: None,
            login: None,
            pod: None,
        };
        match source.identified_by() {
            IdentifiedBy::Namespace => {}
            // Only the plugin knows what it tells pods apart by, unless the class says it.
            IdentifiedBy::Pod if sharing == Some(Sharing::ServiceAccount) => {
                let proven = self.proven_by_what_is_handed_on(source)?;
                identity.account = Some((name(), proven.and_then(|account| account.uid)));
            }
            IdentifiedBy::Pod => identity.pod = uid(),
            IdentifiedBy::Token {
                audience,
                store,
                role,
            } => {
                let account = self.service_account(self.token(audience)?)?;
                identity.account = Some((account.name, account.uid));
                identity.login = Some(Login {
                    audience: audience.clone(),
                    store: store.clone(),
                    role: role.clone(),
                    known_as: String::new(),
                    pod: uid().filter(|_| sharing == Some(Sharing::Pod)),
                });
            }
        }
        // What a pod brings along by nodePublishSecretRef may be another pod's to bring along differently.
        if sharing == Some(Sharing::Pod) || !self.secrets.is_empty() {
            identity.pod = uid();
        }
        Ok(identity)
    }

    /// The pod as `source` gets to see it: with the tokens for that source's audiences and no other (D4),
    /// to be known to its store together with those whom `sharing` says.
    ///
    /// # Errors
    /// As [`Self::identity`], and when the token has ended or is about to (D3).
    pub fn caller(&self, source: &dyn Source, sharing: Sharing) -> Result<Caller, PublishError> {
        let mut pod = self.pod.clone();
        let token = match source.identified_by() {
            IdentifiedBy::Pod | IdentifiedBy::Namespace => None,
            IdentifiedBy::Token { audience, .. } => {
                let token = self.token(audience)?;
                pod.service_account = self.service_account(token)?;
                fresh(audience, token)?;
                Some(token.clone())
            }
        };
        let further = source.further_audiences().iter().filter_map(|audience| {
            let token = self.token(audience).ok()?;
            let own = self.service_account(token).ok()? == pod.service_account;
            own.then(|| (audience.clone(), token.clone()))
        });
        let further_tokens = further.collect();
        let forwarded = match source.forwards() {
            None => Forwarded::default(),
            Some(audiences) => self.forwarded(audiences)?,
        };
        if let Some(account) = self.proven_by_what_is_handed_on(source)? {
            pod.service_account = account;
        }
        Ok(Caller {
            further_tokens,
            pod,
            token,
            sharing,
            secrets: self.secrets.clone(),
            forwarded,
        })
    }

    /// What is handed on, under the same conditions as a token that is used: it is this pod's, and good.
    fn forwarded(&self, audiences: &Audiences) -> Result<Forwarded, PublishError> {
        let mut tokens = BTreeMap::new();
        for (audience, token) in self.handed_on(audiences)? {
            self.service_account(token)?;
            fresh(audience, token)?;
            tokens.insert(audience.to_owned(), token.clone());
        }
        Ok(Forwarded {
            target_path: self.target_path.clone(),
            tokens,
        })
    }

    fn handed_on(
        &self,
        audiences: &Audiences,
    ) -> Result<impl Iterator<Item = (&str, &ServiceAccountToken)>, PublishError> {
        let tokens = self.tokens()?.iter();
        Ok(tokens.filter(|(audience, _)| audiences.admit(audience)))
    }

    /// The ServiceAccount with its UID, where a token that is handed on tells it (C2).
    fn proven_by_what_is_handed_on(
        &self,
        source: &dyn Source,
    ) -> Result<Option<ServiceAccount>, PublishError> {
        let Some(audiences) = source.forwards() else {
            return Ok(None);
        };
        let first = self.handed_on(audiences)?.next();
        first
            .map(|(_, token)| self.service_account(token))
            .transpose()
    }

    /// Whether there is a token at all.
    #[must_use]
    pub fn brings_tokens(&self) -> bool {
        self.tokens.as_ref().is_ok_and(|tokens| !tokens.is_empty())
    }

    /// When the token that `source` would get ends, if it would get one; of several, the first that does.
    #[must_use]
    pub fn token_expires(&self, source: &dyn Source) -> Option<SystemTime> {
        if let Some(audiences) = source.forwards() {
            let handed_on = self.handed_on(audiences).ok()?;
            return handed_on.map(|(_, token)| token.expires()).min();
        }
        match source.identified_by() {
            IdentifiedBy::Token { audience, .. } => {
                self.token(audience).ok().map(ServiceAccountToken::expires)
            }
            IdentifiedBy::Pod | IdentifiedBy::Namespace => None,
        }
    }

    fn token(&self, audience: &str) -> Result<&ServiceAccountToken, PublishError> {
        if audience.is_empty() {
            return Err(PublishError::EmptyAudience);
        }
        let token = self.tokens()?.of(audience);
        token.ok_or_else(|| PublishError::NoToken(audience.to_owned()))
    }

    fn tokens(&self) -> Result<&Tokens, PublishError> {
        let tokens = self.tokens.as_ref();
        tokens.map_err(|error| wrong(error.to_string()))
    }

    fn service_account(&self, token: &ServiceAccountToken) -> Result<ServiceAccount, PublishError> {
        let claims = Claims::read(token).map_err(|error| wrong(error.to_string()))?;
        let pod = &self.pod;
        let bound_to = claims.pod.map(|pod| pod.uid);
        for (same, what) in [
            (claims.namespace == pod.namespace, "Namespace"),
            (
                claims.service_account.name == pod.service_account.name,
                "ServiceAccount",
            ),
            (bound_to.as_ref() == Some(&pod.uid), "pod"),
        ] {
            if !same {
                return Err(wrong(format!(
                    "has a token of another {what} than the kubelet names"
                )));
            }
        }
        Ok(ServiceAccount {
            name: claims.service_account.name,
            uid: Some(claims.service_account.uid),
        })
    }
}

/// A token that has ended, or is about to, is not sent anywhere (D3).
fn fresh(audience: &str, token: &ServiceAccountToken) -> Result<(), PublishError> {
    match token.expires() < SystemTime::now() + TOKEN_RESERVE {
        true => Err(PublishError::TokenExpired(audience.to_owned())),
        false => Ok(()),
    }
}

fn wrong(problem: String) -> PublishError {
    PublishError::InvalidRequest {
        field: tokens::KEY,
        problem,
    }
}
