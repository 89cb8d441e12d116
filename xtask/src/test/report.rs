//! What `cargo test` prints, read as it passes by.

use std::collections::{BTreeMap, BTreeSet};

use super::sweep::Points;
use crate::tally::Counts;

/// What `cargo test` has said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) counts: Counts,
    /// The names of the tests that failed.
    pub(super) failed: Vec<String>,
    /// The tests that were left out, by what they need.
    pub(super) left_out: BTreeMap<String, LeftOut>,
    /// What sweeps have told.
    pub(super) points: Points,
    target: String,
}

/// Tests that a plain `cargo test` leaves out for want of something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Their names.
    pub(super) tests: Vec<String>,
    /// Where they are: cargo's flags for their binaries.
    pub(super) targets: BTreeSet<String>,
}

impl Report {
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim();
        self.points.read(line);
        if let Some(running) = line.strip_prefix("Running ") {
            self.target = target(running).unwrap_or_default();
        } else if let Some((_, result)) = line.split_once("test result: ") {
            // Searched for anywhere in the line: what a test prints last may have no end of its own.
            self.counts.passed += number_before(result, " passed;");
            self.counts.failed += number_before(result, " failed;");
            self.counts.skipped += number_before(result, " ignored;");
        } else if let Some((name, outcome)) = test(line) {
            if outcome == "FAILED" {
                self.failed.push(name.to_owned());
            } else if let Some(need) = need(outcome) {
                let left_out = self.left_out.entry(need.to_owned()).or_default();
                left_out.tests.push(name.to_owned());
                left_out.targets.insert(self.target.clone());
            }
        }
    }
}

/// `--test=node` of `tests/node/main.rs (target/debug/deps/node-3f8e2a90c4d1b567)`.
fn target(running: &str) -> Option<String> {
    if let Some(source) = running.strip_prefix("unittests ") {
        let lib = source.starts_with("src/lib.rs ");
        return Some(if lib { "--lib" } else { "--bins" }.to_owned());
    }
    let binary = running.strip_suffix(')')?.rsplit('/').next()?;
    let (name, _hash) = binary.rsplit_once('-')?;
    Some(format!("--test={name}"))
}

/// Name and outcome of `test some::name - should panic ... ok`.
fn test(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name.trim_end_matches(" - should panic"), outcome))
}

/// `moto` of `ignored, needs moto: cargo xtask test`.
fn need(outcome: &str) -> Option<&str> {
    let reason = outcome.strip_prefix("ignored, needs ")?;
    reason.strip_suffix(": cargo xtask test")
}

fn number_before(text: &str, mark: &str) -> usize {
    text.split_once(mark)
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_and_those_that_were_left_out_remembered() {
        let printed = "\
    Finished `test` profile [unoptimized + debuginfo] target(s) in 0.20s
     Running unittests src/lib.rs (target/debug/deps/coffer-5d0c3a1b2e4f6789)

running 3 tests
test payload::tests::modes ... ok
test volume::tests::attached ... ignored, needs a mount namespace: cargo xtask test
test class::tests::wrong - should panic ... FAILED

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/a-b/main.rs (target/debug/deps/a_b-0123456789abcdef)
test soak::hours ... ignored, takes hours: cargo xtask soak
test files::confined ... ignored, needs a mount namespace: cargo xtask test
test calls::counted ... ignored, needs moto: cargo xtask test
the driver's last wordstest result: ok. 20 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out
";
        let mut report = Report::default();
        printed.lines().for_each(|line| report.read(line));
        let counts = Counts {
            passed: 21,
            failed: 1,
            skipped: 4,
        };
        assert_eq!(report.counts, counts);
        assert_eq!(report.failed, ["class::tests::wrong"]);
        let left_out = |tests: &[&str], targets: &[&str]| LeftOut {
            tests: tests.iter().map(|&test| test.to_owned()).collect(),
            targets: targets.iter().map(|&target| target.to_owned()).collect(),
        };
        let in_namespace = ["volume::tests::attached", "files::confined"];
        let expected = [
            (
                "a mount namespace",
                left_out(&in_namespace, &["--lib", "--test=a_b"]),
            ),
            ("moto", left_out(&["calls::counted"], &["--test=a_b"])),
        ];
        let expected = expected.map(|(need, left_out)| (need.to_owned(), left_out));
        assert_eq!(report.left_out, expected.into());
    }
}
