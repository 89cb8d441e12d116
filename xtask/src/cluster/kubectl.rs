//! How tests speak to the cluster: kubectl, helm, and a namespace for each story.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Cluster;
use super::command::{output, output_given, tail};
use super::interrupt;

impl Cluster {
    /// Runs kubectl as an administrator, and gives what it printed.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.client("kubectl")?.args(arguments))
    }

    /// Runs helm as an administrator, and gives what it printed.
    pub(crate) fn helm(&self, arguments: &[&str]) -> Result<String> {
        output(self.client("helm")?.args(arguments))
    }

    /// `kubectl apply` of one or more documents.
    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        output_given(self.client("kubectl")?.args(["apply", "-f", "-"]), yaml)?;
        Ok(())
    }

    /// What the API server would make of a document.
    pub(crate) fn dry_run(&self, yaml: &str) -> Result<String> {
        let create = ["create", "--dry-run=server", "--output=yaml", "-f", "-"];
        output_given(self.client("kubectl")?.args(create), yaml)
    }

    /// Makes a namespace in which pods can start at once.
    pub(crate) fn namespace(&self, name: &str) -> Result<Namespace<'_>> {
        self.kubectl(&["create", "namespace", name])?;
        let namespace = Namespace {
            cluster: self,
            name: name.to_owned(),
        };
        // Two controllers make what every pod's token volume needs.
        for needed in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
            namespace.kubectl(&["wait", "--for=create", "--timeout=60s", needed])?;
        }
        Ok(namespace)
    }

    /// What a person would look at first when something went wrong.
    pub(crate) fn diagnosis(&self) -> String {
        interrupt::stand_still();
        let mut text = String::new();
        if let Err(error) = self.check() {
            text += &format!("--- {error:#}\n");
        }
        for question in [
            &["get", "nodes,pods", "--all-namespaces", "--output=wide"][..],
            &["describe", "pods", "--all-namespaces"],
            &[
                "get",
                "events",
                "--all-namespaces",
                "--sort-by=.lastTimestamp",
            ],
        ] {
            // Where not even this works, the logs below say more.
            if let Ok(answer) = self.kubectl(&[question, &["--request-timeout=10s"]].concat()) {
                text += &format!(
                    "--- kubectl {}\n{}\n",
                    question.join(" "),
                    tail(&answer, 120)
                );
            }
        }
        // Also of containers that are gone: the driver's, where it is installed.
        let logs = "tail -n 60 /var/log/pods/kube-system_*/*/*.log";
        if let Ok(logs) = self.on_node(&["sh", "-c", logs]) {
            text += &format!("--- logs of kube-system\n{}\n", tail(&logs, 200));
        }
        for program in [
            "kube-apiserver",
            "kube-controller-manager",
            "containerd",
            "kubelet",
        ] {
            text += &format!(
                "--- the end of {program}.log\n{}\n",
                self.log_tail(program, 25)
            );
        }
        text
    }

    /// Beside the API server, so that it ends with the cluster and leaves no file where all were just removed.
    fn client(&self, name: &str) -> Result<Command> {
        let program = self.parts.clients().join(name);
        let mut running = self.running();
        let control_plane = running.control_plane.as_mut();
        let control_plane = control_plane.context("there is no API server yet")?;
        let mut command = control_plane.enclosure().command(program);
        // A home of its own: caches and settings of the person who runs this are neither used nor written.
        command
            .env("KUBECONFIG", self.state.kubeconfig())
            .env("HOME", self.state.file("home"));
        Ok(command)
    }
}

/// A namespace of the cluster. It goes, with all that is in it, when this is dropped.
pub(crate) struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Namespace<'_> {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in this namespace, and gives what it printed.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["--namespace", &self.name], arguments].concat())
    }

    /// `kubectl apply` of documents that name no namespace.
    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        let mut kubectl = self.cluster.client("kubectl")?;
        output_given(
            kubectl.args(["--namespace", &self.name, "apply", "-f", "-"]),
            yaml,
        )?;
        Ok(())
    }

    /// Runs kubectl in this namespace with something to read, and gives what it printed.
    pub(crate) fn kubectl_given(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut kubectl = self.cluster.client("kubectl")?;
        output_given(
            kubectl.args(["--namespace", &self.name]).args(arguments),
            input,
        )
    }

    /// Waits until the pod is ready.
    pub(crate) fn wait_for_pod(&self, pod: &str, within: Duration) -> Result<()> {
        let (pod, timeout) = (
            format!("pod/{pod}"),
            format!("--timeout={}s", within.as_secs()),
        );
        self.kubectl(&["wait", "--for=condition=Ready", &timeout, &pod])
            .with_context(|| format!("{pod} of namespace {} is not ready", self.name))?;
        Ok(())
    }

    /// Runs a command in the pod's first container, and gives what it printed.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// Deletes the pod and waits until it is gone, with its volumes.
    pub(crate) fn delete_pod(&self, pod: &str) -> Result<()> {
        self.kubectl(&[
            "delete",
            "pod",
            pod,
            "--wait",
            "--grace-period=1",
            "--timeout=120s",
        ])?;
        Ok(())
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // A story that failed is told already, and the next one has another namespace.
        let _ = self.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
