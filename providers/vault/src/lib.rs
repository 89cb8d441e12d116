//! The provider for HashiCorp Vault and OpenBao.
//!
//! A pod is known to the store by its ServiceAccount token, which buys a token of the store; that is
//! kept for all pods of the identity on the node, renewed while it is used, and ended when the last of
//! them has left. Classes are those of vault-csi-provider and of its fork for OpenBao; what they may
//! ask for besides is in `object.rs` and `parameters.rs`.
//!
//! The way of a read: `parameters.rs`, `object.rs` and `path.rs` check the class against `settings.rs`,
//! `source.rs` asks each request once, with a `token.rs` that `login.rs` got, over `http.rs` to a place
//! that `address.rs`, `resolver.rs` and `tls.rs` allow. `mounts.rs` knows what kind of engine answered,
//! `answer.rs` takes the answer apart, `files.rs` and `version.rs` make files, a version and a life of it, `error.rs`
//! sentences where there are none. `lease.rs` keeps leases alive, and `returns.rs` gives them back; `pki.rs` makes keys that stay here; `events.rs`
//! hears of changes.
//!
//! # How long an answer is good
//!
//! | answer | is read again |
//! | --- | --- |
//! | KV, and whatever else a GET gives | by the class's `refresh` |
//! | with a lease | when it cannot be renewed any more; it is renewed at 60 to 70 % of its life |
//! | a certificate, a signed SSH key, a secret id with a TTL | at 60 to 70 % of its life |
//! | of a static role | just after the store has changed the password |
//! | of any other PUT or POST, such as an unwrapped value | never: the next one would be another |
//!
//! # What a class may say besides
//!
//! | parameter | is |
//! | --- | --- |
//! | `vaultCACert` | the CA as PEM text, instead of the machine's roots |
//! | `vaultAuthNamespace` | the namespace of the login, where it is not that of the secrets |
//! | `vaultInlineAuth` | `true`: each request logs in by itself and leaves no token (OpenBao) |
//!
//! | field of an object | is |
//! | --- | --- |
//! | `secretKeyPointer` | a JSON pointer (RFC 6901) to a nested value, instead of `secretKey` |
//! | `format` | without a key: `response` (as ever), `data` (without the envelope), `files` (a folder with a file for each key), `tls` (a folder with `tls.crt`, `tls.key`, `ca.crt`), `bundle` (key, certificate and chain in one file) |
//! | `keyType`, `keyBits` | the key that is made on the node for `PUT …/sign/…` with a `common_name` and without a `csr`: `ec` (256, 384), `ed25519`, `rsa` (2048, 3072, 4096) |
//!
//! # Versions
//!
//! They follow the data and never are a plain hash of it, which could be guessed back. With
//! [`Settings::version_key_file`] they are those of vault-csi-provider, made of the spelling in the class, so
//! that two spellings of one request are read apart. Without it they are the store's own
//! words: number and time of a KV v2 version, the serial number of a certificate, a digest of the
//! (random) id of a lease. What is left, such as KV v1, has a hash with a key that lives as long as the
//! process: after a restart the version is another one, though the files are not.

mod address;
mod answer;
mod calls;
mod error;
mod events;
mod files;
mod gojson;
mod headers;
mod http;
mod lease;
mod login;
mod mounts;
mod object;
mod parameters;
mod path;
mod pki;
mod resolver;
mod returns;
mod settings;
mod source;
mod ssh;
mod store;
mod tls;
mod token;
mod version;

use std::sync::Arc;

use coffer_provider::{Parameters, Provider, ProviderError, Source};

use crate::parameters::Class;
use crate::settings::Rules;
use crate::source::VaultSource;
use crate::store::Stores;

pub use settings::{ClientCertificate, Flavour, Limits, Settings, SettingsError};

/// Vault, or OpenBao. Holds connections and the store's tokens, never a pod's.
pub struct VaultProvider {
    stores: Arc<Stores>,
}

impl VaultProvider {
    /// A provider with the administrator's settings. Reads the CA files in them, and asks no store.
    ///
    /// # Errors
    /// An address that is none, or a CA file that cannot be read.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let stores = Arc::new(Stores::new(Rules::new(settings)?));
        Ok(Self { stores })
    }
}

impl Provider for VaultProvider {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let class = Class::parse(parameters, &self.stores.rules)?;
        Ok(Arc::new(VaultSource::new(class, self.stores.clone())))
    }
}
