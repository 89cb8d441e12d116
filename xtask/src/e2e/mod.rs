//! `cargo xtask e2e`: stories that are told to a real cluster.
//!
//! One file is one story: a `run` that reads from top to bottom as what a person would do and see. Add the file,
//! and one line to [`STORIES`].

mod first_pod;
mod node;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cluster::machine::Machine;
use crate::cluster::{Cluster, Lifetime};
use crate::tally::Tally;

/// What the story is about, and how it goes.
type Story = (&'static str, fn(&Cluster) -> Result<()>);

const STORIES: &[Story] = &[
    (
        "a pod runs, and kubectl exec reads its files",
        first_pod::run,
    ),
    (
        "the node shares mounts, restarts its kubelet and reboots",
        node::run,
    ),
];

/// Tells the stories whose title holds `only`, each to the same cluster, and sums up.
pub(crate) fn run(only: Option<&str>) -> ExitCode {
    let mut tally = Tally::default();
    let begun = Instant::now();
    let up = Machine::look().and_then(|before| Ok((before, Cluster::up(Lifetime::ThisProcess)?)));
    let (before, cluster) = match up {
        Ok(up) => up,
        Err(error) => {
            tally.tell("the cluster comes up", begun, Err(error));
            return tally.sum_up();
        }
    };

    for (title, story) in STORIES {
        if only.is_none_or(|part| title.contains(part)) {
            let begun = Instant::now();
            let outcome = story(&cluster);
            let diagnosis = outcome.is_err().then(|| cluster.diagnosis());
            tally.tell(title, begun, outcome);
            if let Some(diagnosis) = diagnosis {
                println!("{diagnosis}");
            }
        }
    }

    let begun = Instant::now();
    let down = cluster.down().and_then(|()| before.ensure_unchanged());
    tally.tell("the machine is as it was", begun, down);
    tally.sum_up()
}
