//! What this process gives up before it does anything. Kubernetes lets only privileged containers
//! propagate mounts, and starts those with every right there is and no filter: what a CSI driver
//! does not need, it has to give up itself. The rights are decided here, the system calls in
//! `seccomp.rs`. Here, too, is what the kernel must have for the rest to work.

mod seccomp;

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::sys::utsname::uname;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Who may own the sockets of provider plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginSockets {
    /// Root, as we are.
    OfRoot,
    /// Other users as well: to connect to theirs takes CAP_DAC_OVERRIDE, which nothing else does.
    OfOthers,
}

/// Why the process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ShedError {
    /// Rights belong to threads: the other ones would keep theirs.
    #[error("{count} threads are running: rights can only be shed while there is one")]
    Threads {
        /// How many.
        count: usize,
    },
    /// The threads could not be counted.
    #[error("could not count the threads in /proc/self/task")]
    Proc(#[source] io::Error),
    /// One of the steps was refused.
    #[error("could not {step}")]
    Refused {
        /// Completes "could not".
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The system call filters were refused.
    #[error("could not install the system call filters (CONFIG_SECCOMP_FILTER)")]
    Seccomp(#[from] seccompiler::Error),
}

/// Gives up, for good and for every thread to come, all that a CSI driver does not need.
///
/// What is left of root is CAP_SYS_ADMIN (mounts), CAP_CHOWN (the group of a file) and, for
/// `plugins` of other users, CAP_DAC_OVERRIDE, each only if it was there before: this works as an
/// ordinary user and as root of a user namespace too. Namespaces, bind mounts and child processes
/// that the program wants for itself must come first. After an error the process is half confined:
/// exit.
pub fn shed(plugins: PluginSockets) -> Result<(), ShedError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(ShedError::Proc)?;
    let count = threads.count();
    if count != 1 {
        return Err(ShedError::Threads { count });
    }

    prctl::set_no_new_privs().map_err(refused("set no_new_privs"))?;
    let mut needed = CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN;
    if plugins == PluginSockets::OfOthers {
        needed |= CapabilitySet::DAC_OVERRIDE;
    }
    keep_capabilities(needed)?;

    // Against core files both are needed: a core pattern that is a pipe ignores the limit. Not
    // dumpable also keeps other processes of the same user from reading our memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("forbid core files"))?;
    prctl::set_dumpable(false).map_err(refused("become not dumpable"))?;
    umask(Mode::from_bits_truncate(0o077));

    Ok(seccomp::install()?)
}

/// Leaves at most `needed` in the bounding, permitted and effective sets, and nothing in the other
/// two.
fn keep_capabilities(needed: CapabilitySet) -> Result<(), ShedError> {
    let step = "reduce capabilities";
    let had = capabilities(None).map_err(refused(step))?;

    // The bounding set says what an execve could give back. Only CAP_SETPCAP may narrow it, and
    // without it we leave it: no_new_privs and the filter make sure that there is no execve.
    if had.effective.contains(CapabilitySet::SETPCAP) {
        // Until the kernel says that there is no such capability: newer ones go as well.
        for one in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            match capability_is_in_bounding_set(one) {
                Ok(true) if !needed.contains(one) => {
                    remove_capability_from_bounding_set(one).map_err(refused(step))?;
                }
                Ok(_) => {}
                Err(Errno::INVAL) => break,
                Err(error) => return Err(refused(step)(error)),
            }
        }
    }
    clear_ambient_capability_set().map_err(refused(step))?;
    let kept = had.permitted & needed;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(refused(step))
}

fn refused<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ShedError {
    move |error| ShedError::Refused {
        step,
        source: error.into(),
    }
}

/// The oldest kernel with a long-term branch that has all we use: fsopen and move_mount (5.2),
/// openat2 (5.6), mount ids in statx (5.8).
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// This kernel is not one that the driver can work with.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It is too old.
    #[error(
        "this node runs Linux {release}: coffer needs {}.{} or newer",
        OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    TooOld {
        /// As uname(2) says it.
        release: String,
    },
    /// Its release cannot be read.
    #[error("uname gives {release:?}, which starts with no Linux version such as 5.10")]
    Unknown {
        /// As uname(2) says it.
        release: String,
    },
    /// uname(2) failed.
    #[error("could not ask for the kernel's release")]
    Uname(#[source] io::Error),
}

/// Refuses a kernel without the calls that building a volume takes, before one fails half-way.
pub fn check_kernel() -> Result<(), KernelError> {
    let name = uname().map_err(|errno| KernelError::Uname(errno.into()))?;
    check_release(&name.release().to_string_lossy())
}

fn check_release(release: &str) -> Result<(), KernelError> {
    let release = release.to_owned();
    match version(&release) {
        Some(version) if version >= OLDEST_KERNEL => Ok(()),
        Some(_) => Err(KernelError::TooOld { release }),
        None => Err(KernelError::Unknown { release }),
    }
}

/// Major and minor version. What follows is the distribution's business: `5.10.0-26-amd64`,
/// `6.18-rc1+`.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_10_are_refused_with_their_release() {
        for (release, wrong) in [
            ("5.10", ""),
            ("5.10.0-26-amd64", ""),
            ("5.15.0-1053-aws", ""),
            ("6.1-rc3", ""),
            ("6.18.0+", ""),
            ("10.0.1", ""),
            (
                "5.9.16",
                "this node runs Linux 5.9.16: coffer needs 5.10 or newer",
            ),
            (
                "4.18.0-553.el8.x86_64",
                "this node runs Linux 4.18.0-553.el8.x86_64: coffer needs 5.10 or newer",
            ),
            (
                "5",
                "uname gives \"5\", which starts with no Linux version such as 5.10",
            ),
            (
                "",
                "uname gives \"\", which starts with no Linux version such as 5.10",
            ),
            (
                "six.one",
                "uname gives \"six.one\", which starts with no Linux version such as 5.10",
            ),
        ] {
            let said = check_release(release).err().map(|error| error.to_string());
            assert_eq!(said.unwrap_or_default(), wrong, "{release}");
        }
        check_kernel().expect("the kernel that runs the tests");
    }

    /// The test harness runs threads of its own, so that here is the one refusal that can be had;
    /// what a confined process can and cannot do is tested on a process of its own.
    #[test]
    fn rights_are_not_shed_once_threads_run() {
        let error = shed(PluginSockets::OfRoot).expect_err("refused");
        assert!(
            matches!(error, ShedError::Threads { count: 2.. }),
            "{error}"
        );
    }
}
