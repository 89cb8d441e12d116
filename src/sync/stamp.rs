//! Which of two contents of a Secret is the newer one: the store's versions, and when they were read. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A lower number that was read so much later than the higher one is no late answer: the secret was
/// deleted in the store and made anew. Far above what caches, replicas and clocks are apart.
const MADE_ANEW: Duration = Duration::from_secs(600);

/// What the objects of a volume were when they were read; kept as an annotation of the Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// When the oldest of them was read, or found to be the newest still.
    pub read: Timestamp,
    /// The version of each, by the key that the volume's record has for it.
    pub objects: BTreeMap<String, String>,
}

impl Stamp {
    /// Of these versions, as they were at `read`.
    #[must_use]
    pub fn new(read: SystemTime, objects: BTreeMap<String, String>) -> Self {
        Self {
            // Milliseconds tell nodes apart well enough.
            read: Timestamp::try_from(read)
                .and_then(|read| read.round(jiff::Unit::Millisecond))
                .unwrap_or_default(),
            objects,
        }
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Whether writing this over `there` would go back. Versions that are numbers say so themselves; all
    /// others have no order but that in which they were read.
    pub(super) fn is_older_than(&self, there: &Self) -> bool {
        if self.objects == there.objects {
            return false;
        }
        let mut unordered = self.objects.len() != there.objects.len();
        for (object, version) in &self.objects {
            match there
                .objects
                .get(object)
                .map(|other| numbers(version, other))
            {
                Some(Some((ours, theirs))) if ours < theirs => {
                    let anew = there
                        .read
                        .saturating_add(MADE_ANEW)
                        .unwrap_or(Timestamp::MAX);
                    if self.read <= anew {
                        return true;
                    }
                }
                Some(Some(_)) => {}
                Some(None) if there.objects.get(object) == Some(version) => {}
                Some(None) | None => unordered = true,
            }
        }
        unordered && self.read <= there.read
    }

    /// Whether the versions alone say that this is newer: then the annotation follows, though the content
    /// may be the same. Others would be written to and fro by nodes that call the same content differently.
    pub(super) fn is_numbered_higher(&self, there: &Self) -> bool {
        self.objects.iter().any(|(object, version)| {
            let other = there.objects.get(object);
            let numbers = other.and_then(|other| numbers(version, other));
            numbers.is_some_and(|(ours, theirs)| ours > theirs)
        })
    }
}

fn numbers(one: &str, other: &str) -> Option<(u64, u64)> {
    Some((one.parse().ok()?, other.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: u64, objects: &[(&str, &str)]) -> Stamp {
        let objects = objects.iter();
        let objects = objects.map(|(object, version)| ((*object).into(), (*version).into()));
        let read = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Stamp::new(read, objects.collect())
    }

    #[test]
    fn numbers_never_go_back_and_other_versions_not_to_an_earlier_read() {
        for (ours, there, older) in [
            (stamp(1, &[("a", "3")]), stamp(9, &[("a", "3")]), false),
            (stamp(1, &[("a", "x")]), stamp(9, &[("a", "x")]), false),
            // Numbers: whenever they were read.
            (stamp(1, &[("a", "4")]), stamp(9, &[("a", "3")]), false),
            (stamp(9, &[("a", "3")]), stamp(1, &[("a", "4")]), true),
            (stamp(9, &[("a", "9")]), stamp(1, &[("a", "10")]), true),
            // One up, one down.
            (
                stamp(9, &[("a", "3"), ("b", "3")]),
                stamp(1, &[("a", "2"), ("b", "4")]),
                true,
            ),
            // The store began anew.
            (stamp(601, &[("a", "1")]), stamp(1, &[("a", "4")]), true),
            (stamp(602, &[("a", "1")]), stamp(1, &[("a", "4")]), false),
            // No order: by the time.
            (stamp(2, &[("a", "x")]), stamp(1, &[("a", "y")]), false),
            (stamp(1, &[("a", "x")]), stamp(1, &[("a", "y")]), true),
            (stamp(1, &[("a", "x")]), stamp(2, &[("a", "y")]), true),
            (stamp(1, &[("a", "3")]), stamp(2, &[("a", "y")]), true),
            // Other objects, as in a class that has changed.
            (stamp(2, &[("b", "1")]), stamp(1, &[("a", "9")]), false),
            (stamp(1, &[("b", "1")]), stamp(2, &[("a", "9")]), true),
            (
                stamp(1, &[("a", "1")]),
                stamp(2, &[("a", "1"), ("b", "1")]),
                true,
            ),
        ] {
            assert_eq!(ours.is_older_than(&there), older, "{ours:?} over {there:?}");
        }
    }

    #[test]
    fn a_stamp_survives_being_written() {
        let one = stamp(1_764_158_400, &[("a", "3"), ("b", "AWSCURRENT 1")]);
        assert_eq!(Stamp::parse(&one.text()), Some(one.clone()));
        assert!(
            one.text().contains("\"read\":\"2025-11-26T12:00:00Z\""),
            "{}",
            one.text()
        );
        assert_eq!(Stamp::parse("{}"), None);
        assert_eq!(Stamp::parse("hunter2"), None);
    }

    #[test]
    fn only_higher_numbers_are_written_over_equal_content() {
        let there = stamp(1, &[("a", "3"), ("b", "x")]);
        assert!(stamp(1, &[("a", "4"), ("b", "x")]).is_numbered_higher(&there));
        assert!(!stamp(1, &[("a", "3"), ("b", "y")]).is_numbered_higher(&there));
        assert!(!stamp(1, &[("c", "9")]).is_numbered_higher(&there));
    }
}
