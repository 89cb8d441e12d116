//! The node's switches: what stops, restarts or goes dark in a story about a node.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::command::output;
use super::node::{self, Node};
use super::state::Address;
use super::{Cluster, UP};

impl Cluster {
    /// Runs a command on the node, where pods' mounts and processes are to be seen, and gives what it printed.
    pub(crate) fn on_node(&self, command: &[&str]) -> Result<String> {
        let (program, arguments) = command.split_first().context("no command given")?;
        let mut command = self.with_node(|node| Ok(node.enclosure().command(program)))?;
        output(command.args(arguments))
    }

    /// What the driver answers where it serves its metrics.
    pub(crate) fn ask_driver(&self, path: &str) -> Result<String> {
        node::ask(self.address, Address::METRICS, path)
    }

    fn ask_kubelet(&self, path: &str) -> Result<String> {
        node::ask(self.address, Address::KUBELET_READ_ONLY, path)
    }

    /// Starts the kubelet and waits until the node is ready and all its pods are known there.
    pub(crate) fn start_kubelet(&self) -> Result<()> {
        self.with_node(|node| node.start_kubelet(&self.parts, &self.state, self.address))?;
        self.wait_until("the kubelet is well", UP, || {
            Ok(self.ask_kubelet("/healthz")? == "ok")
        })?;

        // Ready alone may still be the word of the kubelet before; a pod needs the taints gone, too.
        let name = self.node_name();
        let status =
            r#"-o=jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints}"#;
        self.wait_until("the node is ready", UP, || {
            Ok(self.kubectl(&["get", "node", &name, status])?.trim() == "True")
        })?;

        // Until it knows them, `kubectl exec` and `kubectl logs` fail for pods that run all the while.
        let of_node = format!("--field-selector=spec.nodeName={name}");
        let uids = [
            "get",
            "pods",
            "--all-namespaces",
            &of_node,
            "-o=jsonpath={.items[*].metadata.uid}",
        ];
        self.wait_until("the kubelet knows its pods", UP, || {
            let known = self.ask_kubelet("/pods")?;
            Ok(self
                .kubectl(&uids)?
                .split(' ')
                .all(|uid| known.contains(uid)))
        })
    }

    /// Starts the kubelet where a story that failed has left the node without one.
    pub(crate) fn start_missing_kubelet(&self) -> Result<()> {
        match self.with_node(|node| Ok(node.has_kubelet()))? {
            true => Ok(()),
            false => self.start_kubelet(),
        }
    }

    /// Stops the kubelet. The containers run on.
    pub(crate) fn stop_kubelet(&self) -> Result<()> {
        self.with_node(Node::stop_kubelet)
    }

    /// Stops the kubelet and starts it again.
    pub(crate) fn restart_kubelet(&self) -> Result<()> {
        self.stop_kubelet()?;
        self.start_kubelet()
    }

    /// Cuts the node's power and starts it again: containers are dead, mounts and `/run` are gone, the folders of
    /// the pods' volumes and the images are still there. Waits for the node, not for its pods.
    pub(crate) fn reboot_node(&self) -> Result<()> {
        self.reboot_without_kubelet()?;
        self.start_kubelet()
    }

    /// The same up to the kubelet, which has yet to be started: nobody has tidied up so far.
    pub(crate) fn reboot_without_kubelet(&self) -> Result<()> {
        let node = self.running().node.take().context("the node is off")?;
        node.cut_power(&self.state)?;
        self.running().node = Some(Node::start(&self.parts, &self.state, &self.remains)?);
        self.wait_until("containerd answers", UP, || {
            let mut version = Command::new(self.parts.ctr());
            output(
                version
                    .arg("--address")
                    .arg(self.state.containerd_socket())
                    .arg("version"),
            )
            .map(|_| true)
        })
    }

    fn with_node<T>(&self, ask: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        ask(self.running().node.as_mut().context("the node is off")?)
    }
}
