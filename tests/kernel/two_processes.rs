//! Two processes of the driver on one node for a moment: never two writers in one volume.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use coffer::payload::Payload;
use coffer::volume::{Outcome, TargetPath, Volumes};

use crate::harness::{
    Node, grace_passes, in_a_user_namespace, mounts_at, path, payload, record, visible, wanted,
};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_r10_whoever_changes_a_volume_waits_for_the_process_that_does_so_now() {
    let node = Node::new();
    let target = node.prepare("pod");
    let (first, second) = (contents(1), contents(2));
    type Work<'a> = &'a (dyn Fn() + Sync);
    let works: [(&str, Work<'_>); 4] = [
        ("mount", &|| {
            let mounted = node.volumes.mount(&target, &first, &record("first"));
            assert_eq!(mounted.unwrap(), Outcome::Mounted);
        }),
        ("rotate", &|| {
            let rotated = node.volumes.rotate(&target, &second, &record("second"));
            assert_eq!(rotated.unwrap(), Outcome::Rotated);
        }),
        ("sweep", &|| {
            grace_passes(&target);
            assert_eq!(node.volumes.sweep(&target).unwrap(), Outcome::Rotated);
        }),
        ("unmount", &|| node.volumes.unmount(&target).unwrap()),
    ];
    for (name, work) in works {
        let others = File::open(path(&target).parent().unwrap()).unwrap();
        others.lock().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                work();
                done.store(true, SeqCst);
            });
            // Long enough to have done it many times over, if nothing kept it.
            thread::sleep(Duration::from_millis(100));
            assert!(!done.load(SeqCst), "{name} did not wait");
            others.unlock().unwrap();
        });
        assert!(done.load(SeqCst), "{name}");
    }
    assert!(mounts_at(&target).is_empty());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_r10_two_processes_that_write_and_sweep_the_same_volume_never_meet_in_it() {
    if in_a_user_namespace() {
        // There the second process does not know the volume, and touches nothing.
        return two_strangers();
    }
    let node = Node::new();
    let target = node.mounted("pod", &contents(0));
    let processes = [node.restarted(), node.restarted(), node.restarted()];
    let rotated = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (process, volumes) in processes.iter().enumerate() {
            let (target, rotated) = (&target, &rotated);
            scope.spawn(move || {
                for round in 0..300 {
                    // To the volume, readers had their second: the next rotation sweeps at once.
                    grace_passes(target);
                    let files = contents(process * 1000 + round);
                    let done = volumes.rotate(target, &files, &record("next"));
                    if done.unwrap() == Outcome::Rotated {
                        rotated.fetch_add(1, SeqCst);
                    }
                    volumes.sweep(target).unwrap();
                }
            });
        }
    });
    assert!(
        rotated.load(SeqCst) > 100,
        "they were at it at the same time"
    );
    let found = visible(&target);
    let number = String::from_utf8(found["a"].clone()).unwrap();
    let number = number.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(found, wanted(&contents(number)), "one whole set");
}

fn two_strangers() {
    let node = Node::new();
    let target: TargetPath = node.mounted("pod", &contents(0));
    let next: Volumes = node.restarted();
    next.rotate(&target, &contents(1), &record("next"))
        .expect_err("it is not known");
    assert_eq!(visible(&target), wanted(&contents(0)));
}

fn contents(number: usize) -> Payload {
    payload(["a", "b/c", "d/e/f"].map(|path| (path, format!("{number} in {path}"))))
}
