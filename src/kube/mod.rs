//! The edge to the API server.

mod classes;
pub mod crd;

pub use classes::follow;
