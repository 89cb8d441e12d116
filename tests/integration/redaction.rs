//! A marked secret and a marked token go through everything; the mark comes out in the volume only.

use std::collections::HashMap;
use std::fs;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use coffer::fake_kubelet::PodVolume;
use nix::sys::signal::Signal;

use crate::harness::{Node, eventually, pod, volume};

const CANARY: &str = "canary-7f3a9d51c2";
const TOKEN_CANARY: &str = "token-canary-b81e6f04";

/// Every form in which a value could have slipped out.
fn forms(canary: &str) -> Vec<String> {
    let bytes = canary.as_bytes();
    // Base64 of a text depends on where in it a canary begins: the middle is found at any offset.
    let base64 = (0..3).map(|shift| {
        let text = format!("{}{canary}", "x".repeat(shift));
        BASE64_STANDARD.encode(text).trim_end_matches('=')[4..18].to_owned()
    });
    let list: Vec<_> = bytes.iter().map(u8::to_string).collect();
    let mut forms: Vec<String> = base64.collect();
    forms.extend([
        canary.to_owned(),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
        bytes.iter().map(|byte| format!("%{byte:02X}")).collect(),
        list.join(", "),
        BASE64_URL_SAFE.encode(bytes).trim_end_matches('=')[..14].to_owned(),
    ]);
    forms
}

fn secrets() -> HashMap<String, String> {
    let tokens = serde_json::json!({
        "vault": {"token": TOKEN_CANARY, "expirationTimestamp": "2099-01-01T00:00:00Z"},
        "": {"token": format!("eyJ.{TOKEN_CANARY}"), "expirationTimestamp": "2099-01-01T00:00:00Z"},
    });
    HashMap::from([
        (
            "csi.storage.k8s.io/serviceAccount.tokens".into(),
            tokens.to_string(),
        ),
        ("of-the-pod".into(), CANARY.into()),
    ])
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_o1_no_secret_and_no_token_in_anything_that_the_driver_emits() {
    let mut seen = String::new();
    for format in ["text", "json"] {
        let mut node = Node::start_with(&[&format!("--log-format={format}")]).await;
        seen.push_str(&everything(&mut node).await);
    }
    for canary in [CANARY, TOKEN_CANARY] {
        for form in forms(canary) {
            let line = seen.lines().find(|line| line.contains(&form));
            assert!(line.is_none(), "{form} is in {line:?}");
        }
    }
    // What is looked through is the real thing.
    for proof in [
        "volume published",
        "volume rotated",
        "not published",
        "node_publish_total",
        "--node-id",
    ] {
        assert!(
            seen.contains(proof),
            "{proof} is missing, so nothing was looked through"
        );
    }
}

/// Lives through everything that can go well or wrong, and returns all that could be seen of it.
async fn everything(node: &mut Node) -> String {
    let mut seen = String::new();
    node.folders.secret("password", CANARY);
    node.folders
        .secret("broken.json", format!("{{\"a\": \"{CANARY}\", {CANARY}"));
    node.folders
        .secret("broken.yaml", format!("a: [{CANARY}\nb: *{CANARY}"));
    node.folders.secret("list.json", format!("[\"{CANARY}\"]"));
    let keys = "provider: file\nitems: [{path: x, key: a, object: ";
    node.folders.class("json", &format!("{keys}broken.json}}]"));
    node.folders.class("yaml", &format!("{keys}broken.yaml}}]"));
    node.folders.class("list", &format!("{keys}list.json}}]"));
    node.folders.class("opaque", &format!("{keys}password}}]"));
    node.folders
        .class("large", "provider: file\nparameters: {objects: '[large]'}");
    node.folders.secret("large", CANARY.repeat(300_000));
    eventually("the classes are read", || {
        node.logged(&["class read", "shop/large"]) > 0
    })
    .await;

    node.folders.class(
        "shop",
        "provider: file\nparameters: {objects: '[password]'}",
    );
    eventually("the class is read", || {
        node.logged(&["class read", "shop/shop"]) > 1
    })
    .await;
    let mut good = volume("a");
    good.secrets = secrets();
    node.kubelet.publish(&good).await.unwrap();
    assert_eq!(
        node.read(&good, "password"),
        CANARY.as_bytes(),
        "it is in the volume"
    );
    node.kubelet.publish(&good).await.unwrap();
    node.folders
        .secret("password", format!("{CANARY} and more"));
    node.eventually_reads(&good, "password", format!("{CANARY} and more").as_bytes())
        .await;

    for class in ["json", "yaml", "list", "opaque", "large", "none"] {
        let mut bad = PodVolume::of_class(pod("bad"), class);
        bad.secrets = secrets();
        let status = node.kubelet.publish(&bad).await.expect_err(class);
        seen.push_str(&format!("{status:?}\n{status}\n"));
    }
    // The token where older clusters put it, in requests that are refused at different points.
    let tokens = secrets()["csi.storage.k8s.io/serviceAccount.tokens"].clone();
    type Change = fn(&mut coffer_proto::csi::NodePublishVolumeRequest);
    for change in [
        (|_| ()) as Change,
        |r| r.volume_id.clear(),
        |r| r.target_path.push('/'),
        |r| drop(r.volume_context.remove("csi.storage.k8s.io/pod.uid")),
        |r| r.volume_capability = None,
    ] {
        let mut request = node.kubelet.publish_request(&good);
        request.volume_context.insert(
            "csi.storage.k8s.io/serviceAccount.tokens".into(),
            tokens.clone(),
        );
        change(&mut request);
        let answer = node
            .kubelet
            .node()
            .await
            .unwrap()
            .node_publish_volume(request)
            .await;
        seen.push_str(&format!("{answer:?}\n"));
    }
    fs::remove_file(node.folders.at("secrets/shop/password")).unwrap();
    eventually("the loss is told", || node.logged(&["not rotated"]) > 0).await;

    seen.push_str(&node.http("/metrics").await);
    seen.push_str(&node.http("/healthz").await);
    seen.push_str(&node.http("/nothing").await);
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{file}", node.pid())).unwrap();
        seen.push_str(&String::from_utf8_lossy(&bytes).replace('\0', "\n"));
    }
    node.kubelet.unpublish(&good).await.unwrap();
    node.end(Signal::SIGTERM);
    seen.push_str(&node.log());
    seen
}
