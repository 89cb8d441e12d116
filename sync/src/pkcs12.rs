//! PKCS#12: a key and its certificates in one file, behind a password that may be empty.

use p12_keystore::{KeyStore, Pkcs12ImportPolicy};

use crate::key::PrivateKey;

/// The largest file that is opened: a key, and a long chain.
const MAX_BYTES: usize = 256 << 10;

/// scrypt's object identifier, as DER has it.
const SCRYPT: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];

/// What is in such a file.
pub(crate) struct KeyAndCertificates {
    pub(crate) key: PrivateKey,
    /// The key's own one first.
    pub(crate) certificates: Vec<Vec<u8>>,
}

pub(crate) fn open(file: &[u8], password: &str) -> Result<KeyAndCertificates, &'static str> {
    if file.len() > MAX_BYTES {
        return Err("is larger than any PKCS#12 file has to be");
    }
    // It can ask for a gibibyte of memory, and nobody's tools use it here.
    if file.windows(SCRYPT.len()).any(|window| window == SCRYPT) {
        return Err("is PKCS#12 with scrypt: write it with PBKDF2, as openssl pkcs12 -export does");
    }
    let store = KeyStore::from_pkcs12(file, password, Pkcs12ImportPolicy::Strict);
    let store = store.map_err(
        |_| "is neither PEM nor PKCS#12 that this password opens (the key password; empty, where there is none)",
    )?;
    let (_, chain) = store
        .private_key_chain()
        .ok_or("is PKCS#12 without a private key that has its certificate beside it")?;
    let certificates = chain.certs().iter();
    Ok(KeyAndCertificates {
        key: PrivateKey::from_pkcs8(chain.key().as_der())?,
        certificates: certificates.map(|one| one.as_der().to_vec()).collect(),
    })
}
