//! What a request says about who asks.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use coffer_provider::{ErrorKind, ProviderError};
use http::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use serde::Serialize;
use zeroize::Zeroizing;

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
pub(crate) const INDEX: HeaderName = HeaderName::from_static("x-vault-index");
const INLINE_PATH: HeaderName = HeaderName::from_static("x-vault-inline-auth-path");
const INLINE_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-inline-auth-namespace");
pub(crate) const INLINE_FAILED: HeaderName = HeaderName::from_static("x-vault-inline-auth-failed");
const INCONSISTENT: HeaderName = HeaderName::from_static("x-vault-inconsistent");

/// What tells the store who asks. A clone shares the same memory.
pub(crate) type Credentials = Arc<[(HeaderName, HeaderValue)]>;

/// Who asks: what goes into headers.
#[derive(Clone, Default)]
pub(crate) struct Headers {
    pub(crate) namespace: String,
    pub(crate) credentials: Credentials,
    /// What the store has to have seen before it answers.
    pub(crate) index: Option<HeaderValue>,
}

impl Headers {
    pub(crate) fn put_into(&self, headers: &mut HeaderMap) -> Result<(), ProviderError> {
        headers.insert(USER_AGENT, HeaderValue::from_static("coffer"));
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        if !self.namespace.is_empty() {
            let namespace = HeaderValue::from_str(&self.namespace).map_err(|_| {
                ProviderError::new(ErrorKind::InvalidParameters, "the namespace is no header")
            })?;
            headers.insert(NAMESPACE, namespace);
        }
        for (name, value) in self.credentials.iter() {
            headers.insert(name, value.clone());
        }
        if let Some(index) = &self.index {
            headers.insert(INDEX, index.clone());
            headers.insert(
                INCONSISTENT,
                HeaderValue::from_static("forward-active-node"),
            );
        }
        Ok(())
    }
}

/// A token of the store as a header.
pub(crate) fn token_header(mut token: Zeroizing<String>) -> Option<Credentials> {
    let token = Zeroizing::new(std::mem::take(&mut *token).into_bytes());
    Some([(TOKEN, sensitive(token)?)].into())
}

/// A login that goes with the request itself, as OpenBao takes it.
pub(crate) fn inline_headers(
    path: &str,
    namespace: &str,
    parameters: &[(&'static str, &str)],
) -> Option<Credentials> {
    #[derive(Serialize)]
    struct Parameter<'a> {
        key: &'a str,
        value: &'a str,
    }
    let mut headers = vec![
        (INLINE_PATH, HeaderValue::from_str(path).ok()?),
        (INLINE_NAMESPACE, HeaderValue::from_str(namespace).ok()?),
    ];
    for &(key, value) in parameters {
        let name = format!("x-vault-inline-auth-parameter-{key}");
        let json = Zeroizing::new(serde_json::to_vec(&Parameter { key, value }).ok()?);
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*json).into_bytes());
        headers.push((name.parse().ok()?, sensitive(text)?));
    }
    Some(headers.into())
}

/// A header that nobody prints and that is wiped.
fn sensitive(value: Zeroizing<Vec<u8>>) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).ok()?;
    header.set_sensitive(true);
    Some(header)
}
