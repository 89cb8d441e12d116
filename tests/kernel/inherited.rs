//! Volumes that secrets-store-csi-driver has mounted, as it and the plugins of its stores leave them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use coffer::volume::{Outcome, State, TargetPath};
use nix::mount::{MsFlags, mount};

use crate::harness::{GRACE, Node, bind, mounts_at, path, payload, record, visible, wanted};

/// A volume as it mounts one: `mount -t tmpfs tmpfs TARGET`.
fn inherited(node: &Node, pod_uid: &str) -> TargetPath {
    let target = node.prepare(pod_uid);
    let at = path(&target);
    fs::create_dir(&at).unwrap();
    mount(
        Some("tmpfs"),
        &at,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    target
}

/// Its own layout, which is that of Kubernetes' volumes.
fn write_generation(at: &Path) {
    let generation = "..2026_11_21_10_00_00.123456789";
    fs::create_dir_all(at.join(generation).join("nested")).unwrap();
    fs::write(at.join(generation).join("foo"), "old").unwrap();
    fs::write(at.join(generation).join("nested/bar"), "old").unwrap();
    symlink(generation, at.join("..data")).unwrap();
    symlink("..data/foo", at.join("foo")).unwrap();
    symlink("..data/nested", at.join("nested")).unwrap();
}

/// What a plugin does that writes its files itself.
fn write_plain_files(at: &Path) {
    fs::create_dir(at.join("nested")).unwrap();
    fs::write(at.join("foo"), "old").unwrap();
    fs::write(at.join("nested/bar"), "old").unwrap();
    fs::write(at.join("gone"), "old").unwrap();
    fs::create_dir(at.join("folder")).unwrap();
    fs::write(at.join("folder/gone"), "old").unwrap();
}

fn device(target: &TargetPath) -> u64 {
    fs::metadata(path(target)).unwrap().dev()
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn whatever_it_has_written_is_taken_over_by_the_first_rotation() {
    let node = Node::new();
    if !node.volumes.adopts() {
        // In a user namespace nothing is adopted.
        let target = inherited(&node, "refused");
        assert!(node.volumes.state(&target).is_err());
        return;
    }
    let next = payload([("foo", "new"), ("nested/bar", "new"), ("more", "new")]);
    for (pod_uid, write) in [
        ("generation", write_generation as fn(&Path)),
        ("plain", write_plain_files),
    ] {
        let target = inherited(&node, pod_uid);
        let at = path(&target);
        write(&at);
        let before = device(&target);
        assert_eq!(node.volumes.state(&target).unwrap(), State::Inherited);
        let rotated = node.volumes.rotate(&target, &next, &record("second"));
        let mut rotated = rotated.unwrap();
        if matches!(rotated, Outcome::TooSoon(_)) {
            // Its own last switch was not a second ago.
            std::thread::sleep(GRACE);
            rotated = node
                .volumes
                .rotate(&target, &next, &record("second"))
                .unwrap();
        }
        assert_eq!(rotated, Outcome::Rotated, "{pod_uid}");
        assert_eq!(visible(&target), wanted(&next), "{pod_uid}");
        assert_eq!(device(&target), before, "containers have this one");
        let mode = fs::metadata(&at).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{pod_uid}: nobody else writes there");
        let held = State::Complete(Some(record("second")));
        assert_eq!(node.restarted().state(&target).unwrap(), held, "{pod_uid}");
        std::thread::sleep(GRACE);
        node.volumes.sweep(&target).unwrap();
        let internal = fs::read_dir(&at).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with("..")
        });
        assert_eq!(internal.count(), 2, "..data and one generation");
        node.volumes.unmount(&target).unwrap();
        assert!(!at.exists());
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn one_that_was_never_filled_is_filled_where_it_is() {
    let node = Node::new();
    if !node.volumes.adopts() {
        return;
    }
    let target = inherited(&node, "empty");
    let before = device(&target);
    assert_eq!(node.volumes.state(&target).unwrap(), State::Empty);
    let files = payload([("foo", "new")]);
    let mounted = node.volumes.mount(&target, &files, &record("first"));
    assert_eq!(mounted.unwrap(), Outcome::Mounted);
    assert_eq!(visible(&target), wanted(&files));
    assert_eq!((device(&target), mounts_at(&target).len()), (before, 1));
    let held = State::Complete(Some(record("first")));
    assert_eq!(node.volumes.state(&target).unwrap(), held);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn it_is_left_alone_until_it_is_asked_for() {
    let node = Node::new();
    if !node.volumes.adopts() {
        return;
    }
    let target = inherited(&node, "pod");
    let at = path(&target);
    write_generation(&at);
    fs::create_dir(at.join("..2026_11_21_09_00_00.1")).unwrap();
    assert_eq!(node.restarted().sweep_all(), 0, "another driver may run it");
    assert!(at.join("..2026_11_21_09_00_00.1").exists());
    // A part of such a volume is none.
    let part = node.prepare("part");
    fs::create_dir(path(&part)).unwrap();
    bind(&at.join("nested"), &path(&part));
    assert!(node.volumes.state(&part).is_err());
    // It goes as every other one.
    node.volumes.unmount(&target).unwrap();
    assert!(!at.exists() && mounts_at(&target).is_empty());
}
