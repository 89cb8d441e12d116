//! Secrets as they are sent and as they arrive: values in base64, copies of them wiped.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::SecretBytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{Live, LiveMeta, Owner, Write, owners};

/// A Secret as it arrives.
#[derive(Deserialize)]
pub(super) struct Object {
    pub(super) metadata: ObjectMeta,
    #[serde(default, rename = "type")]
    kind: String,
    immutable: Option<bool>,
    data: Option<BTreeMap<String, Received>>,
}

struct Received(SecretBytes);

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = STANDARD.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| serde::de::Error::custom("a value is not base64"))?;
        Ok(Self(SecretBytes::new(bytes)))
    }
}

impl From<Object> for Live {
    fn from(object: Object) -> Self {
        let data = object.data.unwrap_or_default();
        Self {
            meta: object.metadata.into(),
            kind: object.kind,
            immutable: object.immutable.unwrap_or_default(),
            data: data
                .into_iter()
                .map(|(key, Received(bytes))| (key, bytes))
                .collect(),
        }
    }
}

impl From<ObjectMeta> for LiveMeta {
    fn from(meta: ObjectMeta) -> Self {
        Self {
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
            owners: owners(meta.owner_references),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }
}

/// A Secret as it is sent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Body<'a> {
    api_version: &'static str,
    kind: &'static str,
    pub(super) metadata: BodyMeta<'a>,
    r#type: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    immutable: bool,
    data: BTreeMap<&'a str, Sent<'a>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BodyMeta<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner_references: Option<&'a [Owner]>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OwnerBody<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) metadata: BodyMeta<'a>,
}

#[derive(Serialize)]
pub(super) struct Removal<'a> {
    pub(super) metadata: Precondition<'a>,
    pub(super) data: BTreeMap<&'a str, Option<()>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Precondition<'a> {
    uid: &'a str,
    resource_version: &'a str,
}

impl<'a> Precondition<'a> {
    pub(super) fn of(live: &'a LiveMeta) -> Self {
        Self {
            uid: &live.uid,
            resource_version: &live.resource_version,
        }
    }
}

struct Sent<'a>(&'a SecretBytes);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(STANDARD.encode(self.0.expose()));
        serializer.serialize_str(&text)
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = [
            ("apiVersion", &self.api_version),
            ("kind", &self.kind),
            ("name", &self.name),
            ("uid", &self.uid),
        ];
        serializer.collect_map(fields)
    }
}

impl<'a> Body<'a> {
    pub(super) fn of(write: &Write<'a>) -> Self {
        let data = write.data.iter();
        Self {
            api_version: "v1",
            kind: "Secret",
            metadata: BodyMeta {
                name: write.name,
                namespace: write.namespace,
                labels: Some(write.labels),
                annotations: Some(write.annotations),
                ..BodyMeta::default()
            },
            r#type: write.kind,
            immutable: write.immutable,
            data: data
                .map(|(key, bytes)| (key.as_str(), Sent(bytes)))
                .collect(),
        }
    }
}
