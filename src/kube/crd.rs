//! The CustomResourceDefinitions, made from the types that read the objects.

use ::kube::core::schema::StructuralSchemaRewriter;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::class::Spec;

/// The API group.
pub const GROUP: &str = "secrets-store.csi.x-k8s.io";
/// The version that is stored.
pub const VERSION: &str = "v1";

/// What a pod's volume holds, for people and tools that look from outside. Field names are those of
/// secrets-store-csi-driver.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "only its schema is used until status objects are written"
)]
struct PodStatus {
    /// The pod.
    pod_name: Option<String>,
    /// The class of the volume.
    secret_provider_class_name: Option<String>,
    /// Whether the volume is mounted.
    mounted: Option<bool>,
    /// The target path of the volume.
    target_path: Option<String>,
    /// What is in the volume.
    objects: Option<Vec<PodStatusObject>>,
}

/// One object of a volume.
#[derive(JsonSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used until status objects are written"
)]
struct PodStatusObject {
    /// Its name.
    id: Option<String>,
    /// Its version.
    version: Option<String>,
}

/// Both definitions, as YAML documents.
#[must_use]
pub fn definitions() -> String {
    let class_schema = |status: Value| object(json!({"spec": schema::<Spec>(), "status": status}));
    // The deprecated version had a status that nobody fills any more; objects that have one stay valid.
    let by_pod = json!({"type": "object", "properties": {"byPod": {"type": "array", "items": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "namespace": {"type": "string"}},
    }}}});
    let class = definition(
        "SecretProviderClass",
        "secretproviderclasses",
        &[
            (VERSION, class_schema(json!({"type": "object"}))),
            ("v1alpha1", class_schema(by_pod)),
        ],
    );
    let status = object(json!({"status": schema::<PodStatus>()}));
    let pod_status = definition(
        "SecretProviderClassPodStatus",
        "secretproviderclasspodstatuses",
        &[(VERSION, status.clone()), ("v1alpha1", status)],
    );
    let documents = [class, pod_status]
        .map(|definition| serde_saphyr::to_string(&definition).expect("plain data"));
    documents.join("---\n")
}

fn definition(kind: &str, plural: &str, versions: &[(&str, Value)]) -> Value {
    let versions: Vec<_> = versions
        .iter()
        .map(|(name, schema)| {
            let mut version = json!({
                "name": name,
                "served": true,
                "storage": *name == VERSION,
                "schema": {"openAPIV3Schema": schema},
            });
            if *name != VERSION {
                version["deprecated"] = json!(true);
                version["deprecationWarning"] = json!(format!(
                    "{GROUP}/{name} is deprecated: use {GROUP}/{VERSION}"
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
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_lowercase(),
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
        check("spec", &schema::<Spec>());
    }
}
