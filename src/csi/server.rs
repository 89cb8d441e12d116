//! The socket: who may connect, serving, and the way out.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fs, io};

use coffer_proto::csi::identity_server::IdentityServer;
use coffer_proto::csi::node_server::NodeServer;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::{info, warn};

use super::identity::IdentityService;
use super::node::NodeService;
use crate::config::Bounds;
use crate::health::Health;
use crate::publish::Publisher;
use crate::tokens::TokenSource;

/// How long operations have to end after the driver was told to.
const DRAIN: Duration = Duration::from_secs(8);

/// How often a process looks whether the one before it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long clients have to read their last answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {problem}", socket.display())]
pub struct SocketError {
    socket: PathBuf,
    problem: String,
}

/// What the server says of itself, and what it takes.
pub struct ServerSettings {
    /// The name that the driver is registered by.
    pub driver_name: String,
    /// The name of the Kubernetes node.
    pub node_id: String,
    /// Where tokens come from.
    pub token_source: TokenSource,
    /// How large a request may be, and how long it may take.
    pub bounds: Bounds,
    /// Told when the kubelet asks who this is: by then it takes calls for volumes to this driver.
    pub registered: Arc<Notify>,
}

/// The CSI server, listening.
pub struct CsiServer {
    socket: PathBuf,
    listener: UnixListener,
}

/// The right to serve a socket, and to work on the volumes behind it: one process has it at a time, for as
/// long as it keeps this.
pub struct Sole {
    socket: PathBuf,
    _lock: File,
}

impl Sole {
    /// Waits until no other process has the right (R10): in an upgrade two are there for a moment, and the
    /// one that goes takes its socket away when it has drained.
    ///
    /// A folder of the socket that is not there is made; one that others may write to is refused, since
    /// they could put a socket of theirs in its place.
    ///
    /// # Errors
    /// Names the socket and what is in the way.
    pub async fn of(socket: &Path) -> Result<Self, SocketError> {
        let failed = |problem: String| SocketError {
            socket: socket.to_owned(),
            problem,
        };
        let io = |error: io::Error| failed(error.to_string());
        let folder = socket
            .parent()
            .ok_or_else(|| failed("it has no folder".into()))?;
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(folder)
            .map_err(io)?;
        close_folder(socket, folder).map_err(failed)?;
        Ok(Self {
            socket: socket.to_owned(),
            _lock: lock(socket, folder).await.map_err(io)?,
        })
    }
}

impl CsiServer {
    /// Takes the socket: nobody but root and our own user can reach it.
    ///
    /// # Errors
    /// Names the socket and what is in the way.
    pub fn bind(sole: &Sole) -> Result<Self, SocketError> {
        let socket = sole.socket.as_path();
        let io = |error: io::Error| SocketError {
            socket: socket.to_owned(),
            problem: error.to_string(),
        };
        remove_stale(socket).map_err(io)?;
        // The umask makes it 0700 at once; nobody can connect in between.
        let listener = UnixListener::bind(socket).map_err(io)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self {
            socket: socket.to_owned(),
            listener,
        })
    }

    /// Serves until `stop`, then lets what has begun come to an end, and takes the socket away.
    /// Volumes stay mounted.
    ///
    /// # Errors
    /// When the server fails by itself.
    pub async fn serve(
        self,
        settings: ServerSettings,
        publisher: Arc<Publisher>,
        health: Health,
        stop: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let ServerSettings {
            driver_name,
            node_id,
            token_source,
            bounds,
            registered,
        } = settings;
        let operations = TaskTracker::new();
        let identity = IdentityService {
            driver_name,
            health,
        };
        let node = NodeService {
            node_id,
            registered,
            token_source,
            publish_timeout: bounds.publish_timeout,
            publisher,
            operations: operations.clone(),
        };
        let node = NodeServer::new(node).max_decoding_message_size(bounds.request_bytes);
        let serve = Server::builder()
            .add_service(IdentityServer::new(identity))
            .add_service(node)
            .serve_with_incoming_shutdown(
                Peers::new(self.listener),
                stop.clone().cancelled_owned(),
            );
        let drain = async {
            operations.close();
            if tokio::time::timeout(DRAIN, operations.wait())
                .await
                .is_err()
            {
                warn!("operations were still running when the driver stopped");
            }
        };
        tokio::pin!(serve);
        let served = tokio::select! {
            served = &mut serve => {
                drain.await;
                served
            }
            () = stop.cancelled() => {
                drain.await;
                // A client that does not read its last answer is no reason to stay.
                tokio::time::timeout(FAREWELL, serve).await.unwrap_or(Ok(()))
            }
        };
        let _ = fs::remove_file(&self.socket);
        served
    }
}

/// Waits for the lock on the folder of the socket: CSI allows no other file beside a socket. The kernel
/// takes the lock from a process that dies, whatever it dies of.
async fn lock(socket: &Path, folder: &Path) -> io::Result<File> {
    let lock = File::open(folder)?;
    let mut waited = false;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !waited {
            warn!(socket = %socket.display(), "another driver process has not ended yet: waiting for it");
            waited = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    if waited {
        info!(socket = %socket.display(), "the other driver process has ended");
    }
    Ok(lock)
}

/// An earlier process may have left its socket behind; anything else is not ours to remove.
pub(crate) fn remove_stale(socket: &Path) -> io::Result<()> {
    match fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(socket),
        Ok(_) => Err(io::Error::other("something that is not a socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A folder that has nothing but our socket is closed to others; one that is shared with
/// other files is left as it is, if others cannot write to it.
fn close_folder(socket: &Path, folder: &Path) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let found = fs::metadata(folder).map_err(text)?;
    let is_ours = |name: &OsStr| socket.file_name() == Some(name);
    let mut entries = fs::read_dir(folder).map_err(text)?;
    if entries.all(|entry| entry.is_ok_and(|entry| is_ours(&entry.file_name()))) {
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    } else if found.mode() & 0o022 != 0 {
        return Err("others can write to its folder: put it into a folder of its own".into());
    }
    Ok(())
}

/// Connections of root and of our own user; others are closed before a byte is read.
pub(crate) struct Peers(UnixListener);

impl Peers {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self(listener)
    }
}

impl Stream for Peers {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.0.poll_accept(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok((stream, _))) => match may_connect(&stream) {
                    Ok(()) => return Poll::Ready(Some(Ok(stream))),
                    Err(problem) => warn!(problem, "connection to the CSI socket refused"),
                },
                // One connection that failed is no reason to stop listening.
                Poll::Ready(Err(error)) => {
                    warn!(%error, "connection to the CSI socket not accepted");
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

fn may_connect(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?.uid();
    match peer == 0 || peer == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(format!("uid {peer} is neither root nor the driver's own")),
    }
}
