//! What is asked for and what comes back.

use std::time::Duration;

use crate::{ErrorKind, ProviderError, SecretBytes};

/// One thing that a source reads: what the driver fetches, remembers and schedules by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// The name of its file when a class has no `items`; of its folder where it gives several files.
    /// Empty for an object that is the whole source, whose names are known only once it is read.
    pub name: String,
    /// Everything else that decides what comes back (path, version, method, arguments, …) in one
    /// canonical text without secrets: two requests are the same if and only if the texts are.
    pub request: String,
}

impl ObjectRef {
    /// Whether a file is called as the object is, or lies below it. Everything lies below an object
    /// without a name.
    #[must_use]
    pub fn names(&self, file: &str) -> bool {
        match file.strip_prefix(&self.name) {
            Some(rest) => self.name.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

/// One object as it was read.
#[derive(Clone)]
pub struct Secret {
    /// At least one file.
    pub files: Vec<SecretFile>,
    /// Changes whenever a file changes.
    pub version: Version,
    /// How long it stays good.
    pub life: Life,
    /// Who may be given this very answer.
    pub sharing: Sharing,
}

/// One file of an object.
#[derive(Clone)]
pub struct SecretFile {
    /// The file's path in the volume when the class has no `items`.
    pub name: String,
    /// The content, byte for byte.
    pub bytes: SecretBytes,
    /// How `items[].key` looks into it.
    pub format: Format,
    /// Permission bits, where the store has an opinion.
    pub mode: Option<u32>,
}

/// How the members of a value are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// It has none.
    Opaque,
    /// A JSON object.
    Json,
    /// A YAML mapping.
    Yaml,
}

/// How long an answer stays good, counted from the moment it was given.
#[derive(Clone)]
pub enum Life {
    /// Until somebody changes it in the store.
    Static,
    /// Until it ends by itself, such as a certificate.
    Expires(Duration),
    /// Until the store itself puts another one in its place, after this time, such as the password of a
    /// static role: there is no other one before, and there may be none for a moment after.
    Rotates(Duration),
    /// For good, and there is only this one: who asks again is given another one, or none. It is not read
    /// again while a volume has it, unless the author of the class wants it to be.
    Once,
    /// For as long as the store is asked to keep it.
    Leased {
        /// What to renew and to release it by.
        lease: Lease,
        /// When it ends without a renewal.
        duration: Duration,
        /// Whether [`crate::Source::renew`] can prolong it.
        renewable: bool,
    },
}

/// A store's handle of a lease. Whoever holds it can end the lease, so it is not shown.
#[derive(Clone)]
pub struct Lease(SecretBytes);

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose() == other.0.expose()
    }
}

impl Lease {
    /// Takes the store's handle over.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self(SecretBytes::new(id.into_bytes()))
    }

    /// The handle as the store gave it. Call it in a provider, nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        std::str::from_utf8(self.0.expose()).expect("a lease is made of a String")
    }
}

/// Who may be given one and the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Every pod of the identity that the source declares.
    ServiceAccount,
    /// The one pod that it was made for.
    Pod,
}

/// The version of an object: opaque, never made from a value alone, so that it can be shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    /// The longest version that is kept with a volume, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Takes a version in the store's words; empty where the store has none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidAnswer`] for more than [`Self::MAX_BYTES`], or anything but printable ASCII.
    pub fn new(version: impl Into<String>) -> Result<Self, ProviderError> {
        let version = version.into();
        if version.len() > Self::MAX_BYTES || !version.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(ProviderError::new(
                ErrorKind::InvalidAnswer,
                format!(
                    "a version must be at most {} printable ASCII characters",
                    Self::MAX_BYTES
                ),
            ));
        }
        Ok(Self(version))
    }

    /// The version as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_names_itself_and_what_lies_below_it() {
        let object = |name: &str| ObjectRef {
            name: name.into(),
            request: String::new(),
        };
        for (name, file, expected) in [
            ("db", "db", true),
            ("db", "db/password", true),
            ("db", "db2", false),
            ("db", "other", false),
            ("", "any/file", true),
        ] {
            assert_eq!(object(name).names(file), expected, "{name} {file}");
        }
    }

    #[test]
    fn a_version_is_short_and_printable() {
        for good in ["", "7", "AWSCURRENT 1", &"v".repeat(128)] {
            assert!(Version::new(good).is_ok(), "{good:?}");
        }
        for bad in ["a\nb", "ünï", &"v".repeat(129)] {
            assert!(Version::new(bad).is_err(), "{bad:?}");
        }
    }
}
