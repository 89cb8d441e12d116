//! Values that must not be seen: no `Debug`, no `Display`, no `Serialize`, wiped when dropped.

use std::sync::Arc;
use std::time::SystemTime;

use zeroize::Zeroizing;

/// Secret material. A clone shares the same memory; the last one wipes it.
#[derive(Clone)]
pub struct SecretBytes(Arc<Zeroizing<Vec<u8>>>);

impl SecretBytes {
    /// Takes the bytes over: no copy is left behind.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The only way out. Call it where bytes leave the process or are parsed, nowhere else.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes; not a secret.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Zeroizing<Vec<u8>>> for SecretBytes {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(bytes))
    }
}

/// A ServiceAccount token of one pod for one audience.
#[derive(Clone)]
pub struct ServiceAccountToken {
    jwt: Arc<Zeroizing<String>>,
    expires: SystemTime,
}

impl ServiceAccountToken {
    /// Takes the token over.
    #[must_use]
    pub fn new(jwt: String, expires: SystemTime) -> Self {
        Self {
            jwt: Arc::new(Zeroizing::new(jwt)),
            expires,
        }
    }

    /// The token as the store wants it. Call it in a provider's login, nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.jwt
    }

    /// When it ends, by the kubelet's word.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
}
