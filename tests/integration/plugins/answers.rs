//! What a plugin may answer, and what it may not.

use coffer::fake_kubelet::token_of;
use serde_json::json;
use tonic::Code;

use super::process::{Plugin, TOKENS};
use super::{bring_tokens, node_and_plugin, refused, sockets};
use crate::harness::{counted, mounts, volume};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g4_an_answer_that_no_volume_can_be_made_of_is_an_error() {
    let (node, plugin) = node_and_plugin(&["--max-volume-bytes=1Mi"]).await;
    let many: Vec<_> = (0..257).map(|n| json!([n.to_string(), "", 0])).collect();
    let versions: Vec<_> = (0..257).map(|n| json!([n.to_string(), ""])).collect();
    // As many as there is room for: a version, and files "a" without anything in them.
    let most = format!("0a030a0161{}", "1a030a0161".repeat(800_000));
    let invalid = Code::InvalidArgument;
    for (n, (behaviour, code, words)) in [
        (
            json!({"big": (4 << 20) + 1}),
            Code::FailedPrecondition,
            "--max-call-recv-msg-size",
        ),
        (
            json!({"big": (1 << 20) + 1}),
            Code::FailedPrecondition,
            "1048577 bytes, 1048576 are",
        ),
        (
            json!({"files": many}),
            Code::FailedPrecondition,
            "257 files, 256 are allowed",
        ),
        (
            json!({"raw": most}),
            Code::FailedPrecondition,
            "800000 files, 256 are allowed (--max-volume-files)",
        ),
        (
            json!({"files": [["a", "1", 0]], "versions": versions}),
            Code::FailedPrecondition,
            "257 object versions, 256 are allowed",
        ),
        (
            json!({"files": [["a", "1", 0], ["a", "2", 0]]}),
            Code::Internal,
            "two files \"a\"",
        ),
        (
            json!({"files": [["a", "1", 0], ["a/b", "2", 0]]}),
            invalid,
            "a is a file, and a folder",
        ),
        (
            json!({"files": [["../a", "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["/etc/passwd", "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["..data", "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["a//b", "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["", "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["a\n\u{1b}[31m", "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["x".repeat(256), "1", 0]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"files": [["a", "1", 0o4755]]}),
            Code::Internal,
            "a mode for \"a\" that is none",
        ),
        (
            json!({"files": [["a", "1", -1]]}),
            Code::Internal,
            "a mode for \"a\" that is none",
        ),
        (
            json!({"files": [["a", "1", 0]], "versions": []}),
            Code::Internal,
            "without object versions",
        ),
        (
            json!({"files": [], "versions": []}),
            Code::Internal,
            "without object versions",
        ),
        (
            json!({"error_code": "Throttled\u{1b}"}),
            Code::Unavailable,
            "error code Throttled\\u{1b}",
        ),
        // A string where the versions are; a length that is not there; no message at all.
        (json!({"raw": "0803"}), Code::Internal, "the plugin"),
        (json!({"raw": "0aff01"}), Code::Internal, "the plugin"),
        (
            json!({"raw": "ffffffffffffffffffffffff"}),
            Code::Internal,
            "the plugin",
        ),
        (
            json!({"raw": ""}),
            Code::Internal,
            "without object versions",
        ),
        (
            json!({"status": ["PERMISSION_DENIED", "no role"]}),
            Code::PermissionDenied,
            "the plugin says: no role",
        ),
        (
            json!({"status": ["NOT_FOUND", "no secret"]}),
            Code::NotFound,
            "the plugin says: no secret",
        ),
        (
            json!({"status": ["UNKNOWN", "something"]}),
            Code::Unavailable,
            "the plugin says: something",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        plugin.behave(behaviour);
        refused(&node, &format!("a{n}"), code, words).await;
    }
    // What is not known yet is passed over, and an empty version is one.
    plugin.behave(json!({"files": [["a", "1", 0]], "versions": [["a", ""]], "more": "7a03616263"}));
    node.kubelet.publish(&volume("b")).await.unwrap();
    assert_eq!(node.read(&volume("b"), "a"), b"1");
    drop(plugin);
    let _http1 = Plugin::misbehaving(&sockets(&node), "mock", "http1").await;
    let status = node.kubelet.publish(&volume("c")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let scrape = node.http("/metrics").await;
    assert_eq!(counted(&scrape, "coffer_panics_total", &[]), 0);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g6_what_a_plugin_says_is_masked_cleaned_and_cut() {
    let (node, plugin) = node_and_plugin(&[]).await;
    plugin.behave(json!({"echo": true}));
    let mut volume = volume("a");
    bring_tokens(&mut volume, &["vault"]);
    volume
        .secrets
        .insert("clientsecret".into(), "hunter2-of-the-pod".into());
    let status = node.kubelet.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let message = status.message();
    assert!(
        message.contains("no\\u{1b}[31m to") && message.contains("***"),
        "{message}"
    );
    let token = token_of(&volume.pod);
    let call = &plugin.mounts()[0];
    assert!(
        call["attributes"][TOKENS]
            .as_str()
            .unwrap()
            .contains(&token),
        "it had it"
    );
    assert_eq!(call["secrets"], r#"{"clientsecret":"hunter2-of-the-pod"}"#);
    let log = node.log();
    for text in [message, log.as_str()] {
        let parts = token.split('.').filter(|part| part.len() > 12);
        for part in parts.chain(["hunter2-of-the-pod"]) {
            assert!(!text.contains(part), "{text}");
        }
    }
    for bytes in [1000, 1 << 20] {
        plugin.behave(json!({"long": bytes}));
        let name = format!("b{bytes}");
        let status = node
            .kubelet
            .publish(&crate::harness::volume(&name))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().len() < 350, "{}", status.message().len());
    }
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g8_an_answer_of_another_protocol_or_to_another_request_is_refused() {
    let (node, mut plugin) = node_and_plugin(&[]).await;
    plugin.behave(json!({"protocol": "v2", "files": [["a", "1", 0]]}));
    let words = "speaks the protocol v2, not v1alpha1";
    refused(&node, "a", Code::Internal, words).await;
    assert!(plugin.mounts().is_empty(), "it is not asked for secrets");
    plugin.kill();
    let stray = Plugin::misbehaving(&sockets(&node), "mock", "stray").await;
    let status = node.kubelet.publish(&volume("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(mounts().is_empty());
    drop(stray);
    plugin.behave(json!({"files": [["a", "1", 0]]}));
    plugin.run().await;
    node.kubelet.publish(&volume("c")).await.unwrap();
}
