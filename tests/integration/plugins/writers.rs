//! Plugins that write files by themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tonic::Code;

use super::{node_and_plugin, publish_within, refused};
use crate::harness::{eventually, mounts, volume};

/// What lies beside the target of a volume, but for what the kubelet makes.
fn beside(target: &Path) -> Vec<String> {
    let entries = fs::read_dir(target.parent().unwrap()).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["mount", "vol_data.json"].contains(&name.as_str()))
        .collect()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g5_a_plugin_that_writes_by_itself_needs_leave() {
    let (node, plugin) = node_and_plugin(&[]).await;
    plugin.behave(json!({"versions": [["a", "1"]]}));
    let words = "--legacy-plugin-writes=mock";
    let message = refused(&node, "a", Code::Internal, words).await;
    assert!(message.contains("gave no files"), "{message}");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g5_what_a_plugin_writes_by_itself_is_mounted_whole() {
    let (node, plugin) = node_and_plugin(&["--legacy-plugin-writes=mock"]).await;
    let volume = volume("a");
    let target = node.kubelet.target(&volume);
    plugin.behave(json!({"write": [["password", "one", 0o640], ["tls/key", "two", 0o400]]}));
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "password"), b"one");
    assert_eq!(node.read(&volume, "tls/key"), b"two");
    assert!(
        target.join("..data").is_symlink(),
        "it is a volume as any other"
    );
    let mode = fs::metadata(target.join("tls/key")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o400);
    let written_to = plugin.mounts()[0]["target_path"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        Path::new(&written_to).ancestors().nth(2),
        target.parent(),
        "where plugins see mounts"
    );
    assert_ne!(Path::new(&written_to), target);
    assert!(beside(&target).is_empty(), "{:?}", beside(&target));
    assert_eq!(mounts().len(), 1);

    plugin.behave(json!({"write": [["password", "three", 0o640]]}));
    node.eventually_reads(&volume, "password", b"three").await;
    assert!(
        !target.join("tls").exists(),
        "what is not written any more goes"
    );
    let calls = plugin.mounts();
    assert_eq!(
        calls.last().unwrap()["current"],
        json!([]),
        "an empty place holds nothing"
    );

    // A plugin that gives its files is a plugin as any other.
    plugin.behave(json!({"files": [["password", "given", 0]]}));
    node.eventually_reads(&volume, "password", b"given").await;
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g5_what_no_volume_may_hold_is_refused_and_nothing_stays() {
    let flags = ["--legacy-plugin-writes=mock", "--max-volume-bytes=64Ki"];
    let (mut node, plugin) = node_and_plugin(&flags).await;
    let versions = json!([["a", "1"]]);
    let many: Vec<_> = (0..257)
        .map(|n| json!([n.to_string(), "", 0o644]))
        .collect();
    let invalid = Code::InvalidArgument;
    for (n, (mut behaviour, code, words)) in [
        (
            json!({"link": ["a", "/etc/passwd"]}),
            Code::Internal,
            "neither a file nor a folder",
        ),
        (
            json!({"link": ["a", "/"]}),
            Code::Internal,
            "neither a file nor a folder",
        ),
        (
            json!({"fifo": "a"}),
            Code::Internal,
            "neither a file nor a folder",
        ),
        (
            json!({"write": [["a", "1", 0o4755]]}),
            Code::Internal,
            "with a mode that is none",
        ),
        (
            json!({"write": [["..data", "1", 0o644]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"write": [["a\n", "1", 0o644]]}),
            invalid,
            "map it with spec.items",
        ),
        (
            json!({"write": [["a", "x".repeat((64 << 10) + 1), 0o644]]}),
            Code::FailedPrecondition,
            "65536 bytes or 256 files",
        ),
        (
            json!({"write": many}),
            Code::FailedPrecondition,
            "65536 bytes or 256 files",
        ),
        (
            json!({"write": []}),
            Code::Internal,
            "neither gave nor wrote",
        ),
        (
            json!({"write": [["a", "1", 0o644]], "status": ["UNKNOWN", "half-way"]}),
            Code::Unavailable,
            "half-way",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        behaviour["versions"] = versions.clone();
        plugin.behave(behaviour);
        let name = format!("a{n}");
        refused(&node, &name, code, words).await;
        assert!(
            beside(&node.kubelet.target(&volume(&name))).is_empty(),
            "{words}"
        );
    }

    // A driver that is killed in a call leaves a place behind: the next one takes it away.
    plugin.behave(json!({"hang": true}));
    let (kubelet, stuck) = (node.kubelet.clone(), volume("stuck"));
    let publish = tokio::spawn(async move { kubelet.publish(&stuck).await });
    let target = node.kubelet.target(&volume("stuck"));
    eventually("the place is there", || mounts().len() == 1).await;
    node.end(Signal::SIGKILL);
    assert!(publish.await.unwrap().is_err());
    assert_eq!(beside(&target).len(), 1);
    node.run().await;
    assert!(beside(&target).is_empty() && mounts().is_empty());
    // And an unpublish takes away what is in the way of the kubelet.
    let (kubelet, stuck) = (node.kubelet.clone(), volume("stuck"));
    let publish = tokio::spawn(async move { kubelet.publish(&stuck).await });
    eventually("the place is there", || mounts().len() == 1).await;
    node.kubelet.unpublish(&volume("stuck")).await.unwrap();
    assert!(publish.await.unwrap().is_err());
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g5_what_is_written_too_late_lands_nowhere() {
    let (node, plugin) = node_and_plugin(&["--legacy-plugin-writes=mock"]).await;
    plugin.behave(json!({"hang": true, "late": true, "write": [["password", "late", 0o600]]}));
    let status = publish_within(&node, &volume("a"), Duration::from_secs(10)).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    eventually("it has tried", || !plugin.calls("Late").is_empty()).await;
    assert_eq!(plugin.calls("Late")[0]["failed"], true);
    assert!(beside(&node.kubelet.target(&volume("a"))).is_empty());
    assert!(mounts().is_empty());
}
