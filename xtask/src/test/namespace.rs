//! A mount namespace to run tests in: what they mount, nobody else sees, and it goes with them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Result, bail};

/// `unshare`, to which the command is still to be added. An ordinary user needs a user namespace
/// besides, in which they are root.
pub(super) fn unshare() -> Result<Command> {
    let root = fs::metadata("/proc/self")?.uid() == 0;
    let unshare = || {
        let mut unshare = Command::new("unshare");
        if !root {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--mount", "--propagation", "private"]);
        unshare
    };
    match unshare().arg("true").output() {
        Ok(output) if output.status.success() => Ok(unshare()),
        Ok(output) => bail!(
            "no mount namespace can be made here ({}): {}",
            String::from_utf8_lossy(&output.stderr).trim(),
            if root {
                "root lacks CAP_SYS_ADMIN. In a container, run it with --privileged"
            } else {
                "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns), or run this as root"
            }
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("unshare is missing: install util-linux")
        }
        Err(error) => bail!("cannot run unshare: {error}"),
    }
}
