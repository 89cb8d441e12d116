//! `kubernetes.io/tls`: a certificate with its chain and its key. The API server takes any bytes for both.

use std::time::{SystemTime, UNIX_EPOCH};

use coffer_provider::SecretBytes;
use rustls::pki_types::pem::SectionKind;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::key::PrivateKey;
use crate::{Data, ObjectError, pem, pkcs12};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";
/// Not a key of the Secret: it opens a PKCS#12 file.
const PASSWORD: &str = "password";

/// `tls.crt` gets every certificate of its file, in that order, and `tls.key` the key of its file; both
/// may be one file, and either may be PKCS#12. The first certificate has to be the key's own.
pub(crate) fn contents(mut given: Data, now: SystemTime) -> Result<Data, ObjectError> {
    let mut take = |key: &str| given.remove(key);
    let [certificate, key, authority, password] =
        [CERTIFICATE, KEY, AUTHORITY, PASSWORD].map(&mut take);
    if let Some(other) = given.keys().next() {
        let problem = format!(
            "kubernetes.io/tls has the keys {CERTIFICATE}, {KEY} and {AUTHORITY}, and takes a {PASSWORD} for PKCS#12"
        );
        return Err(ObjectError::new(other, problem));
    }
    let needed = |name: &'static str, value: Option<SecretBytes>| {
        value.ok_or_else(|| ObjectError::new(name, "is missing"))
    };
    let certificate = needed(CERTIFICATE, certificate)?;
    let key = needed(KEY, key)?;
    let password = match &password {
        None => "",
        Some(password) => std::str::from_utf8(password.expose())
            .map_err(|_| ObjectError::new(PASSWORD, "is not text"))?,
    };

    let at = |field: &'static str| move |problem: &'static str| ObjectError::new(field, problem);
    let chain = certificates(certificate.expose(), Some(password)).map_err(at(CERTIFICATE))?;
    let key = private_key(key.expose(), password).map_err(at(KEY))?;
    check(&chain, &key, now).map_err(at(CERTIFICATE))?;
    let mut data = Data::from([
        (CERTIFICATE.to_owned(), written(&chain)),
        (KEY.to_owned(), SecretBytes::from(key.to_pem())),
    ]);
    if let Some(authority) = authority {
        let authority = certificates(authority.expose(), None).map_err(at(AUTHORITY))?;
        data.insert(AUTHORITY.to_owned(), written(&authority));
    }
    Ok(data)
}

/// Every certificate of a file, each whole; at least one. Without a password it has to be PEM.
fn certificates(file: &[u8], password: Option<&str>) -> Result<Vec<Vec<u8>>, &'static str> {
    let certificates = match password {
        Some(password) if !pem::is_pem(file) => pkcs12::open(file, password)?.certificates,
        _ => {
            let blocks = pem::blocks(file).ok_or("is not whole PEM")?;
            let certificates = blocks
                .into_iter()
                .filter(|block| block.kind == SectionKind::Certificate);
            certificates.map(|block| block.der.to_vec()).collect()
        }
    };
    if certificates.is_empty() {
        return Err("has no certificate");
    }
    match certificates.iter().all(|der| parsed(der).is_some()) {
        true => Ok(certificates),
        false => Err("has a certificate that is none"),
    }
}

fn private_key(file: &[u8], password: &str) -> Result<PrivateKey, &'static str> {
    match pem::is_pem(file) {
        true => PrivateKey::from_pem(file),
        false => Ok(pkcs12::open(file, password)?.key),
    }
}

fn check(chain: &[Vec<u8>], key: &PrivateKey, now: SystemTime) -> Result<(), &'static str> {
    let of_key = |der: &Vec<u8>| {
        let certificate = parsed(der);
        certificate.is_some_and(|one| key.belongs_to(&one.public_key().subject_public_key.data))
    };
    if !chain.first().is_some_and(of_key) {
        return Err(match chain.iter().any(of_key) {
            true => "the certificate of the key has to be the first one, before its chain",
            false => "the key is not that of the certificate",
        });
    }
    let ends = chain.first().and_then(|der| parsed(der));
    let ends = ends.map_or(0, |one| one.validity().not_after.timestamp());
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match u64::try_from(ends).is_ok_and(|ends| ends > now) {
        true => Ok(()),
        false => Err("the certificate has expired"),
    }
}

fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

fn written(certificates: &[Vec<u8>]) -> SecretBytes {
    let mut text = Zeroizing::new(Vec::new());
    for der in certificates {
        pem::write(&mut text, "CERTIFICATE", der);
    }
    SecretBytes::from(text)
}

#[cfg(test)]
mod tests;
