//! The pod's ServiceAccount tokens, as the kubelet hands them over.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer_provider::ServiceAccountToken;
use serde::Deserialize;
use zeroize::Zeroizing;

/// The key of the tokens, in whichever map they come.
pub const KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Most bytes of the tokens of one pod. A token has about one kilobyte, for each audience.
const MAX_BYTES: usize = 256 * 1024;

/// Where the kubelet puts tokens. A pod's author can write into the volume context, so it is believed
/// only where the cluster is known to put them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TokenSource {
    /// Into the secrets of the request (`serviceAccountTokenInSecrets`, Kubernetes 1.35).
    Secrets,
    /// Into the volume context.
    Context,
}

/// The tokens of a pod by audience. No `Debug`.
#[derive(Clone, Default)]
pub struct Tokens(BTreeMap<String, ServiceAccountToken>);

/// Tokens that cannot be read; nothing of them is in the error.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokensError {
    /// Larger than any kubelet makes them.
    #[error("has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not what a kubelet writes.
    #[error(
        "is not the JSON that a kubelet writes: an object of token and expirationTimestamp by audience"
    )]
    Malformed,
    /// Not a JWT of the API server.
    #[error("has a token that is not one of a ServiceAccount")]
    NoServiceAccount,
}

/// Whom a token is for, by its own word: whether that word is true is for the store to find out.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Claims {
    /// The Namespace of the pod and of the account.
    pub namespace: String,
    /// The ServiceAccount.
    #[serde(rename = "serviceaccount")]
    pub service_account: Named,
    /// The pod that the token is bound to; the kubelet's always are.
    #[serde(default)]
    pub pod: Option<Named>,
}

/// An object of the API server.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Claims {
    /// Reads the claims that Kubernetes adds to a token (KEP-1205). The signature is not looked at.
    ///
    /// # Errors
    /// [`TokensError::NoServiceAccount`]
    pub fn read(token: &ServiceAccountToken) -> Result<Self, TokensError> {
        #[derive(Deserialize)]
        struct Payload {
            #[serde(rename = "kubernetes.io")]
            kubernetes: Claims,
        }
        let read = || {
            let payload = token.expose().split('.').nth(1)?;
            let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
            serde_json::from_slice::<Payload>(&payload).ok()
        };
        read()
            .map(|payload| payload.kubernetes)
            .ok_or(TokensError::NoServiceAccount)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OneToken {
    token: String,
    expiration_timestamp: jiff::Timestamp,
}

impl Tokens {
    /// Takes the tokens out of a request: both copies are gone, and the one of `source` is read.
    ///
    /// # Errors
    /// When they are there but cannot be read.
    pub fn take(
        source: TokenSource,
        secrets: &mut HashMap<String, String>,
        context: &mut HashMap<String, String>,
    ) -> Result<Self, TokensError> {
        let in_secrets = secrets.remove(KEY).map(Zeroizing::new);
        let in_context = context.remove(KEY).map(Zeroizing::new);
        let tokens = match source {
            TokenSource::Secrets => in_secrets,
            TokenSource::Context => in_context,
        };
        tokens.map_or(Ok(Self::default()), |json| Self::parse(&json))
    }

    fn parse(json: &str) -> Result<Self, TokensError> {
        if json.len() > MAX_BYTES {
            return Err(TokensError::TooLarge);
        }
        // The parser's own error can quote its input: it ends here.
        let tokens: BTreeMap<String, OneToken> =
            serde_json::from_str(json).map_err(|_| TokensError::Malformed)?;
        let tokens = tokens.into_iter().map(|(audience, one)| {
            let expires = one.expiration_timestamp.into();
            (audience, ServiceAccountToken::new(one.token, expires))
        });
        Ok(Self(tokens.collect()))
    }

    /// The token for one audience.
    #[must_use]
    pub fn of(&self, audience: &str) -> Option<&ServiceAccountToken> {
        self.0.get(audience)
    }

    /// All of them, with their audiences.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ServiceAccountToken)> {
        let all = self.0.iter();
        all.map(|(audience, token)| (audience.as_str(), token))
    }

    /// How many audiences there are tokens for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn map(json: Option<&str>) -> HashMap<String, String> {
        json.map(|json| (KEY.to_owned(), json.to_owned()))
            .into_iter()
            .collect()
    }

    const OF_SECRETS: &str =
        r#"{"vault":{"token":"s","expirationTimestamp":"1970-01-01T00:01:00Z"}}"#;
    const OF_CONTEXT: &str =
        r#"{"vault":{"token":"c","expirationTimestamp":"1970-01-01T00:01:00Z"}}"#;

    #[test]
    fn only_the_declared_source_is_believed() {
        for (source, in_secrets, in_context, expected) in [
            (
                TokenSource::Secrets,
                Some(OF_SECRETS),
                Some(OF_CONTEXT),
                Some("s"),
            ),
            (TokenSource::Secrets, None, Some(OF_CONTEXT), None),
            (
                TokenSource::Context,
                Some(OF_SECRETS),
                Some(OF_CONTEXT),
                Some("c"),
            ),
            (TokenSource::Context, Some(OF_SECRETS), None, None),
            (TokenSource::Secrets, None, None, None),
        ] {
            let (mut secrets, mut context) = (map(in_secrets), map(in_context));
            let tokens = Tokens::take(source, &mut secrets, &mut context).expect("good");
            assert_eq!(
                tokens.of("vault").map(ServiceAccountToken::expose),
                expected
            );
            assert!(tokens.of("other").is_none());
            assert!(secrets.is_empty() && context.is_empty(), "no copy stays");
        }
        let tokens = Tokens::parse(OF_SECRETS).expect("good");
        let expires = tokens.of("vault").expect("there").expires();
        assert_eq!(expires, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
    }

    #[test]
    fn rule_d7_malformed_tokens_are_refused_without_a_word_of_them() {
        let nested = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
        let huge = format!(r#"{{"a":"{}"}}"#, "canary".repeat(MAX_BYTES));
        for bad in [
            "canary",
            r#"["canary"]"#,
            r#"{"a":"canary"}"#,
            r#"{"a":{"token":"canary"}}"#,
            r#"{"a":{"token":"canary","expirationTimestamp":"canary"}}"#,
            r#"{"a":{"token":7,"expirationTimestamp":"1970-01-01T00:01:00Z"}}"#,
            "",
            &nested,
            &huge,
        ] {
            let error = Tokens::parse(bad).err().expect("refused");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }
}
