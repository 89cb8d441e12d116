//! Programs that the tests need and cargo does not bring.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::cargo;
use crate::cluster::cache::{Cache, fingerprint};
use crate::cluster::command::output;
use crate::go::GoModule;

const CARGO_DENY: &str = "0.20.2";

/// The binary of cargo-deny.
pub(super) fn cargo_deny(cache: &Cache) -> Result<PathBuf> {
    let name = format!("cargo-deny-{CARGO_DENY}");
    let entry = cache.entry(&name, |folder| {
        println!("building cargo-deny {CARGO_DENY} beside what follows: some minutes, once");
        let target = folder.join("target");
        let mut install = cargo();
        install
            .args(["install", "--locked", "cargo-deny", "--version", CARGO_DENY])
            // It runs for a second: optimizing it takes minutes.
            .args(["--debug", "--config", "profile.dev.debug=false"])
            .arg("--root")
            .arg(folder)
            // The checkout's own is locked by the other steps.
            .arg("--target-dir")
            .arg(&target);
        output(&mut install)?;
        fs::remove_dir_all(target)?;
        Ok(())
    })?;
    Ok(entry.join("bin/cargo-deny"))
}

/// The binary of csi-sanity.
pub(super) fn csi_sanity(cache: &Cache) -> Result<PathBuf> {
    const MODULE: &str = "github.com/kubernetes-csi/csi-test/v5";
    let module = GoModule::read("tests/conformance/csi-sanity")?;
    let version = module.version(MODULE)?;
    let name = format!("csi-sanity-{version}-{}", fingerprint(&module.files())?);
    let entry = cache.entry(&name, |folder| {
        println!("building csi-sanity {version} beside what follows: a minute, once");
        let mut build = module.build(cache)?;
        build
            .args(["-ldflags", "-s -w", "-o"])
            .arg(folder)
            .arg(format!("{MODULE}/cmd/csi-sanity"));
        output(&mut build)?;
        Ok(())
    })?;
    Ok(entry.join("csi-sanity"))
}
