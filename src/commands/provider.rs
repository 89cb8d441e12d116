//! `coffer provider NAME`: a provider of ours as a plugin of another secrets-store-csi-driver.

use std::sync::Arc;

use anyhow::Context;
use tracing::info;

use crate::cache::{SecretCache, Settings};
use crate::config::{Patience, ProviderArgs};
use crate::payload::Limits;
use crate::serve::{PluginSocket, Served};
use crate::telemetry::Metrics;
use crate::{driver, privileges, telemetry};

/// What is served without a flag.
const NAMES: &str = match cfg!(feature = "aws") {
    true => "aws, openbao, vault",
    false => "openbao, vault",
};

/// Serves the provider until it is told to stop.
///
/// # Errors
/// When there is no such provider, or it cannot start, or the socket cannot be had.
pub fn run(args: &ProviderArgs) -> anyhow::Result<()> {
    // Before the first thread: rights are given up thread by thread.
    privileges::shed(privileges::PluginSockets::OfRoot)?;
    telemetry::start_logging(args.log_format, args.log_level);
    super::runtime()?.block_on(serve(args))
}

async fn serve(args: &ProviderArgs) -> anyhow::Result<()> {
    let limits = Limits::default();
    let store = Patience::default();
    let catalog = driver::catalog(args.file_root.as_deref(), &args.vault, &limits, store)?;
    #[cfg(feature = "aws")]
    let catalog = match args.name == "aws" {
        true => driver::with_aws(catalog, &args.aws, store, place(args).await?)?,
        false => catalog,
    };
    let name = catalog.names().into_iter().find(|name| *name == args.name);
    let name = name.with_context(|| {
        let name = &args.name;
        format!("there is no provider {name:?}; there are {NAMES}, and file with --file-root")
    })?;
    let stop = driver::stop_on_signals()?;
    let path = args.socket();
    let socket = PluginSocket::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let metrics = Arc::new(Metrics::default());
    metrics.count_panics();
    let cache = SecretCache::new(Settings::default(), metrics);
    info!(provider = name, socket = %path.display(), interval = ?args.interval, "provider served");
    let served = Served::new(name, catalog, cache, limits, args.interval);
    served.run(socket, stop).await.context("the server failed")
}

/// Where the ServiceAccounts of callers are.
#[cfg(feature = "aws")]
async fn place(args: &ProviderArgs) -> anyhow::Result<driver::Place> {
    Ok(match &args.classes {
        Some(folder) => driver::Place::Folder(folder.clone()),
        None => driver::Place::Cluster {
            api: crate::kube::ApiServer::of(args.kubeconfig.as_deref()).await?,
            node: args.node_id.clone(),
        },
    })
}
