//! SecretProviderClasses of the cluster by one watch, so that a publish asks nobody.
//!
//! While the API server is away, the classes that were read last stay known.

use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use ::kube::runtime::watcher::{self, Event, watcher};
use futures_util::StreamExt;
use serde_json::Value;
use tracing::{debug, info, warn};

use super::client::{Backoff, cause, in_time};
use super::crd::{GROUP, VERSION};
use crate::class::{ClassName, REFRESH, SecretProviderClass};
use crate::classes::{ByName, Class, Classes, Feed};

/// Follows the classes of the cluster. Does not wait for the API server: until it has answered, classes are
/// unknown.
pub(super) fn follow(client: Client) -> Classes {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, "SecretProviderClass");
    let resource = ApiResource::from_gvk_with_plural(&kind, "secretproviderclasses");
    let (classes, feed) = Classes::new();
    tokio::spawn(feed_from(Api::all_with(client, &resource), feed));
    classes
}

async fn feed_from(api: Api<DynamicObject>, feed: Feed) {
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()));
    let mut listing = ByName::new();
    let mut backoff = Backoff::default();
    while let Some(event) = events.next().await {
        match event {
            Err(error) => {
                feed.is_stale(true);
                warn!(error = %cause(&error), "the API server cannot be watched: classes stay as they were");
                backoff = backoff.if_since(STEADY);
                wait_for_answer(&api, &mut backoff).await;
                feed.is_stale(false);
                info!("the API server answers again");
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

/// Between two tries to list or to watch, while they fail: new pods wait for their classes.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// A watch that has held for so long is not what failed before.
const STEADY: Duration = Duration::from_secs(60);

/// Returns once classes can be read. The watcher by itself would say so only when one of them changes.
async fn wait_for_answer(api: &Api<DynamicObject>, backoff: &mut Backoff) {
    loop {
        backoff.wait_at_most(LONGEST_WAIT).await;
        match in_time(api.list(&ListParams::default().limit(1))).await {
            Ok(_) => return,
            Err(error) => debug!(%error, "classes cannot be read yet"),
        }
    }
}

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
