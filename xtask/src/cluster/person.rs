//! A cluster for a person: brought up and left running, taken down on demand.

use anyhow::{Result, ensure};

use super::image::BUSYBOX;
use super::state::State;
use super::{Cluster, Lifetime, ensure_root, remains};

/// `cargo xtask cluster up`.
pub(crate) fn up() -> Result<()> {
    let state = State::of_a_person();
    ensure!(
        !state.root().exists(),
        "a cluster is up already: end it with `cargo xtask cluster down`"
    );
    let cluster = Cluster::up(Lifetime::UntilDown)?;
    println!(
        "\nThe cluster is up. In your shell:\n\n  export KUBECONFIG={} PATH={}:$PATH\n  kubectl get nodes\n",
        state.kubeconfig().display(),
        cluster.parts.clients().display(),
    );
    println!("Pods can run the image {BUSYBOX} with imagePullPolicy: Never.");
    println!(
        "The kubelet's root is {}, logs are in {}.",
        state.kubelet_root().display(),
        state.file("logs").display()
    );
    println!("It runs until `cargo xtask cluster down`.");
    cluster.leave_running()
}

/// `cargo xtask cluster down`.
pub(crate) fn down() -> Result<()> {
    ensure_root()?;
    let state = State::of_a_person();
    if !state.root().exists() {
        println!("there is no cluster");
        return Ok(());
    }
    remains::put_back(&state)?;
    println!("the cluster is down, and the machine as it was");
    Ok(())
}
