//! Many volumes, one after another and side by side.

use std::fs;
use std::time::{Duration, Instant};

use coffer::volume::{State, TargetPath};

use crate::harness::{Node, alone, mounts_below, payload, prepare, record};

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_t15_ten_thousand_rounds_leave_nothing_behind() {
    alone(rule_t15_ten_thousand_rounds_leave_nothing_behind, || {
        let node = Node::new();
        let target = node.prepare("pod");
        let files = payload([
            ("password", "1"),
            ("tls/key", "2"),
            ("tls/certificate", "3"),
        ]);
        let rounds = |count| {
            for _ in 0..count {
                node.volumes
                    .mount(&target, &files, &record("first"))
                    .unwrap();
                node.volumes.unmount(&target).unwrap();
            }
        };
        // What an allocator and the kernel keep for the next time, they have by then.
        rounds(100);
        let before = Held::now(&node);
        let started = Instant::now();
        rounds(10_000);
        println!("  10000 rounds in {:?}", started.elapsed());
        let after = Held::now(&node);
        assert_eq!(
            (after.mounts, after.descriptors, after.threads),
            (before.mounts, before.descriptors, before.threads)
        );
        let more = after.memory.saturating_sub(before.memory);
        // One byte that stays behind in each round, rounded up to what an allocator deals in.
        assert!(more < 256 << 10, "{more} bytes more than before");
    });
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_look_at_one_volume_does_not_get_slower_with_their_number() {
    let node = Node::new();
    let files = payload([("password", "1")]);
    let mount = |number: usize| {
        let target = prepare(&node.volumes, &format!("pod-{number}"), "secrets");
        node.volumes
            .mount(&target, &files, &record("first"))
            .unwrap();
        target
    };
    let first = mount(0);
    let alone = median_of_a_look(&node, &first);
    let others: Vec<_> = (1..1000).map(mount).collect();
    let among_many = median_of_a_look(&node, &first);
    println!("  a look takes {alone:?}, and {among_many:?} among 1000 volumes");
    assert!(
        among_many < 3 * alone,
        "{among_many:?} instead of {alone:?}"
    );

    assert_eq!(node.volumes.sweep_all(), 1000);
    for target in others.iter().chain([&first]) {
        node.volumes.unmount(target).unwrap();
    }
    assert!(mounts_below(node.folder()).is_empty());
}

fn median_of_a_look(node: &Node, target: &TargetPath) -> Duration {
    let mut took: Vec<_> = (0..2001)
        .map(|_| {
            let started = Instant::now();
            let state = node.volumes.state(target).unwrap();
            let took = started.elapsed();
            assert!(matches!(state, State::Complete(_)));
            took
        })
        .collect();
    took.sort();
    took[took.len() / 2]
}

/// What a process can leave behind.
struct Held {
    mounts: usize,
    descriptors: usize,
    threads: usize,
    memory: usize,
}

impl Held {
    fn now(node: &Node) -> Self {
        let count = |folder| fs::read_dir(folder).unwrap().count();
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(mounts_below(node.folder()).is_empty());
        Self {
            mounts: all.lines().count(),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            memory: pages * rustix::param::page_size(),
        }
    }
}
