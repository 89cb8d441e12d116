//! Provider names to providers; resolves classes against them.

use std::collections::BTreeMap;
use std::sync::Arc;

use coffer_provider::Provider;

use crate::class::SecretProviderClass;
use crate::error::PublishError;
use crate::spec::{VolumeSpec, merge};

/// The providers of this process.
#[derive(Clone, Default)]
pub struct Catalog {
    providers: BTreeMap<&'static str, Arc<dyn Provider>>,
}

impl Catalog {
    /// Adds a provider under the name that classes call it by.
    #[must_use]
    pub fn with(mut self, name: &'static str, provider: Arc<dyn Provider>) -> Self {
        self.providers.insert(name, provider);
        self
    }

    /// The names there are, a closed list for metrics.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.providers.keys().copied().collect()
    }

    /// What a volume of `class` with the pod's `attributes` asks of whom.
    ///
    /// # Errors
    /// A provider that is not there, or parameters that it does not take.
    pub fn resolve(
        &self,
        class: Arc<SecretProviderClass>,
        attributes: &BTreeMap<String, String>,
    ) -> Result<VolumeSpec, PublishError> {
        let mut sources = Vec::with_capacity(class.sources.len());
        for (index, declared) in class.sources.iter().enumerate() {
            let known = self.providers.get_key_value(declared.provider.as_str());
            let Some((name, provider)) = known else {
                return Err(PublishError::ProviderNotFound {
                    class: class.name.clone(),
                    provider: coffer_provider::clean_text(&declared.provider, 80),
                    known: self.names().join(", "),
                });
            };
            let parameters = merge(&declared.parameters, attributes);
            let source = provider.source(&parameters);
            let source = source.map_err(|error| PublishError::Parameters {
                class: class.name.clone(),
                source_path: match declared.name.as_str() {
                    "" => String::new(),
                    _ => format!("sources[{index}]."),
                },
                error,
            })?;
            sources.push((*name, source));
        }
        Ok(VolumeSpec::new(class, sources))
    }
}
