//! Provider names to providers; resolves classes against them.

use std::collections::BTreeMap;
use std::sync::Arc;

use coffer_provider::Provider;

use crate::class::{ClassError, SecretProviderClass};
use crate::error::PublishError;
use crate::spec::{VolumeSpec, merge};

/// Most bytes in the parameters of one source, if nothing else is said.
pub const PARAMETER_BYTES: usize = 64 * 1024;

/// The providers of this process.
#[derive(Clone)]
pub struct Catalog {
    providers: BTreeMap<&'static str, Arc<dyn Provider>>,
    parameter_bytes: usize,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            providers: BTreeMap::new(),
            parameter_bytes: PARAMETER_BYTES,
        }
    }
}

impl Catalog {
    /// Adds a provider under the name that classes call it by.
    #[must_use]
    pub fn with(mut self, name: &'static str, provider: Arc<dyn Provider>) -> Self {
        self.providers.insert(name, provider);
        self
    }

    /// The same, with at most so many bytes in the parameters of one source.
    #[must_use]
    pub fn with_parameter_bytes(mut self, bytes: usize) -> Self {
        self.parameter_bytes = bytes;
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
    /// A provider that is not there, or parameters that it does not take, or too many of them.
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
            let source_path = match declared.name.as_str() {
                "" => String::new(),
                _ => format!("sources[{index}]."),
            };
            let written = declared.parameters.iter();
            let size: usize = written.map(|(key, value)| key.len() + value.len()).sum();
            if size > self.parameter_bytes {
                let limit = self.parameter_bytes;
                return Err(PublishError::InvalidClass {
                    name: class.name.clone(),
                    error: ClassError::new(
                        format!("spec.{source_path}parameters"),
                        format!("has {size} bytes, {limit} are allowed (--max-parameter-bytes)"),
                    ),
                });
            }
            let parameters = merge(&declared.parameters, attributes);
            let source = provider.source(&parameters);
            let source = source.map_err(|error| PublishError::Parameters {
                class: class.name.clone(),
                source_path,
                error,
            })?;
            sources.push((*name, source));
        }
        Ok(VolumeSpec::new(class, sources))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::ClassName;
    use coffer_provider::testing::ScriptedProvider;

    #[test]
    fn parameters_are_bounded() {
        let catalog = |bytes| {
            Catalog::default()
                .with("scripted", Arc::new(ScriptedProvider::default()))
                .with_parameter_bytes(bytes)
        };
        let resolved = |catalog: &Catalog, size: usize| {
            let name = ClassName {
                namespace: "shop".into(),
                name: "shop".into(),
            };
            let source = serde_json::json!({
                "name": "a", "provider": "scripted", "parameters": {"objects": "x".repeat(size - 7)},
            });
            let class = SecretProviderClass::new(name, serde_json::json!({"sources": [source]}));
            let resolved = catalog.resolve(Arc::new(class.expect("good")), &BTreeMap::new());
            resolved.map(|_| ()).map_err(|error| error.to_string())
        };
        for limit in [1024, PARAMETER_BYTES] {
            let catalog = catalog(limit);
            assert_eq!(resolved(&catalog, limit - 1), Ok(()));
            assert_eq!(resolved(&catalog, limit), Ok(()));
            let size = limit + 1;
            let message = format!(
                "SecretProviderClass shop/shop: spec.sources[0].parameters: has {size} bytes, {limit} are allowed (--max-parameter-bytes)"
            );
            assert_eq!(resolved(&catalog, size), Err(message));
        }
    }
}
