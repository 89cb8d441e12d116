//! The API server is away, slow, forgetful or full: what that is to pods that run, to new ones and to rotation.

use std::time::{Duration, Instant};

use axum::http::Method;
use coffer::fake_kubelet::{PodVolume, connect};
use coffer_proto::csi::ProbeRequest;
use coffer_proto::csi::identity_client::IdentityClient;
use coffer_provider::testing::ScriptedProvider;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::fake_api_server::FakeApiServer;
use crate::harness::{Node, PATIENCE, counted, eventually, mounts, pod, volume};
use crate::scripted::Scripted;

const CLASSES: &str = "/secretproviderclasses?";

/// Pages of classes that were asked for; the driver also asks for single ones, to see whether there is an answer.
fn lists(cluster: &FakeApiServer) -> usize {
    cluster.asked(&Method::GET, "limit=500")
}

/// Waits until a volume of a class can be published: the class is known by then.
async fn eventually_publishes(node: &Node, volume: &PodVolume) {
    let start = Instant::now();
    while let Err(status) = node.kubelet.publish(volume).await {
        assert!(start.elapsed() < PATIENCE, "{status}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_driver_that_starts_without_an_api_server_lives_says_what_it_lacks_and_goes_on() {
    let mut cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    cluster.goes_away();
    let node = Node::start_with(&[&cluster.flag()]).await;
    assert!(node.http("/healthz").await.starts_with("HTTP/1.1 200"));
    let ready = node.http("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(
        ready.contains("have not been read from the API server yet"),
        "{ready}"
    );
    assert_eq!(probe(&node).await, Some(false));

    let status = node.kubelet.publish(&volume("a")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().starts_with("ApiServerUnavailable: "),
        "{status}"
    );
    assert!(mounts().is_empty());

    cluster.comes_back();
    eventually_publishes(&node, &volume("a")).await;
    assert!(node.http("/readyz").await.starts_with("HTTP/1.1 200"));
    assert_eq!(probe(&node).await, Some(true));
    eventually("its status is there", || {
        !cluster.status("a-shop-shop").is_null()
    })
    .await;
}

async fn probe(node: &Node) -> Option<bool> {
    let channel = connect(&node.folders.at("plugin/csi.sock")).await.unwrap();
    let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
    answer.unwrap().into_inner().ready
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_api_server_that_goes_away_is_noticed_by_no_pod() {
    let mut cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let running = volume("a");
    node.kubelet.publish(&running).await.unwrap();
    eventually("its status is there", || {
        !cluster.status("a-shop-shop").is_null()
    })
    .await;
    cluster.goes_away();

    // Rotation goes on.
    node.store.set_value("a", "new");
    eventually("it is rotated", || node.read(&running, "a") == "new").await;
    node.kubelet.publish(&running).await.unwrap();
    // New pods get the classes that were read last.
    let new = volume("b");
    let start = Instant::now();
    node.kubelet.publish(&new).await.unwrap();
    assert!(start.elapsed() < PATIENCE, "nobody waits for it");
    assert_eq!(node.read(&new, "a"), "new");
    // And pods go.
    let gone = volume("c");
    node.kubelet.publish(&gone).await.unwrap();
    node.kubelet.unpublish(&gone).await.unwrap();
    eventually_scrapes(&node, "coffer_classes_stale 1").await;
    for path in ["/healthz", "/readyz"] {
        assert!(node.http(path).await.starts_with("HTTP/1.1 200"), "{path}");
    }

    cluster.comes_back();
    let version = |name: &str| cluster.status(name)["status"]["objects"][0]["version"].clone();
    eventually("everything is told", || {
        version("b-shop-shop").is_string()
            && version("a-shop-shop") == version("b-shop-shop")
            && cluster.notes("a", "SecretsRotated").len() == 1
    })
    .await;
    eventually_scrapes(&node, "coffer_classes_stale 0").await;
    assert!(cluster.status("c-shop-shop").is_null());
    assert_eq!(
        cluster.writes(),
        4,
        "a's status twice, b's status and one event"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_driver_that_is_restarted_meanwhile_keeps_what_is_there_and_takes_it_up_afterwards() {
    let mut cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    let mut node = Node::start_with(&[&cluster.flag()]).await;
    let running = volume("a");
    eventually_publishes(&node, &running).await;
    eventually("its status is there", || {
        !cluster.status("a-shop-shop").is_null()
    })
    .await;
    cluster.goes_away();
    node.end(Signal::SIGKILL);
    node.run().await;
    for _ in 0..3 {
        node.kubelet
            .publish(&running)
            .await
            .expect("it is complete");
    }
    let status = node.kubelet.publish(&volume("b")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    node.folders.secret("password", "battery-staple");
    assert_eq!(node.read(&running, "password"), b"correct-horse");

    cluster.comes_back();
    node.eventually_reads(&running, "password", b"battery-staple")
        .await;
    eventually("it is told", || {
        !cluster.notes("a", "SecretsRotated").is_empty()
    })
    .await;
    assert_eq!(
        cluster.events().len(),
        1,
        "a start is no failure: {:?}",
        cluster.events()
    );
}

async fn eventually_scrapes(node: &Scripted, line: &str) {
    let start = Instant::now();
    loop {
        let scrape = node.http("/metrics").await;
        if scrape.contains(line) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{line} is not in\n{scrape}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_slow_api_server_holds_up_no_publish_and_no_rotation() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    node.kubelet.publish(&volume("first")).await.unwrap();
    cluster.answers_after(Duration::from_secs(60));
    let start = Instant::now();
    for n in 0..10 {
        let volume = volume(&format!("p{n}"));
        node.kubelet.publish(&volume).await.unwrap();
    }
    node.store.set_value("a", "new");
    let last = volume("p9");
    eventually("it is rotated", || node.read(&last, "a") == "new").await;
    for n in 0..10 {
        node.kubelet
            .unpublish(&volume(&format!("p{n}")))
            .await
            .unwrap();
    }
    // One answer takes as long.
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_watch_that_is_cut_goes_on_where_it_ended() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    eventually_publishes(&node, &volume("a")).await;
    assert_eq!(lists(&cluster), 1);
    for round in 0..3 {
        let watches = cluster.asked(&Method::GET, "watch=true");
        cluster.cuts_watches();
        cluster.class(&format!("new-{round}"), "{provider: file}");
        let volume = PodVolume::of_class(pod(&format!("p{round}")), &format!("new-{round}"));
        eventually_publishes(&node, &volume).await;
        assert!(cluster.asked(&Method::GET, "watch=true") > watches);
    }
    assert_eq!(lists(&cluster), 1, "nothing is read twice");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_version_that_is_too_old_leads_to_a_list_that_misses_nothing() {
    let cluster = FakeApiServer::start();
    for class in ["shop", "old"] {
        cluster.class(class, "{provider: file}");
    }
    let node = Node::start_with(&[&cluster.flag()]).await;
    let running = volume("a");
    eventually_publishes(&node, &running).await;
    let listed = lists(&cluster);
    cluster.forgets(true);
    cluster.cuts_watches();
    // What comes meanwhile is told by no watch.
    cluster.delete_class("old");
    cluster.class("new", "{provider: file}");
    eventually("it is listed again", || lists(&cluster) > listed).await;
    cluster.forgets(false);
    eventually_publishes(&node, &PodVolume::of_class(pod("b"), "new")).await;
    let gone = PodVolume::of_class(pod("c"), "old");
    let status = node.kubelet.publish(&gone).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    node.kubelet.publish(&running).await.unwrap();
    assert_eq!(
        node.logged(&["volume not rotated"]),
        0,
        "no class was lost in between"
    );
    let tries = cluster.asked(&Method::GET, CLASSES);
    assert!(
        tries < 40,
        "{tries} requests: it does not ask without a pause"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn five_thousand_classes_are_read_in_pages_and_one_of_them_is_found_at_once() {
    let cluster = FakeApiServer::start();
    for n in 0..5000 {
        let padding = "x".repeat(500);
        let spec = format!("{{provider: file, parameters: {{padding: {padding}}}}}");
        cluster.class(&format!("class-{n}"), &spec);
    }
    cluster.class("shop", "{provider: file}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    eventually("they are read", || {
        node.logged(&["classes read from the API server", "5001"]) == 1
    })
    .await;
    assert_eq!(lists(&cluster), 11, "of 500 each");
    let start = Instant::now();
    let volumes: Vec<_> = (0..20).map(|n| volume(&format!("p{n}"))).collect();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    // Each change is heard by every volume, and looked at by those whose class it is.
    for n in 0..100 {
        cluster.class(
            &format!("class-{n}"),
            "{provider: file, parameters: {padding: y}}",
        );
    }
    cluster.class("late", "{provider: file}");
    eventually_publishes(&node, &PodVolume::of_class(pod("late"), "late")).await;
    assert!(
        node.logged(&["volume unchanged"]) < 20,
        "not by every volume"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = rss.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    println!("5,001 classes: {kib} KiB resident");
    assert!(kib < 200 << 10, "{kib} KiB");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_older_crd_that_takes_our_fields_out_is_noticed() {
    let cluster = FakeApiServer::start();
    let outdated = async |node: &Node, kind: &str| {
        let kind = format!("kind=\"{kind}\"");
        let start = Instant::now();
        loop {
            let scrape = node.http("/metrics").await;
            if scrape.contains(&format!("coffer_crd_outdated{{{kind}}}")) {
                return counted(&scrape, "coffer_crd_outdated", &[&kind]);
            }
            assert!(start.elapsed() < PATIENCE, "{scrape}");
        }
    };
    let node = Node::start_with(&[&cluster.flag()]).await;
    assert_eq!(outdated(&node, "SecretProviderClass").await, 0);
    assert_eq!(outdated(&node, "SecretProviderClassPodStatus").await, 0);
    assert_eq!(node.logged(&["takes these fields out"]), 0);
    drop(node);

    // That of secrets-store-csi-driver has no such field.
    let definitions = coffer::kube::crd::definitions();
    let without = definitions
        .replace(" sources:", " others:")
        .replace(" conditions:", " words:");
    assert_ne!(definitions, without);
    cluster.serves(without);
    let node = Node::start_with(&[&cluster.flag()]).await;
    assert_eq!(outdated(&node, "SecretProviderClass").await, 1);
    assert_eq!(outdated(&node, "SecretProviderClassPodStatus").await, 1);
    let told = ["takes these fields out", "spec.sources", "crds.install"];
    eventually("it is told", || node.logged(&told) == 1).await;
    assert_eq!(
        node.logged(&["takes these fields out", "status.conditions"]),
        1
    );
}
