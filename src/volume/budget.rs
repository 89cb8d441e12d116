//! What the volumes of this node may take together, counted before the kernel is asked for it.
//!
//! Pages of a tmpfs belong to the memory cgroup of whoever wrote them first: this process, even when it
//! has been restarted since. At the limit of the cgroup the kernel kills it, and each one after it. So a
//! volume is counted with everything that it can come to: its present generation and room for the next
//! one, which is there beside it for a moment at each rotation. A volume of the same size as before can
//! always rotate.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Record, TargetPath};
use crate::payload::Payload;

/// What an inode takes, with its name and its share of the record: some 700 bytes for the inode and 200
/// for the name on a kernel of today.
const INODE: u64 = 1024;

/// The record's own head, and what the kernel leaves of an inode's room.
const ROUNDING: u64 = 2 * INODE;

/// A longer symlink takes a page of its own, a shorter one is a part of the inode.
const SHORT_LINK: usize = 128;

/// Names that every volume has: the root, the generation and the link to it.
const OWN_INODES: u64 = 3;

/// The bytes that are set aside for the volumes of this node.
pub(super) struct Budget {
    limit: u64,
    shares: Mutex<Shares>,
}

#[derive(Default)]
struct Shares {
    total: u64,
    by_target: HashMap<TargetPath, Share>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    /// What the present generation takes.
    present: u64,
    /// What is set aside.
    counted: u64,
}

/// What a volume needs that the node does not have any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) needed: u64,
    pub(super) limit: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            shares: Mutex::default(),
        }
    }

    /// What is set aside for all volumes together.
    pub(super) fn counted(&self) -> u64 {
        self.shares().total
    }

    /// Sets aside what a volume needs that is made now.
    pub(super) fn admit(
        &self,
        target: &TargetPath,
        payload: &Payload,
        record: &Record,
    ) -> Result<(), Exceeded> {
        let present = generation(payload, record);
        self.set_within(target, |_| Share {
            present,
            counted: 2 * present,
        })
    }

    /// Sets aside what a volume needs when `payload` is written beside its present generation.
    pub(super) fn grow(
        &self,
        target: &TargetPath,
        payload: &Payload,
        record: &Record,
    ) -> Result<(), Exceeded> {
        let next = generation(payload, record);
        self.set_within(target, |share| Share {
            present: next,
            counted: share.counted.max(2 * next),
        })
    }

    /// The generation before the present one is gone: the volume takes `measured` bytes, with files that
    /// somebody still has open.
    pub(super) fn settle(&self, target: &TargetPath, measured: u64) {
        let mut shares = self.shares();
        if let Some(share) = shares.by_target.get(target).copied() {
            let present = share.present;
            let counted = (2 * present).max(present + measured);
            shares.set(target, Share { present, counted });
        }
    }

    /// Counts a volume that is there already, whether there is room or not.
    pub(super) fn adopt(&self, target: &TargetPath, measured: u64) {
        // As much as it is counted with when it is made, so that it can rotate with a budget that is full.
        let present = measured + ROUNDING;
        let counted = 2 * present;
        let share = Share { present, counted };
        self.shares().set(target, share);
    }

    /// The volume is gone, or was not made after all.
    pub(super) fn release(&self, target: &TargetPath) {
        let mut shares = self.shares();
        if let Some(share) = shares.by_target.remove(target) {
            shares.total -= share.counted;
        }
    }

    /// What the volume is counted with now, to go back to with [`Self::restore`].
    pub(super) fn share(&self, target: &TargetPath) -> Before {
        Before(self.shares().by_target.get(target).copied())
    }

    /// The generation that there was to be room for was not written.
    pub(super) fn restore(&self, target: &TargetPath, before: Before) {
        match before.0 {
            Some(share) => self.shares().set(target, share),
            None => self.release(target),
        }
    }

    fn set_within(
        &self,
        target: &TargetPath,
        share: impl FnOnce(Share) -> Share,
    ) -> Result<(), Exceeded> {
        let mut shares = self.shares();
        let before = shares.by_target.get(target).copied().unwrap_or_default();
        let share = share(before);
        let total = shares.total - before.counted + share.counted;
        // A volume that needs no more than before is not in the way of anybody, though the volumes of an
        // earlier process with a larger budget may have taken it all.
        if total > self.limit && share.counted > before.counted {
            return Err(Exceeded {
                needed: share.counted,
                limit: self.limit,
            });
        }
        shares.set(target, share);
        Ok(())
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a volume was counted with.
pub(super) struct Before(Option<Share>);

impl Shares {
    fn set(&mut self, target: &TargetPath, share: Share) {
        let before = self.by_target.insert(target.clone(), share);
        self.total += share.counted;
        self.total -= before.unwrap_or_default().counted;
    }
}

/// What a volume takes with one generation, at most.
fn generation(payload: &Payload, record: &Record) -> u64 {
    let page = rustix::param::page_size();
    let pages = |bytes: usize| (bytes.div_ceil(page) * page) as u64;
    let content: u64 = payload
        .files()
        .values()
        .map(|file| pages(file.bytes.len()))
        .sum();
    let names = payload.first_names();
    // `..data/` before each.
    let links = names.iter().filter(|name| name.len() + 7 >= SHORT_LINK);
    let links = links.count() * page;
    let inodes = payload.files().len() + payload.folders().len() + names.len();
    let inodes = INODE * (inodes as u64 + OWN_INODES);
    content + links as u64 + inodes + record.size() as u64 + ROUNDING
}

/// What a volume takes with this much of its room in use.
pub(super) fn measured(bytes: u64, inodes: u64) -> u64 {
    bytes + INODE * inodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Mode;
    use crate::payload::Limits;
    use crate::volume::TargetRules;
    use crate::volume_path::VolumePath;
    use coffer_provider::SecretBytes;

    fn target(pod: usize) -> TargetPath {
        let rules = TargetRules {
            pods: "/pods".into(),
            conformance_root: None,
        };
        let path = format!("/pods/{pod}/volumes/kubernetes.io~csi/v/mount");
        rules.parse(&path).expect("good")
    }

    fn payload(bytes: usize) -> Payload {
        let path = VolumePath::new("f").expect("good");
        let file = (path, SecretBytes::new(vec![0; bytes]), Mode::DEFAULT);
        Payload::new([file], None, &Limits::default()).expect("good")
    }

    fn record() -> Record {
        Record {
            layout: 1,
            class: "c".repeat(64),
            objects: Default::default(),
            immutable: false,
        }
    }

    fn one(bytes: usize) -> u64 {
        generation(&payload(bytes), &record())
    }

    #[test]
    fn a_node_takes_volumes_up_to_its_budget_and_none_beyond() {
        let each = 2 * one(5000);
        let own = record().size() as u64 + ROUNDING;
        assert_eq!(each, 2 * (8192 + 5 * INODE + own));
        for (limit, fit) in [
            (3 * each - 1, 2),
            (3 * each, 3),
            (3 * each + 1, 3),
            (each - 1, 0),
        ] {
            let budget = Budget::new(limit);
            let admitted = (0..5).filter(|pod| {
                budget
                    .admit(&target(*pod), &payload(5000), &record())
                    .is_ok()
            });
            assert_eq!(admitted.count(), fit, "{limit}");
            assert_eq!(
                budget.counted(),
                fit as u64 * each,
                "a refusal counts nothing"
            );
            let refused = budget.admit(&target(9), &payload(5000), &record());
            assert_eq!(
                refused,
                Err(Exceeded {
                    needed: each,
                    limit
                })
            );
        }
    }

    #[test]
    fn what_goes_makes_room_and_what_rotates_keeps_its_own() {
        let each = 2 * one(5000);
        let budget = Budget::new(2 * each);
        budget
            .admit(&target(0), &payload(5000), &record())
            .expect("room");
        budget
            .admit(&target(1), &payload(5000), &record())
            .expect("room");
        assert!(
            budget.grow(&target(0), &payload(5001), &record()).is_ok(),
            "same size"
        );
        assert!(
            budget.grow(&target(0), &payload(9000), &record()).is_err(),
            "larger"
        );
        assert_eq!(budget.counted(), 2 * each, "and it is as it was");
        budget.release(&target(1));
        budget.release(&target(1));
        let before = budget.share(&target(0));
        budget
            .grow(&target(0), &payload(9000), &record())
            .expect("room now");
        assert!(budget.admit(&target(2), &payload(5000), &record()).is_err());
        budget.restore(&target(0), before);
        assert_eq!(budget.counted(), each);

        // The smaller one still lies beside the larger one until that is swept.
        budget
            .grow(&target(0), &payload(1), &record())
            .expect("smaller");
        assert_eq!(budget.counted(), each);
        budget.settle(&target(0), one(1));
        assert_eq!(budget.counted(), 2 * one(1));
        // A file that a container has open, of a generation that is gone.
        let held = 100_000;
        budget.settle(&target(0), one(1) + held);
        assert_eq!(budget.counted(), 2 * one(1) + held);
    }

    #[test]
    fn volumes_of_an_earlier_process_count_though_they_are_too_many() {
        let budget = Budget::new(50_000);
        budget.adopt(&target(0), 40_000);
        budget.adopt(&target(0), 40_000);
        assert_eq!(budget.counted(), 2 * (40_000 + ROUNDING));
        assert!(budget.admit(&target(1), &payload(1), &record()).is_err());
        assert!(
            budget.grow(&target(0), &payload(30_000), &record()).is_ok(),
            "no more than it has"
        );
        budget.release(&target(0));
        assert_eq!(budget.counted(), 0);
        assert!(budget.admit(&target(1), &payload(1), &record()).is_ok());
    }
}
