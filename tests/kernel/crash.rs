//! The driver is killed, at every system call of an operation in turn: a volume is there whole or not
//! at all, and the next process goes on from there.

use std::collections::BTreeMap;

use coffer::payload::{Limits, Payload};
use coffer::volume::{Outcome, State, TargetPath, VolumeError, Volumes};

use crate::harness::{
    Node, bind, grace_passes, in_a_user_namespace, internal_names, mounts_at, path, payload,
    prepare, read_all, record, rotate, rules, visible, wanted,
};
use crate::tracer::{Traced, folder, traced};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w3_a_kill_at_any_system_call_of_a_mount_leaves_a_whole_volume_or_none() {
    let test = rule_w3_a_kill_at_any_system_call_of_a_mount_leaves_a_whole_volume_or_none;
    if let Some((volumes, target)) = in_the_traced_process() {
        return drop(traced(|| {
            volumes.mount(&target, &second(), &record("second"))
        }));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = at_every_call(test, &node, |point| {
        match mounts_at(&target).len() {
            0 => {}
            1 => assert_eq!(visible(&target), wanted(&second()), "{point}"),
            stacked => panic!("{point}: {stacked} mounts"),
        }
        // The kubelet calls again, whatever it has heard.
        let next = node.restarted();
        match next.state(&target) {
            Ok(State::Absent) => {
                let mounted = next.mount(&target, &second(), &record("second"));
                assert_eq!(mounted.unwrap(), Outcome::Mounted, "{point}");
            }
            Ok(State::Complete(held)) => assert_eq!(held, Some(record("second")), "{point}"),
            Err(error) => assert_a_stranger(error),
        }
        assert_eq!(mounts_at(&target).len(), 1, "{point}");
        assert_eq!(visible(&target), wanted(&second()), "{point}");
        assert_eq!(
            internal_names(&target).len(),
            2,
            "{point}: ..data and what it points to"
        );
        next.unmount(&target).unwrap();
    });
    println!("  mount: {points} points");
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w4_a_kill_at_any_system_call_of_a_rotation_leaves_the_old_or_the_new_contents() {
    let test = rule_w4_a_kill_at_any_system_call_of_a_rotation_leaves_the_old_or_the_new_contents;
    if let Some((volumes, target)) = in_the_traced_process() {
        // Two generations, so that the rotation has one to remove.
        volumes
            .mount(&target, &payload([("before", "0")]), &record("zeroth"))
            .unwrap();
        rotate(&volumes, &target, &first());
        grace_passes(&target);
        return drop(traced(|| {
            volumes.rotate(&target, &second(), &record("second"))
        }));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let mut points_with = BTreeMap::new();
    let points = at_every_call(test, &node, |point| {
        let contents = present(&target);
        assert!(
            [wanted(&first()), wanted(&second())].contains(&contents),
            "{point}: {contents:?}"
        );
        let switched = contents == wanted(&second());
        *points_with.entry(switched).or_insert(0) += 1;

        let next = node.restarted();
        grace_passes(&target);
        match next.rotate(&target, &second(), &record("second")) {
            Ok(Outcome::Rotated) => assert!(!switched, "{point}"),
            Ok(Outcome::Unchanged) => assert!(switched, "{point}"),
            Ok(other) => panic!("{point}: {other:?}"),
            Err(error) => {
                assert_a_stranger(error);
                assert_eq!(present(&target), contents, "{point}: it was left alone");
                return next.unmount(&target).unwrap();
            }
        }
        assert_eq!(visible(&target), wanted(&second()), "{point}");
        grace_passes(&target);
        next.sweep(&target).unwrap();
        assert_eq!(
            internal_names(&target).len(),
            2,
            "{point}: ..data and what it points to"
        );
        next.unmount(&target).unwrap();
    });
    assert_eq!(
        points_with.len(),
        2,
        "it was killed before the switch and after it"
    );
    println!("  rotation: {points} points");
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w3_a_kill_at_any_system_call_of_an_unmount_leaves_a_whole_volume_or_none() {
    let test = rule_w3_a_kill_at_any_system_call_of_an_unmount_leaves_a_whole_volume_or_none;
    if let Some((volumes, target)) = in_the_traced_process() {
        volumes.mount(&target, &first(), &record("first")).unwrap();
        // Once more on itself, so that there is more than one mount to take away.
        bind(&path(&target), &path(&target));
        return drop(traced(|| volumes.unmount(&target)));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = at_every_call(test, &node, |point| {
        if !mounts_at(&target).is_empty() {
            assert_eq!(visible(&target), wanted(&first()), "{point}");
        }
        node.restarted().unmount(&target).unwrap();
        assert!(mounts_at(&target).is_empty(), "{point}");
        assert!(!path(&target).exists(), "{point}");
    });
    println!("  unmount: {points} points");
}

/// Kills the operation of `test` before its first system call, before its second one, and so on, and
/// looks at what it left each time. Gives the number of its calls.
fn at_every_call(test: impl Fn() + Copy, node: &Node, mut look: impl FnMut(&str)) -> usize {
    for point in 0.. {
        let traced = Traced::start(test, node.folder());
        let mut calls = 0;
        while calls < point && traced.next_call() {
            traced.call();
            calls += 1;
        }
        let reached = calls == point && traced.next_call();
        traced.kill();
        look(&format!("killed before call {point}"));
        if !reached {
            return point;
        }
    }
    unreachable!("an operation comes to its end")
}

fn in_the_traced_process() -> Option<(Volumes, TargetPath)> {
    let volumes = Volumes::probe(rules(&folder()?), Limits::default()).unwrap();
    let target = prepare(&volumes, "pod", "secrets");
    Some((volumes, target))
}

/// In a user namespace a volume has no record, so that another process does not know it for one of
/// ours, and does not touch it but to take it away.
fn assert_a_stranger(error: VolumeError) {
    assert!(in_a_user_namespace(), "{error}");
    assert!(
        error
            .to_string()
            .ends_with("something else is mounted there"),
        "{error}"
    );
}

/// What a pod reads that opens `..data` first: the links in the root follow a moment after a switch.
fn present(target: &TargetPath) -> BTreeMap<String, Vec<u8>> {
    read_all(&path(target).join("..data"))
}

fn first() -> Payload {
    payload([
        ("both", "1"),
        ("folder/one", "1"),
        ("folder/two", "1"),
        ("dropped/deep/file", "1"),
    ])
}

fn second() -> Payload {
    payload([
        ("both", "2"),
        ("folder/one", "2"),
        ("folder/three", "2"),
        ("added", "2"),
    ])
}
