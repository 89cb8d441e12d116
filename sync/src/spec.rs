//! `secretObjects` as a class writes them. Fields that upstream has are as tolerant as upstream: what is
//! wrong in them costs the one Secret. Ours are strict: a mistake in one is a mistake of the class.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::ObjectError;
use crate::object::DOCKER_CONFIG_JSON;

/// A Kubernetes Secret to make from the volume's files.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretObjectSpec {
    /// The Secret's name, in the Namespace of the pod.
    pub secret_name: Option<String>,
    /// The Secret's type; Opaque if not given.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Labels for the Secret.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations for the Secret.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The Secret's keys. A type of Kubernetes that can be put together takes its parts as keys too:
    /// kubernetes.io/dockerconfigjson registry, username and password; kubernetes.io/tls the password of a
    /// PKCS#12 file.
    pub data: Option<Vec<SecretObjectDataSpec>>,
    /// Every file of the volume becomes a key of the Secret, instead of data; a slash in a path becomes a
    /// dot.
    #[serde(default)]
    pub all_files: bool,
    /// The registry that username and password are for, in a Secret of the type
    /// kubernetes.io/dockerconfigjson.
    pub registry: Option<String>,
    /// Nobody can change the Secret once it is there: it is not rotated. Delete it for a change.
    #[serde(default)]
    pub immutable: bool,
}

/// One key of a Secret, or several out of one file.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretObjectDataSpec {
    /// The path of the file in the volume.
    pub object_name: Option<String>,
    /// The key.
    pub key: Option<String>,
    /// The file is JSON or YAML, and each of its members becomes a key, instead of key.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["JSON", "YAML"]))]
    pub split: Option<Split>,
}

/// How a value is written that is split into keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Split {
    /// One JSON object.
    #[serde(rename = "JSON")]
    Json,
    /// One YAML mapping.
    #[serde(rename = "YAML")]
    Yaml,
}

impl SecretObjectSpec {
    /// Checks the fields that upstream does not have.
    ///
    /// # Errors
    /// The first of them that is wrong, with its path below the Secret.
    pub fn check_ours(&self) -> Result<(), ObjectError> {
        let data = self.data.as_deref().unwrap_or_default();
        if self.all_files && !data.is_empty() {
            let problem = "cannot stand beside data: every file is a key of its own";
            return Err(ObjectError::new("allFiles", problem));
        }
        for (index, entry) in data.iter().enumerate() {
            let key = entry.key.as_deref().unwrap_or_default();
            if entry.split.is_some() && !key.trim().is_empty() {
                let problem = "cannot stand beside key: the members' names are the keys";
                return Err(ObjectError::new(format!("data[{index}].split"), problem));
            }
        }
        let Some(registry) = &self.registry else {
            return Ok(());
        };
        let kind = self.kind.as_deref().unwrap_or_default().trim();
        if kind != DOCKER_CONFIG_JSON {
            let problem = format!("is only for the type {DOCKER_CONFIG_JSON}");
            return Err(ObjectError::new("registry", problem));
        }
        crate::docker::check_registry(registry)
            .map_err(|problem| ObjectError::new("registry", problem))
    }
}
