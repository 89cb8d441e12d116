//! Arguments to a command to an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coffer::commands::{demo, doctor, node, provider, render};
use coffer::config::{NodeArgs, ProviderArgs};

/// Mounts secrets from external stores into pods
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the CSI driver on a node
    Node(Box<NodeArgs>),
    /// Serves one provider as a plugin of another secrets-store-csi-driver
    Provider(Box<ProviderArgs>),
    /// Shows a volume from its mount over a rotation to its end, without a cluster and without root
    Demo(demo::DemoArgs),
    /// Shows what a SecretProviderClass would mount, without mounting it
    Render(Box<render::RenderArgs>),
    /// Looks at the driver and at its node, and says what to do
    Doctor(Box<doctor::DoctorArgs>),
}

#[expect(
    clippy::print_stderr,
    reason = "the one place that tells a person why it ended"
)]
fn main() -> ExitCode {
    // One TLS implementation for every client of the process.
    let tls = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tls.expect("nobody installed another one before main");
    let done = match Cli::parse().command {
        Command::Node(args) => node::run(*args),
        Command::Provider(args) => provider::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Render(args) => render::run(&args),
        Command::Doctor(args) => doctor::run(*args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coffer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
