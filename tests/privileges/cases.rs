//! What a process can and cannot do after it has shed its rights: by the kernel's own answers.
//!
//! Rights can only be shed before threads exist, and the test harness has some. So this test has
//! its own `main`: it runs each case as a child process, which is this program again. It wants to
//! be started by root or by an ordinary user, not by the root of a user namespace.

#![expect(clippy::print_stdout, reason = "it stands in for the test harness")]
#![expect(
    clippy::disallowed_methods,
    reason = "a variable tells which case it is"
)]

mod assert_shed;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};

use coffer::privileges::{PluginSockets, shed};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};

/// Names the case, in a child process.
const CASE: &str = "COFFER_PRIVILEGES_CASE";

struct Case {
    name: &'static str,
    /// Who it runs as: done before rights are shed.
    become_: fn(),
    /// Done after.
    act: fn(),
    /// What the parent sees.
    expect: fn(Child),
}

const CASES: &[Case] = &[
    Case {
        name: "execve_kills_the_process",
        become_: as_we_are,
        act: || panic!("execve came back: {}", Command::new("true").exec()),
        expect: killed_by_sigsys,
    },
    Case {
        name: "a_call_that_is_not_listed_is_not_there",
        become_: || drop(memfd_create("there", MFdFlags::empty()).expect("it is there before")),
        act: || {
            let call = memfd_create("not there", MFdFlags::empty());
            assert_eq!(call.expect_err("not listed"), nix::Error::ENOSYS);
        },
        expect: success,
    },
    Case {
        name: "no_child_process_can_be_started",
        become_: as_we_are,
        act: || {
            let error = Command::new("true").spawn().expect_err("a process");
            assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
        },
        expect: success,
    },
    Case {
        name: "it_cannot_become_dumpable_again",
        become_: as_we_are,
        act: || {
            assert_eq!(
                prctl::set_dumpable(true).expect_err("dumpable"),
                nix::Error::ENOSYS
            );
        },
        expect: success,
    },
    Case {
        name: "threads_inherit_it",
        become_: as_we_are,
        act: run_threads,
        expect: shed_as_seen_from_outside,
    },
    Case {
        name: "an_ordinary_user_sheds_what_there_is",
        become_: ordinary_user,
        act: run_threads,
        expect: shed_as_seen_from_outside,
    },
    Case {
        name: "root_of_a_user_namespace_sheds_too",
        become_: root_of_a_user_namespace,
        act: run_threads,
        expect: shed_as_seen_from_outside,
    },
    Case {
        name: "a_volume_can_be_built_attached_changed_and_detached",
        become_: mount_namespace,
        act: || std::thread::spawn(use_a_volume).join().expect("a volume"),
        expect: success,
    },
    Case {
        name: "and_by_root_of_a_user_namespace",
        become_: root_of_a_user_namespace,
        act: || std::thread::spawn(use_a_volume).join().expect("a volume"),
        expect: success,
    },
];

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(CASE) {
        let case = CASES
            .iter()
            .find(|case| case.name == name)
            .expect("one of the cases");
        (case.become_)();
        shed(PluginSockets::OfRoot).expect("shed");
        (case.act)();
        return ExitCode::SUCCESS;
    }

    // As the test harness takes them: `--list`, and words that a name must contain.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| {
        let mut words = arguments
            .iter()
            .filter(|argument| !argument.starts_with('-'))
            .peekable();
        words.peek().is_none() || words.any(|word| name.contains(word.as_str()))
    };
    let mut passed = 0;
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{}: test", case.name);
            continue;
        }
        let child = Command::new("/proc/self/exe")
            .env(CASE, case.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        (case.expect)(child);
        println!("test {} ... ok", case.name);
        passed += 1;
    }
    println!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored\n");
    ExitCode::SUCCESS
}

fn as_we_are() {}

fn ordinary_user() {
    if Uid::effective().is_root() {
        let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
        setgroups(&[]).expect("root of the machine may");
        setresgid(gid, gid, gid).expect("root of the machine may");
        setresuid(uid, uid, uid).expect("root of the machine may");
        // As after a login; the change of user took it.
        prctl::set_dumpable(true).expect("dumpable");
    }
}

fn mount_namespace() {
    if !Uid::effective().is_root() {
        return root_of_a_user_namespace();
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).expect("private mounts");
}

fn root_of_a_user_namespace() {
    ordinary_user();
    let (uid, gid) = (Uid::effective(), Gid::effective());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .expect("a user namespace (is kernel.apparmor_restrict_unprivileged_userns on?)");
    write("/proc/self/setgroups", "deny");
    write("/proc/self/uid_map", &format!("0 {uid} 1"));
    write("/proc/self/gid_map", &format!("0 {gid} 1"));
}

fn write(path: &str, text: &str) {
    let file = fs::File::options().write(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect(path);
}

/// Until the parent has seen enough.
fn run_threads() {
    let threads: Vec<_> = (0..3)
        .map(|_| std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new())))
        .collect();
    println!("ready");
    for thread in threads {
        thread.join().expect("a thread").expect("the parent's end");
    }
}

/// What `src/volume` does, through the same system calls.
fn use_a_volume() {
    let folder = std::env::temp_dir().join(format!("coffer-privileges-{}", std::process::id()));
    fs::create_dir(&folder).expect("a folder");
    let parent = rustix::fs::open(&folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let parent = parent.expect("the folder");
    rustix::fs::mkdirat(&parent, "mount", Mode::from_raw_mode(0o750)).expect("a target");
    let target = rustix::fs::openat(&parent, "mount", OFlags::PATH, Mode::empty()).expect("it");

    let tmpfs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
    rustix::mount::fsconfig_set_string(tmpfs.as_fd(), "size", "1m").expect("size");
    rustix::mount::fsconfig_set_string(tmpfs.as_fd(), "mode", "0755").expect("mode");
    rustix::mount::fsconfig_create(tmpfs.as_fd()).expect("a tmpfs");
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    let root = root.expect("a mount");
    put(&root, "..1", "old");
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(root.as_fd(), "", target.as_fd(), "", empty).expect("move_mount");
    drop((tmpfs, root, target));

    let by_path = folder.join("mount/..data/secret");
    assert_eq!(fs::read_to_string(&by_path).expect("the old one"), "old");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let root = rustix::fs::openat(&parent, "mount", flags, Mode::empty()).expect("the root");
    let mut record = [0; 8];
    match rustix::fs::fsetxattr(
        &root,
        "trusted.coffer",
        b"1",
        rustix::fs::XattrFlags::empty(),
    ) {
        Ok(()) => {
            let length = rustix::fs::fgetxattr(&root, "trusted.coffer", &mut record[..]);
            assert_eq!(length, Ok(1));
        }
        // Only root of the machine has these.
        Err(error) => assert_eq!(error, Errno::PERM),
    }
    put(&root, "..2", "new");
    rustix::fs::unlinkat(&root, "..1/secret", AtFlags::empty()).expect("the old file");
    rustix::fs::unlinkat(&root, "..1", AtFlags::REMOVEDIR).expect("the old generation");
    drop(root);
    assert_eq!(fs::read_to_string(&by_path).expect("the new one"), "new");
    let mode = fs::metadata(&by_path)
        .expect("the new one")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o440, "as set, not as the umask leaves it");

    // Also that a process which is not dumpable still has its own /proc/self/fd.
    let mounted = format!("/proc/self/fd/{}/mount", parent.as_raw_fd());
    rustix::mount::unmount(mounted, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).expect("umount");
    rustix::fs::unlinkat(&parent, "mount", AtFlags::REMOVEDIR).expect("an empty target");
    fs::remove_dir(&folder).expect("an empty folder");
}

/// Writes one generation of one file, and makes `..data` point to it.
fn put(root: impl AsFd, generation: &str, secret: &str) {
    rustix::fs::mkdirat(&root, generation, Mode::from_raw_mode(0o755)).expect("a generation");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
    let path = format!("{generation}/secret");
    let file = rustix::fs::openat(&root, path, flags, Mode::from_raw_mode(0o600)).expect("a file");
    rustix::io::write(&file, secret.as_bytes()).expect("write");
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o440)).expect("a mode");
    rustix::fs::fchown(&file, None, Some(rustix::process::getegid())).expect("a group");
    rustix::fs::symlinkat(generation, &root, "..data_tmp").expect("a link");
    rustix::fs::renameat(&root, "..data_tmp", &root, "..data").expect("the swap");
}

fn success(mut child: Child) {
    let status = child.wait().expect("its end");
    assert!(status.success(), "{status}");
}

fn killed_by_sigsys(mut child: Child) {
    let status = child.wait().expect("its end");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}");
    assert!(!status.core_dumped());
}

fn shed_as_seen_from_outside(mut child: Child) {
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("its output");
    assert_eq!(line, "ready\n");
    assert_shed::assert_shed(child.id());
    drop(child.stdin.take());
    success(child);
}
