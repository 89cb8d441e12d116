//! Private keys that never leave the node, and the requests for their certificates.

use std::net::IpAddr;

use coffer_provider::{ErrorKind, ProviderError};
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::object::{KeyKind, Request};

/// A key and the request for its certificate, both as PEM.
pub(crate) struct NodeKey {
    pub(crate) private_key: Zeroizing<String>,
    pub(crate) csr: String,
}

impl NodeKey {
    /// Makes a key for the names in `secretArgs`: with a request in hand, most roles take the names
    /// from it and not from the arguments beside it.
    pub(crate) async fn make(request: &Request, kind: KeyKind) -> Result<Self, ProviderError> {
        let params = params(request).ok_or_else(|| {
            let problem = format!(
                "{}: common_name, alt_names, ip_sans and uri_sans must be names as text",
                request.path
            );
            ProviderError::new(ErrorKind::InvalidParameters, problem)
        })?;
        // A large RSA key takes a second of a core.
        let made = tokio::task::spawn_blocking(move || make(kind, &params)).await;
        let failed = || ProviderError::new(ErrorKind::Unavailable, "no private key could be made");
        made.map_err(|_| failed())?.map_err(|_| failed())
    }
}

fn make(kind: KeyKind, params: &CertificateParams) -> Result<NodeKey, rcgen::Error> {
    let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size);
    let key = match kind {
        KeyKind::Ec256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyKind::Ec384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        KeyKind::Ed25519 => KeyPair::generate_for(&PKCS_ED25519),
        KeyKind::Rsa2048 => rsa(RsaKeySize::_2048),
        KeyKind::Rsa3072 => rsa(RsaKeySize::_3072),
        KeyKind::Rsa4096 => rsa(RsaKeySize::_4096),
    }?;
    Ok(NodeKey {
        csr: params.serialize_request(&key)?.pem()?,
        private_key: Zeroizing::new(key.serialize_pem()),
    })
}

fn params(request: &Request) -> Option<CertificateParams> {
    let args = request.args.as_ref()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let mut names = Vec::new();
    if let Some(Value::String(name)) = args.get("common_name") {
        params.distinguished_name.push(DnType::CommonName, name);
        if args.get("exclude_cn_from_sans") != Some(&Value::Bool(true)) {
            names.push(name_of(name)?);
        }
    }
    for name in listed(args.get("alt_names"))? {
        names.push(name_of(&name)?);
    }
    for ip in listed(args.get("ip_sans"))? {
        names.push(SanType::IpAddress(ip.parse::<IpAddr>().ok()?));
    }
    for uri in listed(args.get("uri_sans"))? {
        names.push(SanType::URI(Ia5String::try_from(uri).ok()?));
    }
    names.dedup();
    params.subject_alt_names = names;
    Some(params)
}

fn name_of(name: &str) -> Option<SanType> {
    let text = Ia5String::try_from(name).ok()?;
    Some(match name.contains('@') {
        true => SanType::Rfc822Name(text),
        false => SanType::DnsName(text),
    })
}

/// `a,b` or a list, as the API takes both.
fn listed(value: Option<&Value>) -> Option<Vec<String>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(text)) => {
            let names = text
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty());
            Some(names.map(str::to_owned).collect())
        }
        Some(Value::Array(list)) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    }
}
