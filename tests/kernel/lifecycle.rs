//! A volume comes, is taken over by the next process, and goes, whoever still uses it.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::thread;

use coffer::volume::{Outcome, State, VolumeError};

use crate::harness::{
    Node, bind, generation, generations, grace_passes, in_a_user_namespace, mount_foreign,
    mounts_at, mounts_below, own_mounts, path, payload, read_all, record, visible, wanted,
};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_volume_is_mounted_with_the_options_that_keep_it_harmless() {
    let node = Node::new();
    let target = node.mounted("pod", &payload([("file", "content")]));
    let mounts = mounts_at(&target);
    let [mounted] = mounts.as_slice() else {
        panic!("{mounts:?}");
    };
    assert_eq!(
        (mounted.kind.as_str(), mounted.source.as_str()),
        ("tmpfs", "coffer-1")
    );
    let has = |option: &str| mounted.options.iter().any(|o| o == option);
    for option in ["rw", "nosuid", "nodev", "noexec", "mode=755"] {
        assert!(has(option), "{option} is not in {:?}", mounted.options);
    }
    assert_eq!(
        has("noswap"),
        node.volumes.noswap(),
        "{:?}",
        mounted.options
    );

    // Room for three generations and little more, in bytes and in inodes.
    let value = |key: &str| {
        let mut options = mounted.options.iter();
        let value = options
            .find_map(|option| option.strip_prefix(key))
            .expect(key);
        value.trim_end_matches('k').parse::<usize>().unwrap()
    };
    let limits = node.volumes.limits();
    let size = value("size=") * 1024;
    assert!(
        size > 3 * limits.bytes && size < 4 * limits.bytes + (4 << 20),
        "{size}"
    );
    let inodes = value("nr_inodes=");
    assert!(
        inodes > 3 * limits.entries() && inodes < 4 * limits.entries(),
        "{inodes}"
    );
    let usage = node.volumes.usage(&target).unwrap();
    assert_eq!((usage.bytes, usage.inodes), (size as u64, inodes as u64));
    assert!(usage.bytes_free < usage.bytes && usage.inodes_free < usage.inodes);

    let root = fs::metadata(path(&target)).unwrap();
    assert_eq!(
        (root.mode() & 0o7777, root.uid(), root.gid()),
        (0o755, 0, 0)
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t6_a_second_mount_is_never_stacked_on_the_first() {
    let node = Node::new();
    let files = payload([("file", "first")]);
    let target = node.mounted("pod", &files);
    let device = fs::metadata(path(&target)).unwrap().dev();
    for _ in 0..3 {
        let again = node
            .volumes
            .mount(&target, &payload([("file", "second")]), &record("second"));
        assert!(
            matches!(again, Err(VolumeError::Refused { .. })),
            "{again:?}"
        );
        assert_eq!(mounts_at(&target).len(), 1);
        assert_eq!(fs::metadata(path(&target)).unwrap().dev(), device);
        assert_eq!(visible(&target), wanted(&files));
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_volume_without_the_folder_of_the_kubelet_is_not_made() {
    let node = Node::new();
    let target = node.prepare("pod");
    fs::remove_dir_all(node.at("pods/pod")).unwrap();
    let mounted = node
        .volumes
        .mount(&target, &payload([("file", "x")]), &record("first"));
    assert!(
        matches!(mounted, Err(VolumeError::NoParent(_))),
        "{mounted:?}"
    );
    assert!(!node.at("pods/pod").exists());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t7_the_next_process_finds_the_volume_with_its_record() {
    let node = Node::new();
    let target = node.mounted("pod", &payload([("file", "one")]));
    let bare = node.prepare("bare");
    let before = (
        mounts_below(node.folder()),
        fs::metadata(path(&target)).unwrap().dev(),
    );

    let next = node.restarted();
    if !in_a_user_namespace() {
        assert_eq!(
            next.state(&target).unwrap(),
            State::Complete(Some(record("first")))
        );
        assert_eq!(next.sweep_all(), 1);
        // The record moves on with the contents.
        let rotated = next.rotate(&target, &payload([("file", "two")]), &record("second"));
        assert_eq!(rotated.unwrap(), Outcome::Rotated);
        let third = node.restarted();
        assert_eq!(
            third.state(&target).unwrap(),
            State::Complete(Some(record("second")))
        );
    } else {
        // In a user namespace there is no record: only the process that mounted it knows it.
        assert_eq!(node.volumes.state(&target).unwrap(), State::Complete(None));
        assert!(matches!(
            next.state(&target),
            Err(VolumeError::Refused { .. })
        ));
        assert_eq!(next.sweep_all(), 0);
    }
    assert_eq!(next.state(&bare).unwrap(), State::Absent);
    let after = (
        mounts_below(node.folder()),
        fs::metadata(path(&target)).unwrap().dev(),
    );
    assert_eq!(after, before);
    next.unmount(&target).unwrap();
    assert!(!path(&target).exists());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_rotation_that_changes_nothing_leaves_the_record_behind_and_that_does_no_harm() {
    let node = Node::new();
    let files = payload([("file", "same")]);
    let target = node.mounted("pod", &files);
    let rotated = node
        .volumes
        .rotate(&target, &files, &record("another version"));
    assert_eq!(rotated.unwrap(), Outcome::Unchanged);
    let held = (!in_a_user_namespace()).then(|| record("first"));
    assert_eq!(node.volumes.state(&target).unwrap(), State::Complete(held));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t8_an_unmount_of_what_is_not_there_succeeds() {
    let node = Node::new();
    let target = node.prepare("never");
    node.volumes.unmount(&target).unwrap();

    let target = node.mounted("twice", &payload([("file", "x")]));
    node.volumes.unmount(&target).unwrap();
    node.volumes.unmount(&target).unwrap();
    assert_eq!(node.volumes.state(&target).unwrap(), State::Absent);

    fs::remove_dir_all(node.at("pods/twice")).unwrap();
    node.volumes.unmount(&target).unwrap();
    fs::remove_dir_all(node.at("pods")).unwrap();
    node.volumes.unmount(&target).unwrap();
    assert_eq!(node.volumes.state(&target).unwrap(), State::Absent);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t9_an_unmount_after_a_reboot_removes_the_folder() {
    let node = Node::new();
    let target = node.prepare("pod");
    fs::create_dir(path(&target)).unwrap();
    node.restarted().unmount(&target).unwrap();
    assert!(!path(&target).exists());
    assert!(
        path(&target).parent().unwrap().exists(),
        "the rest is the kubelet's"
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t10_an_unmount_takes_every_mount_away_whoever_made_it() {
    let node = Node::new();
    fs::create_dir(node.at("theirs")).unwrap();
    fs::write(node.at("theirs/file"), "theirs").unwrap();
    let another = node.mounted("another", &payload([("file", "ours")]));

    let target = node.mounted("pod", &payload([("file", "ours")]));
    let at = path(&target);
    bind(&path(&another), &at);
    mount_foreign(&at);
    bind(&node.at("theirs"), &at);
    assert_eq!(mounts_at(&target).len(), 4);
    node.volumes.unmount(&target).unwrap();
    assert!(mounts_at(&target).is_empty());
    assert!(!at.exists());
    assert_eq!(
        fs::read_to_string(node.at("theirs/file")).unwrap(),
        "theirs"
    );
    assert_eq!(visible(&another), wanted(&payload([("file", "ours")])));

    // Foreign ones only, and one within another.
    let target = node.prepare("foreign");
    let at = path(&target);
    fs::create_dir(&at).unwrap();
    for _ in 0..3 {
        mount_foreign(&at);
    }
    fs::create_dir(at.join("inner")).unwrap();
    mount_foreign(&at.join("inner"));
    node.volumes.unmount(&target).unwrap();
    assert!(mounts_at(&target).is_empty());
    assert!(!at.exists());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t11_an_unmount_does_not_wait_for_a_container_that_uses_the_volume() {
    let node = Node::new();
    let files = payload([("file", "of the container"), ("folder/file", "too")]);
    let target = node.mounted("pod", &files);
    let mut held = File::open(path(&target).join("file")).unwrap();
    let container = node.at("container");
    fs::create_dir(&container).unwrap();

    let (go, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let (target, container) = (&target, &container);
        scope.spawn(move || {
            own_mounts();
            bind(&path(target), container);
            let mut held = File::open(container.join("folder/file")).unwrap();
            tell.send(()).unwrap();
            wait.recv().unwrap();
            let mut content = String::new();
            held.read_to_string(&mut content).unwrap();
            tell.send(()).unwrap();
            assert_eq!(content, "too");
            assert_eq!(
                read_all(container),
                wanted(&payload([
                    ("file", "of the container"),
                    ("folder/file", "too"),
                ]))
            );
        });
        told.recv().unwrap();
        node.volumes.unmount(target).unwrap();
        assert!(mounts_at(target).is_empty());
        assert!(!path(target).exists());
        go.send(()).unwrap();
        told.recv().unwrap();
    });

    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    held.rewind().unwrap();
    assert_eq!(content, "of the container");
    // The place is free at once for a volume that has nothing to do with it.
    let target = node.mounted("pod", &payload([("file", "of the next one")]));
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "of the container");
    assert_eq!(
        visible(&target),
        wanted(&payload([("file", "of the next one")]))
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t11_a_volume_in_use_can_be_rotated_and_unmounted() {
    let node = Node::new();
    let target = node.mounted("pod", &payload([("file", "one")]));
    // A shell that stands in the folder, in a generation that is gone by then.
    let generation = path(&target).join(generation(&target));
    let held = File::open(&generation).unwrap();
    let mut file = File::open(generation.join("file")).unwrap();
    for next in ["two", "three"] {
        grace_passes(&target);
        let rotated = node
            .volumes
            .rotate(&target, &payload([("file", next)]), &record(next));
        assert_eq!(rotated.unwrap(), Outcome::Rotated);
    }
    assert!(!generations(&target).contains(&wanted(&payload([("file", "one")]))));
    node.volumes.unmount(&target).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one");
    drop(held);
}
