//! What it means that a store did not give what was asked for, in sentences that stay the same.

use std::error::Error;
use std::io;
use std::time::Duration;

use coffer_provider::{ErrorKind, ProviderError};
use http::StatusCode;

use crate::answer::{Object, is_json};
use crate::http::Reply;
use crate::resolver::RefusedAddress;

/// The longest that a store may tell us to leave it alone.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A read that the store answered with something else than success.
pub(crate) fn read(path: &str, role: &str, reply: &Reply) -> ProviderError {
    let body = Object::parse(&reply.body).unwrap_or_default();
    let words = words(&body);
    let (kind, mut what) = match reply.status.as_u16() {
        400 => (
            ErrorKind::InvalidParameters,
            "the store does not take the request".to_owned(),
        ),
        403 => (
            ErrorKind::PermissionDenied,
            format!("the store does not allow it to role {role}"),
        ),
        404 => (ErrorKind::NotFound, missing(&body)),
        405 => (
            ErrorKind::InvalidParameters,
            "the store does not know this method here, see `method`".to_owned(),
        ),
        _ => return common(path, reply, &words),
    };
    // A denial has no more to say, and what is missing was said.
    if reply.status == 400 && !words.is_empty() {
        what = format!("{what}: {words}");
    }
    ProviderError::new(kind, format!("{path}: {what}")).with_detail(words)
}

/// A login that the store answered with something else than success.
pub(crate) fn login(path: &str, role: &str, audience: &str, reply: &Reply) -> ProviderError {
    let body = Object::parse(&reply.body).unwrap_or_default();
    let words = words(&body);
    let hint = match words.as_str() {
        // What a mount says that is not there, and one whose cluster does not know the token.
        "permission denied" => {
            "is this the auth mount, in this namespace, of this cluster?".to_owned()
        }
        words if words.contains("audience") => {
            format!(
                "the token is for audience {audience}; the role and the class must name the same"
            )
        }
        _ => String::new(),
    };
    match reply.status.as_u16() {
        400 | 401 | 403 | 404 => {
            let mut sentence = format!("{path}: the store refuses the login as role {role}");
            for part in [words, hint] {
                if !part.is_empty() {
                    sentence = format!("{sentence}: {part}");
                }
            }
            ProviderError::new(ErrorKind::Unauthenticated, sentence)
        }
        _ => common(path, reply, &words),
    }
}

/// A look-up of the store's own token that was answered with neither yes nor no.
pub(crate) fn look_up(reply: &Reply) -> ProviderError {
    let body = Object::parse(&reply.body).unwrap_or_default();
    common("auth/token/lookup-self", reply, &words(&body))
}

/// A request for events that was not answered with them.
pub(crate) fn no_events(status: StatusCode) -> ProviderError {
    let kind = match status.as_u16() {
        403 => ErrorKind::PermissionDenied,
        429 | 500.. => ErrorKind::Unavailable,
        _ => ErrorKind::NotFound,
    };
    let status = status.as_u16();
    ProviderError::new(kind, format!("the store tells no events: status {status}"))
}

/// Statuses that mean the same whatever was asked for.
pub(crate) fn common(path: &str, reply: &Reply, words: &str) -> ProviderError {
    let (kind, what) = match reply.status.as_u16() {
        412 => (
            ErrorKind::Unavailable,
            "the store's standby is behind".to_owned(),
        ),
        413 => (
            ErrorKind::TooLarge,
            "the request is too large for the store".to_owned(),
        ),
        429 if words.is_empty() => (
            ErrorKind::Unavailable,
            "the store's standby is behind".to_owned(),
        ),
        429 => (
            ErrorKind::Unavailable,
            "the store limits how often it is asked".to_owned(),
        ),
        503 if words.contains("sealed") => {
            (ErrorKind::Unavailable, "the store is sealed".to_owned())
        }
        500 if words.contains("inline authentication") => (
            ErrorKind::InvalidParameters,
            "inline authentication is for what has no lease: leave vaultInlineAuth out".to_owned(),
        ),
        500.. => (
            ErrorKind::Unavailable,
            format!("the store failed with status {}", reply.status.as_u16()),
        ),
        status => (
            ErrorKind::InvalidAnswer,
            format!("the store answered with status {status}"),
        ),
    };
    let mut error = ProviderError::new(kind, format!("{path}: {what}"));
    if !words.is_empty() {
        error = error.with_detail(words);
    } else if !is_json(&reply.body) {
        error = error
            .with_detail("the body is not JSON: something else than the store may have answered");
    }
    match reply.retry_after() {
        Some(after) => error.with_retry_after(after.min(MAX_RETRY_AFTER)),
        None => error,
    }
}

/// The store's own words on one line, without the frame that some of them come in.
fn words(body: &Object<'_>) -> String {
    let errors = body.texts("errors");
    let lines = errors.iter().flat_map(|error| error.lines());
    let lines = lines
        .map(|line| line.trim().trim_start_matches("* ").trim())
        .filter(|line| !line.is_empty() && !line.ends_with("occurred:"));
    lines.collect::<Vec<_>>().join("; ")
}

/// What a 404 says about why.
fn missing(body: &Object<'_>) -> String {
    let metadata = body.object("data").and_then(|data| data.object("metadata"));
    if let Some(metadata) = metadata {
        let version = metadata.number("version").unwrap_or_default();
        let end = match metadata.is_true("destroyed") {
            true => "destroyed",
            false => "deleted",
        };
        return format!("version {version} was {end}");
    }
    let versioned = |warning: &str| warning.contains("versioned") || warning.contains("KV v2");
    if body
        .texts("warnings")
        .iter()
        .any(|warning| versioned(warning))
    {
        return "this mount is KV v2, whose paths go on with data/ after the mount".to_owned();
    }
    "the store does not have it".to_owned()
}

/// A success that does not hold what the API promises.
pub(crate) fn unreadable(path: &str, what: &str) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidAnswer, format!("{path}: {what}"))
}

/// A request that brought no answer. The cause is looked for in the chain of the client's error, whose
/// own texts are not for the owner of a pod.
pub(crate) fn transport(origin: &str, error: &(dyn Error + 'static)) -> ProviderError {
    let unavailable = |what: &str| {
        ProviderError::new(ErrorKind::Unavailable, format!("{origin} {what}"))
            .with_detail(last(error).to_string())
    };
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<RefusedAddress>() {
            let problem = format!(
                "{origin} leads to {}, and the administrator has not allowed it (--vault-address)",
                refused.0
            );
            return ProviderError::new(ErrorKind::InvalidParameters, problem);
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return match error {
                rustls::Error::InvalidCertificate(_) => {
                    unavailable("has a certificate that is not trusted")
                }
                _ => unavailable("does not speak TLS as it has to"),
            };
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.kind() {
                io::ErrorKind::ConnectionRefused => return unavailable("refuses connections"),
                io::ErrorKind::TimedOut => {
                    return ProviderError::new(
                        ErrorKind::DeadlineExceeded,
                        format!("{origin} cannot be reached in time"),
                    );
                }
                // It wraps what rustls or the resolver said.
                _ => {
                    if let Some(inner) = error.get_ref() {
                        cause = Some(inner);
                        continue;
                    }
                }
            }
        }
        cause = error.source();
    }
    match error.downcast_ref::<hyper_util::client::legacy::Error>() {
        Some(error) if error.is_connect() => unavailable("cannot be reached"),
        _ => unavailable("broke its answer off"),
    }
}

fn last<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}
