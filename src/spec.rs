//! VolumeSpec: one class and one pod's volume attributes, resolved against the providers. No I/O.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::{ObjectRef, Parameters, Pod, Sharing, Source};
use sha2::{Digest, Sha256};

use crate::class::{ClassName, Item, Mode, Refresh, SecretProviderClass};

/// What to fetch for a volume, and where it goes.
pub struct VolumeSpec {
    class: Arc<SecretProviderClass>,
    sources: Vec<VolumeSource>,
    interval: Duration,
}

/// One source of a volume.
pub struct VolumeSource {
    /// Its name in the class; empty in the short form.
    pub name: String,
    /// The provider's name.
    pub provider: &'static str,
    /// What is asked of the provider.
    pub source: Arc<dyn Source>,
    /// The objects that the volume needs of it.
    pub objects: Vec<ObjectRef>,
    /// What the store will know the pod's ServiceAccount as, where not the class says it.
    pub known_as: Option<String>,
    /// The names of those that the volume can do without.
    optional: BTreeSet<String>,
}

impl VolumeSpec {
    /// Puts a class and its resolved sources together: of each source, only what is projected.
    #[must_use]
    pub fn new(
        class: Arc<SecretProviderClass>,
        sources: Vec<(&'static str, Arc<dyn Source>)>,
        interval: Duration,
    ) -> Self {
        let resolved = class.sources.iter().zip(sources);
        let sources = resolved.map(|(declared, (provider, source))| {
            let items: Vec<_> = items_for(&class.items, &declared.name).collect();
            let objects = needed(&class.items, &items, &*source);
            let optional = objects
                .iter()
                .filter(|object| class.optional || can_lack(&items, &*source, object))
                .map(|object| object.name.clone());
            VolumeSource {
                optional: optional.collect(),
                objects,
                known_as: None,
                name: declared.name.clone(),
                provider,
                source,
            }
        });
        Self {
            sources: sources.collect(),
            class,
            interval,
        }
    }

    /// Finds out whom the stores will see in the pod, where that is not in the class.
    pub async fn identify(&mut self, pod: &Pod) {
        for source in &mut self.sources {
            source.known_as = source.source.known_as(pod).await;
        }
    }

    /// The sources, in the order of the class.
    #[must_use]
    pub fn sources(&self) -> &[VolumeSource] {
        &self.sources
    }

    /// What is projected; everything, where empty.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.class.items
    }

    /// The mode of files without one of their own.
    #[must_use]
    pub fn default_mode(&self) -> Mode {
        self.class.default_mode
    }

    /// Whether what a store does not have is left out of the volume.
    #[must_use]
    pub fn optional(&self) -> bool {
        self.class.optional
    }

    /// Whether the volume keeps what it had when it was mounted.
    #[must_use]
    pub fn immutable(&self) -> bool {
        self.class.immutable
    }

    /// When changes in the stores reach the volume.
    #[must_use]
    pub fn refresh(&self) -> &Refresh {
        &self.class.refresh
    }

    /// How often a store is asked that does not tell of changes.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Who shares the answers of the stores, where the class says so.
    #[must_use]
    pub fn sharing(&self) -> Option<Sharing> {
        self.class.sharing
    }

    /// The parameters that the class and the pod's attributes both give, differently.
    #[must_use]
    pub fn overridden<'a>(&self, attributes: &'a Parameters) -> Vec<&'a str> {
        let says_else = |key: &String, value: &String| {
            let mut sources = self.class.sources.iter();
            sources.any(|source| source.parameters.get(key).is_some_and(|own| own != value))
        };
        let attributes = attributes.iter();
        attributes
            .filter(|(key, value)| says_else(key, value))
            .map(|(key, _)| key.as_str())
            .collect()
    }

    /// Another value means that everything is to be looked at now.
    #[must_use]
    pub fn refresh_mark(&self) -> Option<&str> {
        self.class.refresh_mark.as_deref()
    }

    /// Takes the class again, of which only the annotation for a refresh is another.
    pub fn refreshed(&mut self, class: Arc<SecretProviderClass>) {
        self.class = class;
    }

    /// The class itself.
    #[must_use]
    pub fn class(&self) -> &Arc<SecretProviderClass> {
        &self.class
    }

    /// The class's name.
    #[must_use]
    pub fn class_name(&self) -> &ClassName {
        &self.class.name
    }

    /// Changes whenever the spec of the class does.
    #[must_use]
    pub fn class_hash(&self) -> &str {
        &self.class.hash
    }
}

impl VolumeSource {
    /// Whether the volume can do without an object that the store does not have.
    #[must_use]
    pub fn can_lack(&self, object: &ObjectRef) -> bool {
        self.optional.contains(&object.name)
    }

    /// The name of an object in the record of a volume: short, whatever the store calls it.
    #[must_use]
    pub fn object_key(&self, object: &ObjectRef) -> String {
        let mut hash = Sha256::new();
        for part in [&self.name, self.provider, &object.request] {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize()[..8]
            .iter()
            .fold(String::new(), |mut key, byte| {
                let _ = write!(key, "{byte:02x}");
                key
            })
    }
}

/// The items that a source may have something for.
fn items_for<'a>(items: &'a [Item], source: &'a str) -> impl Iterator<Item = &'a Item> {
    let is_for = move |item: &&Item| item.source.as_ref().is_none_or(|name| name == source);
    items.iter().filter(is_for)
}

/// An item names a file that an object gives, and `ours` are those for this source. Without any item at all,
/// everything is projected.
fn needed(all: &[Item], ours: &[&Item], source: &dyn Source) -> Vec<ObjectRef> {
    let is_needed = |object: &&ObjectRef| {
        let mut ours = ours.iter();
        all.is_empty() || ours.any(|item| source.can_give(object, &item.object))
    };
    source.objects().iter().filter(is_needed).cloned().collect()
}

/// An object that one item has to have is not optional, whatever the others say.
fn can_lack(ours: &[&Item], source: &dyn Source, object: &ObjectRef) -> bool {
    let mut wanting = ours
        .iter()
        .filter(|item| source.can_give(object, &item.object));
    !ours.is_empty() && wanting.all(|item| item.optional)
}

/// What a provider gets to see: what `first` says, and of `second` what that leaves open. First comes the
/// class, unless the administrator lets pods win: the author of a class can rely on what it says.
#[must_use]
pub fn merge(first: &Parameters, second: &Parameters) -> Parameters {
    let mut merged = second.clone();
    merged.extend(
        first
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use coffer_provider::Provider;
    use coffer_provider::testing::ScriptedProvider;

    #[test]
    fn only_what_is_projected_is_read() {
        let source = |objects: &str| {
            let parameters = Parameters::from([("objects".to_owned(), objects.to_owned())]);
            let source = ScriptedProvider::default().source(&parameters);
            source.unwrap_or_else(|error| panic!("{error}"))
        };
        let item = |object: &str, source: Option<&str>| Item {
            source: source.map(Into::into),
            object: object.into(),
            key: None,
            path: crate::volume_path::VolumePath::new("x").expect("good"),
            mode: None,
            optional: false,
            encoding: None,
        };
        let three = source("db,tls,db2");
        let names = |items: &[Item]| -> Vec<String> {
            let ours: Vec<_> = items_for(items, "a").collect();
            let needed = needed(items, &ours, &*three);
            needed.into_iter().map(|object| object.name).collect()
        };
        assert_eq!(names(&[]), ["db", "tls", "db2"]);
        assert_eq!(names(&[item("db", None)]), ["db"]);
        assert_eq!(names(&[item("tls/tls.key", Some("a"))]), ["tls"]);
        assert!(names(&[item("db", Some("b"))]).is_empty());

        let optional = |name: &str| Item {
            optional: true,
            ..item(name, None)
        };
        for (items, expected) in [
            (vec![], false),
            (vec![item("db", None)], false),
            (vec![optional("db")], true),
            (vec![optional("db"), optional("db/x")], true),
            (vec![optional("db"), item("db/x", None)], false),
            (vec![optional("db"), item("db2", None)], true),
        ] {
            let ours: Vec<_> = items_for(&items, "a").collect();
            let can_lack = can_lack(&ours, &*three, &three.objects()[0]);
            assert_eq!(can_lack, expected, "{items:?}");
        }
    }

    #[test]
    fn rule_d10_the_class_wins_over_the_attributes_of_the_pod() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let merged = merge(
            &map(&[("role", "class"), ("objects", "a")]),
            &map(&[("role", "pod"), ("extra", "pod")]),
        );
        let expected = map(&[("extra", "pod"), ("objects", "a"), ("role", "class")]);
        assert_eq!(merged, expected);
    }
}
