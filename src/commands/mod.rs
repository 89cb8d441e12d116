//! One file per word that a user types.

pub mod demo;
pub mod doctor;
pub mod node;
pub mod provider;
pub mod render;

/// The threads of the process: few, since a node has more important work, and bounded, since every
/// publish that blocks on the kernel takes one.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
}
