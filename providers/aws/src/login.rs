//! From a pod's token to temporary credentials, in explicit steps whose errors can be told apart.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_sts::types;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer_provider::{Caller, ErrorKind, ProviderError, ServiceAccountToken, Sharing, clean_text};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::Asked;
use crate::parameters::{AddressFamily, NextRole, POD_IDENTITY_AUDIENCE};
use crate::pod_identity::Agent;
use crate::regions::Region;

/// A token that ends before this is not sent: it would not survive the way (D3).
const TOO_SHORT: Duration = Duration::from_secs(10);

/// Whom credentials are lent to: a ServiceAccount, or a pod of it where the class says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// The pod, where each is logged in by itself.
    pub(crate) pod: Option<String>,
}

impl Account {
    /// The account of a caller, whose token says its UID.
    pub(crate) fn of(caller: &Caller) -> Result<Self, ProviderError> {
        let account = &caller.pod.service_account;
        let Some(uid) = account.uid.clone() else {
            let problem =
                "the UID of the pod's ServiceAccount is not known: there is no token that says it";
            return Err(ProviderError::new(ErrorKind::Unauthenticated, problem));
        };
        Ok(Self {
            namespace: caller.pod.namespace.clone(),
            name: account.name.clone(),
            uid,
            pod: match caller.sharing {
                Sharing::ServiceAccount => None,
                Sharing::Pod => Some(caller.pod.uid.clone()),
            },
        })
    }

    /// What its tokens call it.
    fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// What CloudTrail shows: `namespace.name`, in the characters and the length that STS takes.
    fn session_name(&self) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        format!("{}.{}", self.namespace, self.name)
            .chars()
            .map(|c| if allowed(c) { c } else { '-' })
            .take(64)
            .collect()
    }
}

/// Credentials and when they end.
pub(crate) struct Lent {
    pub(crate) credentials: Credentials,
    pub(crate) ends: SystemTime,
}

impl TryFrom<types::Credentials> for Lent {
    type Error = aws_smithy_types::date_time::ConversionError;

    fn try_from(lent: types::Credentials) -> Result<Self, Self::Error> {
        Ok(Self {
            ends: lent.expiration.try_into()?,
            credentials: Credentials::new(
                lent.access_key_id,
                lent.secret_access_key,
                Some(lent.session_token),
                // The SDK is given new ones before these end; it has no say in it.
                None,
                "web identity",
            ),
        })
    }
}

/// How one login goes, with everything that was looked up for it.
pub(crate) struct Steps {
    pub(crate) account: Account,
    pub(crate) proof: Proof,
    pub(crate) then: Option<NextRole>,
    pub(crate) region: Arc<Region>,
    pub(crate) agent: Arc<Agent>,
}

/// Who takes the token, and which role is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Proof {
    WebIdentity { role: String, audience: String },
    PodIdentity(AddressFamily),
}

impl Steps {
    /// Goes all of the way.
    pub(crate) async fn take(
        &self,
        token: Option<&ServiceAccountToken>,
    ) -> Result<Lent, ProviderError> {
        let lent = match &self.proof {
            Proof::WebIdentity { role, audience } => {
                let token = usable(token, audience)?;
                self.web_identity(role, audience, token).await?
            }
            Proof::PodIdentity(family) => {
                let token = usable(token, POD_IDENTITY_AUDIENCE)?;
                self.agent.lend(*family, token).await?
            }
        };
        match &self.then {
            None => Ok(lent),
            Some(next) => self.next_role(next, lent).await,
        }
    }

    /// The role that the caller ends up with, for errors.
    pub(crate) fn role(&self) -> &str {
        match (&self.then, &self.proof) {
            (Some(next), _) => &next.arn,
            (None, Proof::WebIdentity { role, .. }) => role,
            (None, Proof::PodIdentity(_)) => "the role of its Pod Identity association",
        }
    }

    async fn web_identity(
        &self,
        role: &str,
        audience: &str,
        token: &ServiceAccountToken,
    ) -> Result<Lent, ProviderError> {
        let subject = format!("{}, aud {audience}", self.account.subject());
        let asked = Asked {
            what: role,
            action: "sts:AssumeRoleWithWebIdentity",
            region: &self.region.name,
            role: &subject,
        };
        let request = self
            .region
            .sts(None)
            .assume_role_with_web_identity()
            .role_arn(role)
            .role_session_name(self.account.session_name())
            .web_identity_token(token.expose());
        let answer = self.region.send(asked.action, request.send()).await;
        let answer = answer.map_err(|error| {
            let error = asked.failed(&error);
            let issuer = issuer(token).unwrap_or_default();
            let detail = error.detail().unwrap_or_default();
            let detail = format!("token of issuer {issuer:?}; {detail}");
            error.with_detail(detail)
        })?;
        lent(&asked, answer.credentials)
    }

    async fn next_role(&self, next: &NextRole, own: Lent) -> Result<Lent, ProviderError> {
        let asked = Asked {
            what: &next.arn,
            action: "sts:AssumeRole",
            region: &self.region.name,
            role: match &self.proof {
                Proof::WebIdentity { role, .. } => role,
                Proof::PodIdentity(_) => "the pod's own role",
            },
        };
        let request = self
            .region
            .sts(Some(own.credentials))
            .assume_role()
            .role_arn(&next.arn)
            .role_session_name(self.account.session_name())
            .set_external_id(next.external_id.clone());
        let answer = self.region.send(asked.action, request.send()).await;
        let answer = answer.map_err(|error| asked.failed(&error))?;
        lent(&asked, answer.credentials)
    }
}

fn lent(asked: &Asked<'_>, lent: Option<types::Credentials>) -> Result<Lent, ProviderError> {
    lent.and_then(|lent| lent.try_into().ok()).ok_or_else(|| {
        let problem = "the answer has no credentials";
        asked.says(ErrorKind::InvalidAnswer, problem, "", "")
    })
}

/// Who says that the token is true, by its own word: for an error, since AWS may not know them.
fn issuer(token: &ServiceAccountToken) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        iss: String,
    }
    let claims = token.expose().split('.').nth(1)?;
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(clean_text(&claims.iss, 128))
}

/// The pod's token, where there is one that can still be sent.
fn usable<'a>(
    token: Option<&'a ServiceAccountToken>,
    audience: &str,
) -> Result<&'a ServiceAccountToken, ProviderError> {
    let problem = match token {
        Some(token) if token.expires() > SystemTime::now() + TOO_SHORT => return Ok(token),
        Some(_) => "has expired: the kubelet brings a new one within minutes",
        None => {
            "is missing: list this audience in the tokenRequests of the CSIDriver object, and one that a \
             ServiceAccount names in --aws-audience of the driver, too"
        }
    };
    Err(ProviderError::new(
        ErrorKind::Unauthenticated,
        format!("the ServiceAccount's token for the audience {audience} {problem}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::STS_AUDIENCE;

    #[test]
    fn aws_statement_8_a_session_is_named_after_the_account() {
        for (namespace, name, session) in [
            ("shop", "web", "shop.web".to_owned()),
            ("shop", "web:a/b", "shop.web-a-b".to_owned()),
            ("n", &"x".repeat(80), format!("n.{}", "x".repeat(62))),
        ] {
            let account = Account {
                namespace: namespace.into(),
                name: name.into(),
                uid: String::new(),
                pod: None,
            };
            assert_eq!(account.session_name(), session);
        }
    }

    #[test]
    fn rule_d3_a_token_that_is_about_to_end_is_not_sent() {
        let token = |seconds| {
            let ends = SystemTime::now() + Duration::from_secs(seconds);
            ServiceAccountToken::new("canary".into(), ends)
        };
        assert!(usable(Some(&token(60)), STS_AUDIENCE).is_ok());
        for token in [Some(token(9)), None] {
            let error = usable(token.as_ref(), STS_AUDIENCE)
                .err()
                .expect("none is usable");
            assert_eq!(error.kind(), ErrorKind::Unauthenticated);
            assert!(error.to_string().contains(STS_AUDIENCE), "{error}");
        }
    }
}
