//! Plugins that hang, trickle and die: what they take, and what comes afterwards.

use std::time::{Duration, Instant};

use coffer::fake_kubelet::PodVolume;
use futures_util::future::join_all;
use serde_json::json;
use tonic::Code;

use super::process::Plugin;
use super::{RARE, node_and_plugin, publish_within, sockets};
use crate::fake_api_server::FakeApiServer;
use crate::harness::{Node, PATIENCE, eventually, mounts, pod, volume};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g3_a_hundred_stuck_calls_take_no_slot_from_another_provider() {
    const STUCK: usize = 100;
    const SLOTS: usize = 16;
    let (node, plugin) = node_and_plugin(&[]).await;
    let other = Plugin::start(&sockets(&node), "other").await;
    node.class("other", "provider: other").await;
    node.class("files", "provider: file").await;
    plugin.behave(json!({"hang": true}));
    let stuck = (0..STUCK).map(|n| {
        let (kubelet, volume) = (node.kubelet.clone(), volume(&format!("stuck{n}")));
        tokio::spawn(async move { kubelet.publish(&volume).await })
    });
    let stuck: Vec<_> = stuck.collect();
    eventually("the slots are taken", || plugin.mounts().len() == SLOTS).await;
    for n in 0..20 {
        for class in ["other", "files"] {
            let volume = PodVolume::of_class(pod(&format!("{class}{n}")), class);
            node.kubelet.publish(&volume).await.unwrap();
        }
    }
    assert_eq!(other.mounts().len(), 20);
    assert_eq!(plugin.mounts().len(), SLOTS, "never more at one time");
    assert!(stuck.iter().all(|publish| !publish.is_finished()));
    for n in 0..STUCK {
        let stuck = volume(&format!("stuck{n}"));
        node.kubelet.unpublish(&stuck).await.unwrap();
    }
    for publish in join_all(stuck).await {
        let status = publish.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
    assert_eq!(mounts().len(), 40);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g3_rotations_stuck_in_one_plugin_hold_up_no_volume_of_another_provider() {
    const STUCK: usize = 20;
    let (node, plugin) = node_and_plugin(&[]).await;
    node.class("shop", RARE).await;
    node.folders.secret("password", "before");
    node.class("files", "provider: file").await;
    let files = PodVolume::of_class(pod("files"), "files");
    node.kubelet.publish(&files).await.unwrap();
    for n in 0..STUCK {
        let stuck = volume(&format!("stuck{n}"));
        node.kubelet.publish(&stuck).await.unwrap();
    }
    assert_eq!(plugin.mounts().len(), STUCK);
    plugin.behave(json!({"hang": true}));
    node.folders.class("shop", &RARE.replace("a <b>", "more"));
    eventually("the slots are taken", || {
        plugin.mounts().len() == STUCK + 16
    })
    .await;
    node.folders.secret("password", "after");
    node.eventually_reads(&files, "password", b"after").await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g3_a_plugin_that_never_answers_or_trickles_ends_at_the_deadline() {
    let (node, mut plugin) = node_and_plugin(&[]).await;
    plugin.behave(json!({"hang": true}));
    let patience = Duration::from_secs(10);
    let status = publish_within(&node, &volume("a"), patience).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    plugin.kill();
    for how in ["silent", "trickle"] {
        let _plugin = Plugin::misbehaving(&sockets(&node), "mock", how).await;
        let status = publish_within(&node, &volume(how), patience).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{how}: {status}");
    }
    assert!(mounts().is_empty());
    plugin.behave(json!({"files": [["password", "back", 0]]}));
    plugin.run().await;
    node.kubelet.publish(&volume("b")).await.unwrap();
}

/// Waits until the health check has found this.
async fn up(node: &Node, value: u8) {
    let line = format!("coffer_plugin_up{{provider=\"mock\"}} {value}");
    let start = Instant::now();
    while !node.http("/metrics").await.contains(&line) {
        assert!(start.elapsed() < PATIENCE, "{line}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g7_a_plugin_that_dies_in_a_call_is_used_again_once_it_is_back() {
    let (node, mut plugin) = node_and_plugin(&[
        "--provider-health-check=true",
        "--provider-health-check-interval=1s",
    ])
    .await;
    node.kubelet.publish(&volume("a")).await.unwrap();
    up(&node, 1).await;
    plugin.behave(json!({"crash": true}));
    let status = node.kubelet.publish(&volume("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(
        mounts().len(),
        1,
        "what was there stays, and nothing is added"
    );
    up(&node, 0).await;
    eventually("it is told", || {
        node.logged(&["plugin is away", "mock"]) == 1
    })
    .await;
    // The rotation of the first volume fails too, and it keeps what it has.
    eventually("a rotation has failed", || {
        node.logged(&["volume not rotated"]) > 0
    })
    .await;
    assert_eq!(node.read(&volume("a"), "password"), b"correct-horse");

    plugin.kill();
    plugin.behave(json!({"files": [["password", "back", 0]]}));
    plugin.run().await;
    // A failure is remembered for as long as its back-off, at most five seconds.
    let start = Instant::now();
    while node.kubelet.publish(&volume("c")).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it is back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(node.read(&volume("c"), "password"), b"back");
    node.eventually_reads(&volume("a"), "password", b"back")
        .await;
    up(&node, 1).await;
    eventually("it is told", || {
        node.logged(&["plugin is back", "mock"]) == 1
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g7_a_plugin_that_goes_or_comes_back_is_in_events_and_status_of_its_volumes() {
    let cluster = FakeApiServer::start();
    // Nobody would look by themselves in the time of this test.
    cluster.class(
        "rare",
        "{provider: mock, parameters: {objects: all}, refresh: {interval: 24h}}",
    );
    let node = Node::start_with(&[
        &cluster.flag(),
        "--provider-health-check=true",
        "--provider-health-check-interval=1s",
    ])
    .await;
    node.classes_of_the_cluster_are_read().await;
    let mut plugin = Plugin::start(&sockets(&node), "mock").await;
    let volume = PodVolume::of_class(pod("a"), "rare");
    node.kubelet.publish(&volume).await.unwrap();
    up(&node, 1).await;
    let refreshed = || {
        let status = cluster.status("a-shop-rare");
        let conditions = status["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        let refreshed = conditions.find(|condition| condition["type"] == "Refreshed");
        refreshed.map(|condition| condition["status"].clone())
    };
    let is = |value: &str| refreshed().is_some_and(|status| status == value);
    eventually("all is well", || is("True")).await;

    plugin.kill();
    up(&node, 0).await;
    eventually("the status says that it is away", || is("False")).await;
    eventually("the pod hears of it", || {
        let notes = cluster.notes("a", "SecretsRotationFailed");
        notes.iter().any(|note| note.contains("mock.sock"))
    })
    .await;

    plugin.behave(json!({"files": [["password", "back", 0]]}));
    plugin.run().await;
    up(&node, 1).await;
    node.eventually_reads(&volume, "password", b"back").await;
    eventually("the status says that it is back", || is("True")).await;
    assert_eq!(node.read(&volume, "password"), b"back");
}
