//! `cargo xtask e2e`: stories that are told to a real cluster.
//!
//! One file is one story: a `run` that reads from top to bottom as what a person would do and see. Add the file,
//! and one line to [`STORIES`].

mod first_pod;
mod node;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::cluster::machine::Machine;
use crate::cluster::{Cluster, Lifetime};

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
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let before = Machine::look()?;
    let cluster = Cluster::up(Lifetime::ThisProcess)?;

    let mut tally = Tally::default();
    for (title, story) in STORIES {
        if only.is_none_or(|part| title.contains(part)) {
            let begun = Instant::now();
            let outcome = story(&cluster);
            let failed = outcome.is_err();
            tally.tell(title, begun, outcome);
            if failed {
                println!("{}", cluster.diagnosis());
            }
        }
    }

    let begun = Instant::now();
    tally.tell(
        "the machine is as it was",
        begun,
        cluster.down().and_then(|()| before.ensure_unchanged()),
    );
    tally.sum_up()
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn tell(&mut self, title: &str, begun: Instant, outcome: Result<()>) {
        let seconds = begun.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {title} ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {title} ({seconds:.1} s): {error:#}");
            }
        }
    }

    fn sum_up(&self) -> Result<()> {
        println!("\n{} passed, {} failed", self.passed, self.failed);
        ensure!(self.failed == 0, "some stories did not go as told");
        Ok(())
    }
}
