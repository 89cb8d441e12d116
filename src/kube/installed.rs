//! Looks now and then whether the CRDs that are installed know our fields. Those of secrets-store-csi-driver do not:
//! the API server takes such fields out of every object before it keeps it, and nobody hears of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use axum::http::Request;
use serde_json::Value;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::client::{Backoff, RequestError, in_time};
use super::crd::{GROUP, VERSION, schemas};
use crate::telemetry::Metrics;

/// How often it is looked again: somebody may have installed others.
const AGAIN: Duration = Duration::from_secs(600);

/// Asks until there is an answer, and then now and then. Says what has changed since the last look. Needs no
/// right: everybody may read the descriptions of what is served.
pub(super) async fn look(client: Client, metrics: Arc<Metrics>) {
    let mut said = HashMap::new();
    loop {
        let served = described_at_last(&client).await;
        for (kind, ours) in schemas() {
            let theirs = described(&served, kind);
            let missing = theirs.map(|theirs| missing(&ours, theirs));
            let missing = missing.unwrap_or_else(|| vec!["everything".to_owned()]);
            metrics.reports.crd_is_whole(kind, missing.is_empty());
            if said.get(kind) != Some(&missing) {
                say(kind, &missing);
                said.insert(kind, missing);
            }
        }
        sleep(AGAIN).await;
    }
}

async fn described_at_last(client: &Client) -> Value {
    let mut backoff = Backoff::default();
    let mut told = false;
    loop {
        match ask(client).await {
            Ok(served) => return served,
            Err(error) if error.code() == Some(404) && !std::mem::replace(&mut told, true) => {
                warn!("the API server serves no {GROUP}/{VERSION}: are the CRDs installed?");
            }
            Err(error) => debug!(%error, "descriptions of the CRDs not read yet"),
        }
        backoff.wait().await;
    }
}

fn say(kind: &str, missing: &[String]) {
    match missing.is_empty() {
        true => info!(kind, "the installed CRD has all fields"),
        false => warn!(
            kind,
            fields = missing.join(", "),
            "the installed CRD is another than the chart's, and the API server takes these fields out of every object: install the chart's CRDs (crds.install)"
        ),
    }
}

async fn ask(client: &Client) -> Result<Value, RequestError> {
    let path = format!("/openapi/v3/apis/{GROUP}/{VERSION}");
    let request = Request::get(path).body(Vec::new());
    let request = request.expect("a path like any other");
    in_time(client.request(request)).await
}

/// The schema of a kind in an OpenAPI document.
fn described<'a>(served: &'a Value, kind: &str) -> Option<&'a Value> {
    let schemas = served["components"]["schemas"].as_object()?;
    schemas.values().find(|schema| {
        let is = &schema["x-kubernetes-group-version-kind"][0];
        is["kind"] == kind && is["group"] == GROUP
    })
}

/// The fields of `ours` that `theirs` would take out; of those, not what is in them.
fn missing(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect("", ours, theirs, &mut found);
    found
}

fn collect(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    if theirs["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        let path = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        match theirs["properties"].get(name) {
            Some(theirs) => collect(&path, field, theirs, found),
            None => found.push(path),
        }
    }
    if ours["items"].is_object() {
        collect(
            &format!("{path}[]"),
            &ours["items"],
            &theirs["items"],
            found,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_upstreams_crds_our_fields_are_missing_and_of_ours_none() {
        let text = || json!({"type": "string"});
        let class = json!({"properties": {"metadata": {"type": "object"}, "kind": text(), "apiVersion": text(),
            "status": {"type": "object"},
            "spec": {"properties": {
                "provider": text(),
                "parameters": {"additionalProperties": text()},
                "secretObjects": {"items": {"properties": {
                    "secretName": text(), "type": text(), "labels": {}, "annotations": {},
                    "data": {"items": {"properties": {"objectName": text(), "key": text()}}},
                }}},
            }},
        }});
        for (kind, ours) in schemas() {
            assert!(missing(&ours, &ours).is_empty(), "{kind}");
            if kind == "SecretProviderClass" {
                let missing = missing(&ours, &class);
                assert!(missing.contains(&"spec.sources".to_owned()), "{missing:?}");
                assert!(missing.contains(&"spec.items".to_owned()), "{missing:?}");
                assert!(
                    missing.iter().all(|field| field.starts_with("spec.")),
                    "{missing:?}"
                );
            }
            let open = json!({"x-kubernetes-preserve-unknown-fields": true});
            assert!(missing(&ours, &open).is_empty(), "{kind}");
        }
        let served = json!({"components": {"schemas": {
            "a": {"x-kubernetes-group-version-kind": [{"group": GROUP, "kind": "Other", "version": "v1"}]},
            "b": {"x-kubernetes-group-version-kind": [{"group": GROUP, "kind": "SecretProviderClass", "version": "v1"}]},
        }}});
        assert!(described(&served, "SecretProviderClass").is_some());
        assert!(described(&served, "SecretProviderClassPodStatus").is_none());
    }
}
