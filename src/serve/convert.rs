//! The other driver's messages to ours, and back.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use coffer_proto::provider::{File, MountRequest, MountResponse, ObjectVersion};
use coffer_provider::SecretBytes;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Asked, VolumeKey};
use crate::cache::Given;
use crate::catalog::CLASS;
use crate::class::{ClassName, SecretProviderClass};
use crate::csi;
use crate::error::PublishError;
use crate::identity::Requester;
use crate::payload::Payload;
use crate::spec::VolumeSpec;
use crate::tokens::{TokenSource, Tokens};

/// What the kubelet tells of a pod; all the rest is for the provider.
const RESERVED: &str = "csi.storage.k8s.io/";

/// Takes a request apart: the class of one source that it amounts to, and the pod.
pub(super) fn asked(
    request: MountRequest,
    provider: &str,
    interval: Duration,
) -> Result<Asked, PublishError> {
    let attributes = Zeroizing::new(request.attributes);
    let secrets = Zeroizing::new(request.secrets);
    // The parser's own error can quote its input: it ends here.
    let mut attributes: HashMap<String, String> = serde_json::from_str(&attributes)
        .map_err(|_| wrong("attributes", "must be a JSON object of strings"))?;
    let secrets: Option<HashMap<String, String>> = serde_json::from_str(&secrets)
        .map_err(|_| wrong("secrets", "must be a JSON object of strings, or null"))?;
    let mode: u16 = serde_json::from_str(&request.permission)
        .map_err(|_| wrong("permission", "must be a decimal number"))?;
    let mut secrets = secrets.unwrap_or_default();
    let tokens = Tokens::take(TokenSource::Context, &mut secrets, &mut attributes);
    let pod = csi::pod(&mut attributes)?;
    let class = attributes.remove(CLASS).filter(|class| !class.is_empty());
    attributes.retain(|key, _| !key.starts_with(RESERVED));
    let name = ClassName {
        namespace: pod.namespace.clone(),
        name: class.ok_or(PublishError::NoClass)?,
    };
    let parameters: BTreeMap<_, _> = attributes.into_iter().collect();
    let spec = json!({
        "provider": provider,
        "parameters": parameters,
        "defaultMode": mode,
        "refresh": {"strategy": "Cache", "interval": format!("{}s", interval.as_secs())},
    });
    let class = SecretProviderClass::new(name.clone(), spec);
    let class = class.map_err(|error| PublishError::InvalidClass { name, error })?;
    let secrets = secrets.into_iter();
    Ok(Asked {
        key: VolumeKey {
            pod_uid: pod.uid.clone(),
            target_path: request.target_path.clone(),
        },
        requester: Requester {
            pod,
            tokens,
            secrets: secrets
                .map(|(key, value)| (key, SecretBytes::new(value.into_bytes())))
                .collect(),
            target_path: request.target_path,
        },
        class,
    })
}

fn wrong(field: &'static str, problem: &str) -> PublishError {
    PublishError::InvalidRequest {
        field,
        problem: problem.to_owned(),
    }
}

/// The files as the volume is to have them, with the versions of the objects that they are made of.
pub(super) fn response(
    spec: &VolumeSpec,
    secrets: &[Vec<Given>],
    payload: &Payload,
) -> MountResponse {
    let mut versions = Vec::new();
    for (source, given) in spec.sources().iter().zip(secrets) {
        for (object, secret) in source.objects.iter().zip(given) {
            let Some(secret) = secret else { continue };
            // One whose names are known only by now is told of by its files.
            let names: Vec<_> = match object.name.as_str() {
                "" => secret.files.iter().map(|file| &file.name).collect(),
                _ => vec![&object.name],
            };
            versions.extend(names.into_iter().map(|name| ObjectVersion {
                id: name.clone(),
                version: secret.version.as_str().to_owned(),
            }));
        }
    }
    let files = payload.files().iter().map(|(path, file)| File {
        path: path.as_str().to_owned(),
        mode: file.mode.bits().try_into().unwrap_or_default(),
        contents: file.bytes.expose().to_vec(),
    });
    MountResponse {
        object_version: versions,
        error: None,
        files: files.collect(),
    }
}
