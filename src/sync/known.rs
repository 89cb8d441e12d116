//! What this process has seen of Secrets: what was written is not compared again, let alone written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::kube::{LiveMeta, Owner};

/// How many Secrets are remembered. Of one that is forgotten, the next look reads everything.
const MOST: usize = 4096;

/// The Secrets that were seen, by Namespace and name. Each is worked on by one volume at a time.
#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<(String, String), Arc<Slot>>>);

/// The right to work on one Secret; and what is known of it.
pub(super) type Slot = tokio::sync::Mutex<Option<Known>>;

/// A Secret that was as it should be. Holds no value.
pub(super) struct Known {
    /// Then it was this one, and no other one is meant.
    pub(super) live: LiveMeta,
    /// What it had to be.
    pub(super) hash: [u8; 32],
    /// When it was looked at.
    pub(super) at: Instant,
}

impl Memory {
    pub(super) fn slot(&self, namespace: &str, name: &str) -> Arc<Slot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MOST {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        let key = (namespace.to_owned(), name.to_owned());
        slots.entry(key).or_default().clone()
    }
}

impl Known {
    /// Whether it was what `hash` stands for, and had these owners.
    pub(super) fn was(&self, hash: &[u8; 32], owners: &[Owner]) -> bool {
        self.hash == *hash && missing(owners, &self.live).is_none()
    }

    /// Whether it is the very same still.
    pub(super) fn is(&self, live: &LiveMeta) -> bool {
        self.live.uid == live.uid && self.live.resource_version == live.resource_version
    }
}

/// The first owner that a Secret lacks. Known by their UIDs: a name may come back as another object (D12 of
/// upstream's defects).
pub(super) fn missing<'a>(owners: &'a [Owner], live: &LiveMeta) -> Option<&'a Owner> {
    let mut owners = owners.iter();
    owners.find(|owner| !live.owners.iter().any(|there| there.uid == owner.uid))
}
