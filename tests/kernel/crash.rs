//! The driver is killed, at every system call of an operation in turn: a volume is there whole or not
//! at all, and the next process goes on from there.

use std::collections::BTreeMap;

use coffer::payload::{Limits, Payload};
use coffer::volume::{Outcome, State, TargetPath, VolumeError, Volumes};

use crate::harness::{
    Node, bind, grace_passes, in_a_user_namespace, internal_names, mounts_at, path, payload,
    payload_of, prepare, read_all, record, rotate, rules, visible, wanted,
};
use crate::points::{How, is_looked_at, tell};
use crate::tracer::{Traced, folder, traced};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w3_a_kill_at_any_system_call_of_a_mount_leaves_a_whole_volume_or_none() {
    let test = rule_w3_a_kill_at_any_system_call_of_a_mount_leaves_a_whole_volume_or_none;
    killed_mounts(test, "a mount", &second());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w3_a_kill_at_any_system_call_of_a_large_mount_leaves_a_whole_volume_or_none() {
    let test = rule_w3_a_kill_at_any_system_call_of_a_large_mount_leaves_a_whole_volume_or_none;
    killed_mounts(test, "a mount of many files for a group", &large(1));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w4_a_kill_at_any_system_call_of_a_rotation_leaves_the_old_or_the_new_contents() {
    let test = rule_w4_a_kill_at_any_system_call_of_a_rotation_leaves_the_old_or_the_new_contents;
    killed_rotations(test, "a rotation", &first(), &second());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w4_a_kill_at_any_system_call_of_a_large_rotation_leaves_the_old_or_the_new_contents() {
    let test =
        rule_w4_a_kill_at_any_system_call_of_a_large_rotation_leaves_the_old_or_the_new_contents;
    killed_rotations(
        test,
        "a rotation of many files for a group",
        &large(1),
        &large(2),
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w4_a_kill_at_any_system_call_of_a_sweep_leaves_the_present_contents() {
    let test = rule_w4_a_kill_at_any_system_call_of_a_sweep_leaves_the_present_contents;
    if let Some((volumes, target)) = in_the_traced_process() {
        volumes.mount(&target, &first(), &record("first")).unwrap();
        rotate(&volumes, &target, &second());
        grace_passes(&target);
        return drop(traced(|| volumes.sweep(&target)));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = at_every_call(test, &node, |point| {
        assert_eq!(visible(&target), wanted(&second()), "{point}");
        nothing_stays(&node, &target, point);
        node.volumes.unmount(&target).unwrap();
    });
    tell(How::Killed, "a sweep", points);
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
    tell(How::Killed, "an unmount", points);
}

/// A publish as the driver does it: it looks, and then it mounts.
pub(crate) fn publish(
    volumes: &Volumes,
    target: &TargetPath,
    files: &Payload,
) -> Result<Outcome, VolumeError> {
    match volumes.state(target)? {
        State::Absent | State::Empty => volumes.mount(target, files, &record("second")),
        State::Complete(_) | State::Inherited => Ok(Outcome::Unchanged),
    }
}

fn killed_mounts(test: impl Fn() + Copy, operation: &str, files: &Payload) {
    if let Some((volumes, target)) = in_the_traced_process() {
        return drop(traced(|| publish(&volumes, &target, files)));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = at_every_call(test, &node, |point| {
        match mounts_at(&target).len() {
            0 => {}
            1 => assert_eq!(visible(&target), wanted(files), "{point}"),
            stacked => panic!("{point}: {stacked} mounts"),
        }
        // The kubelet calls again, whatever it has heard.
        let next = node.restarted();
        match next.state(&target) {
            Ok(State::Complete(held)) => assert_eq!(held, Some(record("second")), "{point}"),
            Ok(State::Absent) => {}
            Ok(state) => panic!("{point}: {state:?}"),
            Err(error) => assert_a_stranger(error),
        }
        match publish(&next, &target, files) {
            Ok(_) => {}
            Err(error) => assert_a_stranger(error),
        }
        assert_eq!(mounts_at(&target).len(), 1, "{point}");
        assert_eq!(visible(&target), wanted(files), "{point}");
        let held = internal_names(&target);
        assert_eq!(held.len(), 2, "{point}: ..data and what it points to");
        next.unmount(&target).unwrap();
    });
    tell(How::Killed, operation, points);
}

fn killed_rotations(test: impl Fn() + Copy, operation: &str, first: &Payload, second: &Payload) {
    if let Some((volumes, target)) = in_the_traced_process() {
        // Two generations, so that the rotation has one to remove.
        volumes
            .mount(&target, &payload([("before", "0")]), &record("zeroth"))
            .unwrap();
        rotate(&volumes, &target, first);
        grace_passes(&target);
        return drop(traced(|| {
            volumes.rotate(&target, second, &record("second"))
        }));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let mut points_with = BTreeMap::new();
    let points = at_every_call(test, &node, |point| {
        let contents = present(&target);
        assert!(
            [wanted(first), wanted(second)].contains(&contents),
            "{point}: {contents:?}"
        );
        let switched = contents == wanted(second);
        *points_with.entry(switched).or_insert(0) += 1;

        let next = node.restarted();
        grace_passes(&target);
        match next.rotate(&target, second, &record("second")) {
            Ok(Outcome::Rotated) => assert!(!switched, "{point}"),
            Ok(Outcome::Unchanged) => assert!(switched, "{point}"),
            Ok(other) => panic!("{point}: {other:?}"),
            Err(error) => {
                assert_a_stranger(error);
                assert_eq!(present(&target), contents, "{point}: it was left alone");
                return next.unmount(&target).unwrap();
            }
        }
        assert_eq!(visible(&target), wanted(second), "{point}");
        nothing_stays(&node, &target, point);
        next.unmount(&target).unwrap();
    });
    assert_eq!(
        points_with.len(),
        2,
        "it was killed before the switch and after it"
    );
    tell(How::Killed, operation, points);
}

/// What the killed process left goes with the first sweep of the next one, long before a minute is over.
fn nothing_stays(node: &Node, target: &TargetPath, point: &str) {
    grace_passes(target);
    match node.restarted().sweep(target) {
        Ok(_) => assert_eq!(
            internal_names(target).len(),
            2,
            "{point}: ..data and what it points to"
        ),
        Err(error) => assert_a_stranger(error),
    }
}

/// Kills the operation of `test` before its first system call, before its second one, and so on, and
/// looks at what it left each time. Gives the number of points.
fn at_every_call(test: impl Fn() + Copy, node: &Node, mut look: impl FnMut(&str)) -> usize {
    let points = (0..).filter(|point| is_looked_at(*point));
    for (looked_at, point) in points.enumerate() {
        let traced = Traced::start(test, node.folder());
        let mut calls = 0;
        while calls < point && traced.next_call() {
            traced.call();
            calls += 1;
        }
        let reached = calls == point && traced.next_call();
        traced.kill();
        // Past the last call too: then the operation is complete, and nobody has heard of it.
        look(&format!("killed before call {point}"));
        if !reached {
            return looked_at;
        }
    }
    unreachable!("an operation comes to its end")
}

pub(crate) fn in_the_traced_process() -> Option<(Volumes, TargetPath)> {
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

/// Many files for a group, each of another version.
fn large(version: u32) -> Payload {
    let files = (0..12).map(|file| {
        let path = format!("folder-{}/{}/file-{file}", file % 3, file % 2);
        (path, format!("{file} of {version}").repeat(400), 0o440)
    });
    payload_of(files, Some(rustix::process::getegid().as_raw()))
}
