//! A real one-node Kubernetes cluster on this machine, made from nothing and put back without a trace.
//!
//! `parts` brings the programs, `control_plane` and `node` run them inside an `enclosure` each, `kubectl` is how
//! tests speak to the result, and `remains` puts everything back. `machine` can tell whether it did.

pub(crate) mod cache;
mod cgroup;
pub(crate) mod command;
mod control_plane;
mod daemon;
mod enclosure;
mod image;
mod interrupt;
mod kubectl;
pub(crate) mod machine;
mod node;
mod parts;
mod person;
mod power;
mod remains;
mod state;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use cache::Cache;
use command::output;
use control_plane::{ControlPlane, Tokens, write_kubeconfig};
use enclosure::Enclosure;
use node::Node;
use parts::Parts;
use remains::Remains;
use state::{Address, State};

pub(crate) use image::{BUSYBOX, REGISTRAR};
pub(crate) use kubectl::Namespace;
pub(crate) use parts::clients;
pub(crate) use person::{down, up};

/// How long a part of the cluster may take to come up on a busy machine of two cores.
const UP: Duration = Duration::from_secs(180);

/// How long a cluster lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// As long as this process, however it ends.
    ThisProcess,
    /// Until `cargo xtask cluster down`.
    UntilDown,
}

/// A running cluster. Dropping it takes it down.
pub(crate) struct Cluster {
    parts: Parts,
    state: State,
    address: Address,
    remains: Remains,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    control_plane: Option<ControlPlane>,
    node: Option<Node>,
}

impl Cluster {
    /// Makes a cluster: first everything it is made of, where the cache lacks it, then the cluster itself.
    ///
    /// A failure on the way leaves nothing behind, and neither does Ctrl-C.
    pub(crate) fn up(lifetime: Lifetime) -> Result<Self> {
        ensure_root()?;
        let parts = Parts::collect(&Cache::open()?)?;
        for abandoned in State::abandoned()? {
            println!(
                "taking down {}, whose process was killed",
                abandoned.root().display()
            );
            remains::put_back(&abandoned)?;
        }

        let state = match lifetime {
            Lifetime::ThisProcess => State::of_this_process(),
            Lifetime::UntilDown => State::of_a_person(),
        };
        interrupt::put_back_when_interrupted(&state)?;
        state.create()?;
        let remains = Remains::of(&state)?;
        let cluster = Self {
            parts,
            address: Address::free()?,
            state,
            remains,
            running: Mutex::default(),
        };
        // As long as there is something to be looked at.
        cluster
            .start()
            .inspect_err(|_| println!("{}", cluster.diagnosis()))?;
        Ok(cluster)
    }

    fn start(&self) -> Result<()> {
        let begun = Instant::now();
        let (parts, state) = (&self.parts, &self.state);
        let tokens = Tokens::invent(state, &self.node_name())?;
        write_kubeconfig(&state.kubeconfig(), state, self.address, &tokens.admin)?;
        write_kubeconfig(
            &state.file("kubelet.kubeconfig"),
            state,
            self.address,
            &tokens.node,
        )?;

        // Both halves begin at once: the API server takes the longest, and needs no node.
        let mut list = self.remains.list()?;
        let enclosure = Enclosure::open("control-plane-namespaces", "", state)?;
        list.process(enclosure.first())?;
        drop(list);
        let control_plane = ControlPlane::start(enclosure, parts, state, self.address)?;
        self.running().control_plane = Some(control_plane);
        self.running().node = Some(Node::start(parts, state, &self.remains)?);

        self.wait_until("the API server is ready", UP, || {
            self.kubectl(&["get", "--raw=/readyz"])
                .map(|answer| answer == "ok")
        })?;
        self.running()
            .control_plane
            .as_mut()
            .context("it was just started")?
            .start_controllers(parts, state)?;

        let (busybox, registrar) = (state.file("busybox.tar"), state.file("registrar.tar"));
        image::write_busybox(&parts.busybox(), &busybox)?;
        image::write_registrar(&parts.registrar(), &registrar)?;
        self.wait_until("containerd answers", UP, || {
            self.import_image(&busybox).map(|()| true)
        })?;
        self.import_image(&registrar)?;

        self.start_kubelet()?;
        println!(
            "Kubernetes is up after {:.1} s",
            begun.elapsed().as_secs_f32()
        );
        Ok(())
    }

    /// Where the kubelet keeps pods, plugins and their sockets.
    pub(crate) fn kubelet_root(&self) -> PathBuf {
        self.state.kubelet_root()
    }

    /// The node's name, for `spec.nodeName`.
    pub(crate) fn node_name(&self) -> String {
        self.address.ip().to_string()
    }

    /// Where the driver can serve its metrics: the network of its pod is the machine's.
    pub(crate) fn metrics_address(&self) -> String {
        format!("{}:{}", self.address.ip(), Address::METRICS)
    }

    /// The end of a program's log.
    pub(crate) fn log_tail(&self, program: &str, lines: usize) -> String {
        let log = fs::read(self.state.log(program)).unwrap_or_default();
        command::tail(&String::from_utf8_lossy(&log), lines)
    }

    /// Makes the images of an archive (OCI or `docker save`) known to the node.
    pub(crate) fn import_image(&self, archive: &Path) -> Result<()> {
        output(
            Command::new(self.parts.ctr())
                .arg("--address")
                .arg(self.state.containerd_socket())
                .args(["--namespace=k8s.io", "images", "import"])
                .arg(archive),
        )?;
        Ok(())
    }

    /// Asks again and again whether something is `reached`. An error means not yet; the last one is told at the
    /// deadline. Fails at once when a program of the cluster is over.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        within: Duration,
        mut reached: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let answer = reached();
            if let Ok(true) = answer {
                return Ok(());
            }
            self.check()
                .with_context(|| format!("while waiting until {what}"))?;
            if Instant::now() > deadline {
                let waited = format!("waited {} s until {what}", within.as_secs());
                return match answer {
                    Err(error) => Err(error.context(waited)),
                    Ok(_) => bail!("{waited}, in vain"),
                };
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Takes the cluster down and tells whether that went well.
    pub(crate) fn down(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let running = std::mem::take(&mut *self.running());
        remains::put_back(&self.state)?;
        if let Some(node) = running.node {
            node.bury()?;
        }
        running.control_plane.map_or(Ok(()), ControlPlane::bury)
    }

    fn leave_running(self) -> Result<()> {
        let mut running = self.running();
        running
            .control_plane
            .as_mut()
            .map_or(Ok(()), |control_plane| control_plane.enclosure().outlive())?;
        running
            .node
            .as_mut()
            .map_or(Ok(()), |node| node.enclosure().outlive())?;
        drop(running);
        // What has to be put back is listed in the state folder.
        std::mem::forget(self);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let mut running = self.running();
        running
            .control_plane
            .as_mut()
            .map_or(Ok(()), ControlPlane::check)?;
        running.node.as_mut().map_or(Ok(()), Node::check)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            println!("the machine is not as it was: {error:#}");
        }
    }
}

fn ensure_root() -> Result<()> {
    let user = fs::metadata("/proc/self")?.uid();
    ensure!(
        user == 0,
        "a cluster needs root: namespaces, mounts, control groups and port 443. \
         Try `sudo -E env PATH=\"$PATH\" cargo xtask …`, or a virtual machine"
    );
    Ok(())
}
