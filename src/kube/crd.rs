//! The CustomResourceDefinitions, made from the types that read the objects.

use ::kube::core::schema::StructuralSchemaRewriter;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::class::{LONGEST_HOURS, Spec};
use crate::pod_status::PodStatus;

/// The API group.
pub const GROUP: &str = "secrets-store.csi.x-k8s.io";
/// The version that is stored.
pub const VERSION: &str = "v1";

/// A kind that is ours to define.
struct Kind {
    name: &'static str,
    plural: &'static str,
    short: &'static str,
    /// What `kubectl get` shows: a heading, a type and where it is found.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

const CLASS: Kind = Kind {
    name: "SecretProviderClass",
    plural: "secretproviderclasses",
    short: "spc",
    columns: &[
        ("Provider", "string", ".spec.provider"),
        ("Sources", "string", ".spec.sources[*].provider"),
        ("Interval", "string", ".spec.refresh.interval"),
        AGE,
    ],
};

const POD_STATUS: Kind = Kind {
    name: "SecretProviderClassPodStatus",
    plural: "secretproviderclasspodstatuses",
    short: "spcps",
    columns: &[
        ("Pod", "string", ".status.podName"),
        ("Class", "string", ".status.secretProviderClassName"),
        ("Mounted", "boolean", ".status.mounted"),
        (
            "Refreshed",
            "string",
            ".status.conditions[?(@.type==\"Refreshed\")].status",
        ),
        (
            "Reason",
            "string",
            ".status.conditions[?(@.type==\"Refreshed\")].reason",
        ),
        (
            "Stale",
            "string",
            ".status.conditions[?(@.type==\"Stale\")].status",
        ),
        AGE,
    ],
};

const AGE: (&str, &str, &str) = ("Age", "date", ".metadata.creationTimestamp");

/// The schema of each kind, by its name.
pub(super) fn schemas() -> [(&'static str, Value); 2] {
    let class = object(json!({"spec": class_spec(), "status": {"type": "object"}}));
    let status = object(json!({"status": schema::<PodStatus>()}));
    [(CLASS.name, class), (POD_STATUS.name, status)]
}

/// Both definitions, as YAML documents.
#[must_use]
pub fn definitions() -> String {
    let [(_, class), (_, status)] = schemas();
    // The deprecated version had a status that nobody fills any more; objects that have one stay valid.
    let by_pod = json!({"type": "object", "properties": {"byPod": {"type": "array", "items": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "namespace": {"type": "string"}},
    }}}});
    let mut deprecated = class.clone();
    deprecated["properties"]["status"] = by_pod;
    let documents = [
        definition(&CLASS, &[(VERSION, class), ("v1alpha1", deprecated)]),
        definition(
            &POD_STATUS,
            &[(VERSION, status.clone()), ("v1alpha1", status)],
        ),
    ]
    .map(|definition| serde_saphyr::to_string(&definition).expect("plain data"));
    documents.join("---\n")
}

/// A path of names that are neither empty nor `.` nor `..`, of which the first does not begin with `..`. The API
/// server's expressions have no way to look around in a text, and those of CEL would cost it too much here.
const RELATIVE_PATH: &str = r"^([^/.][^/]*|\.[^/.][^/]*)(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))*$";

/// What the types say, and what no type can say. Nothing here refuses a class that secrets-store-csi-driver takes:
/// each rule is about fields that it does not have.
fn class_spec() -> Value {
    let mut spec = schema::<Spec>();
    spec["x-kubernetes-validations"] = json!([
        {
            "rule": "!has(self.sources) || size(self.sources) == 0 || (!has(self.provider) || self.provider == '') && !has(self.parameters)",
            "message": "sources cannot stand beside provider and parameters: make that a source too",
            "fieldPath": ".sources",
        },
    ]);
    let properties = &mut spec["properties"];
    properties["sources"]["x-kubernetes-list-type"] = json!("map");
    properties["sources"]["x-kubernetes-list-map-keys"] = json!(["name"]);
    properties["sources"]["items"]["properties"]["provider"]["minLength"] = json!(1);
    let item = &mut properties["items"]["items"]["properties"];
    item["object"]["minLength"] = json!(1);
    item["path"]["pattern"] = json!(RELATIVE_PATH);
    let refresh = &mut properties["refresh"]["properties"];
    for (field, least) in [("interval", 1), ("maxStale", 0)] {
        refresh[field]["maxLength"] = json!(32);
        refresh[field]["x-kubernetes-validations"] = json!([{
            "rule": format!(
                "duration(self) >= duration('{least}s') && duration(self) <= duration('{LONGEST_HOURS}h')"
            ),
            "message": format!("must be between {least}s and {LONGEST_HOURS}h, as in 90s or 2m"),
        }]);
    }
    spec
}

fn definition(kind: &Kind, versions: &[(&str, Value)]) -> Value {
    let Kind { name, plural, .. } = kind;
    let columns = kind.columns.iter();
    let columns: Vec<_> = columns
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    let versions: Vec<_> = versions
        .iter()
        .map(|(served, schema)| {
            let mut version = json!({
                "name": served,
                "served": true,
                "storage": *served == VERSION,
                "schema": {"openAPIV3Schema": schema},
                "additionalPrinterColumns": columns,
            });
            if *served != VERSION {
                version["deprecated"] = json!(true);
                version["deprecationWarning"] = json!(format!(
                    "{GROUP}/{served} is deprecated: use {GROUP}/{VERSION}"
                ));
            }
            version
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            // Whoever uninstalls the chart keeps every class: they are the users' own.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": name,
                "listKind": format!("{name}List"),
                "plural": plural,
                "singular": name.to_lowercase(),
                "shortNames": [kind.short],
            },
            "scope": "Namespaced",
            "versions": versions,
        },
    })
}

fn object(mut properties: Value) -> Value {
    for (name, of) in [
        ("apiVersion", "string"),
        ("kind", "string"),
        ("metadata", "object"),
    ] {
        properties[name] = json!({"type": of});
    }
    json!({"type": "object", "properties": properties})
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let generator = settings
        .with_transform(StructuralSchemaRewriter)
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

/// What the API server does not take in a structural schema is left out (it prunes unknown fields by
/// itself), and so are defaults that would write nulls into every object.
fn structural(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("$schema");
            fields.remove("title");
            if fields.get("default") == Some(&Value::Null) {
                fields.remove("default");
            }
            if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
                fields.remove("additionalProperties");
            }
            fields.values_mut().for_each(structural);
        }
        Value::Array(values) => values.iter_mut().for_each(structural),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field has its type where it stands: the API server takes no other schema.
    fn check(path: &str, schema: &Value) {
        for word in ["anyOf", "oneOf", "allOf", "not"] {
            assert!(schema.get(word).is_none(), "{path}: {word}");
        }
        let open = schema.get("x-kubernetes-preserve-unknown-fields").is_some();
        let typed = schema.get("type").is_some_and(Value::is_string);
        let either = schema.get("x-kubernetes-int-or-string").is_some();
        assert!(open || typed || either, "{path} has no type");
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, field) in properties.into_iter().flatten() {
            check(&format!("{path}.{name}"), field);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner).filter(|inner| inner.is_object()) {
                check(&format!("{path}[]"), inner);
            }
        }
    }

    #[test]
    fn the_schemas_are_structural() {
        for (kind, schema) in schemas() {
            check(kind, &schema);
        }
    }
}
