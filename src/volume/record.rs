//! What a volume says about itself, so that a new driver process can take it over.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Lives on the root of the tmpfs. `trusted.` can neither be read nor written without
/// CAP_SYS_ADMIN in the initial user namespace, so no pod can forge one.
const XATTR: &str = "trusted.coffer";

/// The layout that this driver writes.
pub const LAYOUT: u32 = 1;

/// Which generation a volume holds: never a value, a token or a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How the files lie in the volume.
    pub layout: u32,
    /// The class that the volume was made from, as a hash of its spec.
    pub class: String,
    /// By the object's key: what of it is there.
    pub objects: BTreeMap<String, HeldObject>,
    /// Whether that stays as it is for as long as the volume is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub immutable: bool,
}

/// One object as it is in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldObject {
    /// Its version.
    pub version: String,
    /// When it ends, in seconds since 1970, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Whether there is only this one, so that it is not read again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
}

impl Record {
    /// The kernel's own limit for one attribute (XATTR_SIZE_MAX).
    pub const MAX_BYTES: usize = 64 * 1024;

    /// How many bytes of an attribute it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes().len()
    }

    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain data")
    }

    /// Reads the record of the tmpfs that `root` is the root of; `None` where there is none, or one
    /// that this driver does not understand.
    pub(super) fn read(root: &OwnedFd) -> Result<Option<Self>, Errno> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            match rustix::fs::fgetxattr(root, XATTR, rustix::buffer::spare_capacity(&mut bytes)) {
                Ok(_) => return Ok(serde_json::from_slice(&bytes).ok()),
                Err(Errno::RANGE) => bytes.reserve(Self::MAX_BYTES),
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Writes the record on the tmpfs that `root` is the root of.
    pub(super) fn write(&self, root: impl AsFd) -> Result<(), Errno> {
        rustix::fs::fsetxattr(root, XATTR, &self.bytes(), XattrFlags::empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_record_fits_into_an_attribute() {
        let held = HeldObject {
            version: "v".repeat(coffer_provider::Version::MAX_BYTES),
            expires: Some(u64::MAX),
            once: true,
        };
        let record = Record {
            layout: LAYOUT,
            class: "c".repeat(64),
            objects: (0..256)
                .map(|n| (format!("{n:016x}"), held.clone()))
                .collect(),
            immutable: true,
        };
        assert!(record.size() < Record::MAX_BYTES, "{}", record.size());
    }

    #[test]
    fn a_record_of_before_there_were_immutable_volumes_is_read() {
        let record: Record =
            serde_json::from_str(r#"{"layout":1,"class":"c","objects":{}}"#).expect("good");
        assert!(!record.immutable);
        let text = serde_json::to_string(&record).expect("plain data");
        assert_eq!(text, r#"{"layout":1,"class":"c","objects":{}}"#);
    }
}
