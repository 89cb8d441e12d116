//! Provider plugins, from the kubelet's call over a process in another language to the file.

mod answers;
mod process;
mod slots;
mod sockets;
mod writers;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use coffer::fake_kubelet::{PodVolume, token_of};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::harness::{Node, mounts, pod, volume};
use process::{Plugin, TOKENS};

/// A node with the class `shop` of the plugin `mock`, and that plugin.
async fn node_and_plugin(flags: &[&str]) -> (Node, Plugin) {
    let node = node(flags).await;
    let plugin = Plugin::start(&sockets(&node), "mock").await;
    (node, plugin)
}

async fn node(flags: &[&str]) -> Node {
    Node::start_with_class(CLASS, flags).await
}

const CLASS: &str =
    "provider: mock\nparameters: {objects: 'a <b>', region: north}\nrefresh: {interval: 10s}";

/// The same that nobody looks at by themselves in the time of a test.
const RARE: &str =
    "provider: mock\nparameters: {objects: 'a <b>', region: north}\nrefresh: {interval: 1h}";

fn sockets(node: &Node) -> PathBuf {
    node.folders.at("providers")
}

/// Publishes as a kubelet that waits only so long.
async fn publish_within(node: &Node, volume: &PodVolume, patience: Duration) -> tonic::Status {
    node.kubelet.prepare(volume).unwrap();
    let mut request = Request::new(node.kubelet.publish_request(volume));
    request.set_timeout(patience);
    let mut client = node.kubelet.node().await.unwrap();
    client.node_publish_volume(request).await.unwrap_err()
}

/// Refused, with this code and these words, and nothing is left.
async fn refused(node: &Node, name: &str, code: Code, words: &str) -> String {
    let status = node.kubelet.publish(&volume(name)).await.unwrap_err();
    assert_eq!(status.code(), code, "{words}: {status}");
    assert!(status.message().contains(words), "{words}: {status}");
    assert!(mounts().is_empty(), "{words}: {:?}", mounts());
    status.message().to_owned()
}

fn bring_tokens(volume: &mut PodVolume, audiences: &[&str]) {
    let token = token_of(&volume.pod);
    for audience in audiences {
        let expires = SystemTime::now() + Duration::from_secs(3600);
        volume.bring_token(audience, &format!("{token}{}", audience.len()), expires);
    }
}

fn audiences(call: &Value) -> Vec<String> {
    let tokens = call["attributes"][TOKENS].as_str().unwrap_or("{}");
    let tokens: serde_json::Map<String, Value> = serde_json::from_str(tokens).unwrap();
    tokens.keys().cloned().collect()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_plugin_is_mounted_rotated_and_restarted() {
    let (node, mut plugin) = node_and_plugin(&[]).await;
    let mut volume = volume("a");
    volume.attributes.insert("region".into(), "south".into());
    volume.attributes.insert("zone".into(), "two".into());
    bring_tokens(&mut volume, &["sts", "vault", ""]);
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
    let target = node.kubelet.target(&volume);
    let mode = |file| {
        fs::metadata(target.join(file))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("password") & 0o7777, 0o600);

    let [call] = plugin.mounts().try_into().unwrap();
    let tokens: Value = serde_json::from_str(call["attributes"][TOKENS].as_str().unwrap()).unwrap();
    let kubelets: Value = serde_json::from_str(&volume.secrets[coffer::tokens::KEY]).unwrap();
    assert_eq!(tokens["vault"]["token"], kubelets["vault"]["token"]);
    let expires = |tokens: &Value| {
        let text = tokens["vault"]["expirationTimestamp"]
            .as_str()
            .unwrap()
            .to_owned();
        text.parse::<jiff::Timestamp>().unwrap().as_second()
    };
    assert_eq!(expires(&tokens), expires(&kubelets));
    assert_eq!(
        audiences(&call),
        ["sts", "vault"],
        "the empty one is nobody's (D5)"
    );
    let mut attributes = call["attributes"].clone();
    attributes.as_object_mut().unwrap().remove(TOKENS);
    let expected = json!({
        "objects": "a <b>",
        "region": "north",
        "zone": "two",
        "secretProviderClass": "shop",
        "csi.storage.k8s.io/pod.name": "a",
        "csi.storage.k8s.io/pod.namespace": "shop",
        "csi.storage.k8s.io/pod.uid": "uid-of-a",
        "csi.storage.k8s.io/serviceAccount.name": "web",
        "csi.storage.k8s.io/ephemeral": "true",
    });
    assert_eq!(attributes, expected);
    assert_eq!(
        call["secrets"], "null",
        "the tokens are no secrets of the pod's author"
    );
    assert_eq!(call["permission"], "420");
    assert_eq!(call["target_path"], target.to_str().unwrap());
    assert_eq!(call["current"], json!([]));
    assert_eq!(call["authority"], "localhost");
    assert!(call["deadline"].as_f64().unwrap() <= 60.0, "{call}");
    assert_eq!(
        plugin.calls("Version").len(),
        1,
        "each socket is asked once"
    );

    plugin.behave(json!({"files": [["password", "battery-staple", 0]], "versions": [["p", "2"]]}));
    node.eventually_reads(&volume, "password", b"battery-staple")
        .await;
    assert_eq!(mode("password") & 0o7777, 0o644, "0 is no opinion");
    let calls = plugin.mounts();
    assert_eq!(calls.last().unwrap()["current"], json!([["password", "1"]]));

    plugin.kill();
    plugin.behave(json!({"files": [["password", "third", 0]], "versions": [["p", "3"]]}));
    plugin.run().await;
    node.eventually_reads(&volume, "password", b"third").await;
    let calls = plugin.mounts();
    let last = calls
        .iter()
        .rfind(|call| call["current"] == json!([["p", "2"]]));
    assert!(
        last.is_some(),
        "what the volume holds is told again: {calls:?}"
    );
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_pod_has_answers_of_its_own_unless_the_class_shares_them() {
    let (node, plugin) = node_and_plugin(&[]).await;
    node.class("shop", RARE).await;
    for name in ["a", "b"] {
        node.kubelet.publish(&volume(name)).await.unwrap();
    }
    assert_eq!(plugin.mounts().len(), 2);
    let shared = async |name: &str| {
        let volume = PodVolume::of_class(pod(name), "shared");
        node.kubelet.publish(&volume).await
    };
    let class = format!("{RARE}\nsharing: ServiceAccount");
    node.class("shared", &class).await;
    shared("c").await.unwrap();
    let before = plugin.mounts().len();
    shared("d").await.unwrap();
    assert_eq!(plugin.mounts().len(), before, "one answer for the account");
    // An account that was deleted and made anew is another one (C2).
    for (pod_name, account, asked) in [("e", "one", 1), ("f", "other", 2), ("g", "one", 2)] {
        let mut anew = PodVolume::of_class(pod(pod_name), "shared");
        anew.pod.service_account.uid = Some(account.into());
        bring_tokens(&mut anew, &["vault"]);
        node.kubelet.publish(&anew).await.unwrap();
        assert_eq!(plugin.mounts().len(), before + asked, "{pod_name}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d4_a_plugin_gets_the_tokens_of_its_own_audiences() {
    let (node, mock) = node_and_plugin(&[
        "--prefer-plugin=vault",
        "--plugin-audience=mock=*.goog",
        "--plugin-audience=mock=",
    ])
    .await;
    let vault = Plugin::start(&sockets(&node), "vault").await;
    node.class("vault", "provider: vault").await;
    let mut at_mock = volume("a");
    bring_tokens(&mut at_mock, &["vault", "sts", "a.goog", ""]);
    node.kubelet.publish(&at_mock).await.unwrap();
    assert_eq!(audiences(&mock.mounts()[0]), ["", "a.goog"]);

    let mut at_vault = PodVolume::of_class(pod("b"), "vault");
    bring_tokens(&mut at_vault, &["vault", "sts", ""]);
    node.kubelet.publish(&at_vault).await.unwrap();
    assert_eq!(audiences(&vault.mounts()[0]), ["vault"]);

    let mut none = PodVolume::of_class(pod("c"), "vault");
    bring_tokens(&mut none, &["sts"]);
    node.kubelet.publish(&none).await.unwrap();
    let call = &vault.mounts()[1];
    assert_eq!(
        call["attributes"].get(TOKENS),
        None,
        "it may help itself then"
    );

    // Another pod's token, and one that ends before it arrives, go nowhere (I4, D3).
    let calls = vault.mounts().len();
    let mut stolen = PodVolume::of_class(pod("d"), "vault");
    let expires = SystemTime::now() + Duration::from_secs(3600);
    stolen.bring_token("vault", &token_of(&pod("b")), expires);
    let status = node.kubelet.publish(&stolen).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let mut late = PodVolume::of_class(pod("e"), "vault");
    let expires = SystemTime::now() + Duration::from_secs(5);
    late.bring_token("vault", &token_of(&pod("e")), expires);
    let status = node.kubelet.publish(&late).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert_eq!(vault.mounts().len(), calls);
}
