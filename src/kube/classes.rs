//! SecretProviderClasses of the cluster by one watch, so that a publish asks nobody.
//!
//! While the API server is away, the classes that were read last stay known.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::runtime::watcher::{self, Event, watcher};
use ::kube::{Client, Config};
use anyhow::Context;
use futures_util::StreamExt;
use serde_json::Value;
use tracing::{debug, info, warn};

use super::crd::{GROUP, VERSION};
use crate::class::{ClassName, REFRESH, SecretProviderClass};
use crate::classes::{ByName, Class, Classes, Feed};

/// Follows the classes of the cluster that this pod runs in, or of the one that a kubeconfig names.
/// Does not wait for the API server: until it has answered, classes are unknown.
///
/// # Errors
/// When there is no configuration to reach an API server with.
pub async fn follow(kubeconfig: Option<&Path>) -> anyhow::Result<Classes> {
    let config = match kubeconfig {
        None => Config::incluster().context(
            "this is not a pod with a ServiceAccount: give --classes DIR or --kubeconfig FILE",
        )?,
        Some(file) => {
            let read = Kubeconfig::read_from(file);
            let read = read.with_context(|| format!("--kubeconfig {}", file.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
        }
    };
    let client = Client::try_from(config).context("cannot make a client for the API server")?;
    let kind = GroupVersionKind::gvk(GROUP, VERSION, "SecretProviderClass");
    let resource = ApiResource::from_gvk_with_plural(&kind, "secretproviderclasses");
    let (classes, feed) = Classes::new();
    tokio::spawn(feed_from(Api::all_with(client, &resource), feed));
    Ok(classes)
}

async fn feed_from(api: Api<DynamicObject>, feed: Feed) {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut listing = ByName::new();
    let mut away = false;
    while let Some(event) = events.next().await {
        if let Err(error) = &event {
            // The watcher goes on by itself, with a back-off: one line says that it is at it.
            if !std::mem::replace(&mut away, true) {
                warn!(error = %cause(error), "the API server cannot be watched: classes stay as they were");
            }
        } else if !matches!(event, Ok(Event::Init)) && std::mem::take(&mut away) {
            // `Init` only says that a list is asked for, not that there was an answer.
            info!("the API server is watched again");
        }
        match event {
            Err(error) => {
                debug!(error = %cause(&error), "watch of classes");
                tokio::time::sleep(BACKOFF).await;
            }
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(object)) => {
                let (name, class) = read(object);
                listing.insert(name, class);
            }
            Ok(Event::InitDone) => {
                info!(classes = listing.len(), "classes read from the API server");
                feed.replace(std::mem::take(&mut listing));
            }
            Ok(Event::Apply(object)) => {
                let (name, class) = read(object);
                feed.put(name, class);
            }
            Ok(Event::Delete(object)) => feed.remove(&read(object).0),
        }
    }
}

/// Between two tries to list or to watch, while they fail.
const BACKOFF: Duration = Duration::from_secs(1);

fn read(object: DynamicObject) -> (ClassName, Class) {
    let name = ClassName {
        namespace: object.metadata.namespace.unwrap_or_default(),
        name: object.metadata.name.unwrap_or_default(),
    };
    let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
    let mark = object
        .metadata
        .annotations
        .and_then(|mut annotations| annotations.remove(REFRESH));
    let class = SecretProviderClass::new(name.clone(), spec)
        .map(|class| Arc::new(class.with_refresh_mark(mark)));
    if let Err(error) = &class {
        warn!(class = %name, %error, "class not usable");
    }
    (name, class)
}

/// The innermost of an error's causes: the rest is the client's own wrapping.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
