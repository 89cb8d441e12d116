//! CSI messages to our requests: every check that needs the request alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coffer_proto::csi::volume_capability::{AccessType, access_mode::Mode};
use coffer_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability};
use coffer_provider::{Pod, SecretBytes, ServiceAccount, clean_text};

use crate::catalog::CLASS;
use crate::error::PublishError;
use crate::identity::Requester;
use crate::publish::PublishRequest;
use crate::tokens::{TokenSource, Tokens};
use crate::volume::{TargetPath, TargetRules};

/// Keys that the kubelet makes (`podInfoOnMount`); what a pod's author puts there is overwritten.
const RESERVED: &str = "csi.storage.k8s.io/";

fn wrong(field: &'static str, problem: impl Into<String>) -> PublishError {
    PublishError::InvalidRequest {
        field,
        problem: problem.into(),
    }
}

fn required(field: &'static str, value: String) -> Result<String, PublishError> {
    match value.is_empty() {
        false => Ok(value),
        true => Err(wrong(field, "is missing")),
    }
}

/// What is shown in logs and Events: one with a line break in it could forge another.
fn shown(field: &'static str, value: String) -> Result<String, PublishError> {
    match clean_text(&value, usize::MAX) == value {
        true => Ok(value),
        false => Err(wrong(field, "has a character that cannot be seen")),
    }
}

fn volume_id(id: String) -> Result<String, PublishError> {
    shown("volume_id", required("volume_id", id)?)
}

/// Takes a publish apart: what is secret in it is wrapped, and what nobody needs is wiped.
pub(super) fn publish_request(
    request: NodePublishVolumeRequest,
    rules: &TargetRules,
    token_source: TokenSource,
) -> Result<PublishRequest, PublishError> {
    let (mut secrets, mut context) = (request.secrets, request.volume_context);
    let tokens = Tokens::take(token_source, &mut secrets, &mut context);
    let secrets = wrap(secrets);

    let volume_id = volume_id(request.volume_id)?;
    let target = target("target_path", request.target_path, rules)?;
    let capability = request.volume_capability;
    let capability = capability.ok_or_else(|| wrong("volume_capability", "is missing"))?;
    let fs_group = fs_group(capability)?;
    let pod = pod(&mut context)?;
    // Below a conformance root there is no kubelet, so neither is there a pod of that path.
    if let Some(uid) = target.pod_uid() {
        if uid != pod.uid {
            return Err(wrong(
                "target_path",
                "belongs to another pod than csi.storage.k8s.io/pod.uid",
            ));
        }
        if !request.readonly {
            return Err(wrong(
                "readonly",
                "must be true: set readOnly: true on the pod's csi volume",
            ));
        }
    }
    let class = context.remove(CLASS).filter(|class| !class.is_empty());
    let class = class.map(|class| shown("volumeAttributes.secretProviderClass", class));
    let requester = Requester {
        pod,
        tokens,
        secrets,
        target_path: target.to_string(),
    };
    Ok(PublishRequest {
        volume_id,
        target,
        requester: Arc::new(requester),
        attributes: own_attributes(context),
        class: class.transpose()?,
        fs_group,
    })
}

fn wrap(secrets: HashMap<String, String>) -> BTreeMap<String, SecretBytes> {
    let secrets = secrets.into_iter();
    secrets
        .map(|(key, value)| (key, SecretBytes::new(value.into_bytes())))
        .collect()
}

fn own_attributes(context: HashMap<String, String>) -> BTreeMap<String, String> {
    context
        .into_iter()
        .filter(|(key, _)| !key.starts_with(RESERVED))
        .collect()
}

/// Takes an unpublish apart.
pub(super) fn unpublish_request(
    request: NodeUnpublishVolumeRequest,
    rules: &TargetRules,
) -> Result<(String, TargetPath), PublishError> {
    let volume_id = volume_id(request.volume_id)?;
    let target = target("target_path", request.target_path, rules)?;
    Ok((volume_id, target))
}

pub(super) fn target(
    field: &'static str,
    path: String,
    rules: &TargetRules,
) -> Result<TargetPath, PublishError> {
    let path = required(field, path)?;
    rules
        .parse(&path)
        .map_err(|error| wrong(field, error.to_string()))
}

/// A tmpfs for one node, without options: all else is refused, so that nobody believes to have it.
fn fs_group(capability: VolumeCapability) -> Result<Option<u32>, PublishError> {
    let mode = capability.access_mode.map(|access| access.mode());
    match mode {
        Some(
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter,
        ) => {}
        _ => {
            return Err(wrong(
                "volume_capability.access_mode",
                "must be one for a single node",
            ));
        }
    }
    let mount = match capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(wrong(
                "volume_capability.block",
                "secrets are files: mount the volume",
            ));
        }
        None => return Err(wrong("volume_capability.mount", "is missing")),
    };
    if !matches!(mount.fs_type.as_str(), "" | "tmpfs") {
        return Err(wrong(
            "volume_capability.mount.fs_type",
            "must be empty or tmpfs: remove fsType",
        ));
    }
    if !mount.mount_flags.is_empty() {
        return Err(wrong(
            "volume_capability.mount.mount_flags",
            "must be empty",
        ));
    }
    match mount.volume_mount_group.as_str() {
        "" => Ok(None),
        group => match group.parse() {
            // The last number means "no group" to the kernel.
            Ok(u32::MAX) | Err(_) => Err(wrong(
                "volume_capability.mount.volume_mount_group",
                "must be a group id",
            )),
            Ok(group) => Ok(Some(group)),
        },
    }
}

/// Takes out what the kubelet says of the pod (`podInfoOnMount`).
pub(crate) fn pod(context: &mut HashMap<String, String>) -> Result<Pod, PublishError> {
    let mut info = |key: &'static str| {
        let value = context.remove(key).filter(|value| !value.is_empty());
        let missing = || wrong(key, "is missing: set podInfoOnMount: true on the CSIDriver");
        shown(key, value.ok_or_else(missing)?)
    };
    let pod = Pod {
        name: info("csi.storage.k8s.io/pod.name")?,
        namespace: info("csi.storage.k8s.io/pod.namespace")?,
        uid: info("csi.storage.k8s.io/pod.uid")?,
        service_account: ServiceAccount {
            name: info("csi.storage.k8s.io/serviceAccount.name")?,
            uid: None,
        },
    };
    match info("csi.storage.k8s.io/ephemeral")?.as_str() {
        "true" => Ok(pod),
        _ => Err(wrong(
            "csi.storage.k8s.io/ephemeral",
            "must be true: only inline volumes of pods are served",
        )),
    }
}
