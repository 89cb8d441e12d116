//! The EKS Pod Identity agent: takes the pod's token, and knows the role that goes with it.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use coffer_provider::{ErrorKind, ProviderError, ServiceAccountToken};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::root_cause;
use crate::login::Lent;
use crate::parameters::AddressFamily;
use crate::settings::{PodIdentityAgent, Settings};

const PATH: &str = "/v1/credentials";
const MAX_ANSWER: usize = 64 << 10;

/// The agent of the node.
pub(crate) struct Agent {
    addresses: PodIdentityAgent,
    http: Connector,
    timeout: Duration,
}

/// What the agent lends.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: String,
}

impl Agent {
    pub(crate) fn new(settings: &Settings) -> Self {
        let timeouts = HttpConnectorSettings::builder()
            .connect_timeout(settings.connect_timeout)
            .build();
        Self {
            addresses: settings.pod_identity.clone(),
            http: Connector::builder()
                .connector_settings(timeouts)
                .build_http(),
            timeout: settings.timeout,
        }
    }

    /// Credentials for `token`. Only an address that cannot be reached makes for another try.
    pub(crate) async fn lend(
        &self,
        family: AddressFamily,
        token: &ServiceAccountToken,
    ) -> Result<Lent, ProviderError> {
        let PodIdentityAgent { ipv4, ipv6 } = &self.addresses;
        let addresses: &[_] = match family {
            AddressFamily::Auto => &[ipv4, ipv6],
            AddressFamily::Ipv4 => &[ipv4],
            AddressFamily::Ipv6 => &[ipv6],
        };
        let mut unreachable = String::new();
        for address in addresses {
            let asked = tokio::time::timeout(self.timeout, self.ask(address, token));
            match asked.await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(cause)) => unreachable += &format!("{address}: {cause}. "),
                Err(_) => unreachable += &format!("{address}: no answer in time. "),
            }
        }
        Err(problem(
            ErrorKind::Unavailable,
            "does not answer on this node",
            "is the add-on installed, and does the network policy let the driver reach it?",
        )
        .with_detail(unreachable))
    }

    /// The agent's answer, or why there is none.
    async fn ask(
        &self,
        address: &str,
        token: &ServiceAccountToken,
    ) -> Result<Result<Lent, ProviderError>, String> {
        let uri = format!("{}{PATH}", address.trim_end_matches('/'));
        let mut request = HttpRequest::get(uri).map_err(|_| "not an address".to_owned())?;
        let headers = request.headers_mut();
        // Not a Bearer: the agent wants the token as it is.
        if headers
            .try_insert("authorization", token.expose().to_owned())
            .is_err()
        {
            let error = problem(ErrorKind::Unauthenticated, "cannot be given this token", "");
            return Ok(Err(error));
        }
        let response = self.http.call(request).await;
        let response = response.map_err(|error| root_cause(&error))?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|seconds| seconds.parse().ok());
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|_| "its answer broke off, or has no end".to_owned())?;
        let body = Zeroizing::new(body.to_bytes().to_vec());
        if status == 200 {
            return Ok(lent(&body));
        }
        let text = String::from_utf8_lossy(&body).replace(token.expose(), "…");
        let error = refused(status, &text);
        Ok(Err(match retry_after {
            Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
            None => error,
        }))
    }
}

fn lent(body: &[u8]) -> Result<Lent, ProviderError> {
    let invalid = |what: &str| problem(ErrorKind::InvalidAnswer, what, "");
    // What serde says of it may quote a key.
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| invalid("gives an answer that is not credentials"))?;
    let ends = DateTime::from_str(&answer.expiration, Format::DateTimeWithOffset)
        .ok()
        .and_then(|ends| SystemTime::try_from(ends).ok())
        .ok_or_else(|| invalid("gives credentials without an end"))?;
    Ok(Lent {
        credentials: Credentials::new(
            answer.access_key_id,
            answer.secret_access_key,
            Some(answer.token),
            None,
            "pod identity",
        ),
        ends,
    })
}

/// What a refusal means; its text is `[request id]: (Code): message, fault: …`.
fn refused(status: u16, text: &str) -> ProviderError {
    let code = text
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map_or("", |(code, _)| code);
    let associate = "associate a role with the ServiceAccount in EKS";
    let (kind, what, hint) = match (code, status) {
        ("ResourceNotFoundException", _) | (_, 404) => (
            ErrorKind::PermissionDenied,
            "knows no role for this ServiceAccount",
            associate,
        ),
        ("AccessDeniedException", _) | (_, 401 | 403) => (
            ErrorKind::PermissionDenied,
            "is not allowed to lend the role",
            "its trust policy has to let pods.eks.amazonaws.com in, and the node's role the agent",
        ),
        ("ExpiredTokenException" | "InvalidTokenException", _) | (_, 400) => (
            ErrorKind::Unauthenticated,
            "does not accept the ServiceAccount's token",
            "it must be for the audience pods.eks.amazonaws.com",
        ),
        (_, 429) => (ErrorKind::Unavailable, "is asked too often", ""),
        _ => (ErrorKind::Unavailable, "has a problem", ""),
    };
    let code = if code.is_empty() {
        String::new()
    } else {
        format!("{code} ")
    };
    let what = format!("{what} ({code}HTTP {status})");
    problem(kind, &what, hint).with_detail(text)
}

fn problem(kind: ErrorKind, what: &str, hint: &str) -> ProviderError {
    let hint = if hint.is_empty() {
        String::new()
    } else {
        format!(": {hint}")
    };
    ProviderError::new(kind, format!("the EKS Pod Identity agent {what}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_pod_identity_answers_are_told_apart() {
        use ErrorKind::{PermissionDenied, Unauthenticated, Unavailable};
        for (status, text, kind, says) in [
            (
                404,
                "[0815]: (ResourceNotFoundException): no association, fault: client",
                PermissionDenied,
                "associate a role",
            ),
            (
                400,
                "[0815]: (InvalidTokenException): bad, fault: client",
                Unauthenticated,
                "audience",
            ),
            (
                400,
                "Service account token cannot be empty",
                Unauthenticated,
                "HTTP 400",
            ),
            (
                403,
                "called agent through invalid address",
                PermissionDenied,
                "HTTP 403",
            ),
            (429, "Request throttled", Unavailable, "too often"),
            (
                500,
                "[0815]: (InternalServerException): oh, fault: server",
                Unavailable,
                "InternalServerException",
            ),
        ] {
            let error = refused(status, text);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(says), "{error}");
            assert!(!error.to_string().contains("0815"), "{error}");
            assert_eq!(error.detail(), Some(text));
        }
    }

    #[test]
    fn an_answer_that_is_not_credentials_is_not_quoted() {
        for body in [
            &b"canary"[..],
            br#"{"AccessKeyId":"canary"}"#,
            br#"{"AccessKeyId":"a","SecretAccessKey":"canary","Token":"t","Expiration":"soon"}"#,
        ] {
            let error = lent(body).err().expect("it is none");
            assert_eq!(error.kind(), ErrorKind::InvalidAnswer);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        let body = br#"{"AccessKeyId":"a","SecretAccessKey":"s","Token":"t","AccountId":"1","Expiration":"2030-01-02T03:04:05.123456789Z"}"#;
        assert!(lent(body).is_ok());
    }
}
