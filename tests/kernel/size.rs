//! What is within the limits fits, always; what cannot be written whole is not written at all.

use std::fs::{self, File};

use coffer::error::Reason;
use coffer::payload::{Limits, Payload};
use coffer::volume::{HeldObject, LAYOUT, Outcome, Record, VolumeError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::{
    Node, generation, grace_passes, internal_names, path, payload, record, try_payload, visible,
    wanted,
};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn the_largest_payload_fits_beside_two_others_that_readers_hold() {
    // A descriptor for each file of the generation that is held.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096), hard).unwrap();
    let node = Node::new();
    let limits = *node.volumes.limits();
    let [first, second, third] = [1, 2, 3].map(|version| largest(&limits, version));
    let mounted = node.prepare("pod");
    node.volumes
        .mount(&mounted, &first, &largest_record(1))
        .unwrap();
    // Somebody has everything of the first one open, so that removing it frees nothing.
    let held = hold(&path(&mounted).join(generation(&mounted)));
    assert_eq!(held.len(), limits.entries() + 1);
    for (version, next) in [(2, &second), (3, &third)] {
        grace_passes(&mounted);
        let rotated = node
            .volumes
            .rotate(&mounted, next, &largest_record(version));
        assert_eq!(rotated.unwrap(), Outcome::Rotated, "{version}");
        assert_eq!(visible(&mounted), wanted(next), "{version}");
    }
    let usage = node.volumes.usage(&mounted).unwrap();
    println!(
        "  with three of the largest payload: {} KiB of {} and {} inodes of {} are free",
        usage.bytes_free / 1024,
        usage.bytes / 1024,
        usage.inodes_free,
        usage.inodes
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w5_what_cannot_be_written_whole_is_not_written_at_all() {
    let node = Node::new();
    let limits = *node.volumes.limits();
    let files = payload([("file", "old"), ("folder/file", "old")]);
    let target = node.mounted("pod", &files);
    let held = internal_names(&target);
    // The payload is the last to be at fault, so the room for it is taken away by hand.
    let filler = path(&target).join("..data/filler");
    let usage = node.volumes.usage(&target).unwrap();
    fs::write(
        &filler,
        vec![0; usage.bytes_free as usize - limits.bytes / 2],
    )
    .unwrap();
    let next = largest(&limits, 1);
    for _ in 0..2 {
        let rotated = node.volumes.rotate(&target, &next, &record("next"));
        assert_eq!(rotated.unwrap_err().reason(), Reason::TooLarge);
        assert_eq!(internal_names(&target), held, "none of it stays");
    }
    fs::remove_file(&filler).unwrap();
    assert_eq!(visible(&target), wanted(&files));
    let rotated = node.volumes.rotate(&target, &next, &record("next"));
    assert_eq!(rotated.unwrap(), Outcome::Rotated, "and the next one works");
    assert_eq!(visible(&target), wanted(&next));
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_mount_of_more_than_fits_leaves_nothing() {
    // A payload of other limits than the volume's.
    let node = Node::with_limits(Limits {
        bytes: 4096,
        files: 4,
    });
    let target = node.prepare("pod");
    let large = largest(&Limits::default(), 1);
    let mounted = node.volumes.mount(&target, &large, &record("first"));
    assert!(
        matches!(mounted, Err(VolumeError::Kernel { .. })),
        "{mounted:?}"
    );
    assert!(!path(&target).exists());
    let small = largest(node.volumes.limits(), 1);
    node.volumes
        .mount(&target, &small, &record("first"))
        .unwrap();
    assert_eq!(visible(&target), wanted(&small));
}

/// As many files, folders and bytes as there may be, in as many pages as that can take: all files but
/// one end with the first byte of a page, and the names are so long that the link to each takes one.
fn largest(limits: &Limits, version: u8) -> Payload {
    let page = rustix::param::page_size();
    let folders = limits.entries() / limits.files - 1;
    let each = (limits.bytes / limits.files).saturating_sub(1) / page * page + 1;
    let files = (0..limits.files).map(|file| {
        let first = format!("{file:0>255}");
        let path = (1..folders).fold(first, |path, folder| format!("{path}/{folder}"));
        let length = match file {
            0 => limits.bytes - (limits.files - 1) * each,
            _ => each,
        };
        (format!("{path}/file"), vec![version; length], 0o644)
    });
    let payload = try_payload(files, None, limits).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        payload.files().len() + payload.folders().len(),
        limits.entries()
    );
    payload
}

/// As much as is ever remembered with a volume: the longest versions of the most objects.
fn largest_record(version: u8) -> Record {
    let held = HeldObject {
        version: format!("{version:0>128}"),
        expires: Some(u64::MAX),
        once: true,
    };
    Record {
        layout: LAYOUT,
        immutable: false,
        class: "c".repeat(64),
        objects: (0..256)
            .map(|n| (format!("{n:016x}"), held.clone()))
            .collect(),
    }
}

/// Opens everything in `folder`, and itself.
fn hold(folder: &std::path::Path) -> Vec<File> {
    let mut held = vec![File::open(folder).unwrap()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        match entry.is_dir() {
            true => held.append(&mut hold(&entry)),
            false => held.push(File::open(entry).unwrap()),
        }
    }
    held
}
