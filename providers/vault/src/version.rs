//! Versions of objects: the store's own words, or a keyed hash.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use coffer_provider::{SecretBytes, SecretFile};
use zeroize::Zeroizing;

use crate::object::Object;

/// How versions are made where the store has none.
pub(crate) struct VersionKey {
    key: aws_lc_rs::hmac::Key,
    /// The administrator's: versions are those of vault-csi-provider.
    pub(crate) configured: bool,
}

impl VersionKey {
    /// With the key that is configured; without one, with that of the cluster, else with one of this process.
    pub(crate) fn new(configured: Option<&SecretBytes>, cluster: Option<&SecretBytes>) -> Self {
        let random;
        let bytes = match configured.or(cluster) {
            Some(bytes) => bytes.expose(),
            None => {
                let mut fresh = Zeroizing::new([0; 32]);
                aws_lc_rs::rand::fill(&mut *fresh).expect("the system has random numbers");
                random = fresh;
                &*random
            }
        };
        Self {
            key: aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, bytes),
            configured: configured.is_some(),
        }
    }

    pub(crate) fn of(&self, object: &Object, files: &[SecretFile]) -> String {
        let mut hmac = aws_lc_rs::hmac::Context::with_key(&self.key);
        match self.configured {
            true => hmac.update(object.spelled.as_bytes()),
            // Whoever spells the request in another way shares the answer, and so its version.
            false => hmac.update(object.canonical("", None).as_bytes()),
        }
        match files {
            [file] if file.name == object.name => hmac.update(file.bytes.expose()),
            files => {
                for file in files {
                    // Lengths keep one file's end from being another's beginning.
                    hmac.update(
                        format!("{}:{}:{}:", file.name.len(), file.name, file.bytes.len())
                            .as_bytes(),
                    );
                    hmac.update(file.bytes.expose());
                }
            }
        }
        URL_SAFE.encode(hmac.sign())
    }
}

/// The version of KV v2 as this provider writes it: a number alone starts again when a secret is
/// deleted with all its history and written anew.
pub(crate) fn kv_version(number: u64, created: &str) -> String {
    format!("{number}@{created}")
}
