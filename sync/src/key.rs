//! Private keys: whether one is one, what its public half is, and how it is written.
//!
//! They are written as upstream writes them, whatever they came as: RSA as PKCS#1, elliptic curves as SEC1
//! with the name of the curve, Ed25519 as PKCS#8, which is the only form it has.

use pkcs8::der::{Decode, Encode};
use pkcs8::{ObjectIdentifier, PrivateKeyInfoRef};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::SectionKind;
use sec1::{EcParameters, EcPrivateKey};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use crate::pem::{self, Block};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ELLIPTIC_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

const NOT_A_KEY: &str =
    "is not a private key of RSA (2048 to 8192 bits), P-256, P-384, P-521 or Ed25519";

/// A private key that one can work with.
pub(crate) struct PrivateKey {
    label: &'static str,
    der: Zeroizing<Vec<u8>>,
    public: Vec<u8>,
}

impl PrivateKey {
    /// The last key among the blocks of a PEM file: what comes before may be parameters, or a chain.
    pub(crate) fn from_pem(text: &[u8]) -> Result<Self, &'static str> {
        let blocks = pem::blocks(text).ok_or("is not whole PEM")?;
        let key = |block: &Block| {
            matches!(
                block.kind,
                SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey
            )
        };
        match blocks.into_iter().rfind(key) {
            Some(block) => Self::new(block.kind, block.der),
            None if pem::is_locked(text) => {
                Err("is locked with a passphrase: put the key into the store without one")
            }
            None => Err("has no private key"),
        }
    }

    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, &'static str> {
        Self::new(SectionKind::PrivateKey, Zeroizing::new(der.to_vec()))
    }

    fn new(kind: SectionKind, der: Zeroizing<Vec<u8>>) -> Result<Self, &'static str> {
        let read = match kind {
            SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(der.as_slice().into()),
            SectionKind::EcPrivateKey => PrivateKeyDer::Sec1(der.as_slice().into()),
            _ => PrivateKeyDer::Pkcs8(der.as_slice().into()),
        };
        let public = any_supported_type(&read).ok().and_then(|key| {
            let info = key.public_key()?;
            let (_, info) = SubjectPublicKeyInfo::from_der(info.as_ref()).ok()?;
            Some(info.subject_public_key.data.to_vec())
        });
        let public = public.ok_or(NOT_A_KEY)?;
        drop(read);
        let (label, der) = match kind {
            SectionKind::RsaPrivateKey => ("RSA PRIVATE KEY", der),
            SectionKind::EcPrivateKey => ("EC PRIVATE KEY", der),
            _ => unwrapped(der).ok_or(NOT_A_KEY)?,
        };
        Ok(Self { label, der, public })
    }

    /// Whether a certificate with this public key, as the bits that it holds, is this key's.
    pub(crate) fn belongs_to(&self, public: &[u8]) -> bool {
        self.public == public
    }

    pub(crate) fn to_pem(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::new());
        pem::write(&mut text, self.label, &self.der);
        text
    }
}

/// What is in PKCS#8, where it has a form of its own.
fn unwrapped(der: Zeroizing<Vec<u8>>) -> Option<(&'static str, Zeroizing<Vec<u8>>)> {
    let info = PrivateKeyInfoRef::from_der(&der).ok()?;
    let inner = info.private_key.as_bytes();
    match info.algorithm.oid {
        RSA => Some(("RSA PRIVATE KEY", Zeroizing::new(inner.to_vec()))),
        ELLIPTIC_CURVE => {
            let curve = info.algorithm.parameters_oid().ok()?;
            let mut key = EcPrivateKey::from_der(inner).ok()?;
            key.parameters = Some(EcParameters::NamedCurve(curve));
            Some(("EC PRIVATE KEY", Zeroizing::new(key.to_der().ok()?)))
        }
        _ => Some(("PRIVATE KEY", der)),
    }
}
