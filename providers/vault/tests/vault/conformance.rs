//! The provider keeps the promises of the suite.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::testing::{Subject, conformance};
use coffer_provider::{Caller, Parameters, Provider};
use coffer_provider_vault::VaultProvider;
use serde_json::json;

use crate::bao::Bao;
use crate::{class, provider, with};

struct Kv {
    bao: Bao,
    provider: Arc<VaultProvider>,
    versioned: bool,
}

impl Kv {
    async fn new(versioned: bool) -> Self {
        let bao = Bao::start().await;
        Self {
            provider: Arc::new(provider(&[&bao.url()])),
            bao,
            versioned,
        }
    }

    fn path(&self, name: &str) -> String {
        match self.versioned {
            true => format!("secret/data/{name}"),
            false => format!("kv1/{name}"),
        }
    }
}

#[async_trait]
impl Subject for Kv {
    fn provider(&self) -> Arc<dyn Provider> {
        self.provider.clone()
    }

    fn parameters(&self, names: &[&str]) -> Parameters {
        let entry = |name: &&str| {
            let path = self.path(name);
            format!(
                "- {{objectName: {name}, secretPath: {path}, secretKey: value, encoding: base64}}\n"
            )
        };
        class(&names.iter().map(entry).collect::<String>())
    }

    fn bad_parameters(&self) -> Vec<(Parameters, &'static str)> {
        let good = "- {objectName: a, secretPath: b}";
        vec![
            (with(&[("roleName", "")], good), "parameters.roleName"),
            (
                with(&[("vaultAddress", "nowhere")], good),
                "parameters.vaultAddress",
            ),
            (class("[]"), "parameters.objects"),
            (
                class("- {objectName: a, secretPath: b/../c}"),
                "parameters.objects[0].secretPath",
            ),
        ]
    }

    fn caller(&self) -> Caller {
        self.bao.app()
    }

    fn stranger(&self) -> Caller {
        self.bao.pod("stranger", "vault", 600)
    }

    async fn write(&self, name: &str, value: &[u8]) {
        let data = json!({"value": STANDARD.encode(value)});
        match self.versioned {
            true => self.bao.put(&self.path(name), json!({"data": data})).await,
            false => self.bao.put(&self.path(name), data).await,
        };
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn kv_version_2_passes_the_conformance_suite() {
    conformance(&Kv::new(true).await).await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn kv_version_1_passes_the_conformance_suite() {
    conformance(&Kv::new(false).await).await;
}
