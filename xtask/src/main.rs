//! The chores of the project: `cargo xtask test`, `cargo xtask e2e`, `cargo xtask cluster up`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "cargo and the person tell us things in variables"
)]

mod cluster;
mod e2e;
mod go;
mod image;
mod oci;
mod tally;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The chores of the project")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Formatting, lints and every test that needs no cluster; installs what they need
    Test,
    /// Kills the driver, and lets the kernel refuse, at every system call in turn; a sample of it is in `test`
    Sweep,
    /// The tests of the chart alone
    Chart {
        /// Writes the manifests that are checked in anew
        #[arg(long)]
        update: bool,
    },
    /// Readers while the driver is killed at random, and while a store is away, for as long as you like
    Soak {
        /// How long
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
    /// The driver's image as an OCI archive; no container engine is needed
    Image {
        /// The profile of cargo that the driver is built with
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// A real one-node Kubernetes cluster on this machine, for you to try things in
    #[command(subcommand)]
    Cluster(ClusterChore),
    /// The end-to-end tests, on a cluster of their own
    E2e {
        /// Only the stories whose title holds this
        only: Option<String>,
    },
}

#[derive(Subcommand)]
enum ClusterChore {
    /// Starts it and leaves it running
    Up,
    /// Ends it and puts the machine back
    Down,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test => return test::run(),
        Chore::Sweep => return test::sweep(),
        Chore::Chart { update } => return test::chart(update),
        Chore::Soak { minutes } => return test::soak(minutes),
        Chore::Image { profile } => image::run(&profile),
        Chore::Cluster(ClusterChore::Up) => cluster::up(),
        Chore::Cluster(ClusterChore::Down) => cluster::down(),
        Chore::E2e { only } => return e2e::run(only.as_deref()),
    };
    if let Err(error) = done {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The checkout that this xtask was built from.
fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent();
    workspace
        .expect("xtask is a folder of the workspace")
        .to_owned()
}
