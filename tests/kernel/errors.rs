//! The kernel refuses one system call of an operation, each in turn and in each way: the driver says
//! so, keeps what there was, cleans up behind itself, and succeeds the next time.
//!
//! Only where the tracer can change the registers of a call, which is x86_64.

#![cfg(target_arch = "x86_64")]

use coffer::payload::{Limits, Payload};
use coffer::volume::{Outcome, TargetPath, VolumeError, Volumes};
use nix::errno::Errno;

use crate::crash::publish;
use crate::harness::{
    Node, grace_passes, in_a_user_namespace, internal_names, mounts_at, path, payload, prepare,
    read_all, record, rotate, rules, visible, wanted,
};
use crate::points::{How, is_looked_at, tell};
use crate::tracer::{Traced, folder, traced};

/// The calls that can run out of something. What allocates memory for the process itself is not among
/// them: there is no going on without it.
const FALLIBLE: &[i64] = &[
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fsconfig,
    libc::SYS_fsetxattr,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_move_mount,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_umount2,
    libc::SYS_unlinkat,
    libc::SYS_write,
];

/// What the driver is to make of each.
const ERRORS: &[(Errno, &str)] = &[
    (Errno::ENOSPC, "TooLarge"),
    (Errno::EDQUOT, "TooLarge"),
    (Errno::ENOMEM, "NodeExhausted"),
    (Errno::EMFILE, "NodeExhausted"),
    (Errno::EIO, "NodeFailure"),
    // It is taken up again where that is without danger, and reported like any other where it is not.
    (Errno::EINTR, "NodeFailure"),
];

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w5_a_mount_that_the_kernel_refuses_anywhere_leaves_nothing_and_works_the_next_time() {
    let test =
        rule_w5_a_mount_that_the_kernel_refuses_anywhere_leaves_nothing_and_works_the_next_time;
    if let Some((volumes, target)) = in_the_traced_process() {
        return exit_with(traced(|| publish(&volumes, &target, &second())));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = with_every_error(test, &node, |told, _, point| {
        if told == "Ok" {
            assert_eq!(visible(&target), wanted(&second()), "{point}");
            return node.restarted().unmount(&target).unwrap();
        }
        assert!(mounts_at(&target).is_empty(), "{point}");
        assert!(!path(&target).exists(), "{point}");
        let again = node.volumes.mount(&target, &second(), &record("second"));
        assert_eq!(again.unwrap(), Outcome::Mounted, "{point}");
        assert_eq!(visible(&target), wanted(&second()), "{point}");
        node.volumes.unmount(&target).unwrap();
    });
    tell(How::Refused, "a mount", points);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w5_a_rotation_that_the_kernel_refuses_anywhere_keeps_the_old_contents() {
    let test = rule_w5_a_rotation_that_the_kernel_refuses_anywhere_keeps_the_old_contents;
    if let Some((volumes, target)) = in_the_traced_process() {
        // Two generations, so that the rotation has one to remove.
        volumes
            .mount(&target, &payload([("before", "0")]), &record("zeroth"))
            .unwrap();
        rotate(&volumes, &target, &first());
        grace_passes(&target);
        return exit_with(traced(|| {
            volumes.rotate(&target, &second(), &record("second"))
        }));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = with_every_error(test, &node, |told, switched, point| {
        let switched = switched || told == "Ok";
        // What fails after the switch is made good later; it does not turn the contents back.
        let expected = if switched { second() } else { first() };
        let present = read_all(&path(&target).join("..data"));
        assert_eq!(present, wanted(&expected), "{point}");
        let held = internal_names(&target);
        // `..data`, what it points to, and the one before that, or what is left of it.
        assert!(
            held.len() <= 3 && !held.contains(&"..data_tmp".to_owned()),
            "{point}: {held:?}"
        );

        let next = node.restarted();
        grace_passes(&target);
        match next.rotate(&target, &second(), &record("second")) {
            Ok(outcome) => {
                let expected = if switched {
                    Outcome::Unchanged
                } else {
                    Outcome::Rotated
                };
                assert_eq!(outcome, expected, "{point}");
                assert_eq!(visible(&target), wanted(&second()), "{point}");
            }
            // In a user namespace this process does not know the volume of the other one.
            Err(error) => assert!(in_a_user_namespace(), "{point}: {error}"),
        }
        next.unmount(&target).unwrap();
    });
    tell(How::Refused, "a rotation", points);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w5_an_unmount_that_the_kernel_refuses_anywhere_says_so_and_works_the_next_time() {
    let test = rule_w5_an_unmount_that_the_kernel_refuses_anywhere_says_so_and_works_the_next_time;
    if let Some((volumes, target)) = in_the_traced_process() {
        volumes.mount(&target, &first(), &record("first")).unwrap();
        let unmounted = traced(|| volumes.unmount(&target));
        return exit_with(unmounted.map(|()| Outcome::Unchanged));
    }
    let node = Node::new();
    let target = node.prepare("pod");
    let points = with_every_error(test, &node, |told, _, point| {
        if told == "Ok" {
            assert!(
                !path(&target).exists(),
                "{point}: OK, and something is left"
            );
        } else if !mounts_at(&target).is_empty() {
            assert_eq!(visible(&target), wanted(&first()), "{point}");
        }
        node.restarted().unmount(&target).unwrap();
        assert!(mounts_at(&target).is_empty(), "{point}");
        assert!(!path(&target).exists(), "{point}");
    });
    tell(How::Refused, "an unmount", points);
}

/// Lets the first fallible call of the operation of `test` fail in every way, then the second one, and
/// so on, and looks at what it left each time: told what the operation said, and whether the switch had
/// come before.
fn with_every_error(
    test: impl Fn() + Copy,
    node: &Node,
    mut look: impl FnMut(&str, bool, &str),
) -> usize {
    let mut points = 0;
    for nth in 0.. {
        for (which, (errno, reason)) in ERRORS.iter().enumerate() {
            if !is_looked_at(nth * ERRORS.len() + which) {
                continue;
            }
            let traced = Traced::start(test, node.folder());
            let Some((call, switched)) = go_to(&traced, nth) else {
                traced.kill();
                let target = prepare(&node.volumes, "pod", "secrets");
                node.volumes.unmount(&target).unwrap();
                return points;
            };
            traced.fail(*errno);
            let point = format!("{errno} at fallible call {nth}, of number {call}");
            let told = REASONS.get(traced.finish() as usize);
            let told = *told.unwrap_or_else(|| panic!("{point}: another reason"));
            // What is only looked at in passing may fail without harm; then all must be well.
            assert!(told == *reason || told == "Ok", "{point}: {told}");
            look(told, switched, &point);
            points += 1;
        }
    }
    unreachable!("an operation comes to its end")
}

/// Stops where the `nth` fallible call is about to begin. Gives its number, and whether the contents
/// were switched before; `None` when there are not so many.
fn go_to(traced: &Traced, nth: usize) -> Option<(i64, bool)> {
    let mut switched = false;
    let mut before = 0;
    while traced.next_call() {
        let call = traced.number();
        if FALLIBLE.contains(&call) {
            if before == nth {
                return Some((call, switched));
            }
            before += 1;
        }
        switched |= [libc::SYS_renameat, libc::SYS_renameat2].contains(&call);
        traced.call();
    }
    None
}

/// How the traced process tells what it was told: by the place in this list.
const REASONS: &[&str] = &["Ok", "TooLarge", "NodeExhausted", "NodeFailure"];

fn exit_with(done: Result<Outcome, VolumeError>) {
    let reason = done.map_or_else(|error| error.reason().as_str(), |_| "Ok");
    let place = REASONS.iter().position(|known| *known == reason);
    std::process::exit(place.map_or(255, |place| place as i32));
}

fn in_the_traced_process() -> Option<(Volumes, TargetPath)> {
    let volumes = Volumes::probe(rules(&folder()?), Limits::default()).unwrap();
    let target = prepare(&volumes, "pod", "secrets");
    Some((volumes, target))
}

fn first() -> Payload {
    payload([
        ("both", "1"),
        ("folder/one", "1"),
        ("folder/two", "1"),
        ("dropped", "1"),
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
