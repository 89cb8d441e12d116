//! How a process that has shed its rights looks to others, whatever it says about itself.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Fails unless every thread of `pid` is confined, with no more capabilities than a driver needs
/// whose plugins' sockets belong to root.
///
/// To be called once the process serves: it starts its threads after it has shed its rights.
pub(crate) fn assert_shed(pid: u32) {
    let allowed = CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN;
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a running process") {
        let task = task.expect("a thread").path();
        match fs::read_to_string(task.join("status")) {
            Ok(status) => assert_thread_shed(&Status(status), allowed),
            // An idle thread of the pool that has just ended.
            Err(error) if ended(&error) => continue,
            Err(error) => panic!("{}: {error}", task.display()),
        }
        threads += 1;
    }
    assert!(
        threads > 1,
        "no thread was started, so nothing was inherited"
    );

    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("core");
    assert_eq!(
        core.split_whitespace().skip(4).collect::<Vec<_>>(),
        ["0", "0", "bytes"]
    );

    assert_not_dumpable(pid);
}

fn assert_thread_shed(status: &Status, allowed: CapabilitySet) {
    let mask = |field| u64::from_str_radix(status.value(field), 16).expect("a mask");
    for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(mask(field) & !allowed.bits(), 0, "{field} of\n{}", status.0);
    }
    // Who has no capability cannot give up the bounding set either, and gets nothing out of it.
    let ordinary = status.value("Uid") != "0" && mask("CapPrm") == 0;
    assert!(
        ordinary || mask("CapBnd") & !allowed.bits() == 0,
        "CapBnd of\n{}",
        status.0
    );

    assert_eq!(status.value("NoNewPrivs"), "1");
    assert_eq!(status.value("Seccomp"), "2", "2 is a filter");
    let filters: u32 = status.value("Seccomp_filters").parse().expect("a number");
    assert!(filters >= 2, "{filters} filters");
    assert_eq!(status.value("Umask"), "0077");
}

/// The kernel shows this nowhere, but it acts on it.
fn assert_not_dumpable(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map(Status)
        .expect("a process");
    let uid: u32 = status.value("Uid").parse().expect("a user id");
    if uid != 0 {
        let owner = fs::metadata(format!("/proc/{pid}/status"))
            .expect("a process")
            .uid();
        assert_ne!(
            owner, uid,
            "what a user could read of process {pid} belongs to root by now"
        );
        return;
    }
    // Root's files are root's in any case. But root without CAP_SYS_PTRACE may look into other
    // processes of root with no more capabilities than its own, unless they are not dumpable.
    let look = |pid: u32| fs::read_link(format!("/proc/{pid}/exe"));
    let (plain, shed) = std::thread::spawn(move || {
        give_up_ptrace();
        let mut plain = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat");
        let seen = (look(plain.id()), look(pid));
        drop(plain.stdin.take());
        plain.wait().expect("the end of cat");
        seen
    })
    .join()
    .expect("the thread that looks");
    plain.expect("a process like any other, to compare with");
    let error = shed.expect_err("dumpable: root without CAP_SYS_PTRACE could look into it");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

/// For the calling thread and what it starts.
fn give_up_ptrace() {
    let ptrace = CapabilitySet::SYS_PTRACE;
    let had = capabilities(None).expect("our capabilities");
    if had.effective.contains(CapabilitySet::SETPCAP) {
        remove_capability_from_bounding_set(ptrace).expect("with CAP_SETPCAP");
    }
    let without = CapabilitySets {
        effective: had.effective - ptrace,
        permitted: had.permitted - ptrace,
        inheritable: had.inheritable - ptrace,
    };
    set_capabilities(None, without).expect("fewer are always possible");
}

/// `/proc/PID/status`.
struct Status(String);

impl Status {
    /// The first word after `field`.
    fn value(&self, field: &str) -> &str {
        let line = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.unwrap_or_else(|| panic!("no {field} in\n{}", self.0))
    }
}

fn ended(error: &io::Error) -> bool {
    let gone = io::Error::from(rustix::io::Errno::SRCH).raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == gone
}
