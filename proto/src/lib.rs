//! Generated code of the protocols that Coffer speaks; it lives here and nowhere else.

/// The Container Storage Interface, package `csi.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file says what things are"
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Provider plugins of a secrets-store CSI driver, package `v1alpha1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file says what things are"
)]
pub mod provider {
    tonic::include_proto!("v1alpha1");
}
