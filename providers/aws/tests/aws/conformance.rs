//! The provider keeps the promises of the suite.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::testing::{Subject, conformance};
use coffer_provider::{Caller, Parameters, Provider};
use coffer_provider_aws::AwsProvider;
use serde_json::json;

use crate::harness::{WEST, caller, cluster, parameters, settings};
use crate::servers::Moto;

struct Store {
    moto: Moto,
    provider: Arc<AwsProvider>,
}

#[async_trait]
impl Subject for Store {
    fn provider(&self) -> Arc<dyn Provider> {
        self.provider.clone()
    }

    fn parameters(&self, names: &[&str]) -> Parameters {
        let entry = |name: &&str| {
            format!(
                "- {{objectName: {name}, objectType: secretsmanager, objectEncoding: base64}}
"
            )
        };
        parameters(&names.iter().map(entry).collect::<String>(), &[])
    }

    fn bad_parameters(&self) -> Vec<(Parameters, &'static str)> {
        vec![
            (parameters("[]", &[]), "parameters.objects"),
            (
                parameters("- {objectName: first}", &[]),
                "parameters.objects[0].objectType",
            ),
            (
                parameters("- {objectType: secretsmanager}", &[]),
                "parameters.objects[0].objectName",
            ),
            (
                parameters("x", &[("usePodIdentity", "yes")]),
                "parameters.usePodIdentity",
            ),
        ]
    }

    fn caller(&self) -> Caller {
        caller("shop", "web")
    }

    fn stranger(&self) -> Caller {
        // The role of another account: it sees the empty store of that one.
        caller("shop", "stranger")
    }

    async fn write(&self, name: &str, value: &[u8]) {
        // AWS has no empty values. Encoded, and with the line feed that tools leave, there is one.
        let value = STANDARD.encode(value) + "\n";
        let listed = self
            .moto
            .server
            .call(WEST, "secretsmanager.ListSecrets", json!({}))
            .await;
        let known = listed["SecretList"].as_array().unwrap();
        let (target, field) = match known.iter().any(|secret| secret["Name"] == name) {
            true => ("secretsmanager.PutSecretValue", "SecretId"),
            false => ("secretsmanager.CreateSecret", "Name"),
        };
        let put = json!({field: name, "SecretString": value});
        self.moto.server.call(WEST, target, put).await;
    }
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn the_provider_passes_the_conformance_suite() {
    let moto = Moto::start().await;
    let cluster = cluster(None);
    let foreign = "arn:aws:iam::210987654321:role/foreign".to_owned();
    cluster
        .roles
        .lock()
        .unwrap()
        .insert("shop/stranger".into(), foreign);
    let provider = AwsProvider::new(&settings(&moto.server.address), cluster).unwrap();
    let provider = Arc::new(provider);
    conformance(&Store { moto, provider }).await;
}
