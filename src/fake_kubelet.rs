//! The kubelet's half of CSI, as the demo plays it and the tests use it: the folders that it makes,
//! the calls in their order, a fresh connection for each, the fields as it fills them.
//!
//! Facts from the kubelet's source (1.36): it asks for the capabilities twice before it publishes,
//! makes the parent of the target with mode 0750, and writes `vol_data.json` beside it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer_proto::csi::node_client::NodeClient;
use coffer_proto::csi::volume_capability::access_mode::Mode;
use coffer_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use coffer_proto::csi::{
    NodeGetCapabilitiesRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability,
};
use coffer_provider::Pod;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use crate::tokens;

/// A kubelet with a root folder and one driver.
#[derive(Clone, Debug)]
pub struct FakeKubelet {
    root: PathBuf,
    socket: PathBuf,
}

/// An inline CSI volume of a pod.
#[derive(Clone, Debug)]
pub struct PodVolume {
    /// The pod.
    pub pod: Pod,
    /// `volumes[].name`
    pub name: String,
    /// `csi.volumeAttributes`
    pub attributes: BTreeMap<String, String>,
    /// `csi.readOnly`
    pub read_only: bool,
    /// `securityContext.fsGroup`
    pub fs_group: Option<u32>,
    /// What arrives in `secrets`: the tokens, and the data of `nodePublishSecretRef`.
    pub secrets: HashMap<String, String>,
}

impl PodVolume {
    /// A read-only volume `secrets` of `pod` with a class of its Namespace.
    #[must_use]
    pub fn of_class(pod: Pod, class: &str) -> Self {
        Self {
            pod,
            name: "secrets".into(),
            attributes: [("secretProviderClass".into(), class.into())].into(),
            read_only: true,
            fs_group: None,
            secrets: HashMap::new(),
        }
    }

    /// `csi-` and a hash of the pod's UID and the volume's name.
    #[must_use]
    pub fn volume_id(&self) -> String {
        let hash = Sha256::digest(format!("{}{}", self.pod.uid, self.name));
        hash.iter()
            .fold("csi-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
    }

    /// From now on each publish brings `token` for `audience`, in the secrets of the request.
    pub fn bring_token(&mut self, audience: &str, token: &str, expires: SystemTime) {
        let before = self.secrets.get(tokens::KEY);
        let mut all: serde_json::Value = before
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_else(|| serde_json::json!({}));
        let expires = jiff::Timestamp::try_from(expires).unwrap_or(jiff::Timestamp::MAX);
        all[audience] = serde_json::json!({
            "token": token,
            "expirationTimestamp": expires.to_string(),
        });
        self.secrets.insert(tokens::KEY.into(), all.to_string());
    }
}

/// A token of `pod` and its ServiceAccount, with the claims of the API server and nobody's signature.
#[must_use]
pub fn token_of(pod: &Pod) -> String {
    let account = &pod.service_account;
    let uid = account.uid.clone();
    let claims = serde_json::json!({
        "kubernetes.io": {
            "namespace": pod.namespace,
            "serviceaccount": {
                "name": account.name,
                "uid": uid.unwrap_or_else(|| format!("uid-of-{}", account.name)),
            },
            "pod": {"name": pod.name, "uid": pod.uid},
        },
    });
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("e30.{claims}.c2lnbmVkIGJ5IG5vYm9keQ")
}

/// Whether the kubelet takes `code` to mean that something may be left on the node.
#[must_use]
pub fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Unavailable
    )
}

impl FakeKubelet {
    /// A kubelet whose `--root-dir` is `root`, with the driver on `socket`.
    #[must_use]
    pub fn new(root: &Path, socket: &Path) -> Self {
        Self {
            root: root.to_owned(),
            socket: socket.to_owned(),
        }
    }

    /// Where the volume's target path is.
    #[must_use]
    pub fn target(&self, volume: &PodVolume) -> PathBuf {
        self.volume_folder(volume).join("mount")
    }

    fn volume_folder(&self, volume: &PodVolume) -> PathBuf {
        let volumes = self.root.join("pods").join(&volume.pod.uid).join("volumes");
        volumes.join("kubernetes.io~csi").join(&volume.name)
    }

    /// Mounts a volume, or does it again.
    ///
    /// # Errors
    /// What the driver says.
    pub async fn publish(&self, volume: &PodVolume) -> Result<(), Status> {
        self.prepare(volume)?;
        for _ in 0..2 {
            let mut node = self.node().await?;
            node.node_get_capabilities(NodeGetCapabilitiesRequest {})
                .await?;
        }
        let request = self.publish_request(volume);
        let published = self.node().await?.node_publish_volume(request).await;
        if let Err(status) = &published
            && is_final(status.code())
        {
            self.forget_unmounted(volume);
        }
        published.map(|_| ())
    }

    /// The folders and `vol_data.json`, as they are before a publish.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn prepare(&self, volume: &PodVolume) -> Result<(), Status> {
        let folder = self.volume_folder(volume);
        DirBuilder::new()
            .mode(0o750)
            .recursive(true)
            .create(&folder)
            .map_err(failed)?;
        let data = serde_json::json!({
            "driverName": "secrets-store.csi.k8s.io",
            "nodeName": "node-1",
            "specVolID": volume.name,
            "volumeHandle": volume.volume_id(),
            "volumeLifecycleMode": "Ephemeral",
        });
        fs::write(folder.join("vol_data.json"), data.to_string()).map_err(failed)
    }

    /// After a final error the kubelet removes a target that is not mounted, and calls no unpublish.
    fn forget_unmounted(&self, volume: &PodVolume) {
        let _ = fs::remove_dir(self.target(volume));
    }

    /// The request as the kubelet fills it.
    #[must_use]
    pub fn publish_request(&self, volume: &PodVolume) -> NodePublishVolumeRequest {
        let pod = &volume.pod;
        let mut context: HashMap<String, String> = volume.attributes.clone().into_iter().collect();
        for (key, value) in [
            ("pod.name", pod.name.as_str()),
            ("pod.namespace", &pod.namespace),
            ("pod.uid", &pod.uid),
            ("serviceAccount.name", &pod.service_account.name),
            ("ephemeral", "true"),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        }
        NodePublishVolumeRequest {
            volume_id: volume.volume_id(),
            publish_context: HashMap::new(),
            staging_target_path: String::new(),
            target_path: self.target(volume).to_string_lossy().into_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter as i32,
                }),
                access_type: Some(AccessType::Mount(MountVolume {
                    fs_type: String::new(),
                    mount_flags: vec![],
                    volume_mount_group: volume.fs_group.map(|g| g.to_string()).unwrap_or_default(),
                })),
            }),
            readonly: volume.read_only,
            secrets: volume.secrets.clone(),
            volume_context: context,
        }
    }

    /// Unmounts a volume and removes what the kubelet made for it.
    ///
    /// # Errors
    /// What the driver says, or what is left on the node although it said that all is well.
    pub async fn unpublish(&self, volume: &PodVolume) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id(),
            target_path: self.target(volume).to_string_lossy().into_owned(),
        };
        self.node().await?.node_unpublish_volume(request).await?;
        let folder = self.volume_folder(volume);
        if self.target(volume).exists() {
            return Err(Status::internal(
                "the target path is still there after an unpublish",
            ));
        }
        match fs::remove_file(folder.join("vol_data.json")).and_then(|()| fs::remove_dir(&folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// A connection of its own, with the authority that the kubelet sends since 1.26.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn node(&self) -> Result<NodeClient<Channel>, Status> {
        Ok(NodeClient::new(connect(&self.socket).await?))
    }
}

/// A connection to a unix socket with the authority `localhost`.
///
/// # Errors
/// When nobody listens.
pub async fn connect(socket: &Path) -> Result<Channel, Status> {
    let socket = socket.to_owned();
    let dial = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(dial)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

fn failed(error: io::Error) -> Status {
    Status::internal(error.to_string())
}
