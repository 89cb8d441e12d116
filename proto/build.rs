//! Compiles the .proto files in Rust, so that nobody has to install protoc.

use std::error::Error;

/// Messages that carry secrets or tokens: without `Debug`, logging one does not compile.
const SECRET: [&str; 6] = [
    "csi.v1.NodePublishVolumeRequest",
    "csi.v1.NodeStageVolumeRequest",
    "csi.v1.NodeExpandVolumeRequest",
    "v1alpha1.MountRequest",
    "v1alpha1.MountResponse",
    "v1alpha1.File",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = vec!["csi/v1/csi.proto", "provider/v1alpha1/service.proto"];
    if cfg!(feature = "testing") {
        files.push("csi/v1/controller.proto");
    }
    println!("cargo::rerun-if-changed=csi");
    println!("cargo::rerun-if-changed=provider");
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(SECRET)
        .compile_fds(protox::compile(files, ["."])?)?;
    Ok(())
}
