//! Metrics and health over HTTP: no secrets, so plain and for everybody who can reach it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cache::SecretCache;
use crate::health::Health;
use crate::telemetry::Metrics;
use crate::volume::Volumes;

/// `[::]` is every address, and on a node without IPv6 it is `0.0.0.0`.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(_) if address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener =
        listener.with_context(|| format!("cannot listen on --metrics-addr {address}"))?;
    info!(address = %listener.local_addr()?, "metrics and health served");
    Ok(listener)
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    cache: SecretCache,
    volumes: Arc<Volumes>,
    health: Health,
    stop: CancellationToken,
) {
    let (alive, ready) = (health.clone(), health.clone());
    let scrape = move || {
        cache.measure();
        let stale = i64::from(health.classes_are_stale());
        metrics.reports.classes_stale.set(stale);
        metrics.volume_bytes.set(volumes.counted() as i64);
        let text = metrics.text();
        async { text }
    };
    let routes = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(async move || answer(alive.healthy())))
        .route("/readyz", get(async move || answer(ready.ready())));
    if let Err(error) = axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
    {
        warn!(%error, "metrics and health are not served any more");
    }
}

fn answer(well: Result<(), &'static str>) -> (StatusCode, String) {
    match well {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
}
