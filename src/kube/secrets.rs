//! Secrets of the cluster: one at a time, by name. Nothing is ever listed, watched or deleted (K5, K7).
//!
//! Requests are put together here and not by the client's own types, which can be printed: so what holds
//! values has no `Debug`.

mod body;

use std::collections::BTreeMap;

use ::kube::Client;
use axum::http::{Method, Request, header};
use coffer_sync::Data;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{RequestError, in_time};
use body::{Body, BodyMeta, Object, OwnerBody, Precondition, Removal};

const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

/// Reads and writes single Secrets.
#[derive(Clone)]
pub struct Secrets {
    client: Client,
    /// Who the fields belong to that the driver writes; at most 63 characters.
    manager: String,
}

/// A Secret as it is in the cluster. Holds secrets: no `Debug`.
pub struct Live {
    /// What there is beside its content.
    pub meta: LiveMeta,
    /// Its type.
    pub kind: String,
    /// Whether the API server refuses changes of its content.
    pub immutable: bool,
    /// Its content.
    pub data: Data,
}

/// The metadata of a Secret, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveMeta {
    /// Tells it from another one of its name, before or after it.
    pub uid: String,
    /// Changes with every change of it.
    pub resource_version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Whose end it waits for.
    pub owners: Vec<Owner>,
    /// Whether somebody has deleted it, and something holds it still.
    pub deleting: bool,
}

/// An object that keeps a Secret: when all of them are gone, so is the Secret (K5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// `apiVersion`
    pub api_version: String,
    /// `kind`
    pub kind: String,
    /// `name`
    pub name: String,
    /// `uid`
    pub uid: String,
}

/// What the driver wants to be in a Secret. Holds secrets: no `Debug`.
pub struct Write<'a> {
    /// `namespace`
    pub namespace: &'a str,
    /// `name`
    pub name: &'a str,
    /// `type`
    pub kind: &'a str,
    /// The labels that are the driver's.
    pub labels: &'a BTreeMap<String, String>,
    /// The annotations that are the driver's.
    pub annotations: &'a BTreeMap<String, String>,
    /// `data`
    pub data: &'a Data,
    /// `immutable`
    pub immutable: bool,
}

impl Secrets {
    pub(super) fn new(client: Client, driver_name: &str) -> Self {
        Self {
            client,
            manager: driver_name.to_owned(),
        }
    }

    /// Those who own a pod, or the pod itself where nobody does. `None` if there is no such pod any more.
    ///
    /// # Errors
    /// When the API server says something else than no.
    pub async fn owners_of_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Vec<Owner>>, RequestError> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let Some(pod) = found(self.read::<Object>(&path, METADATA).await)? else {
            return Ok(None);
        };
        if pod.metadata.uid.as_deref() != Some(uid) {
            return Ok(None);
        }
        let owners = owners(pod.metadata.owner_references);
        let itself = Owner {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        Ok(Some(match owners.is_empty() {
            true => vec![itself],
            false => owners,
        }))
    }

    /// What a Secret is beside its content, if it is there.
    ///
    /// # Errors
    /// When the API server says something else than no.
    pub async fn metadata(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<LiveMeta>, RequestError> {
        let object = self.read::<Object>(&path(namespace, name), METADATA).await;
        Ok(found(object)?.map(|object| LiveMeta::from(object.metadata)))
    }

    /// A Secret, if it is there.
    ///
    /// # Errors
    /// When the API server says something else than no.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Live>, RequestError> {
        let object = self.read::<Object>(&path(namespace, name), JSON).await;
        Ok(found(object)?.map(Live::from))
    }

    /// Makes a Secret that is not there, with its first owner.
    ///
    /// # Errors
    /// With the code 409 where it is there, whoever made it: it stays as it is.
    pub async fn create(
        &self,
        write: &Write<'_>,
        owners: &[Owner],
    ) -> Result<LiveMeta, RequestError> {
        let path = format!(
            "/api/v1/namespaces/{}/secrets?fieldManager={}",
            write.namespace, self.manager
        );
        let mut body = Body::of(write);
        body.metadata.owner_references = Some(owners);
        self.send(Method::POST, &path, JSON, &body).await
    }

    /// Gives a Secret this content, if it is still the one that `live` was read from.
    ///
    /// # Errors
    /// With the code 409 where it is not.
    pub async fn apply(
        &self,
        write: &Write<'_>,
        live: &LiveMeta,
    ) -> Result<LiveMeta, RequestError> {
        let path = format!(
            "{}?force=true&fieldManager={}",
            path(write.namespace, write.name),
            self.manager
        );
        let mut body = Body::of(write);
        body.metadata.uid = Some(&live.uid);
        body.metadata.resource_version = Some(&live.resource_version);
        self.send(Method::PATCH, &path, APPLY, &body).await
    }

    /// Takes keys out of a Secret that server-side apply leaves in, since somebody else has put them there.
    ///
    /// # Errors
    /// With the code 409 where it is another Secret than `live`, or has changed.
    pub async fn remove_keys(
        &self,
        namespace: &str,
        name: &str,
        keys: &[String],
        live: &LiveMeta,
    ) -> Result<LiveMeta, RequestError> {
        let path = format!("{}?fieldManager={}", path(namespace, name), self.manager);
        let nothing = keys.iter().map(|key| (key.as_str(), None::<()>));
        let body = Removal {
            metadata: Precondition::of(live),
            data: nothing.collect(),
        };
        self.send(Method::PATCH, &path, MERGE, &body).await
    }

    /// Lets `owner` keep a Secret too. The field belongs to a manager of the owner's own: so no node takes
    /// away what another one has written.
    ///
    /// # Errors
    /// With the code 409 where it is another Secret than `live`.
    pub async fn add_owner(
        &self,
        namespace: &str,
        name: &str,
        owner: &Owner,
        live: &LiveMeta,
    ) -> Result<LiveMeta, RequestError> {
        let path = format!(
            "{}?force=true&fieldManager={}%2F{}",
            path(namespace, name),
            self.manager,
            owner.uid
        );
        let body = OwnerBody {
            api_version: "v1",
            kind: "Secret",
            metadata: BodyMeta {
                name,
                namespace,
                uid: Some(&live.uid),
                owner_references: Some(std::slice::from_ref(owner)),
                ..BodyMeta::default()
            },
        };
        self.send(Method::PATCH, &path, APPLY, &body).await
    }

    async fn read<T: DeserializeOwned>(&self, path: &str, accept: &str) -> Result<T, RequestError> {
        let request = Request::get(path).header(header::ACCEPT, accept);
        let request = request.body(Vec::new()).map_err(|_| unusable())?;
        in_time(self.client.request(request)).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: &impl Serialize,
    ) -> Result<LiveMeta, RequestError> {
        let body = serde_json::to_vec(body).expect("plain data");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content)
            // What was just sent need not come back.
            .header(header::ACCEPT, METADATA);
        let request = request.body(body).map_err(|_| unusable())?;
        let object: Object = in_time(self.client.request(request)).await?;
        Ok(LiveMeta::from(object.metadata))
    }
}

/// The kubelet's names are believed to be names: where they are none, there is nothing to be asked.
fn unusable() -> RequestError {
    RequestError::Away("the names are not those of objects".to_owned())
}

fn path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets/{name}")
}

fn found<T>(answer: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Anybody can write anything into these fields of a pod: only what can be a UID is taken.
fn owners(references: Option<Vec<OwnerReference>>) -> Vec<Owner> {
    let is_uid = |uid: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=64).contains(&uid.len()) && uid.bytes().all(allowed)
    };
    let owners = references.into_iter().flatten();
    owners
        .filter(|owner| is_uid(&owner.uid))
        .map(|owner| Owner {
            api_version: owner.api_version,
            kind: owner.kind,
            name: owner.name,
            uid: owner.uid,
        })
        .collect()
}
