//! etcd, the API server, the controller manager and the scheduler.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cache::hex;
use super::command::output;
use super::daemon::Daemon;
use super::enclosure::Enclosure;
use super::parts::Parts;
use super::state::{Address, State};

/// The running programs, in an enclosure of their own: a reboot of the node does not touch them.
pub(crate) struct ControlPlane {
    enclosure: Enclosure,
    daemons: Vec<Daemon>,
}

impl ControlPlane {
    /// Starts etcd and the API server. The other two need its certificate: [`Self::start_controllers`].
    pub(crate) fn start(
        enclosure: Enclosure,
        parts: &Parts,
        state: &State,
        address: Address,
    ) -> Result<Self> {
        let pki = state.file("pki");
        // RSA, since every store can verify RS256.
        let key = pki.join("service-accounts.key");
        output(
            Command::new("openssl")
                .args(["genrsa", "-out"])
                .arg(&key)
                .arg("2048"),
        )
        .context("openssl is needed to make the key of the ServiceAccount tokens")?;

        let etcd = format!("http://{}:{}", address.ip(), Address::ETCD);
        let etcd_daemon = Daemon::start(&enclosure, state, "etcd", &parts.etcd(), |command| {
            command.arg("--data-dir").arg(state.file("etcd"));
            command.arg(format!("--listen-client-urls={etcd}"));
            command.arg(format!("--advertise-client-urls={etcd}"));
            // There are no peers; an empty list is not accepted.
            command.arg(format!("--listen-peer-urls=http://{}:0", address.ip()));
            // The data goes with the cluster, so a power cut is no concern, and the disk may be slow.
            command.arg("--unsafe-no-fsync");
        })?;
        let program = parts.kubernetes("kube-apiserver");
        let api_server = Daemon::start(&enclosure, state, "kube-apiserver", &program, |command| {
            command.arg(format!("--etcd-servers={etcd}"));
            command.arg(format!("--bind-address={}", address.ip()));
            command.arg(format!("--advertise-address={}", address.ip()));
            command.arg(format!("--secure-port={}", Address::API_SERVER));
            command.arg(format!(
                "--service-cluster-ip-range={}",
                address.service_range()
            ));
            // It makes its own certificate here, which is also what its clients trust.
            command.arg("--cert-dir").arg(&pki);
            command.arg("--token-auth-file").arg(pki.join("tokens.csv"));
            command.arg("--service-account-issuer=https://kubernetes.default.svc");
            command.arg("--service-account-key-file").arg(&key);
            command.arg("--service-account-signing-key-file").arg(&key);
            command.args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
            ]);
            command.arg("--allow-privileged=true");
            // The address is no endpoint that others could reach.
            command.arg("--endpoint-reconciler-type=none");
            command.arg("--kubelet-preferred-address-types=InternalIP");
        })?;
        Ok(Self {
            enclosure,
            daemons: vec![etcd_daemon, api_server],
        })
    }

    pub(crate) fn start_controllers(&mut self, parts: &Parts, state: &State) -> Result<()> {
        let pki = state.file("pki");
        let (manager, scheduler) = (
            parts.kubernetes("kube-controller-manager"),
            parts.kubernetes("kube-scheduler"),
        );
        self.daemons.push(Daemon::start(
            &self.enclosure,
            state,
            "kube-controller-manager",
            &manager,
            |command| {
                command.arg("--kubeconfig").arg(state.kubeconfig());
                command
                    .arg("--service-account-private-key-file")
                    .arg(pki.join("service-accounts.key"));
                command.arg("--root-ca-file").arg(pki.join("apiserver.crt"));
                // Each controller with its own ServiceAccount and its own rights, as in a real cluster.
                command.arg("--use-service-account-credentials=true");
                command.args(["--leader-elect=false", "--secure-port=0"]);
                // A node that comes back is freed of its taints at once.
                command.arg("--node-monitor-period=1s");
            },
        )?);
        self.daemons.push(Daemon::start(
            &self.enclosure,
            state,
            "kube-scheduler",
            &scheduler,
            |command| {
                command.arg("--kubeconfig").arg(state.kubeconfig());
                command.args(["--leader-elect=false", "--secure-port=0"]);
            },
        )?);
        Ok(())
    }

    pub(crate) fn enclosure(&mut self) -> &mut Enclosure {
        &mut self.enclosure
    }

    /// Fails if one of the programs is over.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Daemon::check)
    }

    /// Collects the programs after their processes were ended.
    pub(crate) fn bury(self) -> Result<()> {
        self.enclosure.close()?;
        self.daemons.into_iter().try_for_each(Daemon::bury)
    }
}

/// Who may speak to the API server: an administrator, and the node with the name that NodeRestriction knows.
pub(crate) struct Tokens {
    pub(crate) admin: String,
    pub(crate) node: String,
}

impl Tokens {
    /// Invents tokens and writes them for the API server.
    pub(crate) fn invent(state: &State, node_name: &str) -> Result<Self> {
        let tokens = Self {
            admin: random()?,
            node: random()?,
        };
        fs::write(
            state.file("pki/tokens.csv"),
            format!(
                "{},admin,admin,system:masters\n{},system:node:{node_name},node,system:nodes\n",
                tokens.admin, tokens.node
            ),
        )?;
        Ok(tokens)
    }
}

fn random() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex(&bytes))
}

/// Writes a kubeconfig: where the API server is, how it is recognised, and who asks.
pub(crate) fn write_kubeconfig(
    file: &Path,
    state: &State,
    address: Address,
    token: &str,
) -> Result<()> {
    let config = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: coffer
  cluster:
    server: https://{server}:{port}
    certificate-authority: {certificate}
users:
- name: user
  user: {{token: {token}}}
contexts:
- name: coffer
  context: {{cluster: coffer, user: user}}
current-context: coffer
",
        server = address.ip(),
        port = Address::API_SERVER,
        certificate = state.file("pki/apiserver.crt").display(),
    );
    fs::write(file, config)?;
    Ok(())
}
