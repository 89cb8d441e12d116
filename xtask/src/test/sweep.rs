//! `cargo xtask sweep`: the driver is killed, or the kernel refuses, at every system call in turn.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use super::{Tally, cargo, cargo_test, namespace, suite};

/// Tells the tests to look at every point, not at a sample of them.
const POINTS: &str = "COFFER_TEST_POINTS";

/// Fewer crash points than this, and the sweep has lost some of what it was written for.
const LEAST_KILLED: usize = 400;

/// The modules of the kernel tests that are sweeps.
const SWEEPS: [&str; 2] = ["crash::", "errors::"];

/// Points that were looked at, by how they came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Points {
    killed: usize,
    refused: usize,
}

impl Points {
    /// Adds what a test tells: `  sweep: killed in a mount: 79 points`.
    pub(super) fn read(&mut self, line: &str) {
        // The harness may have begun the line with the name of the test.
        let Some((_, told)) = line.split_once("sweep: ") else {
            return;
        };
        let number = told
            .strip_suffix(" points")
            .and_then(|told| told.rsplit(' ').next())
            .and_then(|number| number.parse::<usize>().ok());
        match (told.split(' ').next(), number) {
            (Some("killed"), Some(number)) => self.killed += number,
            (Some("refused"), Some(number)) => self.refused += number,
            _ => {}
        }
    }
}

/// Runs every sweep in full and counts its points.
pub(crate) fn run() -> ExitCode {
    let mut tally = Tally::default();
    let points = points(&mut tally).and_then(|points| {
        println!(
            "\n{} crash points, {} refused system calls",
            points.killed, points.refused
        );
        ensure!(
            points.killed >= LEAST_KILLED,
            "{} crash points are fewer than {LEAST_KILLED}",
            points.killed
        );
        Ok(())
    });
    tally.tell("points of the sweep", std::time::Instant::now(), points);
    tally.sum_up()
}

fn points(tally: &mut Tally) -> Result<Points> {
    let mut command = namespace::unshare().context("the sweep mounts")?;
    command
        .arg(cargo().get_program())
        .current_dir(crate::workspace())
        .env(POINTS, "all");
    let mut command = cargo_test(command);
    command
        .args(["--test=kernel", "--"])
        .args(["--include-ignored", "--nocapture"])
        .args(SWEEPS);
    Ok(suite(tally, "the sweep", command).points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_added_up() {
        let mut points = Points::default();
        for line in [
            "  sweep: killed in a mount: 79 points",
            "test crash::rule_w3 ...   sweep: killed in a rotation: 120 points",
            "  sweep: refused in a mount: 300 points",
            "  10000 rounds in 1.2s",
        ] {
            points.read(line);
        }
        let expected = Points {
            killed: 199,
            refused: 300,
        };
        assert_eq!(points, expected);
    }
}
