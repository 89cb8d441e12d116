//! The scripted provider keeps the promises of the suite, so that tests which use it can be believed.

use std::sync::Arc;

use async_trait::async_trait;
use coffer_provider::testing::{Answer, ScriptedProvider, Subject, caller, conformance};
use coffer_provider::{Caller, ErrorKind, IdentifiedBy, Parameters, Provider, Source};

struct Scripted(ScriptedProvider);

/// The script itself does not know its callers.
struct TwoNamespaces(ScriptedProvider);

impl Provider for TwoNamespaces {
    fn source(
        &self,
        parameters: &Parameters,
    ) -> Result<Arc<dyn Source>, coffer_provider::ProviderError> {
        Ok(Arc::new(OnlyShop(self.0.source(parameters)?)))
    }
}

struct OnlyShop(Arc<dyn Source>);

#[async_trait]
impl Source for OnlyShop {
    fn identified_by(&self) -> &IdentifiedBy {
        self.0.identified_by()
    }

    fn objects(&self) -> &[coffer_provider::ObjectRef] {
        self.0.objects()
    }

    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[coffer_provider::ObjectRef],
    ) -> Vec<Result<coffer_provider::Secret, coffer_provider::ProviderError>> {
        let denied = || coffer_provider::ProviderError::new(ErrorKind::PermissionDenied, "denied");
        if caller.pod.namespace != "shop" {
            return objects.iter().map(|_| Err(denied())).collect();
        }
        self.0.fetch(caller, objects).await
    }

    fn watch(&self, caller: &Caller) -> Option<coffer_provider::Changes> {
        self.0.watch(caller)
    }
}

#[async_trait]
impl Subject for Scripted {
    fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(TwoNamespaces(self.0.clone()))
    }

    fn parameters(&self, names: &[&str]) -> Parameters {
        Parameters::from([("objects".into(), names.join(","))])
    }

    fn bad_parameters(&self) -> Vec<(Parameters, &'static str)> {
        vec![(Parameters::new(), "parameters.objects")]
    }

    fn caller(&self) -> Caller {
        caller("shop")
    }

    fn stranger(&self) -> Caller {
        caller("elsewhere")
    }

    async fn write(&self, name: &str, value: &[u8]) {
        self.0.set(name, Answer::Value(value.to_vec()));
    }
}

#[tokio::test]
async fn the_scripted_provider_passes_the_conformance_suite() {
    conformance(&Scripted(ScriptedProvider::default())).await;
}
