//! Counts what passed and what failed, and tells it: a line for each step, and one for all at the end.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Error, Result};

/// What was run so far.
#[derive(Default)]
pub(crate) struct Tally {
    all: Counts,
    failed: Vec<String>,
}

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Left out by every step until now.
    pub(crate) skipped: usize,
}

impl Tally {
    /// A step that is one test.
    pub(crate) fn tell(&mut self, title: &str, begun: Instant, outcome: Result<()>) {
        let counts = Counts {
            passed: usize::from(outcome.is_ok()),
            failed: usize::from(outcome.is_err()),
            skipped: 0,
        };
        self.add(title, begun, counts, outcome.err());
    }

    /// A step of many tests, and what was wrong with it.
    pub(crate) fn tell_many(
        &mut self,
        title: &str,
        begun: Instant,
        mut counts: Counts,
        problem: Option<Error>,
    ) {
        let told = format!("{title}: {counts}");
        // What failed to compile has no test that could be counted.
        if problem.is_some() {
            counts.failed = counts.failed.max(1);
        }
        self.add(&told, begun, counts, problem);
    }

    /// Some of the tests that an earlier step left out were run after all.
    pub(crate) fn made_up_for(&mut self, skipped: usize) {
        self.all.skipped = self.all.skipped.saturating_sub(skipped);
    }

    fn add(&mut self, title: &str, begun: Instant, counts: Counts, problem: Option<Error>) {
        self.all.passed += counts.passed;
        self.all.failed += counts.failed;
        self.all.skipped += counts.skipped;
        let seconds = begun.elapsed().as_secs_f32();
        match problem {
            None => println!("ok      {title} ({seconds:.1} s)"),
            Some(error) => {
                println!("FAILED  {title} ({seconds:.1} s): {error:#}");
                self.failed.push(format!("{title}: {error:#}"));
            }
        }
    }

    /// Tells once more what failed, and then all in one line.
    pub(crate) fn sum_up(&self) -> ExitCode {
        println!();
        for failure in &self.failed {
            println!("FAILED  {failure}");
        }
        println!("{}", self.all);
        match self.all.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(formatter, ", {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_before_its_first_test_counts_as_one() {
        let mut tally = Tally::default();
        tally.tell("lints", Instant::now(), Ok(()));
        let wrong = Some(anyhow::anyhow!("does not compile"));
        tally.tell_many("tests", Instant::now(), Counts::default(), wrong);
        assert_eq!(tally.all.to_string(), "1 passed, 1 failed");
        assert_eq!(tally.sum_up(), ExitCode::FAILURE);
    }

    #[test]
    fn what_is_run_later_was_not_skipped() {
        let mut tally = Tally::default();
        for (passed, skipped) in [(7, 3), (2, 0)] {
            let counts = Counts {
                passed,
                failed: 0,
                skipped,
            };
            tally.tell_many("tests", Instant::now(), counts, None);
        }
        tally.made_up_for(2);
        assert_eq!(tally.all.to_string(), "9 passed, 0 failed, 1 skipped");
        tally.made_up_for(1);
        assert_eq!(tally.all.to_string(), "9 passed, 0 failed");
        assert_eq!(tally.sum_up(), ExitCode::SUCCESS);
    }
}
