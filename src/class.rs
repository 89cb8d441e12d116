//! SecretProviderClass: its types, their defaults and every check. Pure.
//!
//! Fields of our own are strict: an unknown or wrong one is an error with its path. `parameters` belong
//! to the provider, which is as tolerant as the plugin of its name has always been.

mod documents;
mod mode;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use coffer_provider::{Parameters, Sharing, clean_text};
use coffer_sync::{ObjectError, SecretObject, SecretObjectSpec};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::documents::{Document, read_documents, service_account_annotations};
pub use self::mode::{Mode, ModeError};
use crate::encoding::Encoding;
use crate::volume_path::VolumePath;

/// Where a class is found: it can only be named by pods of its own Namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassName {
    /// The Namespace of the pod and of the class.
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl fmt::Display for ClassName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// A class that holds together.
#[derive(Clone, Debug)]
pub struct SecretProviderClass {
    /// Its name.
    pub name: ClassName,
    /// Where its secrets come from; at least one.
    pub sources: Vec<Source>,
    /// What is projected; everything, where empty.
    pub items: Vec<Item>,
    /// The mode of files without one of their own.
    pub default_mode: Mode,
    /// Whether objects that a store does not have are left out.
    pub optional: bool,
    /// Whether a volume keeps what it had when it was mounted.
    pub immutable: bool,
    /// When changes in the stores reach the volumes.
    pub refresh: Refresh,
    /// Who shares answers of the stores, where the class says so.
    pub sharing: Option<Sharing>,
    /// The value of the annotation [`REFRESH`]: another one makes everything due.
    pub refresh_mark: Option<String>,
    /// The Kubernetes Secrets to make from a volume's files. One that is wrong in a field that upstream has
    /// hinders only itself.
    pub secret_objects: Vec<Result<SecretObject, ObjectError>>,
    /// Changes whenever the spec does.
    pub hash: String,
}

/// Asks for a look at the stores now, by any new value.
pub const REFRESH: &str = "secrets-store.csi.x-k8s.io/refresh";

/// When changes in the stores reach the volumes of a class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refresh {
    /// How changes are noticed; not given, as the store allows: Watch if it tells, else Cache.
    pub strategy: Option<RefreshStrategy>,
    /// How often a store is asked that does not tell; not given, as often as the administrator says.
    pub interval: Option<Duration>,
    /// How much older than `interval` an answer may be that a further pod gets while its store is away.
    pub max_stale: Duration,
}

/// How changes in a store are noticed: the kubelet's own three ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum RefreshStrategy {
    /// The store tells; one that cannot is asked in each interval.
    Watch,
    /// The store is asked in each interval.
    Cache,
    /// The store is asked after each republish, every 60 to 90 seconds.
    Get,
}

/// `spec.refresh`, as it is written.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefreshSpec {
    /// How changes are noticed; if not given, Watch where the store tells of them, else Cache.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["Watch", "Cache", "Get"]))]
    strategy: Option<RefreshStrategy>,
    /// How often the store is asked, 10s or more, 2m if not given; the administrator can set both.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    interval: Option<jiff::SignedDuration>,
    /// For how long beyond the interval further pods get the last answer while the store is away, 0s if
    /// not given.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    max_stale: Option<jiff::SignedDuration>,
}

/// Who may be given one and the same answer.
#[derive(Clone, Copy, Deserialize)]
enum SharingSpec {
    /// Every pod of the ServiceAccount, leases and certificates too.
    ServiceAccount,
    /// One pod alone, as a store needs that binds its roles to pods.
    Pod,
}

/// One provider and what it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What `items[].source` calls it; empty in the short form of a class.
    pub name: String,
    /// The provider's name.
    pub provider: String,
    /// The provider's own parameters.
    #[serde(default)]
    pub parameters: Parameters,
}

/// One file of the volume, as `items` of a Secret volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The source of the object, where more than one has an object of that name.
    #[serde(default)]
    pub source: Option<String>,
    /// The name of the file that the source would give without `items`.
    pub object: String,
    /// A member of a structured value; without it, the whole value.
    #[serde(default)]
    pub key: Option<String>,
    /// Where the file lies in the volume.
    pub path: VolumePath,
    /// Its mode, instead of the default one.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Leaves the file out where the store does not have the object, or the object has not got the key.
    #[serde(default)]
    pub optional: bool,
    /// What the store has is written like this, and the file gets what that stands for; without it, the
    /// file gets what the store has, byte for byte.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["base64", "hex", "utf-8"]))]
    pub encoding: Option<Encoding>,
}

/// A class that cannot be used. `Display` names the field and what it has to be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct ClassError {
    field: String,
    problem: String,
}

impl ClassError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        // Keys of the class are in both, and nothing in them may forge a line of a log.
        Self {
            field: clean_text(&field.into(), 256),
            problem: clean_text(&problem.into(), 1024),
        }
    }
}

/// `spec` of a SecretProviderClass, as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Spec {
    /// The provider of a class with one source.
    #[serde(default)]
    provider: Option<String>,
    /// The parameters of that provider.
    #[serde(default)]
    parameters: Option<Parameters>,
    /// Several providers in one volume, instead of provider and parameters.
    #[serde(default)]
    sources: Vec<Source>,
    /// What is projected into the volume, as in a Secret volume; everything, where empty.
    #[serde(default)]
    items: Vec<Item>,
    /// The mode of files without one of their own, 0644 if not given.
    #[serde(default)]
    default_mode: Option<Mode>,
    /// Leaves out objects and keys that a store does not have, and the volume is empty where it has none.
    /// The files appear when the store has them, and go when it does not any more.
    #[serde(default)]
    optional: bool,
    /// A volume keeps what it had when it was mounted: its stores are not asked again, and a change of
    /// the class does not reach it. Make the pod anew for a change. Not for secrets with a lease.
    #[serde(default)]
    immutable: bool,
    /// When changes in the stores reach the volumes.
    #[serde(default)]
    refresh: Option<RefreshSpec>,
    /// Who shares answers of the stores: if not given, static values the pods of a ServiceAccount, leases
    /// and certificates nobody.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["ServiceAccount", "Pod"]))]
    sharing: Option<SharingSpec>,
    /// Kubernetes Secrets to make from the volume's files.
    #[serde(default)]
    secret_objects: Option<Vec<SecretObjectSpec>>,
}

impl SecretProviderClass {
    /// Checks a class.
    ///
    /// # Errors
    /// The first field that is wrong, with its path.
    pub fn new(name: ClassName, spec: Value) -> Result<Self, ClassError> {
        for (field, value) in [
            ("metadata.name", &name.name),
            ("metadata.namespace", &name.namespace),
        ] {
            if value.is_empty() {
                return Err(ClassError::new(field, "is missing"));
            }
        }
        let hash = hex(&Sha256::digest(spec.to_string()));
        let spec: Spec = at_path("spec", spec)?;
        let default_mode = spec.default_mode.unwrap_or(Mode::DEFAULT);
        let refresh = refresh(spec.refresh.as_ref())?;
        let sharing = spec.sharing.map(|sharing| match sharing {
            SharingSpec::ServiceAccount => Sharing::ServiceAccount,
            SharingSpec::Pod => Sharing::Pod,
        });
        let items = spec.items.clone();
        let (optional, immutable) = (spec.optional, spec.immutable);
        let secret_objects = secret_objects(spec.secret_objects.as_deref().unwrap_or_default())?;
        let sources = sources(spec)?;
        check_items(&items, &sources)?;
        Ok(Self {
            name,
            sources,
            items,
            default_mode,
            optional,
            immutable,
            refresh,
            sharing,
            refresh_mark: None,
            secret_objects,
            hash,
        })
    }

    /// The class with the value of its annotation [`REFRESH`].
    #[must_use]
    pub fn with_refresh_mark(mut self, mark: Option<String>) -> Self {
        self.refresh_mark = mark;
        self
    }
}

/// The longest duration that a class can give: ten years from any time there still is a time.
pub(crate) const LONGEST_HOURS: u64 = 10 * 365 * 24;

fn refresh(spec: Option<&RefreshSpec>) -> Result<Refresh, ClassError> {
    let Some(spec) = spec else {
        return Ok(Refresh::default());
    };
    let duration = |field: &str, given: Option<jiff::SignedDuration>| {
        let wrong = |problem: String| ClassError::new(format!("spec.refresh.{field}"), problem);
        let given = given.map(Duration::try_from).transpose();
        let given = given.map_err(|_| wrong("must be 0 s or more".into()))?;
        let longest = Duration::from_secs(LONGEST_HOURS * 60 * 60);
        match given.is_none_or(|given| given <= longest) {
            true => Ok(given),
            false => Err(wrong(format!(
                "must be {LONGEST_HOURS}h (10 years) or less"
            ))),
        }
    };
    Ok(Refresh {
        strategy: spec.strategy,
        interval: duration("interval", spec.interval)?,
        max_stale: duration("maxStale", spec.max_stale)?.unwrap_or_default(),
    })
}

/// Each Secret, or what is wrong with it; a field of our own that is wrong is an error of the class.
fn secret_objects(
    specs: &[SecretObjectSpec],
) -> Result<Vec<Result<SecretObject, ObjectError>>, ClassError> {
    let mut names = BTreeSet::new();
    let objects = specs.iter().enumerate().map(|(index, spec)| {
        spec.check_ours().map_err(|error| {
            let field = format!("spec.secretObjects[{index}].{}", error.field());
            ClassError::new(field, error.problem())
        })?;
        let object = SecretObject::new(spec);
        Ok(
            object.and_then(|object| match names.insert(object.name.clone()) {
                true => Ok(object),
                false => Err(object.is_there_twice()),
            }),
        )
    });
    objects.collect()
}

/// `provider` and `parameters` are the short form of one source.
fn sources(spec: Spec) -> Result<Vec<Source>, ClassError> {
    let provider = spec.provider.unwrap_or_default();
    let short = !provider.is_empty() || spec.parameters.is_some();
    let sources = match (short, spec.sources.is_empty()) {
        (true, false) => {
            let problem =
                "cannot stand beside spec.provider and spec.parameters: make that a source too";
            return Err(ClassError::new("spec.sources", problem));
        }
        (_, true) => vec![Source {
            name: String::new(),
            provider,
            parameters: spec.parameters.unwrap_or_default(),
        }],
        (false, false) => spec.sources,
    };
    let mut names = BTreeSet::new();
    for (index, source) in sources.iter().enumerate() {
        let field = |name: &str| match short || sources.len() == 1 && source.name.is_empty() {
            true => format!("spec.{name}"),
            false => format!("spec.sources[{index}].{name}"),
        };
        if source.provider.is_empty() {
            return Err(ClassError::new(field("provider"), "is missing"));
        }
        if !names.insert(&source.name) {
            return Err(ClassError::new(
                field("name"),
                "is the name of another source",
            ));
        }
    }
    Ok(sources)
}

fn check_items(items: &[Item], sources: &[Source]) -> Result<(), ClassError> {
    let mut paths = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        if let Some(earlier) = paths.insert(&item.path, index) {
            let problem = format!("{} is also the path of items[{earlier}]", item.path);
            return Err(ClassError::new(
                format!("spec.items[{index}].path"),
                problem,
            ));
        }
        if item.object.is_empty() {
            return Err(ClassError::new(
                format!("spec.items[{index}].object"),
                "is empty",
            ));
        }
        if let Some(source) = &item.source
            && !sources.iter().any(|s| s.name == *source)
        {
            let problem = format!("there is no source {source:?}");
            return Err(ClassError::new(
                format!("spec.items[{index}].source"),
                problem,
            ));
        }
    }
    for (index, item) in items.iter().enumerate() {
        let folder = item
            .path
            .folders()
            .find_map(|folder| paths.iter().find(|(path, _)| path.as_str() == folder));
        if let Some((path, earlier)) = folder {
            let problem = format!("needs a folder {path}, which is the file of items[{earlier}]");
            return Err(ClassError::new(
                format!("spec.items[{index}].path"),
                problem,
            ));
        }
    }
    Ok(())
}

/// Deserializes `value`; the error has the path of the field below `root`.
fn at_path<T: for<'de> Deserialize<'de>>(root: &str, value: Value) -> Result<T, ClassError> {
    // An empty `spec:` is null in YAML and means the same as none.
    let value = if value.is_null() {
        Value::Object(serde_json::Map::new())
    } else {
        value
    };
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = match (root, path.as_str()) {
            ("", ".") => "document".to_owned(),
            (root, ".") => root.to_owned(),
            ("", path) => path.to_owned(),
            (root, path) => format!("{root}.{path}"),
        };
        ClassError::new(field, error.inner().to_string())
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(spec: &str) -> Result<SecretProviderClass, ClassError> {
        let spec = spec.replace('\n', "\n  ");
        let text = format!(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
             metadata: {{name: shop, namespace: shop}}\nspec:\n  {spec}\n"
        );
        let mut documents = read_documents(&text)?;
        assert_eq!(documents.len(), 1, "{text}");
        documents.remove(0).class
    }

    #[test]
    fn a_class_of_upstream_reads_as_it_always_did() {
        let class = one(
            "provider: vault\nparameters: {roleName: shop, objects: \"- objectName: a\"}\n\
             secretObjects: [{secretName: s, type: Opaque, data: [{objectName: a, key: a}]}]",
        )
        .expect("good");
        assert_eq!(class.name.to_string(), "shop/shop");
        assert_eq!(class.sources.len(), 1);
        assert_eq!(class.sources[0].provider, "vault");
        assert_eq!(class.sources[0].parameters["roleName"], "shop");
        assert_eq!(class.default_mode, Mode::DEFAULT);
        let [Ok(object)] = class.secret_objects.as_slice() else {
            panic!("one Secret");
        };
        assert_eq!(
            (object.name.as_str(), object.kind.as_str()),
            ("s", "Opaque")
        );
    }

    #[test]
    fn a_secret_object_of_upstream_hinders_only_itself_and_our_fields_are_strict() {
        let with = |objects: &str| one(&format!("provider: a\nsecretObjects: {objects}"));
        let class = with(
            "[{}, {secretName: s, type: kubernetes.io/service-account-token, data: [{objectName: a, key: a}]}, \
             {secretName: s, data: [{objectName: a, key: a}]}, {secretName: s, allFiles: true}]",
        )
        .expect("good");
        let read: Vec<_> = class
            .secret_objects
            .iter()
            .map(|object| object.as_ref().err().map_or("", |error| error.field()))
            .collect();
        assert_eq!(read, ["secretName", "type", "", "secretName"]);
        for (objects, message) in [
            (
                "[{secretName: s, imutable: true}]",
                "spec.secretObjects[0].imutable: unknown field",
            ),
            (
                "[{}, {immutable: 'true'}]",
                "spec.secretObjects[1].immutable: invalid type",
            ),
            (
                "[{data: [{objectName: a, split: XML}]}]",
                "spec.secretObjects[0].data[0].split: unknown variant",
            ),
            (
                "[{allFiles: true, data: [{objectName: a, key: a}]}]",
                "spec.secretObjects[0].allFiles: cannot stand beside data",
            ),
            (
                "[{type: Opaque, registry: r.test}]",
                "spec.secretObjects[0].registry: is only for the type",
            ),
        ] {
            let error = with(objects).expect_err(objects).to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn modes_are_read_as_kubernetes_reads_them() {
        for (text, bits) in [
            ("0400", 0o400),
            ("0o400", 0o400),
            ("256", 0o400),
            ("0", 0),
            ("0777", 0o777),
        ] {
            let class = one(&format!("provider: file\ndefaultMode: {text}")).expect(text);
            assert_eq!(class.default_mode.bits(), bits, "{text}");
        }
        let json = r#"{"apiVersion":"secrets-store.csi.x-k8s.io/v1","kind":"SecretProviderClass",
            "metadata":{"name":"a","namespace":"a"},"spec":{"provider":"file","defaultMode":256}}"#;
        let class = read_documents(json)
            .expect("good")
            .remove(0)
            .class
            .expect("good");
        assert_eq!(class.default_mode.bits(), 0o400);
    }

    #[test]
    fn rule_p4_a_mode_outside_of_0777_is_refused() {
        for bad in [
            "01000",
            "04755",
            "02755",
            "-1",
            "2147483647",
            "99999999999999",
            "0.5",
            "rw",
            "\"0644\"",
        ] {
            for spec in [
                format!("provider: file\ndefaultMode: {bad}"),
                format!("provider: file\nitems: [{{object: a, path: a, mode: {bad}}}]"),
            ] {
                let error = one(&spec).expect_err(bad);
                assert!(
                    error.field == "spec.defaultMode" || error.field == "spec.items[0].mode",
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path() {
        for (spec, message) in [
            ("parameters: {}", "spec.provider: is missing"),
            ("", "spec.provider: is missing"),
            (
                "provider: [a]",
                "spec.provider: invalid type: sequence, expected a string",
            ),
            (
                "provider: a\nparamters: {}",
                "spec.paramters: unknown field `paramters`",
            ),
            (
                "provider: a\nparameters: {n: [1]}",
                "spec.parameters.n: invalid type",
            ),
            (
                "provider: a\nsources: [{name: b, provider: b}]",
                "spec.sources: cannot stand beside",
            ),
            (
                "sources: [{name: b, provider: b}, {name: b, provider: c}]",
                "spec.sources[1].name: is the name",
            ),
            (
                "sources: [{name: b}]",
                "spec.sources[0]: missing field `provider`",
            ),
            (
                "sources: [{name: b, provider: ''}]",
                "spec.sources[0].provider: is missing",
            ),
            (
                "provider: a\nitems: [{path: x}]",
                "spec.items[0]: missing field `object`",
            ),
            (
                "provider: a\nitems: [{object: x}]",
                "spec.items[0]: missing field `path`",
            ),
            (
                "provider: a\nitems: [{object: '', path: x}]",
                "spec.items[0].object: is empty",
            ),
            (
                "provider: a\nitems: [{object: x, path: ../x}]",
                "spec.items[0].path: path \"../x\" starts with `..`",
            ),
            (
                "provider: a\nitems: [{object: x, path: /x}]",
                "spec.items[0].path: path \"/x\" is absolute",
            ),
            (
                "provider: a\nitems: [{object: x, path: x, mod: 1}]",
                "spec.items[0].mod: unknown field `mod`",
            ),
            (
                "provider: a\nitems: [{object: x, path: x, source: z}]",
                "spec.items[0].source: there is no source \"z\"",
            ),
        ] {
            let error = one(spec).expect_err(spec).to_string();
            assert!(
                error.starts_with(message),
                "{error}\nshould start with\n{message}"
            );
        }
    }

    #[test]
    fn rule_p3_two_items_on_one_path_are_refused() {
        for (paths, message) in [
            (
                ["a", "a"],
                "spec.items[1].path: a is also the path of items[0]",
            ),
            (
                ["a", "a/b"],
                "spec.items[1].path: needs a folder a, which is the file of items[0]",
            ),
            (
                ["a/b/c", "a/b"],
                "spec.items[0].path: needs a folder a/b, which is the file of items[1]",
            ),
        ] {
            let [first, second] = paths;
            let spec = format!(
                "provider: a\nitems: [{{object: x, path: {first}}}, {{object: z, path: {second}}}]"
            );
            assert_eq!(one(&spec).expect_err(message).to_string(), message);
        }
        let fine = "provider: a\nitems: [{object: x, path: a/b}, {object: z, path: a-b}, {object: z, path: a/c}]";
        assert_eq!(one(fine).expect("good").items.len(), 3);
    }

    #[test]
    fn refresh_and_sharing_have_kubernetes_words_and_durations() {
        let class = one("provider: a").expect("good");
        assert_eq!(class.refresh, Refresh::default());
        assert_eq!((class.sharing, class.refresh_mark), (None, None));
        let class = one(
            "provider: a\nsharing: Pod\nrefresh: {strategy: Get, interval: 1m30s, maxStale: 1h}",
        )
        .expect("good");
        let expected = Refresh {
            strategy: Some(RefreshStrategy::Get),
            interval: Some(Duration::from_secs(90)),
            max_stale: Duration::from_secs(3600),
        };
        assert_eq!(class.refresh, expected);
        assert_eq!(class.sharing, Some(Sharing::Pod));
        for (spec, message) in [
            (
                "refresh: {interval: -1m}",
                "spec.refresh.interval: must be 0 s or more",
            ),
            (
                "refresh: {maxStale: -1s}",
                "spec.refresh.maxStale: must be 0 s or more",
            ),
            (
                "refresh: {maxStale: 2562047788015215h}",
                "spec.refresh.maxStale: must be 87600h (10 years) or less",
            ),
            (
                "refresh: {interval: 87600h1ns}",
                "spec.refresh.interval: must be 87600h (10 years) or less",
            ),
            ("refresh: {interval: soon}", "spec.refresh.interval: "),
            ("refresh: {interval: 120}", "spec.refresh.interval: "),
            (
                "refresh: {strategy: watch}",
                "spec.refresh.strategy: unknown variant",
            ),
            ("refresh: {every: 1m}", "spec.refresh.every: unknown field"),
            ("sharing: Node", "spec.sharing: unknown variant"),
        ] {
            let error = one(&format!("provider: a\n{spec}"))
                .expect_err(spec)
                .to_string();
            assert!(error.starts_with(message), "{error}");
        }
        let marked = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
            metadata: {name: a, namespace: a, annotations: {secrets-store.csi.x-k8s.io/refresh: '7'}}\n\
            spec: {provider: a}";
        let class = read_documents(marked)
            .expect("good")
            .remove(0)
            .class
            .expect("good");
        assert_eq!(class.refresh_mark.as_deref(), Some("7"));
    }

    #[test]
    fn optional_immutable_and_encoding_are_off_unless_they_are_said() {
        let class = one("provider: a\nitems: [{object: x, path: x}]").expect("good");
        assert!(!class.optional && !class.immutable && !class.items[0].optional);
        assert_eq!(class.items[0].encoding, None);
        let class = one("provider: a\noptional: true\nimmutable: true\n\
             items: [{object: x, path: x, optional: true, encoding: hex}]")
        .expect("good");
        assert!(class.optional && class.immutable && class.items[0].optional);
        assert_eq!(class.items[0].encoding, Some(Encoding::Hex));
        for (spec, message) in [
            ("optional: 1", "spec.optional: invalid type"),
            ("immutable: \"true\"", "spec.immutable: invalid type"),
            (
                "items: [{object: x, path: x, optional: maybe}]",
                "spec.items[0].optional: invalid type",
            ),
            (
                "items: [{object: x, path: x, encoding: rot13}]",
                "spec.items[0].encoding: unknown variant `rot13`, expected one of `utf-8`, `base64`, `hex`",
            ),
        ] {
            let error = one(&format!("provider: a\n{spec}"))
                .expect_err(spec)
                .to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn the_hash_follows_the_spec() {
        let hash = |spec: &str| one(spec).expect(spec).hash;
        assert_eq!(
            hash("provider: a\nparameters: {a: '1', b: '2'}"),
            hash("parameters: {b: '2', a: '1'}\nprovider: a")
        );
        assert_ne!(hash("provider: a"), hash("provider: b"));
        assert_ne!(hash("provider: a"), hash("provider: a\ndefaultMode: 0400"));
    }
}
