//! The flags of `coffer provider`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tracing::Level;

#[cfg(feature = "aws")]
use super::AwsArgs;
use super::{LogFormat, VaultArgs};
use crate::catalog::Intervals;

/// A provider as a plugin of another driver.
#[derive(Args, Clone, Debug)]
pub struct ProviderArgs {
    /// vault, openbao, aws or file
    pub name: String,

    /// Socket for the driver; NAME.sock in /var/run/secrets-store-csi-providers if not given
    #[arg(long, env = "COFFER_PROVIDER_ENDPOINT")]
    pub endpoint: Option<String>,

    /// How long an answer of the store is good, as in 2m: the driver's own interval; less than 10s counts as 10s.
    /// Volumes that it does not ask for during three of these are let go of; leases and logins are given back
    /// then, but for those of volumes that it has asked for only once, as a driver does that does not rotate:
    /// they end by themselves
    #[arg(
        long,
        env = "COFFER_PROVIDER_INTERVAL",
        default_value = "2m",
        value_parser = interval
    )]
    pub interval: Duration,

    /// Folder of the file provider, with a folder for each Namespace
    #[arg(long, env = "COFFER_FILE_ROOT")]
    pub file_root: Option<PathBuf>,

    /// Where secrets of Vault and OpenBao come from
    #[command(flatten)]
    pub vault: VaultArgs,

    /// Where secrets of AWS come from
    #[cfg(feature = "aws")]
    #[command(flatten)]
    pub aws: AwsArgs,

    /// Name of the Kubernetes node, whose region is meant by classes of aws that name none
    #[arg(long, env = "COFFER_NODE_ID", default_value = "")]
    pub node_id: String,

    /// Folder with ServiceAccounts in YAML files, whose annotations aws needs, instead of an API server
    #[arg(long, env = "COFFER_CLASSES", conflicts_with = "kubeconfig")]
    pub classes: Option<PathBuf>,

    /// How to reach the API server, when the provider does not run in a pod
    #[arg(long, env = "COFFER_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// How log lines look
    #[arg(long, env = "COFFER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, env = "COFFER_LOG_LEVEL", default_value_t = Level::INFO)]
    pub log_level: Level,
}

impl ProviderArgs {
    /// Where the driver looks for the plugin.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        match &self.endpoint {
            Some(endpoint) => endpoint.strip_prefix("unix://").unwrap_or(endpoint).into(),
            None => {
                PathBuf::from(super::plugins::PROVIDER_VOLUME).join(format!("{}.sock", self.name))
            }
        }
    }
}

/// A shorter one counts as the least: that of another driver may be.
fn interval(text: &str) -> Result<Duration, String> {
    let given = super::duration_of(text, Duration::from_secs(1))?;
    Ok(given.max(Intervals::default().least))
}
