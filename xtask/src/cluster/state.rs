//! The one folder that holds everything of a running cluster, and the address that it is reached at.

use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::{env, process};

use anyhow::{Context as _, Result, ensure};

/// The longest path that a socket's address holds, without its final zero byte.
const LONGEST_SOCKET: usize = 107;

/// Paths below the state folder.
#[derive(Clone)]
pub(crate) struct State {
    root: PathBuf,
}

impl State {
    /// The folder of the cluster that `cargo xtask cluster up` leaves running.
    pub(crate) fn of_a_person() -> Self {
        Self {
            root: env::temp_dir().join(Self::OF_A_PERSON),
        }
    }

    /// The folder of the cluster that lives and dies with this process.
    pub(crate) fn of_this_process() -> Self {
        Self {
            root: env::temp_dir().join(format!("{}{}", Self::SCOPED, process::id())),
        }
    }

    /// The folders of clusters whose process was killed before it could take them down.
    pub(crate) fn abandoned() -> Result<Vec<Self>> {
        let mut abandoned = Vec::new();
        for entry in fs::read_dir(env::temp_dir())? {
            let entry = entry?;
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.strip_prefix(Self::SCOPED));
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                abandoned.push(Self { root: entry.path() });
            }
        }
        Ok(abandoned)
    }

    /// Whether the last part of a path is the name of a state folder.
    pub(crate) fn is_of_a_cluster(path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or_default();
        name == Self::OF_A_PERSON || name.starts_with(Self::SCOPED)
    }

    const OF_A_PERSON: &str = "coffer-cluster";
    const SCOPED: &str = "coffer-e2e-";

    /// Makes the folder; it must not be there yet.
    pub(crate) fn create(&self) -> Result<()> {
        // The longest socket below it: the registrar's.
        let socket = self
            .kubelet_root()
            .join("plugins_registry/secrets-store.csi.k8s.io-reg.sock");
        ensure!(
            socket.as_os_str().len() <= LONGEST_SOCKET,
            "{} is too long a path for sockets below it: set TMPDIR to a shorter one",
            self.root.display()
        );
        // Tokens lie in it. `create` fails on anything that is there already, be it a link to elsewhere.
        DirBuilder::new()
            .mode(0o700)
            .create(&self.root)
            .with_context(|| format!("cannot make {}", self.root.display()))?;
        for folder in ["cni/bin", "cni/net.d", "home", "logs", "pki", "run"] {
            fs::create_dir_all(self.root.join(folder))?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder's own name, which the cluster's cgroup also carries.
    pub(crate) fn name(&self) -> &str {
        self.root
            .file_name()
            .and_then(|name| name.to_str())
            .expect("both constructors give it a name")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn kubelet_root(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.root.join("run/containerd.sock")
    }

    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.root.join("logs").join(format!("{program}.log"))
    }
}

/// A loopback address that the whole cluster has to itself, with the usual ports.
///
/// It is also the first address of the cluster's service range, which is the one that Kubernetes gives the
/// `kubernetes` Service. So the address that every pod finds in its environment leads to the API server, with
/// no kube-proxy, and clients in hostNetwork pods need no setting of their own.
#[derive(Clone, Copy)]
pub(crate) struct Address(Ipv4Addr);

impl Address {
    pub(crate) const API_SERVER: u16 = 443;
    pub(crate) const ETCD: u16 = 2379;
    pub(crate) const KUBELET: u16 = 10250;
    pub(crate) const KUBELET_READ_ONLY: u16 = 10255;
    /// Of the driver, which a pod with hostNetwork serves.
    pub(crate) const METRICS: u16 = 8095;

    /// The first address on which nobody listens at these ports.
    pub(crate) fn free() -> Result<Self> {
        let ports = [
            Self::API_SERVER,
            Self::ETCD,
            Self::KUBELET,
            Self::KUBELET_READ_ONLY,
            Self::METRICS,
        ];
        // Begun elsewhere by each process, so that two at once do not choose the same.
        let begin = process::id() as u8;
        (0..=u8::MAX)
            .map(|step| Ipv4Addr::new(127, 77, begin.wrapping_add(step), 1))
            .find(|ip| {
                ports
                    .iter()
                    .all(|port| TcpListener::bind((*ip, *port)).is_ok())
            })
            .map(Self)
            .with_context(|| {
                format!("on every loopback address one of the ports {ports:?} is taken")
            })
    }

    pub(crate) fn ip(self) -> Ipv4Addr {
        self.0
    }

    pub(crate) fn service_range(self) -> String {
        format!("{}/24", Ipv4Addr::from_bits(self.0.to_bits() & !0xff))
    }
}
