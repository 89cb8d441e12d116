//! The edge to the kubelet: CSI's Identity and Node services on a unix socket.

mod convert;
mod identity;
mod node;
mod server;
mod status;

pub use server::{CsiServer, ServerSettings, SocketError, Sole};
