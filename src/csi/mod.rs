//! The edge to the kubelet: CSI's Identity and Node services on a unix socket.

mod convert;
mod identity;
mod node;
mod server;
mod status;

pub(crate) use convert::pod;
pub(crate) use node::time_for_stores;
pub use server::{CsiServer, ServerSettings, SocketError, Sole};
pub(crate) use server::{Peers, remove_stale};
pub(crate) use status::status;
