//! What AWS said, as one sentence for the owner of the pod and a detail for the log of the node.
//!
//! The sentence is the same for the same cause: request ids go into the detail.

use std::error::Error;
use std::time::Duration;

use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use coffer_provider::{ErrorKind, ProviderError};

/// What was asked, in the words of its error.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The object, or the role where it is a login.
    pub(crate) what: &'a str,
    /// As a policy names it: `secretsmanager:GetSecretValue`.
    pub(crate) action: &'static str,
    pub(crate) region: &'a str,
    /// As whom: a role, or the subject of a token.
    pub(crate) role: &'a str,
}

/// Why there is no good answer.
pub(crate) enum Failure<E> {
    /// It was asked for, and the SDK gave an error.
    Sdk(Box<SdkError<E, HttpResponse>>),
    /// It was not sent: AWS has said that it is asked too often, and the turn is this far away.
    NotItsTurn(Duration),
}

/// Whether another region may do better: this one is overloaded, broken, slow or not there.
pub(crate) fn is_outage(error: &ProviderError) -> bool {
    let kind = error.kind();
    matches!(kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)
}

impl Asked<'_> {
    /// What it means that there is no good answer.
    pub(crate) fn failed<E>(&self, failure: &Failure<E>) -> ProviderError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let error = match failure {
            Failure::Sdk(error) => error.as_ref(),
            Failure::NotItsTurn(wait) => {
                let error = self.says(ErrorKind::Unavailable, TOO_OFTEN, "", WHOSE_LIMIT);
                return error.with_retry_after(*wait);
            }
        };
        let raw = error.raw_response();
        let failed = match error {
            SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
                let status = raw.map_or(0, |raw| raw.status().as_u16());
                match error.code() {
                    // An answer that is neither an error nor readable.
                    None if status < 400 => self.says(
                        ErrorKind::InvalidAnswer,
                        "the answer cannot be read",
                        &format!("HTTP {status}"),
                        "",
                    ),
                    code => self.refused(code.unwrap_or_default(), status, error.message()),
                }
            }
            SdkError::TimeoutError(_) => self.no_answer_in_time(),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => self.no_answer_in_time(),
            SdkError::DispatchFailure(_) => {
                let cause = root_cause(error);
                self.says(ErrorKind::Unavailable, "cannot be reached", &cause, "")
            }
            _ => {
                let cause = root_cause(error);
                self.says(
                    ErrorKind::InvalidParameters,
                    "cannot be asked for",
                    &cause,
                    "",
                )
            }
        };
        let Some(raw) = raw else {
            return failed;
        };
        let header = |name| raw.headers().get(name);
        let id = header("x-amzn-requestid").unwrap_or("none");
        let status = raw.status().as_u16();
        let message = error.message().unwrap_or_default();
        let failed = failed.with_detail(format!("HTTP {status}, request id {id}: {message}"));
        match header("retry-after").and_then(|seconds| seconds.parse().ok()) {
            Some(seconds) => failed.with_retry_after(Duration::from_secs(seconds)),
            None => failed,
        }
    }

    /// What it means that AWS answered with this code.
    pub(crate) fn refused(&self, code: &str, status: u16, message: Option<&str>) -> ProviderError {
        let login = self.action.starts_with("sts:");
        let needs = match self.action {
            "secretsmanager:BatchGetSecretValue" => {
                "the role needs secretsmanager:BatchGetSecretValue and ListSecrets".to_owned()
            }
            "sts:AssumeRoleWithWebIdentity" => {
                "its trust policy must let in this sub with this aud".to_owned()
            }
            "sts:AssumeRole" => {
                "its trust policy must let that role in, and that role may need sts:AssumeRole"
                    .to_owned()
            }
            action => format!("the role needs {action}"),
        };
        let own_words = stable(message.unwrap_or("it gave no reason"));
        let (kind, problem, hint) = match code {
            "ResourceNotFoundException" | "ParameterNotFound" => (
                ErrorKind::NotFound,
                "does not exist",
                "check the name, the region, and the version or label",
            ),
            "InvalidRequestException" => (
                ErrorKind::NotFound,
                "cannot be read",
                "it is scheduled for deletion, or has no such version under this label",
            ),
            "DecryptionFailure" | "InvalidKeyId" => (
                ErrorKind::PermissionDenied,
                "cannot be decrypted",
                "check the state of its KMS key, and that the role may use kms:Decrypt",
            ),
            "AccessDenied" | "AccessDeniedException" => {
                (ErrorKind::PermissionDenied, "access denied", needs.as_str())
            }
            "InvalidIdentityToken" | "IDPRejectedClaim" => (
                ErrorKind::Unauthenticated,
                "the ServiceAccount's token is not accepted",
                "make its issuer an OIDC provider of the account, for this aud",
            ),
            "ExpiredTokenException" | "ExpiredToken" if login => (
                ErrorKind::Unauthenticated,
                "the ServiceAccount's token has expired",
                "the kubelet brings a new one",
            ),
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch" => (
                ErrorKind::Unauthenticated,
                "the credentials are not accepted",
                "the clock of the node may be wrong",
            ),
            "IDPCommunicationError" => (
                ErrorKind::Unavailable,
                "AWS cannot fetch the keys of the cluster's issuer",
                "they have to be public",
            ),
            "RegionDisabledException" => (
                ErrorKind::InvalidParameters,
                "this region has no STS for the account",
                "activate it, or choose another region",
            ),
            _ if is_throttle_code(code, status) => (ErrorKind::Unavailable, TOO_OFTEN, WHOSE_LIMIT),
            // An item of a batch has a code and no status.
            _ if status >= 500 || code.starts_with("Internal") => (
                ErrorKind::Unavailable,
                "AWS has a problem",
                own_words.as_str(),
            ),
            _ if status == 401 || status == 403 => {
                (ErrorKind::PermissionDenied, "access denied", needs.as_str())
            }
            // Malformed names and versions come with words that say which.
            _ => (
                ErrorKind::InvalidParameters,
                "not accepted",
                own_words.as_str(),
            ),
        };
        let code = match (code, status) {
            ("", status) => format!("HTTP {status}"),
            (code, 0) => code.to_owned(),
            (code, status) => format!("{code} {status}"),
        };
        self.says(kind, problem, &code, hint)
    }

    /// A sentence about what was asked.
    pub(crate) fn says(
        &self,
        kind: ErrorKind,
        problem: &str,
        cause: &str,
        hint: &str,
    ) -> ProviderError {
        let Self {
            what,
            action,
            region,
            role,
        } = self;
        let operation = action.split_once(':').map_or(*action, |(_, name)| name);
        let cause = if cause.is_empty() {
            String::new()
        } else {
            format!("{cause}, ")
        };
        let hint = if hint.is_empty() {
            String::new()
        } else {
            format!(": {hint}")
        };
        ProviderError::new(
            kind,
            format!("{what}: {problem} ({cause}{operation} in {region} as {role}){hint}"),
        )
    }

    fn no_answer_in_time(&self) -> ProviderError {
        self.says(ErrorKind::DeadlineExceeded, "no answer in time", "", "")
    }
}

/// Whether AWS said that it is asked too often.
pub(crate) fn is_throttle<E: ProvideErrorMetadata>(failure: &Failure<E>) -> bool {
    let Failure::Sdk(error) = failure else {
        return false;
    };
    let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
    is_throttle_code(error.code().unwrap_or_default(), status)
}

const TOO_OFTEN: &str = "asked too often";
const WHOSE_LIMIT: &str = "the limit is the account's in this region";

fn is_throttle_code(code: &str, status: u16) -> bool {
    status == 429
        || matches!(
            code,
            "Throttling"
                | "ThrottlingException"
                | "ThrottledException"
                | "RequestThrottled"
                | "RequestThrottledException"
                | "RequestLimitExceeded"
                | "TooManyRequestsException"
                | "LimitExceededException"
                | "SlowDown"
        )
}

/// The last of an error's causes: the others only say that there is one.
pub(crate) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Somebody else's words without the ids in them, which are new each time.
fn stable(message: &str) -> String {
    let is_id = |word: &str| word.len() == 36 && word.matches('-').count() == 4;
    let outside = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    message
        .split_inclusive(outside)
        .map(|piece| match piece.trim_end_matches(outside) {
            word if is_id(word) => piece.replace(word, "…"),
            _ => piece.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked<'_> = Asked {
        what: "app/db",
        action: "secretsmanager:GetSecretValue",
        region: "us-west-2",
        role: "arn:aws:iam::123456789012:role/shop",
    };

    #[test]
    fn aws_statement_7_every_code_has_its_kind_and_its_words() {
        use ErrorKind::{
            InvalidParameters, NotFound, PermissionDenied, Unauthenticated, Unavailable,
        };
        let sts = Asked {
            what: "role/shop",
            action: "sts:AssumeRoleWithWebIdentity",
            region: "us-west-2",
            role: "system:serviceaccount:shop:web",
        };
        for (asked, code, status, kind, says) in [
            (
                ASKED,
                "ResourceNotFoundException",
                400,
                NotFound,
                "check the name",
            ),
            (
                ASKED,
                "InvalidRequestException",
                400,
                NotFound,
                "scheduled for deletion",
            ),
            (
                ASKED,
                "ValidationException",
                400,
                InvalidParameters,
                "own words",
            ),
            (
                ASKED,
                "DecryptionFailure",
                400,
                PermissionDenied,
                "kms:Decrypt",
            ),
            (ASKED, "InvalidKeyId", 400, PermissionDenied, "kms:Decrypt"),
            (
                ASKED,
                "AccessDeniedException",
                400,
                PermissionDenied,
                "needs secretsmanager:GetSecretValue",
            ),
            (
                ASKED,
                "",
                403,
                PermissionDenied,
                "needs secretsmanager:GetSecretValue",
            ),
            (
                ASKED,
                "ThrottlingException",
                400,
                Unavailable,
                "asked too often",
            ),
            (ASKED, "InternalServiceError", 500, Unavailable, "own words"),
            (ASKED, "InternalServiceError", 0, Unavailable, "own words"),
            (ASKED, "", 503, Unavailable, "HTTP 503"),
            (
                ASKED,
                "ExpiredTokenException",
                400,
                Unauthenticated,
                "credentials",
            ),
            (
                ASKED,
                "UnrecognizedClientException",
                400,
                Unauthenticated,
                "credentials",
            ),
            (
                sts,
                "AccessDenied",
                403,
                PermissionDenied,
                "must let in this sub",
            ),
            (
                sts,
                "InvalidIdentityToken",
                400,
                Unauthenticated,
                "OIDC provider",
            ),
            (
                sts,
                "ExpiredTokenException",
                400,
                Unauthenticated,
                "kubelet",
            ),
            (sts, "IDPCommunicationError", 400, Unavailable, "issuer"),
            (
                sts,
                "RegionDisabledException",
                403,
                InvalidParameters,
                "region",
            ),
        ] {
            let error = asked.refused(code, status, Some("own words"));
            assert_eq!(error.kind(), kind, "{error}");
            let text = error.to_string();
            let operation = asked
                .action
                .split(':')
                .next_back()
                .expect("it has two parts");
            for part in [asked.what, operation, "us-west-2", asked.role, code, says] {
                assert!(text.contains(part), "{text} lacks {part}");
            }
            assert!(status == 0 || text.contains(&status.to_string()), "{text}");
        }
    }

    #[test]
    fn a_sentence_has_no_ids_of_requests() {
        let message =
            "no (Service: AWSKMS; Request ID: 0f8fad5b-d9cb-469f-a165-70867728950e); try us-west-2";
        assert_eq!(
            stable(message),
            "no (Service: AWSKMS; Request ID: …); try us-west-2"
        );
    }
}
