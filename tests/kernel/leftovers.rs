//! What a crash leaves in a volume is cleared away; what a reader may still be in is not.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};

use coffer::volume::{Outcome, TargetPath};
use rustix::fs::Timespec;

use crate::harness::{
    GRACE, Node, generation, generations, grace_passes, internal_names, path, payload, record,
    set_switched, switched, visible, wanted,
};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn leftovers_of_a_crash_are_cleared_away() {
    let node = Node::new();
    let files = payload([("file", "present"), ("folder/file", "present")]);
    let target = node.mounted("pod", &files);
    let present = generation(&target);
    type Clear = fn(&Node, &TargetPath);
    let sweep: Clear = |node, target| {
        assert_eq!(node.volumes.sweep(target).unwrap(), Outcome::Rotated);
    };
    let rotate: Clear = |node, target| {
        let next = payload([("file", "next")]);
        let rotated = node.volumes.rotate(target, &next, &record("next"));
        assert_eq!(rotated.unwrap(), Outcome::Rotated);
    };
    for (kept, clear) in [(2, sweep), (3, rotate)] {
        leave_behind(&target);
        grace_passes(&target);
        clear(&node, &target);
        let held = internal_names(&target);
        assert_eq!(held.len(), kept, "{held:?}");
        assert!(held.contains(&present), "{held:?}");
        assert!(!held.contains(&"..data_tmp".to_owned()), "{held:?}");
    }
    assert_eq!(visible(&target), wanted(&payload([("file", "next")])));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_leftover_is_known_by_its_name_whatever_the_clock_said_when_it_was_made() {
    let node = Node::new();
    let files = payload([("file", "present")]);
    let target = node.mounted("pod", &files);
    // A node without a battery starts in 1970.
    for year in ["1970", "1999", "2026", "3000", "9999"] {
        fs::create_dir(path(&target).join(format!("..{year}_01_01_00_00_00.0"))).unwrap();
    }
    grace_passes(&target);
    assert_eq!(node.volumes.sweep(&target).unwrap(), Outcome::Rotated);
    assert_eq!(
        internal_names(&target).len(),
        2,
        "{:?}",
        internal_names(&target)
    );
    assert_eq!(visible(&target), wanted(&files));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_replaced_generation_stays_for_its_second_and_goes_then() {
    let node = Node::new();
    let [one, two, three] = ["one", "two", "three"].map(|text| payload([("file", text)]));
    let (target, held, burst) = within_the_grace(|pod| {
        let target = node.mounted(pod, &one);
        let rotated = node.volumes.rotate(&target, &two, &record("two"));
        assert_eq!(
            rotated.unwrap(),
            Outcome::Rotated,
            "the first switch has nothing to wait for"
        );
        let held = internal_names(&target);
        let mut burst = Vec::new();
        for _ in 0..3 {
            burst.push(node.volumes.sweep(&target).unwrap());
            let rotated = node.volumes.rotate(&target, &three, &record("three"));
            burst.push(rotated.unwrap());
        }
        (target, held, burst)
    });

    // Nothing of the burst is written, and the replaced one is still there.
    let mut last = GRACE;
    for outcome in burst {
        let Outcome::TooSoon(wait) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(wait <= last && !wait.is_zero(), "{wait:?} after {last:?}");
        last = wait;
    }
    assert_eq!(internal_names(&target), held);
    assert!(generations(&target).contains(&wanted(&one)));
    assert_eq!(visible(&target), wanted(&two));
    // What is there already needs no switch, so it has nothing to wait for either.
    let rotated = node.volumes.rotate(&target, &two, &record("two"));
    assert_eq!(rotated.unwrap(), Outcome::Unchanged);

    grace_passes(&target);
    let rotated = node.volumes.rotate(&target, &three, &record("three"));
    assert_eq!(rotated.unwrap(), Outcome::Rotated);
    assert!(
        !generations(&target).contains(&wanted(&one)),
        "one grace generation at most"
    );
    grace_passes(&target);
    assert_eq!(node.volumes.sweep(&target).unwrap(), Outcome::Rotated);
    assert_eq!(node.volumes.sweep(&target).unwrap(), Outcome::Unchanged);
    assert_eq!(internal_names(&target).len(), 2);
    assert_eq!(visible(&target), wanted(&three));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn the_grace_is_a_second_of_real_time() {
    // The one test that waits it out: all others move the time of the switch instead.
    let node = Node::new();
    let next = payload([("file", "two")]);
    let (target, swept) = within_the_grace(|pod| {
        let target = node.mounted(pod, &payload([("file", "one")]));
        node.volumes.rotate(&target, &next, &record("two")).unwrap();
        let swept = node.volumes.sweep(&target).unwrap();
        (target, swept)
    });
    let Outcome::TooSoon(wait) = swept else {
        panic!("nothing to wait for");
    };
    std::thread::sleep(wait);
    assert_eq!(node.volumes.sweep(&target).unwrap(), Outcome::Rotated);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_r8_a_clock_that_was_set_back_holds_a_rotation_up_for_a_second_and_no_longer() {
    let node = Node::new();
    let [one, two, three] = ["one", "two", "three"].map(|text| payload([("file", text)]));
    for (waits_for, next) in [("sweep", None), ("rotation", Some(&three))] {
        let go = |target: &TargetPath| match next {
            None => node.volumes.sweep(target).unwrap(),
            Some(next) => node.volumes.rotate(target, next, &record("next")).unwrap(),
        };
        // Nobody knows how long ago the switch was, so its second begins with the first look.
        let (target, looks) = within_the_grace(|pod| {
            let target = node.mounted(&format!("{waits_for}-{pod}"), &one);
            node.volumes
                .rotate(&target, &two, &record("before"))
                .unwrap();
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap();
            set_switched(
                &target,
                Timespec {
                    tv_sec: now.as_secs() as i64 + 24 * 60 * 60,
                    tv_nsec: 0,
                },
            );
            let looks = [go(&target), go(&target)];
            (target, looks)
        });
        for look in looks {
            let Outcome::TooSoon(wait) = look else {
                panic!("a {waits_for} did not wait");
            };
            assert!(wait <= GRACE, "{wait:?}");
        }
        assert_eq!(visible(&target), wanted(&two));
        assert_eq!(internal_names(&target).len(), 3);
        grace_passes(&target);
        assert_eq!(
            go(&target),
            Outcome::Rotated,
            "a {waits_for}, at {:?}",
            switched(&target)
        );
        assert_eq!(visible(&target), wanted(next.unwrap_or(&two)));
    }
}

/// Gives what was done with a volume of a pod, once that took less than the grace, which is real time: on a busy
/// machine it is done again, with another pod.
fn within_the_grace<T>(mut done: impl FnMut(&str) -> T) -> T {
    for attempt in 0..20 {
        let start = Instant::now();
        let outcome = done(&format!("pod-{attempt}"));
        // The clock of files is a little behind.
        if start.elapsed() < GRACE - Duration::from_millis(100) {
            return outcome;
        }
    }
    panic!("nothing is done within {GRACE:?} here");
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_volume_without_its_link_is_made_good_by_the_next_rotation() {
    let node = Node::new();
    let target = node.mounted("pod", &payload([("file", "one")]));
    for broken in ["gone", "leads nowhere"] {
        fs::remove_file(path(&target).join("..data")).unwrap();
        if broken == "leads nowhere" {
            symlink("..2026_01_01_00_00_00.0", path(&target).join("..data")).unwrap();
            grace_passes(&target);
        }
        let next = payload([("file", broken)]);
        let rotated = node.volumes.rotate(&target, &next, &record("next"));
        assert_eq!(rotated.unwrap(), Outcome::Rotated, "{broken}");
        assert_eq!(visible(&target), wanted(&next), "{broken}");
        grace_passes(&target);
        node.volumes.sweep(&target).unwrap();
    }
}

/// Half of a generation, a whole one with folders, and the link of a switch that did not come.
fn leave_behind(target: &TargetPath) {
    let root = path(target);
    fs::create_dir(root.join("..2026_01_01_00_00_00.0")).unwrap();
    fs::write(root.join("..2026_01_01_00_00_00.0/half"), "").unwrap();
    let deep = root
        .join("..2026_01_01_00_00_00.1")
        .join(vec!["deep"; 31].join("/"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "old").unwrap();
    fs::write(root.join("..2026_01_01_00_00_00.1/deep/file"), "old").unwrap();
    symlink("..2026_01_01_00_00_00.1", root.join("..data_tmp")).unwrap();
}
