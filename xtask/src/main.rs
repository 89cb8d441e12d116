//! The chores of the project: `cargo xtask cluster up`, `cargo xtask e2e`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

mod cluster;
mod e2e;

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
        Chore::Cluster(ClusterChore::Up) => cluster::up(),
        Chore::Cluster(ClusterChore::Down) => cluster::down(),
        Chore::E2e { only } => e2e::run(only.as_deref()),
    };
    if let Err(error) = done {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
