//! The socket of a plugin, in a folder that it shares with others.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::csi::{self, Peers};

/// A socket that is listened on.
pub struct PluginSocket {
    listener: UnixListener,
    remove: Remove,
}

/// Takes the socket away again, unless a successor has put its own there.
pub(super) struct Remove {
    path: PathBuf,
    inode: u64,
}

impl PluginSocket {
    /// Listens on `path`. A socket that is there already was left by an earlier process, or is one's that this
    /// one takes the place of.
    ///
    /// # Errors
    /// When something else is there, or the folder is not.
    pub fn bind(path: &Path) -> io::Result<Self> {
        csi::remove_stale(path)?;
        // The umask makes it 0700 at once; nobody can connect in between.
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let remove = Remove {
            path: path.to_owned(),
            inode: fs::symlink_metadata(path)?.ino(),
        };
        Ok(Self { listener, remove })
    }

    /// Its connections, of root and our own user alone, and what is to be kept until the end.
    pub(super) fn into_parts(self) -> (Peers, Remove) {
        (Peers::new(self.listener), self.remove)
    }
}

impl Drop for Remove {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
