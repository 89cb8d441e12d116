//! One operation in a process of its own, followed from outside: its system calls are counted, it is
//! killed at one of them, or one of them fails.
//!
//! The process is this test binary with the same test. The operation runs in one thread, and only
//! that thread is traced; the other one waits for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::harness::again;

/// Set in the traced process: the folder of the node.
const FOLDER: &str = "COFFER_TEST_TRACED";

/// In the traced process: the folder of the node that it is to work on.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(|folder: OsString| folder.into())
}

/// In the traced process: does what is traced.
pub(crate) fn traced<T>(operation: impl FnOnce() -> T) -> T {
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    let done = operation();
    raise(Signal::SIGSTOP).unwrap();
    done
}

/// A process that is stopped in its operation.
pub(crate) struct Traced {
    process: Pid,
    thread: Pid,
}

impl Traced {
    /// Runs `test` again, up to where its operation begins.
    pub(crate) fn start(test: impl Fn(), folder: &Path) -> Self {
        #[expect(clippy::zombie_processes, reason = "its tracer waits for it")]
        let child = again(test)
            .env(FOLDER, folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
        match wait() {
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => {
                let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
                ptrace::setoptions(thread, options).unwrap();
                Self { process, thread }
            }
            other => panic!("it did not come to its operation: {other:?}"),
        }
    }

    /// Goes on to where the next system call is about to begin; `false` when the operation is over.
    pub(crate) fn next_call(&self) -> bool {
        ptrace::syscall(self.thread, None).unwrap();
        match wait() {
            WaitStatus::PtraceSyscall(_) => true,
            WaitStatus::Stopped(_, Signal::SIGSTOP) => false,
            other => panic!("it stopped in another way: {other:?}"),
        }
    }

    /// Does the system call that is about to begin.
    pub(crate) fn call(&self) {
        assert!(self.next_call(), "a call that began comes to its end");
    }

    /// Ends it where it is: what is about to begin does not happen.
    pub(crate) fn kill(self) {
        kill(self.process, Signal::SIGKILL).unwrap();
        assert!(matches!(
            self.ended(),
            WaitStatus::Signaled(_, Signal::SIGKILL, _)
        ));
    }

    /// Lets it come to its end by itself; gives its exit code.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn finish(self) -> i32 {
        while self.next_call() {}
        ptrace::detach(self.thread, None).unwrap();
        match self.ended() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("it ended in another way: {other:?}"),
        }
    }

    fn ended(&self) -> WaitStatus {
        loop {
            let status = wait();
            if status.pid() == Some(self.process) {
                return status;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Traced {
    /// The number of the call that is about to begin.
    pub(crate) fn number(&self) -> i64 {
        ptrace::getregs(self.thread).unwrap().orig_rax.cast_signed()
    }

    /// Makes the call that is about to begin fail without doing anything.
    pub(crate) fn fail(&self, errno: nix::errno::Errno) {
        let mut registers = ptrace::getregs(self.thread).unwrap();
        registers.orig_rax = u64::MAX;
        ptrace::setregs(self.thread, registers).unwrap();
        self.call();
        let mut registers = ptrace::getregs(self.thread).unwrap();
        registers.rax = (-(errno as i64)).cast_unsigned();
        ptrace::setregs(self.thread, registers).unwrap();
    }
}

/// The next thing that happens to what this thread started, and to nothing that another test did.
fn wait() -> WaitStatus {
    waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).unwrap()
}
