//! Provider names to providers; resolves classes against them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::{NamedProvider, Provider, Providers};

use crate::class::{ClassError, SecretProviderClass};
use crate::error::PublishError;
use crate::spec::{VolumeSpec, merge};

/// What a volume's attributes call its class.
pub const CLASS: &str = "secretProviderClass";

/// Most bytes in the parameters of one source, if nothing else is said.
pub const PARAMETER_BYTES: usize = 64 * 1024;

/// How often stores are asked that do not tell of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// For classes that do not say.
    pub default: Duration,
    /// What a class may ask for: a shorter one would be a load on the store that nobody meant.
    pub least: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            default: Duration::from_secs(120),
            least: Duration::from_secs(10),
        }
    }
}

/// The providers of this process.
#[derive(Clone)]
pub struct Catalog {
    providers: BTreeMap<&'static str, Arc<dyn Provider>>,
    plugins: Option<Arc<dyn Providers>>,
    parameter_bytes: usize,
    intervals: Intervals,
    pod_attributes_win: bool,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            providers: BTreeMap::new(),
            plugins: None,
            parameter_bytes: PARAMETER_BYTES,
            intervals: Intervals::default(),
            pod_attributes_win: false,
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

    /// Adds the plugins of the node: for every name that the process has no provider of, or that is preferred.
    #[must_use]
    pub fn with_plugins(mut self, plugins: Arc<dyn Providers>) -> Self {
        self.plugins = Some(plugins);
        self
    }

    /// The same, with at most so many bytes in the parameters of one source.
    #[must_use]
    pub fn with_parameter_bytes(mut self, bytes: usize) -> Self {
        self.parameter_bytes = bytes;
        self
    }

    /// The same, with these intervals for classes.
    #[must_use]
    pub fn with_intervals(mut self, intervals: Intervals) -> Self {
        self.intervals = intervals;
        self
    }

    /// The same, where what a pod says wins over what its class says (D10).
    #[must_use]
    pub fn with_pod_attributes_winning(mut self, win: bool) -> Self {
        self.pod_attributes_win = win;
        self
    }

    /// Whether what a pod says wins over what its class says.
    #[must_use]
    pub fn pod_attributes_win(&self) -> bool {
        self.pod_attributes_win
    }

    /// The names there are, a closed list for metrics.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.providers.keys().copied().collect()
    }

    /// What a volume of `class` with the pod's `attributes` asks of whom.
    ///
    /// # Errors
    /// A provider that is not there, or parameters that it does not take, or too many of them, or too
    /// short an interval.
    pub fn resolve(
        &self,
        class: Arc<SecretProviderClass>,
        attributes: &BTreeMap<String, String>,
    ) -> Result<VolumeSpec, PublishError> {
        let mut sources = Vec::with_capacity(class.sources.len());
        for (index, declared) in class.sources.iter().enumerate() {
            let source_path = match declared.name.as_str() {
                "" => String::new(),
                _ => format!("sources[{index}]."),
            };
            let built_in = self.built_in(&declared.provider);
            let Some((name, provider)) = built_in.map_or_else(
                || self.plugin(&class, &source_path, &declared.provider),
                |found| Ok(Some(found)),
            )?
            else {
                return Err(PublishError::ProviderNotFound {
                    class: class.name.clone(),
                    provider: coffer_provider::clean_text(&declared.provider, 80),
                    known: self.known(),
                });
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
            let mut parameters = match self.pod_attributes_win {
                false => merge(&declared.parameters, attributes),
                true => merge(attributes, &declared.parameters),
            };
            if self.built_in(name).is_none() {
                // Plugins get what the kubelet tells of a volume as well.
                parameters.insert(CLASS.to_owned(), class.name.name.clone());
            }
            let source = provider.source(&parameters);
            let source = source.map_err(|error| PublishError::Parameters {
                class: class.name.clone(),
                source_path,
                error,
            })?;
            sources.push((name, source));
        }
        let interval = self.interval(&class)?;
        Ok(VolumeSpec::new(class, sources, interval))
    }

    fn interval(&self, class: &SecretProviderClass) -> Result<Duration, PublishError> {
        let Intervals { default, least } = self.intervals;
        match class.refresh.interval {
            None => Ok(default),
            Some(interval) if interval >= least => Ok(interval),
            Some(_) => {
                let least = least.as_secs_f64();
                let problem = format!("must be {least} s or more (--min-rotation-interval)");
                Err(PublishError::InvalidClass {
                    name: class.name.clone(),
                    error: ClassError::new("spec.refresh.interval", problem),
                })
            }
        }
    }

    /// The process's own provider, unless a plugin is preferred to it.
    fn built_in(&self, name: &str) -> Option<NamedProvider> {
        let plugins = self.plugins.as_ref();
        let preferred = plugins.is_some_and(|plugins| plugins.is_preferred(name));
        let (name, provider) = self.providers.get_key_value(name).filter(|_| !preferred)?;
        Some((name, provider.clone()))
    }

    fn plugin(
        &self,
        class: &SecretProviderClass,
        source_path: &str,
        name: &str,
    ) -> Result<Option<NamedProvider>, PublishError> {
        let Some(plugins) = &self.plugins else {
            return Ok(None);
        };
        plugins
            .find(name)
            .map_err(|error| PublishError::InvalidClass {
                name: class.name.clone(),
                error: ClassError::new(format!("spec.{source_path}provider"), error.to_string()),
            })
    }

    /// Every name that a class could give on this node now.
    fn known(&self) -> String {
        let own = self.names().into_iter().map(str::to_owned);
        let plugins = self.plugins.iter().flat_map(|plugins| plugins.names());
        let all: BTreeSet<_> = own.chain(plugins).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::ClassName;
    use coffer_provider::testing::ScriptedProvider;

    #[test]
    fn intervals_have_a_default_and_a_least() {
        let resolved = |intervals: Option<Intervals>, refresh: serde_json::Value| {
            let catalog =
                Catalog::default().with("scripted", Arc::new(ScriptedProvider::default()));
            let catalog = match intervals {
                Some(intervals) => catalog.with_intervals(intervals),
                None => catalog,
            };
            let name = ClassName {
                namespace: "shop".into(),
                name: "shop".into(),
            };
            let spec = serde_json::json!({
                "provider": "scripted", "parameters": {"objects": "a"}, "refresh": refresh,
            });
            let class = SecretProviderClass::new(name, spec).expect("good");
            let resolved = catalog.resolve(Arc::new(class), &BTreeMap::new());
            let interval = resolved.map(|spec| spec.interval().as_secs());
            interval.map_err(|error| error.to_string())
        };
        let of = |interval: &str| serde_json::json!({"interval": interval});
        let refused = |least| {
            Err(format!(
                "SecretProviderClass shop/shop: spec.refresh.interval: must be {least} s or more (--min-rotation-interval)"
            ))
        };
        assert_eq!(resolved(None, serde_json::json!({})), Ok(120));
        assert_eq!(resolved(None, of("9s")), refused(10));
        assert_eq!(resolved(None, of("10s")), Ok(10));
        assert_eq!(resolved(None, of("11s")), Ok(11));
        let rare = Intervals {
            default: Duration::from_secs(3600),
            least: Duration::from_secs(60),
        };
        assert_eq!(resolved(Some(rare), serde_json::json!({})), Ok(3600));
        assert_eq!(resolved(Some(rare), of("59s")), refused(60));
        assert_eq!(resolved(Some(rare), of("1m")), Ok(60));
        assert_eq!(resolved(Some(rare), of("61s")), Ok(61));
    }

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
