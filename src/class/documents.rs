//! Classes as files hold them, among other things.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{ClassError, ClassName, REFRESH, SecretProviderClass, at_path};

const GROUP: &str = "secrets-store.csi.x-k8s.io/";
const KIND: &str = "SecretProviderClass";

/// A manifest as it is written; `spec` is looked at by itself so that errors have its path.
#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// What a document of a class file turned out to be.
pub struct Document {
    /// Its name, where it has one.
    pub name: ClassName,
    /// The class, or what is wrong with it.
    pub class: Result<SecretProviderClass, ClassError>,
}

/// Reads every class of a YAML (or JSON) file. Documents of other kinds are passed over, so that a
/// class can lie beside the pod that uses it.
///
/// # Errors
/// When the file is not YAML. What is wrong inside a class is told with that class.
pub fn read_documents(text: &str) -> Result<Vec<Document>, ClassError> {
    let documents = manifests(text)?.filter_map(|manifest| match manifest {
        Err(error) => Some(unnamed(error)),
        Ok(manifest) => {
            let ours = manifest.kind == KIND && manifest.api_version.starts_with(GROUP);
            ours.then(|| read_class(manifest))
        }
    });
    Ok(documents.collect())
}

/// The annotations of a ServiceAccount, if a YAML (or JSON) file has it in it.
///
/// # Errors
/// When the file is not YAML.
pub fn service_account_annotations(
    text: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, ClassError> {
    let account = manifests(text)?.flatten().find(|manifest| {
        let metadata = &manifest.metadata;
        (manifest.kind.as_str(), manifest.api_version.as_str()) == ("ServiceAccount", "v1")
            && (metadata.namespace.as_str(), metadata.name.as_str()) == (namespace, name)
    });
    Ok(account.map(|account| account.metadata.annotations.unwrap_or_default()))
}

fn manifests(text: &str) -> Result<impl Iterator<Item = Result<Manifest, ClassError>>, ClassError> {
    // Kubernetes reads YAML 1.1, where 0400 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| ClassError::new("file", first_line(&error.to_string())))?;
    let documents = documents.into_iter();
    Ok(documents.map(|document| at_path("", document)))
}

fn unnamed(error: ClassError) -> Document {
    Document {
        name: ClassName {
            namespace: String::new(),
            name: String::new(),
        },
        class: Err(error),
    }
}

fn read_class(manifest: Manifest) -> Document {
    let name = ClassName {
        namespace: manifest.metadata.namespace,
        name: manifest.metadata.name,
    };
    let mark = manifest
        .metadata
        .annotations
        .and_then(|mut annotations| annotations.remove(REFRESH));
    let class = SecretProviderClass::new(name.clone(), manifest.spec);
    Document {
        name,
        class: class.map(|class| class.with_refresh_mark(mark)),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_classes_among_other_things() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n---\n\
            apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {name: a, namespace: ns}\nspec: {provider: file}\n---\n\
            apiVersion: secrets-store.csi.x-k8s.io/v1alpha1\nkind: SecretProviderClass\nmetadata: {name: b, namespace: ns}\nspec: {provider: file, x: 1}\n---\n";
        let documents = read_documents(text).expect("good");
        let names: Vec<_> = documents
            .iter()
            .map(|d| (d.name.to_string(), d.class.is_ok()))
            .collect();
        assert_eq!(
            names,
            [("ns/a".to_owned(), true), ("ns/b".to_owned(), false)]
        );
        assert!(read_documents("a: [").is_err());
        assert!(read_documents("").expect("nothing").is_empty());
    }
}
