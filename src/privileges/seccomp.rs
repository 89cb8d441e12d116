//! The system calls that are left to this process: which, and with which arguments. When the
//! filters go in is decided in `mod.rs`.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Installs both filters on the calling thread, for good; the threads that it starts inherit them.
///
/// There are two because one knows two answers only, and we need three: allow, ENOSYS, kill. The
/// kernel asks both at every call, and the harsher answer wins.
///
/// What is merely not listed gets ENOSYS, as from a kernel that does not have the call. libc, std
/// and the runtime try the newest call first and fall back to an older one on exactly that answer,
/// so that the next toolchain finds an old kernel here, not a driver that dies on every node.
/// Killing is for what nothing probes for: whoever calls one of those has taken the process over.
pub(super) fn install() -> Result<(), seccompiler::Error> {
    for program in programs(std::process::id())? {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// Both programs, in the order in which they go in: the second one lets no seccomp(2) through.
///
/// A call through another ABI of the processor (32 bit on x86_64) is killed by both; seccompiler
/// puts that in front.
fn programs(pid: u32) -> Result<[BpfProgram; 2], BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let compile = |rules, otherwise, listed| -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()
    };
    let never = NEVER_CALLED.iter().map(|&call| (call, Vec::new()));
    let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok([
        compile(
            never.collect(),
            SeccompAction::Allow,
            SeccompAction::KillProcess,
        )?,
        compile(allowed(pid)?, enosys, SeccompAction::Allow)?,
    ])
}

/// Killed at once.
const NEVER_CALLED: &[c_long] = &[
    // Running another program.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Getting out of the container.
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Getting into another process.
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Changing the machine, most of it within reach of CAP_SYS_ADMIN.
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_perf_event_open,
    libc::SYS_reboot,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    // Parts of the kernel that serve exploits more often than drivers.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

/// Allowed, whatever the arguments: what std, glibc, tokio and rustix were seen to call, with the
/// nearest relatives of that. (musl would want a few more of the old ones.)
const ALWAYS: &[c_long] = &[
    // Files.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Mounts: what building, attaching and detaching a volume takes. Neither mount(2) nor
    // open_tree(2): no folder of the host is ever bound to another place.
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_move_mount,
    libc::SYS_umount2,
    // Sockets; which families is below.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Waiting.
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_membarrier,
    // The kernel itself makes a thread call this one, after a stop and a continue.
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Questions without side effects.
    libc::SYS_capget,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// What glibc, std and rustix still call on x86_64; younger architectures never had these.
#[cfg(target_arch = "x86_64")]
const ALWAYS_OF_THIS_ARCH: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lchown,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_OF_THIS_ARCH: &[c_long] = &[];

/// What tells a thread from a process, and the namespaces that clone(2) could give either.
const CLONE_MASK: c_int = libc::CLONE_THREAD
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// The whole allow-list: what is allowed always, and what only with certain arguments, because with
/// others it would undo the rest. None of the latter is called so often that comparing costs much:
/// for the others, kernels since 5.11 do not even run the programs.
fn allowed(pid: u32) -> Result<Rules, BackendError> {
    let always = ALWAYS.iter().chain(ALWAYS_OF_THIS_ARCH);
    let mut rules: Rules = always.map(|&call| (call, Vec::new())).collect();

    // Threads only. clone3 has its flags behind a pointer, where no filter can look: it is not
    // listed, and at its ENOSYS glibc goes back to clone. Container runtimes do the same.
    rules.insert(libc::SYS_clone, masked(0, CLONE_MASK, libc::CLONE_THREAD)?);

    // No code but what was linked.
    rules.insert(libc::SYS_mmap, masked(2, libc::PROT_EXEC, 0)?);
    rules.insert(libc::SYS_mprotect, masked(2, libc::PROT_EXEC, 0)?);

    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(bits);
    let mut sockets = one_of(0, &families)?;
    // With this one getaddrinfo asks which addresses the machine has.
    sockets.push(SeccompRule::new(vec![
        condition(0, Eq, bits(libc::AF_NETLINK))?,
        condition(2, Eq, bits(libc::NETLINK_ROUTE))?,
    ])?);
    rules.insert(libc::SYS_socket, sockets);

    // What std and the resolver ask of files, sockets and terminals. Not TIOCSTI, which types into
    // the terminal that we were started from.
    let requests = [
        libc::FIOCLEX,
        libc::FIONBIO,
        libc::FIONREAD,
        libc::TCGETS,
        libc::TIOCGWINSZ,
    ];
    rules.insert(libc::SYS_ioctl, one_of(1, &requests)?);

    // A thread's name and nothing else: least of all may the process become dumpable again.
    rules.insert(libc::SYS_prctl, one_of(0, &[bits(libc::PR_SET_NAME)])?);

    // Itself only: an abort, a signal handed on, its own limits.
    rules.insert(libc::SYS_kill, one_of(0, &[pid.into()])?);
    rules.insert(libc::SYS_tgkill, one_of(0, &[pid.into()])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0])?);
    Ok(rules)
}

/// The call is allowed when `argument` is one of `values`.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rules = values
        .iter()
        .map(|&value| SeccompRule::new(vec![condition(argument, Eq, value)?]));
    rules.collect()
}

/// The call is allowed when of the bits in `mask` exactly those of `value` are set.
fn masked(argument: u8, mask: c_int, value: c_int) -> Result<Vec<SeccompRule>, BackendError> {
    let masked = condition(argument, MaskedEq(bits(mask)), bits(value))?;
    Ok(vec![SeccompRule::new(vec![masked])?])
}

/// The kernel takes all arguments that we look at as 32 bit values and ignores what is above.
fn condition(
    argument: u8,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value)
}

fn bits(value: c_int) -> u64 {
    value.unsigned_abs().into()
}

#[cfg(test)]
mod tests {
    use seccompiler::sock_filter;

    use super::*;

    const PID: u32 = 77;

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = std::collections::BTreeSet::new();
        let conditional = allowed(PID).expect("a list");
        let conditional = conditional.iter().filter(|(_, rules)| !rules.is_empty());
        let listed = [NEVER_CALLED, ALWAYS, ALWAYS_OF_THIS_ARCH].concat();
        for call in listed.into_iter().chain(conditional.map(|(&call, _)| call)) {
            assert!(seen.insert(call), "system call {call}");
        }
    }

    #[test]
    fn arguments_decide_where_a_call_could_undo_the_rest() {
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SETTLS;
        let process = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        let (us, other) = (bits(77), bits(1));
        for (call, arguments, answer) in [
            (libc::SYS_clone, [bits(thread), 0, 0], ALLOW),
            (libc::SYS_clone, [bits(process), 0, 0], ENOSYS),
            (
                libc::SYS_clone,
                [bits(thread | libc::CLONE_NEWNS), 0, 0],
                ENOSYS,
            ),
            (
                libc::SYS_clone,
                [bits(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0],
                ENOSYS,
            ),
            (libc::SYS_clone3, [0, 0, 0], ENOSYS),
            (libc::SYS_mmap, [0, 4096, bits(read_write)], ALLOW),
            (libc::SYS_mmap, [0, 4096, bits(executable)], ENOSYS),
            (libc::SYS_mprotect, [0, 4096, bits(read_write)], ALLOW),
            (libc::SYS_mprotect, [0, 4096, bits(executable)], ENOSYS),
            (
                libc::SYS_socket,
                [bits(libc::AF_UNIX), bits(libc::SOCK_STREAM), 0],
                ALLOW,
            ),
            (
                libc::SYS_socket,
                [bits(libc::AF_INET6), bits(libc::SOCK_DGRAM), 17],
                ALLOW,
            ),
            (
                libc::SYS_socket,
                [bits(libc::AF_NETLINK), 3, bits(libc::NETLINK_ROUTE)],
                ALLOW,
            ),
            (
                libc::SYS_socket,
                [bits(libc::AF_NETLINK), 3, bits(libc::NETLINK_AUDIT)],
                ENOSYS,
            ),
            (
                libc::SYS_socket,
                [bits(libc::AF_PACKET), bits(libc::SOCK_RAW), 0],
                ENOSYS,
            ),
            (libc::SYS_ioctl, [0, libc::FIONBIO, 0], ALLOW),
            (libc::SYS_ioctl, [0, libc::TIOCSTI, 0], ENOSYS),
            (libc::SYS_ioctl, [0, libc::TIOCSTI | 1 << 32, 0], ENOSYS),
            (libc::SYS_prctl, [bits(libc::PR_SET_NAME), 0, 0], ALLOW),
            (libc::SYS_prctl, [bits(libc::PR_SET_DUMPABLE), 1, 0], ENOSYS),
            (libc::SYS_kill, [us, 15, 0], ALLOW),
            (libc::SYS_kill, [other, 15, 0], ENOSYS),
            (libc::SYS_kill, [u64::MAX, 15, 0], ENOSYS),
            (libc::SYS_tgkill, [us, 78, 6], ALLOW),
            (libc::SYS_tgkill, [other, 1, 6], ENOSYS),
            (libc::SYS_prlimit64, [0, 7, 0], ALLOW),
            (libc::SYS_prlimit64, [other, 7, 0], ENOSYS),
        ] {
            assert_eq!(
                answer_to(call, arguments),
                answer,
                "{call} with {arguments:x?}"
            );
        }
    }

    #[test]
    fn what_is_in_no_list_does_not_exist_and_what_nobody_calls_kills() {
        for (call, answer) in [
            (libc::SYS_read, ALLOW),
            (libc::SYS_move_mount, ALLOW),
            (libc::SYS_mount, ENOSYS),
            (libc::SYS_open_tree, ENOSYS),
            (libc::SYS_io_uring_setup, ENOSYS),
            (libc::SYS_seccomp, ENOSYS),
            (libc::SYS_capset, ENOSYS),
            (0x4000_0000, ENOSYS), // read(2) of x32
            (c_long::from(u16::MAX), ENOSYS),
            (libc::SYS_execve, KILL),
            (libc::SYS_unshare, KILL),
            (libc::SYS_ptrace, KILL),
        ] {
            assert_eq!(answer_to(call, [0; 3]), answer, "{call}");
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    /// What the kernel would do: it runs both programs and takes the harsher answer, which is the
    /// smaller one when the numbers are taken as signed.
    fn answer_to(call: c_long, arguments: [u64; 3]) -> u32 {
        let programs = programs(PID).expect("two programs");
        let answers = programs.iter().map(|program| run(program, call, arguments));
        answers
            .min_by_key(|answer| answer.cast_signed())
            .expect("two")
    }

    /// As much of the kernel's interpreter as seccompiler's programs use.
    fn run(program: &[sock_filter], call: c_long, arguments: [u64; 3]) -> u32 {
        // struct seccomp_data in words: call, architecture, instruction pointer, arguments.
        let architecture = program[1].k;
        let mut data = vec![call as u32, architecture, 0, 0];
        data.extend(
            arguments
                .iter()
                .flat_map(|&argument| [argument as u32, (argument >> 32) as u32]),
        );

        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            at += 1 + match u32::from(code) {
                libc::BPF_RET => return k,
                0x20 => {
                    accumulator = data[k as usize / 4];
                    0
                }
                0x54 => {
                    accumulator &= k;
                    0
                }
                0x05 => k as usize,
                0x15 => jump(accumulator == k),
                0x25 => jump(accumulator > k),
                0x35 => jump(accumulator >= k),
                other => panic!("instruction {other:#x}"),
            };
        }
    }
}
