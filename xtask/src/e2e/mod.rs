//! `cargo xtask e2e`: stories that are told to a real cluster.
//!
//! One file is one story: a `run` that reads from top to bottom as what a person would do and see. Add the file,
//! and one line to [`STORIES`]. `driver`, `volume` and `manifests` are what the stories are told with.

mod bats;
mod driver;
mod first_pod;
mod forced;
mod group;
mod late_class;
mod life;
mod manifests;
mod moving_over;
mod neighbour;
mod node;
mod plugin;
mod quiet;
mod reboot;
mod republish;
mod restart_kubelet;
mod rights;
mod rounds;
mod secret_ref;
mod startup_taint;
mod status;
mod stop;
mod sub_path;
mod sync;
mod tokens;
mod two_volumes;
mod upgrade;
mod vault;
mod volume;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::machine::Machine;
use crate::cluster::{Cluster, Lifetime};
use crate::tally::Tally;
use driver::Driver;

/// How long a pod, and what it waits for, may take on a busy machine of two cores.
const SOON: Duration = Duration::from_secs(90);

/// How a story goes.
enum Told {
    /// With the bare cluster.
    Bare(fn(&Cluster) -> Result<()>),
    /// With the driver installed.
    WithDriver(fn(&Driver<'_>) -> Result<()>),
}
use Told::{Bare, WithDriver};

/// What each story is about, and how it goes. The bare ones come first.
const STORIES: &[(&str, Told)] = &[
    (
        "a pod runs, and kubectl exec reads its files",
        Bare(first_pod::run),
    ),
    (
        "the node shares mounts, restarts its kubelet and reboots",
        Bare(node::run),
    ),
    (
        "a pod mounts its secrets, reads them, sees a rotation and goes",
        WithDriver(life::run),
    ),
    (
        "a pod that is not root reads by its fsGroup",
        WithDriver(group::run),
    ),
    (
        "a second container without the mount sees nothing",
        WithDriver(neighbour::run),
    ),
    (
        "two volumes of one pod have nothing to do with each other",
        WithDriver(two_volumes::run),
    ),
    (
        "a file mounted by subPath stays what it was",
        WithDriver(sub_path::run),
    ),
    (
        "a class that comes late lets its pod start",
        WithDriver(late_class::run),
    ),
    (
        "status objects and events say how volumes are, and classes that cannot be are refused",
        WithDriver(status::run),
    ),
    (
        "a hundred volumes whose secrets do not change write nothing in two minutes",
        WithDriver(quiet::run),
    ),
    (
        "a pod deleted by force leaves nothing",
        WithDriver(forced::run),
    ),
    (
        "bats_c1_tokens_of_every_audience_arrive_through_secrets_and_nowhere_else",
        WithDriver(tokens::run),
    ),
    (
        "a secret of OpenBao, which asks the API server who the pod is",
        WithDriver(vault::run),
    ),
    (
        "a provider plugin in Python is mounted, rotated and restarted",
        WithDriver(plugin::run),
    ),
    (
        "the driver has the rights it needs and no other",
        WithDriver(rights::run),
    ),
    (
        "sync: a pod starts with its environment and its pull secrets from Secrets of its volume",
        WithDriver(sync::environment::run),
    ),
    (
        "bats_c8_c9_c10_sync: two Deployments of one class keep two owners, each goes with its own",
        WithDriver(sync::owners::run),
    ),
    (
        "bats_c11_c12_sync: a class of the same name in another Namespace does not matter",
        WithDriver(sync::namespaces::run),
    ),
    (
        "bats_c14_sync: two classes in two volumes of one pod",
        WithDriver(sync::two_classes::run),
    ),
    (
        "bats_c15_sync: a rotation reaches the files and the Secret",
        WithDriver(sync::rotation::run),
    ),
    (
        "rule_k3_sync: a Secret of somebody else survives byte for byte",
        WithDriver(sync::foreign::run),
    ),
    (
        "rule_k5_sync: the driver's account is fenced in",
        WithDriver(sync::fence::run),
    ),
    (
        "sync: 500 Secrets that nobody changes are not written",
        WithDriver(sync::quiet::run),
    ),
    (
        "rule_t15_pods_that_come_and_go_leave_nothing",
        WithDriver(rounds::run),
    ),
    (
        "rule_t7_a_pod_keeps_its_mount_while_the_driver_is_killed_and_upgraded",
        WithDriver(upgrade::run),
    ),
    (
        "a pod keeps its mount while the kubelet restarts",
        WithDriver(restart_kubelet::run),
    ),
    (
        "rule_r9_sigterm_ends_the_driver_in_order_and_the_next_one_serves_at_once",
        WithDriver(stop::run),
    ),
    (
        "the Secret of a nodePublishSecretRef reaches the driver and nobody else",
        WithDriver(secret_ref::run),
    ),
    (
        "rule_r1_the_kubelets_repeated_calls_are_ok_whatever_is_wrong",
        WithDriver(republish::run),
    ),
    (
        "bats_c2_c3_both_kinds_are_established",
        WithDriver(bats::c2_c3),
    ),
    (
        "bats_c4_roles_and_bindings_have_upstreams_names",
        WithDriver(bats::c4),
    ),
    (
        "bats_c5_a_class_of_v1alpha1_is_mounted",
        WithDriver(bats::c5),
    ),
    (
        "bats_c6_c7_an_inline_volume_comes_and_goes_without_an_error",
        WithDriver(bats::c6_c7),
    ),
    (
        "bats_c13_a_class_of_another_namespace_is_not_found",
        WithDriver(bats::c13),
    ),
    (
        "bats_c16_metrics_have_upstreams_names",
        WithDriver(bats::c16),
    ),
    (
        "a node with the startup taint takes pods once the driver serves, and only so much may change",
        WithDriver(startup_taint::run),
    ),
    (
        "rule_t9_after_a_reboot_volumes_are_made_anew_and_leftovers_go",
        WithDriver(reboot::run),
    ),
    // The last one: it takes the release away, and gives back another.
    (
        "a release of secrets-store-csi-driver becomes one of Coffer, and no pod notices",
        WithDriver(moving_over::run),
    ),
];

/// Tells the stories whose title holds `only`, each to the same cluster, and sums up.
pub(crate) fn run(only: Option<&str>) -> ExitCode {
    let mut tally = Tally::default();
    let stories: Vec<_> = STORIES
        .iter()
        .filter(|(title, _)| only.is_none_or(|part| title.contains(part)))
        .collect();
    let with_driver = stories
        .iter()
        .any(|(_, told)| matches!(told, WithDriver(_)));

    let begun = Instant::now();
    // Before the cluster: what does not compile needs none.
    let image = with_driver.then(Driver::build_image).transpose();
    let up = image.and_then(|image| {
        let before = Machine::look()?;
        Ok((image, before, Cluster::up(Lifetime::ThisProcess)?))
    });
    let (image, before, cluster) = match up {
        Ok(up) => up,
        Err(error) => {
            tally.tell("the cluster comes up", begun, Err(error));
            return tally.sum_up();
        }
    };

    for (title, story) in &stories {
        if let Bare(run) = story {
            tell(&mut tally, &cluster, title, || run(&cluster));
        }
    }
    let driver = image.and_then(|image| {
        let install = || Driver::install(&cluster, &image);
        tell(&mut tally, &cluster, "helm installs the driver", install)
    });
    for (title, story) in &stories {
        if let (WithDriver(run), Some(driver)) = (story, &driver) {
            tell(&mut tally, &cluster, title, || run(driver));
        }
    }

    let begun = Instant::now();
    let down = cluster.down().and_then(|()| before.ensure_unchanged());
    tally.tell("the machine is as it was", begun, down);
    tally.sum_up()
}

/// Tells one story, and what a person would want to see where it fails.
fn tell<T>(
    tally: &mut Tally,
    cluster: &Cluster,
    title: &str,
    story: impl FnOnce() -> Result<T>,
) -> Option<T> {
    let begun = Instant::now();
    let (outcome, ending) = match story() {
        Ok(ending) => (Ok(()), Some(ending)),
        Err(error) => (Err(error), None),
    };
    let diagnosis = outcome.is_err().then(|| cluster.diagnosis());
    tally.tell(title, begun, outcome);
    if let Some(diagnosis) = diagnosis {
        println!("{diagnosis}");
        // The next story has nothing to do with it.
        if let Err(error) = cluster.start_missing_kubelet() {
            println!("{error:#}");
        }
    }
    ending
}
