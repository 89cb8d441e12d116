//! CSI requests, damaged on the wire.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use coffer::catalog::Catalog;
use coffer_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use coffer_provider::testing::ScriptedProvider;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use serde_json::json;
use tokio::runtime::Builder;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::mutation::{damaged, shows_all, try_cases};
use crate::node::{
    KUBELET, Node, files_in, in_a_user_namespace, mounts_at, put_class, volume_of, volumes,
};

const WORDS: &[&str] = &[
    "/",
    "..",
    "/../",
    "//",
    "\0",
    "\n",
    "\u{1b}[31m",
    "\u{202e}",
    "mount",
    "/tmp/kubelet/pods",
    "/etc",
    "csi.storage.k8s.io/pod.uid",
    "csi.storage.k8s.io/serviceAccount.tokens",
    "secretProviderClass",
    "true",
    "{\"\":{\"token\":\"x\",\"expirationTimestamp\":\"2030-01-01T00:00:00Z\"}}",
    "{{{{",
    "4294967295",
    "-1",
    "\u{1a}\u{ff}",
];

/// The codes that an answer to nonsense may have: none that makes the kubelet believe that something is
/// left, none that blames the store.
const REFUSALS: &[Code] = &[
    Code::InvalidArgument,
    Code::FailedPrecondition,
    Code::NotFound,
    Code::AlreadyExists,
    // What is no protobuf at all never comes to us: tonic answers.
    Code::Internal,
];

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_r11_no_request_makes_the_driver_panic_or_mount_anything_but_what_it_says() {
    // Before this test has a `/tmp` of its own: the seeds may lie in the other one.
    let requests = damaged("requests", WORDS);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let node = runtime.block_on(async {
        let store = ScriptedProvider::default();
        store.set_value("password", "correct-horse");
        let node = Node::start(Catalog::default().with("scripted", Arc::new(store))).await;
        let spec = json!({"provider": "scripted", "parameters": {"objects": "password"}});
        put_class(&node.classes, "shop", spec);
        node.kubelet.prepare(&volume_of("a", "shop")).unwrap();
        node
    });
    let channel = runtime
        .block_on(coffer::fake_kubelet::connect(Path::new(
            "/tmp/plugin/csi.sock",
        )))
        .unwrap();
    try_cases(1_500, &requests, |bytes| {
        runtime.block_on(one_case(&channel, bytes));
    });
    // And it still does what it is for.
    runtime
        .block_on(node.kubelet.publish(&volume_of("a", "shop")))
        .unwrap();
}

async fn one_case(channel: &Channel, bytes: Vec<u8>) {
    let meant = NodePublishVolumeRequest::decode(&*bytes).ok();
    match call(channel, "/csi.v1.Node/NodePublishVolume", bytes).await {
        Err(status) => {
            assert!(REFUSALS.contains(&status.code()), "{status:?}");
            // What a panic would be answered with.
            assert!(!status.message().contains("please report"), "{status:?}");
            // Where there is one group only, the kernel does not know the fsGroup.
            let understood = meant.is_some() && !in_a_user_namespace();
            assert!(status.code() != Code::Internal || !understood, "{status:?}");
            assert!(shows_all(status.message()), "{status:?}");
            assert_eq!(volumes(), 0, "{status:?}");
        }
        Ok(_) => {
            let meant = meant.expect("what was understood there is understood here");
            let target = Path::new(&meant.target_path);
            assert!(target.starts_with(KUBELET), "{target:?}");
            assert_eq!((volumes(), mounts_at(target)), (1, 1), "{target:?}");
            let files = files_in(target);
            assert_eq!(
                files.get("password").map(Vec::as_slice),
                Some(&b"correct-horse"[..])
            );
            assert_eq!(files.len(), 1);
            let away = NodeUnpublishVolumeRequest {
                volume_id: meant.volume_id,
                target_path: meant.target_path,
            };
            let away = away.encode_to_vec();
            call(channel, "/csi.v1.Node/NodeUnpublishVolume", away)
                .await
                .unwrap();
        }
    }
}

async fn call(channel: &Channel, method: &'static str, bytes: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let method = PathAndQuery::from_static(method);
    client
        .unary(Request::new(bytes), method, Raw)
        .await
        .map(drop)
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, bytes: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

/// Of what the fake kubelet sends, the seeds are written with `COFFER_UPDATE=1`.
#[test]
fn the_seeds_are_what_the_kubelet_sends() {
    let kubelet = coffer::fake_kubelet::FakeKubelet::new(Path::new(KUBELET), Path::new("/none"));
    let plain = volume_of("a", "shop");
    let mut full = plain.clone();
    full.fs_group = Some(2000);
    full.secrets = [
        (
            "csi.storage.k8s.io/serviceAccount.tokens",
            "{\"vault\":{\"token\":\"x.y.z\",\"expirationTimestamp\":\"2030-01-01T00:00:00Z\"}}",
        ),
        ("password", "x"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    full.attributes.insert("objects".into(), "password".into());
    for (name, volume) in [("plain.bin", plain), ("full.bin", full)] {
        let sent = kubelet.publish_request(&volume);
        let seed = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fuzz/corpus/requests")
            .join(name);
        if std::env::var_os("COFFER_UPDATE").is_some() {
            fs::write(&seed, sent.encode_to_vec()).unwrap();
        }
        // Maps have no order on the wire.
        let read = NodePublishVolumeRequest::decode(&*fs::read(seed).unwrap()).unwrap();
        assert!(read == sent, "{name}: write it anew with COFFER_UPDATE=1");
    }
}
