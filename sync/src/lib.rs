//! Kubernetes Secrets of every type, made from the files of a volume. Pure.
//!
//! A class says what it wants in `secretObjects` ([`SecretObjectSpec`]); [`SecretObject`] is one of these,
//! checked; [`SecretObject::contents`] makes the data of the Secret from a volume's files, or says what is
//! wrong with them. The API server takes almost anything as the content of a typed Secret: what it does
//! not check is checked here, so that whoever uses a Secret finds in it what its type promises. No error
//! quotes a value, a member's name or a parser.
//!
//! One file for each type: `docker.rs`, `tls.rs` (with `pem.rs`, `key.rs` and `pkcs12.rs`), `ssh.rs`,
//! `basic_auth.rs`, `bootstrap.rs`; `split.rs` takes JSON and YAML apart.

mod basic_auth;
mod bootstrap;
mod docker;
mod error;
mod key;
mod object;
mod pem;
mod pkcs12;
mod spec;
mod split;
mod ssh;
mod tls;

use std::collections::BTreeMap;

use coffer_provider::SecretBytes;

pub use error::ObjectError;
pub use object::{SecretObject, SecretType};
pub use spec::{SecretObjectDataSpec, SecretObjectSpec, Split};

/// The files of a volume, by their paths.
pub type Files = BTreeMap<String, SecretBytes>;

/// The data of a Secret, by its keys.
pub type Data = BTreeMap<String, SecretBytes>;

/// Most bytes of all values of one Secret: the API server's own limit.
pub const MAX_BYTES: usize = 1 << 20;
