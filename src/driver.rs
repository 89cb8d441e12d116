//! The composition root: builds everything, runs it, stops it in order.

#[cfg(feature = "aws")]
mod aws;
mod staging;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coffer_provider_file::FileProvider;
use coffer_provider_plugin::Plugins;
use coffer_provider_vault::{ClientCertificate, Flavour, Settings, VaultProvider};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cache::SecretCache;
use crate::catalog::Catalog;
use crate::class_folder;
use crate::classes::Classes;
use crate::config::{Config, Patience, VaultArgs};
use crate::csi::{CsiServer, ServerSettings, Sole};
use crate::health::Health;
use crate::http;
use crate::kube::ApiServer;
use crate::payload::Limits;
use crate::publish::Publisher;
use crate::report::Reports;
use crate::sync::SecretSync;
use crate::telemetry::Metrics;
use crate::volume::Volumes;

#[cfg(feature = "aws")]
pub use aws::{Place, with_aws};

/// Runs the driver until SIGTERM or SIGINT. Volumes stay mounted when it ends.
///
/// # Errors
/// When a part of it cannot start; everything that can be known at start is checked then.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let catalog = catalog(
        config.file_root.as_deref(),
        &config.vault,
        &config.limits,
        config.bounds.store,
    )?;
    let (classes, api_server) = match &config.classes {
        Some(folder) => (class_folder::follow(folder)?, None),
        None => {
            let api_server = ApiServer::of(config.kubeconfig.as_deref()).await?;
            (api_server.classes(), Some(api_server))
        }
    };
    #[cfg(feature = "aws")]
    let catalog = with_aws(
        catalog,
        &config.aws,
        config.bounds.store,
        Place::of(&config, api_server.as_ref()),
    )?;
    let stop = stop_on_signals()?;
    run_reporting(config, catalog, classes, api_server, stop).await
}

/// Runs the driver with these providers and classes until `stop`, without an API server.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: Config,
    catalog: Catalog,
    classes: Classes,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    run_reporting(config, catalog, classes, None, stop).await
}

/// Runs the driver with these providers and classes until `stop`; tells the API server how its volumes are,
/// and makes Secrets there, where there is one and the settings want it.
///
/// # Errors
/// As [`run`].
pub async fn run_reporting(
    config: Config,
    catalog: Catalog,
    classes: Classes,
    api_server: Option<ApiServer>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let volumes = Volumes::probe(config.rules.clone(), config.limits)?;
    let volumes = Arc::new(volumes.with_budget(config.bounds.node_budget));
    if !volumes.noswap() {
        warn!(
            "this kernel has no noswap for tmpfs: secrets can be written to swap where there is swap"
        );
    }
    let metrics = Arc::new(Metrics::default());
    metrics.count_panics();
    // From here on, and until the very end, no other process works on these volumes.
    let sole = stop.run_until_cancelled(Sole::of(&config.socket)).await;
    let Some(sole) = sole.transpose()? else {
        return Ok(());
    };
    let budget = config.bounds.node_budget;
    metrics.node_budget.set(budget as i64);
    let before = volumes.clone();
    let found = tokio::task::spawn_blocking(move || before.sweep_all()).await?;
    let server = CsiServer::bind(&sole)?;
    let http = match config.metrics {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };
    info!(?config, providers = ?catalog.names(), noswap = volumes.noswap(), selinux_label = volumes.labelled(), adopts = volumes.adopts(), volumes = found, "driver started");

    let cache = SecretCache::new(config.cache, metrics.clone());
    let looking = cache.clone();
    let looking_until = stop.clone();
    tokio::spawn(async move { looking.run(looking_until).await });
    let beside = Arc::new(staging::Beside(volumes.clone()));
    let plugins = coffer_provider_plugin::Settings {
        files: config.limits.files,
        ..config.plugins.settings()
    };
    let plugins = Arc::new(Plugins::new(plugins, beside));
    if let Some(interval) = config.plugins.health_check() {
        let checked = check_plugins(plugins.clone(), cache.clone(), metrics.clone(), interval);
        tokio::spawn(stop.clone().run_until_cancelled_owned(checked));
    }
    let health = Health::new(cache.clone(), classes.clone());
    let catalog = catalog
        .with_plugins(plugins)
        .with_parameter_bytes(config.bounds.parameter_bytes)
        .with_intervals(config.bounds.intervals)
        .with_pod_attributes_winning(config.bounds.pod_attributes_win);
    let reports = match &api_server {
        None => Reports::default(),
        Some(api_server) => {
            api_server.check_crds(metrics.clone());
            Reports::new(
                api_server.events(
                    &config.driver_name,
                    &config.node_id,
                    config.bounds.event_interval,
                    metrics.clone(),
                ),
                api_server.statuses(&config.node_id, metrics.clone()),
            )
        }
    };
    let sync = api_server.as_ref().filter(|_| config.sync.sync_secrets);
    let sync = sync.map(|api_server| {
        let secrets = api_server.secrets(&config.driver_name);
        SecretSync::new(secrets, config.sync.sync_bootstrap_tokens)
    });
    let publisher = Publisher::new(
        classes,
        catalog,
        cache.clone(),
        volumes.clone(),
        metrics.clone(),
        reports,
        sync,
    );
    let (registered, node_id) = (Arc::new(Notify::new()), config.node_id.clone());
    let settings = ServerSettings {
        driver_name: config.driver_name,
        node_id: config.node_id,
        token_source: config.token_source,
        bounds: config.bounds,
        registered: registered.clone(),
    };
    if let (Some(api_server), true) = (api_server, config.remove_startup_taint) {
        tokio::spawn(async move {
            registered.notified().await;
            api_server.remove_startup_taint(&node_id).await;
        });
    }
    let serve = server.serve(settings, publisher, health.clone(), stop.clone());
    let served = match http {
        None => serve.await,
        Some(http) => {
            let http = http::serve(http, metrics, cache, volumes, health, stop.clone());
            let http = tokio::spawn(http);
            let served = serve.await;
            stop.cancel();
            let _ = http.await;
            served
        }
    };
    info!("driver stopped");
    served.context("the CSI server failed")
}

/// Every provider of the process. Needs a tokio runtime.
///
/// # Errors
/// When one of them cannot start with its settings.
pub fn catalog(
    file_root: Option<&Path>,
    vault: &VaultArgs,
    limits: &Limits,
    store: Patience,
) -> anyhow::Result<Catalog> {
    let mut catalog = Catalog::default();
    for (name, flavour) in [("vault", Flavour::Vault), ("openbao", Flavour::OpenBao)] {
        let provider = VaultProvider::new(vault_settings(vault, flavour, limits, store));
        let provider = provider.with_context(|| format!("the provider {name}"))?;
        catalog = catalog.with(name, Arc::new(provider));
    }
    if let Some(root) = file_root {
        let limits = coffer_provider_file::Limits {
            bytes: limits.bytes,
            files: limits.files,
            ..Default::default()
        };
        let files = FileProvider::new(root, limits);
        let files = files.with_context(|| format!("--file-root {}", root.display()))?;
        catalog = catalog.with("file", Arc::new(files));
    }
    Ok(catalog)
}

fn vault_settings(
    args: &VaultArgs,
    flavour: Flavour,
    limits: &Limits,
    store: Patience,
) -> Settings {
    let default = Settings::default();
    let certificate = args.vault_tls_client_cert.clone();
    let client_certificate = certificate.zip(args.vault_tls_client_key.clone());
    Settings {
        flavour,
        address: args.vault_addr.clone(),
        namespace: args.vault_namespace.clone(),
        auth_mount: args.vault_mount.clone().unwrap_or(default.auth_mount),
        audience: args.vault_audience.clone(),
        allowed_addresses: args.vault_address.clone(),
        node_addresses: args.node_addresses.clone(),
        allowed_namespaces: args.vault_allowed_namespace.clone(),
        allowed_mounts: args.vault_allowed_mount.clone(),
        allow_insecure_tls: args.allow_insecure_tls,
        ca_file: args.vault_tls_ca_cert.clone(),
        ca_files: args.vault_ca_file.clone(),
        version_key_file: args.vault_version_key_file.clone(),
        cluster_key_file: args.cluster_key_file.clone(),
        events: args.vault_events,
        client_certificate: client_certificate
            .map(|(certificate, key)| ClientCertificate { certificate, key }),
        limits: coffer_provider_vault::Limits {
            body: limits.bytes,
            objects: limits.files,
            connect: store.connect,
            attempt: store.attempt,
            ..default.limits
        },
    }
}

/// Asks the plugins in use in each interval whether they are there. Where that has changed, it says so, and the
/// volumes with their secrets are looked at, so that Events and status objects tell of it.
async fn check_plugins(
    plugins: Arc<Plugins>,
    cache: SecretCache,
    metrics: Arc<Metrics>,
    interval: Duration,
) {
    let mut seen = HashSet::new();
    loop {
        let checked = plugins.check().await;
        let in_use: HashSet<_> = checked.iter().map(|(provider, _)| *provider).collect();
        for unused in seen.difference(&in_use) {
            metrics.plugin_unused(unused);
        }
        for (provider, checked) in checked {
            let was_up = metrics.plugin_up(provider, checked.is_ok());
            let is_new = !seen.contains(provider);
            if was_up != checked.is_ok() && !is_new {
                cache.look_at(provider);
            }
            match checked {
                Ok(()) if !was_up && !is_new => info!(provider, "plugin is back"),
                Err(error) if was_up || is_new => warn!(provider, %error, "plugin is away"),
                _ => {}
            }
        }
        seen = in_use;
        sleep(interval).await;
    }
}

pub(crate) fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping: what has begun comes to its end, volumes stay mounted");
        stopping.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use coffer_provider::{Parameters, ProviderError, Providers};
    use coffer_provider_plugin::{Stage, Staging};

    struct Nowhere;

    #[async_trait]
    impl Staging for Nowhere {
        async fn stage(&self, _: &str) -> Result<Box<dyn Stage>, ProviderError> {
            unreachable!("nothing is read")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_gauge_of_a_plugin_goes_with_the_last_volume_that_uses_it_and_comes_back_with_the_next()
     {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("mock.sock"), "").expect("written");
        let settings = coffer_provider_plugin::Settings {
            folders: vec![folder.path().to_owned()],
            ..Default::default()
        };
        let plugins = Arc::new(Plugins::new(settings, Arc::new(Nowhere)));
        let metrics = Arc::new(Metrics::default());
        let cache = SecretCache::new(Default::default(), metrics.clone());
        let minute = Duration::from_secs(60);
        let checked = check_plugins(plugins.clone(), cache, metrics.clone(), minute);
        tokio::spawn(checked);
        for _ in 0..2 {
            let (_, mock) = plugins.find("mock").expect("a name").expect("a socket");
            let volume = mock.source(&Parameters::new()).expect("any parameters");
            let away = || {
                metrics
                    .text()
                    .contains("coffer_plugin_up{provider=\"mock\"} 0")
            };
            sleep(minute * 20).await;
            assert!(away(), "it is no socket");
            drop((mock, volume));
            sleep(minute * 2).await;
            assert!(!away(), "nobody needs it");
        }
    }
}
