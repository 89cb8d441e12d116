//! The sockets of plugins: where they are, whose they are, and the way to one.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::{ErrorKind, ProviderError, clean_text};
use hyper_util::rt::TokioIo;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);

const ROOT: u32 = 0;

/// Folders that hold sockets, in the order in which they are searched.
pub(crate) struct Folders {
    folders: Vec<PathBuf>,
    owners: Vec<u32>,
}

/// One socket, for as long as nobody puts another one in its place.
pub(crate) type SocketId = (u64, u64, i64, i64);

/// A socket that was looked at.
pub(crate) struct Socket {
    /// Not the path: what lies there may be something else by the time that it is dialled.
    found: OwnedFd,
    path: PathBuf,
    pub(crate) id: SocketId,
}

impl Folders {
    pub(crate) fn new(folders: Vec<PathBuf>, uids: &[u32]) -> Self {
        let owners = [&[ROOT], uids].concat();
        Self { folders, owners }
    }

    /// Whether one of the folders has something of the name of that plugin's socket.
    pub(crate) fn have(&self, name: &str) -> bool {
        let mut paths = self.folders.iter().map(|folder| socket_in(folder, name));
        paths.any(|path| fs::symlink_metadata(path).is_ok())
    }

    /// The plugins that have a socket, by name.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = self.folders.iter().filter_map(|one| fs::read_dir(one).ok());
        let files = entries.flatten().flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = files
            .filter_map(|file| Some(file.to_str()?.strip_suffix(".sock")?.to_owned()))
            .filter(|name| crate::is_name(name))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Finds the socket of a plugin, and looks at it: a socket of a trusted user's in a folder that nobody else
    /// writes to (G1). The first folder that has one decides.
    fn find(&self, name: &str) -> Result<Socket, ProviderError> {
        for folder in &self.folders {
            let path = socket_in(folder, name);
            let refused = |problem: &str| unavailable(&path, problem);
            let failed = |errno: Errno| refused(&format!("cannot be looked at: {errno}"));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = match rustix::fs::open(folder, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                opened => opened.map_err(failed)?,
            };
            let file = format!("{name}.sock");
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match rustix::fs::openat(&opened, file, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                found => found.map_err(failed)?,
            };
            let beneath = rustix::fs::fstat(&opened).map_err(failed)?;
            if !self.trust(&beneath) || beneath.st_mode & 0o022 != 0 {
                return Err(refused(
                    "is not used: its folder must belong to root or a user of --plugin-uids, and nobody else may write to it",
                ));
            }
            let stat = rustix::fs::fstat(&found).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                return Err(refused("is not used: it is not a socket"));
            }
            if !self.trust(&stat) {
                return Err(refused(
                    "is not used: it must belong to root or a user of --plugin-uids",
                ));
            }
            let id = (
                stat.st_dev,
                stat.st_ino,
                stat.st_ctime,
                stat.st_ctime_nsec.try_into().unwrap_or_default(),
            );
            return Ok(Socket { found, path, id });
        }
        let folders: Vec<_> = self.folders.iter().map(|one| one.display()).collect();
        let folders = folders
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" or ");
        Err(ProviderError::new(
            ErrorKind::Unavailable,
            format!("the plugin is not there: no {name}.sock in {folders}"),
        ))
    }

    fn trust(&self, stat: &Stat) -> bool {
        self.owners.contains(&stat.st_uid)
    }

    /// A connection of its own to the plugin: another one may be there since the last call, and one that is
    /// stuck is nobody else's trouble.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], with what is in the way.
    pub(crate) async fn dial(
        self: &Arc<Self>,
        name: &'static str,
    ) -> Result<(Channel, SocketId), ProviderError> {
        let folders = self.clone();
        let socket = tokio::task::spawn_blocking(move || folders.find(name)).await;
        let socket = socket.map_err(|_| {
            ProviderError::new(ErrorKind::Unavailable, "the search was cut short")
        })??;
        let stream = socket.connect().await?;
        let peer = stream.peer_cred();
        let peer = peer.map_err(|error| unavailable(&socket.path, &error.to_string()))?;
        if !self.owners.contains(&peer.uid()) {
            return Err(unavailable(
                &socket.path,
                "is not used: whoever listens there is neither root nor a user of --plugin-uids",
            ));
        }
        let mut once = Some(TokioIo::new(stream));
        let hand_over = service_fn(move |_| {
            let stream = once.take().ok_or_else(|| std::io::Error::other("used"));
            async move { stream }
        });
        // The address is what becomes the authority, which plugins look at.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(hand_over)
            .await
            .map_err(|_| unavailable(&socket.path, "does not speak HTTP/2"))?;
        Ok((channel, socket.id))
    }
}

impl Socket {
    async fn connect(&self) -> Result<UnixStream, ProviderError> {
        // What was looked at is dialled, whatever its path leads to by now.
        let path = format!("/proc/self/fd/{}", self.found.as_raw_fd());
        match timeout(CONNECT, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unavailable(
                &self.path,
                &format!("cannot be reached: {}", error.kind()),
            )),
            Err(_) => Err(unavailable(
                &self.path,
                &format!("cannot be reached within {} s", CONNECT.as_secs()),
            )),
        }
    }
}

fn socket_in(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}

fn unavailable(path: &Path, problem: &str) -> ProviderError {
    let path = clean_text(&path.to_string_lossy(), 100);
    ProviderError::new(
        ErrorKind::Unavailable,
        format!("the plugin's socket {path} {problem}"),
    )
}
