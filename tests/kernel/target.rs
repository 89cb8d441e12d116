//! What lies at a target path that is not ours: it is never touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use coffer::volume::{Outcome, State, TargetPath, TargetRules, VolumeError, Volumes};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, mkfifo};

use crate::harness::{
    Node, bind, in_a_user_namespace, mount_foreign, mounts_at, mounts_below, path, payload,
    prepare, record, snapshot, visible, wanted,
};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t3_a_symlink_anywhere_in_the_path_is_refused_and_nothing_is_made_through_it() {
    let node = Node::new();
    let components = ["pod", "volumes", "kubernetes.io~csi", "secrets", "mount"];
    for (place, component) in components.into_iter().enumerate() {
        for there in [true, false] {
            let case = format!("{component} is a symlink, what it points to is there: {there}");
            // The path is whole, but from this component on it lies elsewhere.
            let root = node.at(&format!("{place}-{there}"));
            let outside = root.join("outside");
            let pods = root.join("pods");
            let link = components[..=place]
                .iter()
                .fold(pods.clone(), |at, name| at.join(name));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            fs::create_dir_all(&outside).unwrap();
            let behind = outside.join("behind");
            if there {
                let rest = components[place + 1..].iter();
                fs::create_dir_all(rest.fold(behind.clone(), |at, name| at.join(name))).unwrap();
            }
            symlink(&behind, &link).unwrap();
            let volumes = with_pods(&node, &pods);
            let target = target_in(&volumes);
            assert_untouched(&volumes, &target, &root, &case);
        }
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t3_a_symlink_within_the_pods_folder_is_no_better() {
    let node = Node::new();
    let real = node.prepare("real");
    fs::create_dir(path(&real)).unwrap();
    symlink("real", node.at("pods/pod")).unwrap();
    let target = target_in(&node.volumes);
    assert_untouched(
        &node.volumes,
        &target,
        &node.at("pods"),
        "a relative symlink",
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t4_a_target_that_is_no_empty_folder_is_refused_and_stays_as_it_is() {
    type Make = fn(&Path);
    let cases: [(&str, Make); 7] = [
        ("a file", |at| fs::write(at, "theirs").unwrap()),
        ("a socket", |at| drop(UnixListener::bind(at).unwrap())),
        ("a FIFO", |at| mkfifo(at, Mode::S_IRWXU).unwrap()),
        ("a folder with a file", |at| {
            fs::create_dir(at).unwrap();
            fs::write(at.join("theirs"), "theirs").unwrap();
        }),
        ("a folder with a folder", |at| {
            fs::create_dir_all(at.join("theirs")).unwrap();
        }),
        ("a folder with a name that is no text", |at| {
            use std::os::unix::ffi::OsStrExt;
            fs::create_dir(at).unwrap();
            fs::write(at.join(std::ffi::OsStr::from_bytes(b"\xff")), "theirs").unwrap();
        }),
        ("a folder with a hidden file", |at| {
            fs::create_dir(at).unwrap();
            fs::write(at.join("..."), "theirs").unwrap();
        }),
    ];
    let node = Node::new();
    for (place, (case, make)) in cases.into_iter().enumerate() {
        let target = node.prepare(&place.to_string());
        make(&path(&target));
        assert_untouched(&node.volumes, &target, &node.at("pods"), case);
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t4_a_folder_of_another_user_is_refused() {
    let node = Node::new();
    if !in_a_user_namespace() {
        let target = node.prepare("pod");
        fs::create_dir(path(&target)).unwrap();
        chown(&path(&target), Some(Uid::from_raw(65534)), None).unwrap();
        return assert_refused(&node.volumes, &target, "the folder belongs to another user");
    }
    // There is but one user in here; whatever belongs to the machine belongs to somebody else.
    let rules = TargetRules {
        pods: node.at("pods"),
        conformance_root: Some("/usr".into()),
    };
    let volumes = Volumes::probe(rules, *node.volumes.limits()).unwrap();
    let target = volumes.rules().parse("/usr/lib").unwrap();
    assert_refused(&volumes, &target, "the folder belongs to another user");
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t4_a_mount_of_somebody_else_is_refused() {
    type Make = fn(&Node, &Path);
    let cases: [(&str, Make); 3] = [
        ("a tmpfs", |_, at| mount_foreign(at)),
        ("a tmpfs with files", |_, at| {
            mount_foreign(at);
            fs::write(at.join("theirs"), "theirs").unwrap();
        }),
        ("a folder of the disk", |node, at| {
            fs::create_dir(node.at("theirs")).unwrap();
            fs::write(node.at("theirs/file"), "theirs").unwrap();
            bind(&node.at("theirs"), at);
        }),
    ];
    let node = Node::new();
    for (place, (case, make)) in cases.into_iter().enumerate() {
        let target = node.prepare(&place.to_string());
        fs::create_dir(path(&target)).unwrap();
        make(&node, &path(&target));
        let before = (snapshot(&node.at("pods")), mounts_below(node.folder()));
        assert_refused(&node.volumes, &target, "something else is mounted there");
        let after = (snapshot(&node.at("pods")), mounts_below(node.folder()));
        assert_eq!(after, before, "{case}");
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t4_a_part_of_one_of_our_volumes_is_not_a_volume() {
    let node = Node::new();
    let whole = node.mounted("whole", &payload([("folder/file", "ours")]));
    let target = node.prepare("part");
    fs::create_dir(path(&target)).unwrap();
    bind(&path(&whole).join("folder"), &path(&target));
    if !in_a_user_namespace() {
        assert_refused(&node.volumes, &target, "something else is mounted there");
    } else {
        // Known by its device, it is taken for a volume; there are no pods in a user namespace.
        let held = node.volumes.state(&target).unwrap();
        assert_eq!(held, State::Complete(None));
    }
    assert_eq!(visible(&whole), wanted(&payload([("folder/file", "ours")])));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t12_files_in_the_folder_below_a_volume_are_never_deleted() {
    let node = Node::new();
    let said = "files lie in the folder itself, below the volume: look at them and remove them";
    // Nothing is mounted.
    let target = node.prepare("bare");
    fs::create_dir_all(path(&target).join("folder")).unwrap();
    fs::write(path(&target).join("folder/file"), "theirs").unwrap();
    let before = snapshot(&path(&target));
    assert_problem(node.volumes.unmount(&target), said);
    assert_eq!(snapshot(&path(&target)), before);

    // A volume is: it goes, they stay.
    let target = node.mounted("covered", &payload([("file", "ours")]));
    let below = node.at("below");
    fs::create_dir(&below).unwrap();
    bind(path(&target).parent().unwrap(), &below);
    fs::write(below.join("mount/file"), "theirs").unwrap();
    let before = snapshot(&below);
    assert_problem(node.volumes.unmount(&target), said);
    assert!(mounts_at(&target).is_empty());
    assert_eq!(snapshot(&below), before);
    assert_eq!(
        fs::read_to_string(path(&target).join("file")).unwrap(),
        "theirs"
    );
    assert_problem(node.volumes.unmount(&target), said);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t13_not_one_byte_goes_to_the_disk_when_the_volume_was_taken_away() {
    let node = Node::new();
    let next = payload([("file", "secret")]);
    type Take = fn(&Path);
    let cases: [(&str, Take); 3] = [
        ("the folder is bare", |_| {}),
        ("the folder is gone", |at| fs::remove_dir(at).unwrap()),
        ("all that the kubelet made is gone", |at| {
            fs::remove_dir_all(at.ancestors().nth(4).unwrap()).unwrap();
        }),
    ];
    for (case, take) in cases {
        let target = node.mounted("pod", &payload([("file", "old")]));
        umount2(&path(&target), MntFlags::MNT_DETACH).unwrap();
        take(&path(&target));
        let before = snapshot(&node.at("pods"));
        for failed in [
            node.volumes
                .rotate(&target, &next, &record("next"))
                .map(drop),
            node.volumes.sweep(&target).map(drop),
            node.volumes.usage(&target).map(drop),
        ] {
            assert!(
                matches!(failed, Err(VolumeError::NotMounted(_))),
                "{case}: {failed:?}"
            );
        }
        assert_eq!(snapshot(&node.at("pods")), before, "{case}");
        // The next publish restores it.
        assert_eq!(
            node.volumes.state(&target).unwrap(),
            State::Absent,
            "{case}"
        );
        let target = node.mounted("pod", &next);
        assert_eq!(visible(&target), wanted(&next), "{case}");
        node.volumes.unmount(&target).unwrap();
    }
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t13_nothing_is_written_to_what_took_the_place_of_the_volume() {
    let node = Node::new();
    let target = node.mounted("pod", &payload([("file", "old")]));
    // Whoever holds the old one also keeps its device number from being given to another.
    let _held = fs::File::open(path(&target)).unwrap();
    umount2(&path(&target), MntFlags::MNT_DETACH).unwrap();
    mount_foreign(&path(&target));
    let before = snapshot(&node.at("pods"));
    let rotated = node
        .volumes
        .rotate(&target, &payload([("file", "new")]), &record("next"));
    assert_problem(rotated.map(drop), "something else is mounted there");
    assert_eq!(snapshot(&node.at("pods")), before);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t14_characters_of_a_shell_mean_themselves() {
    let node = Node::new();
    let names = [
        "*",
        "?",
        "[a-z]",
        "$(touch made)",
        "`touch made`",
        "$HOME",
        "~",
        "a b",
        "'",
        "\"",
        "\\",
        "\\040",
        ";",
        "&",
        "|",
        ">made",
        "-rf",
        "--",
        "#",
        "!",
        "{a,b}",
        "%s",
        "ü",
    ];
    let files = payload([("file", "ours")]);
    let plain = node.mounted("plain", &files);
    for name in names {
        // As the name of the volume, and as the pod's.
        for target in [
            prepare(&node.volumes, "pod", name),
            prepare(&node.volumes, name, "x"),
        ] {
            let mounted = node.volumes.mount(&target, &files, &record("first"));
            assert_eq!(mounted.unwrap(), Outcome::Mounted, "{name:?}");
            let mounts = mounts_below(path(&target).parent().unwrap());
            assert_eq!(mounts.len(), 1, "{name:?}");
            assert_eq!(mounts[0].at, path(&target));
            assert_eq!(visible(&target), wanted(&files), "{name:?}");
            let rotated = node
                .volumes
                .rotate(&target, &payload([("file", "n")]), &record("next"));
            assert_eq!(rotated.unwrap(), Outcome::Rotated, "{name:?}");
            node.volumes.unmount(&target).unwrap();
            assert!(!path(&target).exists(), "{name:?}");
        }
    }
    let left = mounts_below(node.folder());
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(visible(&plain), wanted(&files));
}

fn with_pods(node: &Node, pods: &Path) -> Volumes {
    let rules = TargetRules {
        pods: pods.to_owned(),
        conformance_root: None,
    };
    Volumes::probe(rules, *node.volumes.limits()).unwrap()
}

fn target_in(volumes: &Volumes) -> TargetPath {
    let pods: &PathBuf = &volumes.rules().pods;
    let path = pods.join("pod/volumes/kubernetes.io~csi/secrets/mount");
    volumes.rules().parse(path.to_str().unwrap()).unwrap()
}

/// Every operation is refused, and `folder` stays as it is to the last bit.
fn assert_untouched(volumes: &Volumes, target: &TargetPath, folder: &Path, case: &str) {
    let before = (snapshot(folder), mounts_below(folder));
    let files = payload([("file", "ours")]);
    for refused in [
        volumes.state(target).map(drop),
        volumes.mount(target, &files, &record("first")).map(drop),
        volumes.rotate(target, &files, &record("next")).map(drop),
        volumes.sweep(target).map(drop),
        volumes.usage(target).map(drop),
        volumes.unmount(target),
    ] {
        assert!(
            matches!(refused, Err(VolumeError::Refused { .. })),
            "{case}: {refused:?}"
        );
    }
    assert_eq!((snapshot(folder), mounts_below(folder)), before, "{case}");
}

/// Nothing is mounted or written there. An unmount is another matter: the kubelet may have it.
fn assert_refused(volumes: &Volumes, target: &TargetPath, problem: &str) {
    let files = payload([("file", "ours")]);
    assert_problem(volumes.state(target).map(drop), problem);
    assert_problem(
        volumes.mount(target, &files, &record("first")).map(drop),
        problem,
    );
    assert_problem(
        volumes.rotate(target, &files, &record("next")).map(drop),
        problem,
    );
    assert_problem(volumes.sweep(target).map(drop), problem);
}

fn assert_problem(done: Result<(), VolumeError>, expected: &str) {
    match done {
        Err(VolumeError::Refused { problem, .. }) => assert_eq!(problem, expected),
        other => panic!("{other:?} and not: {expected}"),
    }
}
