//! `cargo xtask test`: everything that can be said about the project without a cluster.
//!
//! One step after the other, whatever has become of the one before. What a step needs is installed.

mod namespace;
mod parts;
mod report;
mod sweep;

use std::env;
use std::io::{BufRead as _, BufReader, PipeReader, pipe};
use std::mem;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::cluster::cache::Cache;
use crate::tally::Tally;
use crate::workspace;
pub(crate) use parts::{bao, grpcio};
use report::{LeftOut, Report};
pub(crate) use sweep::run as sweep;

/// Names the binary of csi-sanity to the tests.
const CSI_SANITY: &str = "COFFER_CSI_SANITY";
/// Name the binary of helm and the folder of kubernetes-validate to the tests of the chart.
const HELM: &str = "COFFER_HELM";
const VALIDATE: &str = "COFFER_KUBERNETES_VALIDATE";
/// Tells the tests that can go on for long how long that is.
const SOAK: &str = "COFFER_SOAK_SECONDS";
/// Names the binary of OpenBao to the tests of the vault provider.
const BAO: &str = "COFFER_BAO";
/// Name the Python modules of the servers that stand in for AWS.
const MOTO: &str = "COFFER_MOTO";
const MINISTACK: &str = "COFFER_MINISTACK";
/// Names the Python modules that the provider plugin of the tests imports.
const GRPCIO: &str = "COFFER_GRPCIO";
/// Tells these tests to write what they would compare.
const UPDATE: &str = "COFFER_UPDATE";

/// Runs the steps and sums up.
pub(crate) fn run() -> ExitCode {
    let mut tally = Tally::default();
    thread::scope(|scope| {
        // Only the last steps need these, and the first ones leave a core idle now and then.
        let deny = scope.spawn(|| parts::cargo_deny(&Cache::open()?));
        let sanity = scope.spawn(|| parts::csi_sanity(&Cache::open()?));
        let helm = scope.spawn(parts::helm);
        let bao = scope.spawn(parts::bao);
        let aws = scope.spawn(parts::aws);
        let grpcio = scope.spawn(parts::grpcio);

        step(&mut tally, "formatting", || {
            succeed(cargo().args(["fmt", "--all", "--check"]))
        });
        step(&mut tally, "lints", || {
            let what = ["--workspace", "--all-targets", "--all-features", "--locked"];
            succeed(
                cargo()
                    .arg("clippy")
                    .args(what)
                    .args(["--", "-D", "warnings"]),
            )
        });
        let report = suite(&mut tally, "tests", cargo_test(cargo()));
        let (bao, aws, grpcio) = (made(bao), made(aws), made(grpcio));
        if let Some(left_out) = report.left_out.get("a mount namespace") {
            let aws = aws.as_ref().ok();
            let parts = [
                (BAO, bao.as_ref().ok()),
                (GRPCIO, grpcio.as_ref().ok()),
                (MOTO, aws.map(|aws| &aws.moto)),
                (MINISTACK, aws.map(|aws| &aws.ministack)),
            ];
            in_namespace(&mut tally, left_out, made(sanity), &parts);
        }
        with_aws(&mut tally, &report, aws);
        let ran = with_helm(&mut tally, made(helm), &["--ignored"], false);
        tally.made_up_for(ran);
        with_bao(&mut tally, bao);
        step(&mut tally, "licences, bans and sources", || {
            succeed(
                Command::new(made(deny)?)
                    .current_dir(workspace())
                    .args([
                        "--all-features",
                        "--locked",
                        "check",
                        "--hide-inclusion-graph",
                    ])
                    .args(["licenses", "bans", "sources"]),
            )
        });
    });
    tally.sum_up()
}

/// The tests of the chart alone.
pub(crate) fn chart(update: bool) -> ExitCode {
    let mut tally = Tally::default();
    with_helm(&mut tally, parts::helm(), &["--include-ignored"], update);
    tally.sum_up()
}

/// The tests that find more the longer they go on, side by side.
pub(crate) fn soak(minutes: u64) -> ExitCode {
    let mut tally = Tally::default();
    let title = "soak";
    match namespace::unshare() {
        Ok(mut unshare) => {
            unshare.arg(cargo().get_program());
            let mut command = cargo_test(unshare);
            command
                .env(SOAK, (minutes * 60).to_string())
                .args(["--test=integration", "--", "--ignored", "--nocapture"])
                .arg("soak::");
            suite(&mut tally, title, command);
        }
        Err(error) => step(&mut tally, title, || Err(error)),
    }
    tally.sum_up()
}

/// Tests of the chart, of which those that call helm are left out by a plain `cargo test`. Gives their number.
fn with_helm(tally: &mut Tally, helm: Result<parts::Helm>, which: &[&str], update: bool) -> usize {
    let title = "tests of the chart";
    let helm = match helm {
        Ok(helm) => helm,
        Err(error) => {
            step(tally, title, || Err(error));
            return 0;
        }
    };
    let mut command = cargo_test(cargo());
    command
        .env(HELM, helm.helm)
        .env(VALIDATE, helm.validate)
        .arg("--test=chart")
        .arg("--")
        .args(which);
    if update {
        // They read what others of them write.
        command.env(UPDATE, "1").arg("--test-threads=1");
    }
    let report = suite(tally, title, command);
    report.counts.passed + report.counts.failed
}

/// Tests of the vault provider at a real OpenBao, which a plain `cargo test` leaves out.
fn with_bao(tally: &mut Tally, bao: Result<PathBuf>) {
    let title = "tests at OpenBao";
    let bao = match bao {
        Ok(bao) => bao,
        Err(error) => return step(tally, title, || Err(error)),
    };
    let mut command = cargo_test(cargo());
    command
        .env(BAO, bao)
        .args(["--test=vault", "--", "--ignored"]);
    let report = suite(tally, title, command);
    tally.made_up_for(report.counts.passed + report.counts.failed);
}

/// The tests that the first run of `cargo test` left out for want of what stands in for AWS.
fn with_aws(tally: &mut Tally, report: &Report, aws: Result<parts::Aws>) {
    let title = "tests of the AWS provider";
    let left_out: Vec<_> = ["moto", "ministack"]
        .into_iter()
        .filter_map(|need| report.left_out.get(need))
        .collect();
    if left_out.is_empty() {
        return;
    }
    let aws = match aws {
        Ok(aws) => aws,
        Err(error) => return step(tally, title, || Err(error)),
    };
    let mut command = cargo_test(cargo());
    command
        .env(MOTO, aws.moto)
        .env(MINISTACK, aws.ministack)
        .args(left_out.iter().flat_map(|left_out| &left_out.targets))
        .args(["--", "--ignored", "--exact"])
        .args(left_out.iter().flat_map(|left_out| &left_out.tests));
    let report = suite(tally, title, command);
    let ran = report.counts.passed + report.counts.failed;
    tally.made_up_for(ran);
}

/// The tests that the first run of `cargo test` left out for want of a mount namespace.
fn in_namespace(
    tally: &mut Tally,
    left_out: &LeftOut,
    csi_sanity: Result<PathBuf>,
    parts: &[(&str, Option<&PathBuf>)],
) {
    let title = "tests in a mount namespace";
    let command = csi_sanity.and_then(|csi_sanity| {
        let mut command = namespace::unshare()?;
        command
            .arg(cargo().get_program())
            .env(CSI_SANITY, csi_sanity)
            .envs(
                parts
                    .iter()
                    .filter_map(|(name, part)| Some((name, (*part)?))),
            );
        Ok(command)
    });
    let mut command = match command {
        Ok(command) => cargo_test(command),
        Err(error) => return step(tally, title, || Err(error)),
    };
    command
        .args(&left_out.targets)
        .args(["--", "--ignored", "--exact"])
        .args(&left_out.tests);
    let report = suite(tally, title, command);
    let ran = report.counts.passed + report.counts.failed;
    tally.made_up_for(ran);
}

fn step(tally: &mut Tally, title: &str, run: impl FnOnce() -> Result<()>) {
    println!("\n{title} …");
    let begun = Instant::now();
    tally.tell(title, begun, run());
}

fn suite(tally: &mut Tally, title: &str, command: Command) -> Report {
    println!("\n{title} …");
    let begun = Instant::now();
    let (report, outcome) = watch(command);
    let problem = match report.failed.as_slice() {
        [] => outcome.err(),
        failed => Some(anyhow!("{}", failed.join(", "))),
    };
    tally.tell_many(title, begun, report.counts, problem);
    report
}

/// Runs a command that speaks to the person itself.
fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Runs `cargo test`, shows what it prints as it comes, and reads it.
fn watch(mut command: Command) -> (Report, Result<()>) {
    let report = Arc::<Mutex<Report>>::default();
    let outcome = (|| {
        // One pipe for both, so that cargo's words about a binary come before those of its tests.
        let (output, writer) = pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command.spawn().context("cannot start cargo")?;
        // It holds the pipe's other end, and the output would have no end.
        drop(command);

        let (ended, end) = channel();
        let reads = report.clone();
        thread::spawn(move || {
            show(output, &reads);
            // Nobody may be waiting any more.
            let _ = ended.send(());
        });
        let status = child.wait()?;
        if end.recv_timeout(Duration::from_secs(60)).is_err() {
            bail!("a test left a process behind, which still holds the tests' output");
        }
        ensure!(status.success(), "{status}");
        Ok(())
    })();
    let report = mem::take(&mut *report.lock().unwrap_or_else(PoisonError::into_inner));
    (report, outcome)
}

fn show(output: PipeReader, report: &Mutex<Report>) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.read(&line);
    }
}

/// The cargo that runs us.
fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

fn cargo_test(mut cargo: Command) -> Command {
    cargo
        .args([
            "test",
            "--workspace",
            "--all-features",
            "--locked",
            "--no-fail-fast",
        ])
        // Their lines are read.
        .env("CARGO_TERM_COLOR", "never");
    cargo
}

fn made<T>(part: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    part.join().map_err(|_| anyhow!("making it panicked"))?
}
