//! What a pod finds in a volume: bytes, modes, groups, and which of that a rotation changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coffer::payload::Payload;
use coffer::volume::{Outcome, TargetPath, VolumeError};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, umask};
use rustix::io::Errno;

use crate::harness::{
    Node, generations, grace_passes, in_a_user_namespace, internal_names, mounts_at, names, path,
    payload, payload_of, record, rotate, snapshot, visible, wanted,
};

/// No group of this machine.
const GROUP: u32 = 2_000_123;

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_p7_contents_are_exact_to_the_byte() {
    let every_byte: Vec<u8> = (0..=255).collect();
    let files = payload([
        ("empty", Vec::new()),
        ("one-zero", vec![0]),
        ("every-byte", every_byte.clone()),
        ("one-page", every_byte.repeat(16)),
        (
            "one-page-and-a-byte",
            [every_byte.repeat(16), vec![0]].concat(),
        ),
        ("many-pages", every_byte.repeat(999)),
        ("line\u{20}break", b"no line break at the end".to_vec()),
    ]);
    let node = Node::new();
    let target = node.mounted("pod", &files);
    assert_eq!(visible(&target), wanted(&files));
    assert_eq!(fs::metadata(path(&target).join("empty")).unwrap().len(), 0);

    // And a rotation sees the smallest difference.
    let other = payload(files.files().iter().map(|(path, file)| {
        let mut bytes = file.bytes.expose().to_vec();
        if path.as_str() == "many-pages" {
            *bytes.last_mut().unwrap() ^= 1;
        }
        (path.to_string(), bytes)
    }));
    assert_eq!(rotate(&node.volumes, &target, &files), Outcome::Unchanged);
    assert_eq!(rotate(&node.volumes, &target, &other), Outcome::Rotated);
    assert_eq!(visible(&target), wanted(&other));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn every_mode_comes_out_as_it_was_asked_for_whatever_the_umask() {
    let node = Node::new();
    // Of this thread only, since it has mounts of its own.
    umask(Mode::from_bits_truncate(0o077));
    let files = |modes: std::ops::Range<u32>| {
        payload_of(
            modes.map(|mode| (format!("folder/{mode:o}"), "content", mode)),
            None,
        )
    };
    let (first, second) = (files(0..0o400), files(0o400..0o1000));
    let target = node.mounted("pod", &first);
    assert_modes(&target, &first);
    assert_eq!(rotate(&node.volumes, &target, &second), Outcome::Rotated);
    assert_modes(&target, &second);
    for folder in ["", "..data/", "..data/folder/"] {
        assert_eq!(mode(&path(&target).join(folder)), 0o755, "{folder}");
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn with_an_fs_group_files_are_its_own_and_readable_for_it() {
    let node = Node::new();
    umask(Mode::from_bits_truncate(0o077));
    let modes = (0..0o1000).step_by(3);
    let files = payload_of(
        modes.map(|m| (format!("a/b/{m:o}"), "content", m)),
        Some(GROUP),
    );
    if in_a_user_namespace() {
        // In this user namespace there is one group: the kernel does not know another.
        let target = node.prepare("pod");
        return assert_no_such_group(
            node.volumes.mount(&target, &files, &record("first")),
            || {
                assert!(!path(&target).exists());
            },
        );
    }
    let target = node.mounted("pod", &files);
    assert_modes(&target, &files);
    let (path, volumes) = (path(&target), &node.volumes);
    for asked in (0..0o1000).step_by(3) {
        let stat = fs::metadata(path.join(format!("a/b/{asked:o}"))).unwrap();
        assert_eq!(stat.mode() & 0o7777, asked | 0o440, "{asked:o}");
        assert_eq!((stat.uid(), stat.gid()), (0, GROUP), "{asked:o}");
    }
    for folder in ["", "..data/", "a", "a/b"] {
        let stat = fs::metadata(path.join(folder)).unwrap();
        assert_eq!(stat.mode() & 0o7777, 0o2755, "{folder}");
        assert_eq!((stat.uid(), stat.gid()), (0, GROUP), "{folder}");
    }
    assert_eq!(rotate(volumes, &target, &files), Outcome::Unchanged);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w6_a_file_that_the_new_set_drops_is_gone_with_the_switch() {
    let node = Node::new();
    let target = node.mounted(
        "pod",
        &payload([("kept", "1"), ("gone", "1"), ("folder/gone", "1")]),
    );
    let next = payload([("kept", "2"), ("added", "2")]);
    assert_eq!(rotate(&node.volumes, &target, &next), Outcome::Rotated);
    assert_eq!(visible(&target), wanted(&next));
    assert_eq!(names(&path(&target).join("..data")), ["added", "kept"]);
    // `..data` and two generations; then the links of the new set, and no others.
    assert_eq!(names(&path(&target))[3..], ["added", "kept"]);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w6_a_set_that_changes_only_a_mode_is_applied() {
    let node = Node::new();
    let with = |mode| payload_of([("a", "1", 0o644), ("folder/b", "1", mode)], None);
    let target = node.mounted("pod", &with(0o644));
    for mode in [0o400, 0o440, 0o755, 0o600] {
        assert_eq!(
            rotate(&node.volumes, &target, &with(mode)),
            Outcome::Rotated,
            "{mode:o}"
        );
        assert_modes(&target, &with(mode));
        assert_eq!(
            rotate(&node.volumes, &target, &with(mode)),
            Outcome::Unchanged,
            "{mode:o}"
        );
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w6_a_set_that_changes_only_the_group_is_applied() {
    let node = Node::new();
    let with = |group| payload_of([("folder/file", "1", 0o640)], group);
    let target = node.mounted("pod", &with(None));
    if in_a_user_namespace() {
        // In this user namespace there is one group: the kernel does not know another.
        let before = snapshot(&path(&target).join("..data"));
        let rotated = node
            .volumes
            .rotate(&target, &with(Some(GROUP)), &record("next"));
        return assert_no_such_group(rotated, || {
            assert_eq!(mounts_at(&target).len(), 1);
            assert_eq!(visible(&target), wanted(&with(None)));
            assert_eq!(snapshot(&path(&target).join("..data")), before);
            assert_eq!(
                internal_names(&target).len(),
                2,
                "{:?}",
                internal_names(&target)
            );
        });
    }
    for group in [GROUP, GROUP + 1] {
        let files = with(Some(group));
        assert_eq!(
            rotate(&node.volumes, &target, &files),
            Outcome::Rotated,
            "{group}"
        );
        for name in ["..data/", "folder", "folder/file"] {
            let stat = fs::metadata(path(&target).join(name)).unwrap();
            assert_eq!(stat.gid(), group, "{name}");
        }
        assert_modes(&target, &files);
        assert_eq!(
            rotate(&node.volumes, &target, &files),
            Outcome::Unchanged,
            "{group}"
        );
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w6_a_file_can_become_a_folder_and_a_file_again() {
    let node = Node::new();
    let sets: [&[&str]; 6] = [
        &["a", "b/c"],
        &["a/x", "b"],
        &["a/x/y/z", "a/y"],
        &["a"],
        &["b/a/c", "a/b/c"],
        &["b/a", "a/b"],
    ];
    let target = node.mounted("pod", &payload([("first", "0")]));
    for set in sets {
        let next = payload(set.iter().map(|path| (*path, *path)));
        assert_eq!(
            rotate(&node.volumes, &target, &next),
            Outcome::Rotated,
            "{set:?}"
        );
        assert_eq!(visible(&target), wanted(&next), "{set:?}");
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w7_an_unchanged_set_touches_nothing_and_wakes_nobody() {
    let node = Node::new();
    let files = payload_of(
        [("a", "1", 0o400), ("b/c", "2", 0o644), ("b/d/e", "", 0o640)],
        None,
    );
    let target = node.mounted("pod", &payload([("before", "0")]));
    assert_eq!(rotate(&node.volumes, &target, &files), Outcome::Rotated);
    grace_passes(&target);
    node.volumes.sweep(&target).unwrap();

    // Everything but opening and reading, which is how the driver compares.
    let changes = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_MOVE_SELF;
    let watcher = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let watched = [
        "",
        "..data",
        "..data/b",
        "..data/b/d",
        "..data/a",
        "..data/b/c",
    ];
    for name in watched {
        watcher
            .add_watch(&path(&target).join(name), changes)
            .unwrap();
    }
    let events = || watcher.read_events().unwrap_or_default();

    let before = snapshot(&path(&target));
    for _ in 0..100 {
        let rotated = node
            .volumes
            .rotate(&target, &files, &record("another version"));
        assert_eq!(rotated.unwrap(), Outcome::Unchanged);
        assert_eq!(node.volumes.sweep(&target).unwrap(), Outcome::Unchanged);
        node.volumes.state(&target).unwrap();
        node.volumes.usage(&target).unwrap();
    }
    let seen = events();
    assert!(seen.is_empty(), "{seen:?}");
    assert_eq!(snapshot(&path(&target)), before);

    // The same watcher sees one that changes something.
    let other = payload([("a", "2")]);
    assert_eq!(rotate(&node.volumes, &target, &other), Outcome::Rotated);
    let seen = events();
    let switched = |name: &std::ffi::OsString| name == "..data";
    assert!(
        seen.iter()
            .any(|event| event.name.as_ref().is_some_and(switched)),
        "{seen:?}"
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_file_that_is_open_keeps_its_content_through_rotations() {
    let node = Node::new();
    let target = node.mounted("pod", &payload([("file", "one")]));
    let held = fs::File::open(path(&target).join("file")).unwrap();
    for next in ["two", "three"] {
        assert_eq!(
            rotate(&node.volumes, &target, &payload([("file", next)])),
            Outcome::Rotated
        );
    }
    assert!(!generations(&target).contains(&wanted(&payload([("file", "one")]))));
    assert_eq!(std::io::read_to_string(held).unwrap(), "one");
}

fn mode(at: &Path) -> u32 {
    fs::metadata(at).unwrap().mode() & 0o7777
}

fn assert_modes(target: &TargetPath, payload: &Payload) {
    for (name, file) in payload.files() {
        assert_eq!(
            mode(&path(target).join(name.as_str())),
            file.mode.bits(),
            "{name}"
        );
    }
}

/// The kernel's answer for a group that a user namespace does not know; nothing has come of it.
fn assert_no_such_group(done: Result<Outcome, VolumeError>, nothing: impl FnOnce()) {
    match done {
        Err(VolumeError::Kernel { errno, .. }) => assert_eq!(errno, Errno::INVAL),
        other => panic!("{other:?}"),
    }
    nothing();
}
