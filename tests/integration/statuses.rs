//! SecretProviderClassPodStatus: its names and fields, and that it is written when it has something to say.

use std::time::{Duration, Instant};

use axum::http::Method;
use coffer::fake_kubelet::PodVolume;
use coffer_provider::testing::ScriptedProvider;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fake_api_server::FakeApiServer;
use crate::harness::{Node, PATIENCE, eventually, pod, volume};
use crate::scripted::Scripted;

const STATUSES: &str = "secretproviderclasspodstatuses";

async fn exists(cluster: &FakeApiServer, name: &str) -> Value {
    eventually(&format!("there is {name}"), || {
        !cluster.status(name).is_null()
    })
    .await;
    cluster.status(name)
}

/// Long enough for a write that must not come: the queue is empty once another volume's status is there.
async fn all_is_written(cluster: &FakeApiServer, node: &Node) {
    let last = volume("last");
    node.kubelet.publish(&last).await.unwrap();
    exists(cluster, "last-shop-shop").await;
    node.kubelet.unpublish(&last).await.unwrap();
    eventually("it is gone", || cluster.status("last-shop-shop").is_null()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_object_has_upstreams_name_label_owner_and_fields_and_goes_with_the_volume() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let volume = volume("web-0");
    node.kubelet.publish(&volume).await.unwrap();
    let object = exists(&cluster, "web-0-shop-shop").await;
    let metadata = &object["metadata"];
    let label = json!({"internal.secrets-store.csi.k8s.io/node-name": "node-1"});
    assert_eq!(metadata["labels"], label);
    let owner =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "uid-of-web-0"}]);
    assert_eq!(metadata["ownerReferences"], owner);
    let status = &object["status"];
    let target = node.kubelet.target(&volume);
    for (field, value) in [
        ("podName", json!("web-0")),
        ("secretProviderClassName", json!("shop")),
        ("mounted", json!(true)),
        ("targetPath", json!(target)),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    let objects = status["objects"].as_array().unwrap();
    let ids: Vec<_> = objects.iter().map(|object| &object["id"]).collect();
    assert_eq!(ids, ["a", "b"]);
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    for object in objects {
        assert!(object["version"].is_string());
        assert!(time(&object["nextFetchTime"]) > time(&object["lastFetchTime"]));
        assert!(object["expirationTime"].is_null() && object["lastError"].is_null());
    }
    for condition in status["conditions"].as_array().unwrap() {
        time(&condition["lastTransitionTime"]);
    }

    let before = objects[0]["version"].clone();
    node.store.set_value("a", "new");
    eventually("the version is the new one", || {
        let object = cluster.status("web-0-shop-shop");
        let objects = &object["status"]["objects"];
        objects[0]["version"] != before && objects[1] == object["status"]["objects"][1]
    })
    .await;
    node.kubelet.unpublish(&volume).await.unwrap();
    eventually("it goes", || cluster.statuses().is_empty()).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn secrets_that_do_not_change_write_nothing() {
    const PODS: usize = 100;
    let cluster = FakeApiServer::start();
    let spec = "{provider: file, refresh: {strategy: Cache}}";
    cluster.class("shop", spec);
    let mut node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    let volumes: Vec<_> = (0..PODS).map(|n| volume(&format!("p{n}"))).collect();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    eventually("all have a status", || cluster.statuses().len() == PODS).await;
    all_is_written(&cluster, &node).await;
    let written = cluster.writes();
    assert_eq!(
        written,
        PODS + 2,
        "each was written once, and one went again"
    );

    // Two minutes of a kubelet that republishes every 5 seconds, and of stores that are looked at again and again.
    for round in 0..24 {
        for volume in &volumes {
            node.kubelet.publish(volume).await.unwrap();
        }
        if round % 8 == 0 {
            let looked = node.logged(&["volume unchanged"]);
            cluster.class_with("shop", spec, Some(&round.to_string()));
            eventually("every volume was looked at", || {
                node.logged(&["volume unchanged"]) >= looked + PODS
            })
            .await;
        }
    }
    assert_eq!(cluster.writes(), written);

    // Nor does another process write what is there already.
    node.end(Signal::SIGKILL);
    node.run().await;
    let read = cluster.asked(&Method::GET, STATUSES);
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    eventually("it looked at every object", || {
        cluster.asked(&Method::GET, STATUSES) >= read + PODS
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(cluster.writes(), written);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_second_volume_of_the_class_has_its_name_appended_and_keeps_it() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    let mut node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    let first = volume("web");
    let second = PodVolume {
        name: "more".into(),
        ..volume("web")
    };
    node.kubelet.publish(&first).await.unwrap();
    exists(&cluster, "web-shop-shop").await;
    node.kubelet.publish(&second).await.unwrap();
    exists(&cluster, "web-shop-shop-more").await;
    let target = |name| cluster.status(name)["status"]["targetPath"].clone();
    let (one, two) = (node.kubelet.target(&first), node.kubelet.target(&second));
    assert_eq!(target("web-shop-shop"), json!(one));
    assert_eq!(target("web-shop-shop-more"), json!(two));

    let written = cluster.writes();
    node.end(Signal::SIGKILL);
    node.run().await;
    // The other way round.
    for volume in [&second, &first] {
        let read = cluster.asked(&Method::GET, STATUSES);
        node.kubelet.publish(volume).await.unwrap();
        eventually("it is looked at", || {
            cluster.asked(&Method::GET, STATUSES) > read
        })
        .await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(cluster.writes(), written);
    node.kubelet.unpublish(&first).await.unwrap();
    eventually("its own object goes", || {
        cluster.status("web-shop-shop").is_null()
    })
    .await;
    assert_eq!(target("web-shop-shop-more"), json!(two));
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_object_of_upstreams_is_taken_over_and_one_of_another_node_is_left() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    let volume = volume("web");
    cluster.put_status(
        "web-shop-shop",
        json!({
            "apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClassPodStatus",
            "metadata": {
                "annotations": {"seen-by": "a tool"}, "labels": {"team": "shop"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "older"}],
            },
            "status": {"podName": "web", "mounted": true, "objects": [{"id": "x", "version": "1"}]},
        }),
    );
    node.kubelet.publish(&volume).await.unwrap();
    eventually("it has our fields", || {
        cluster.status("web-shop-shop")["status"]["conditions"].is_array()
    })
    .await;
    let object = cluster.status("web-shop-shop");
    assert_eq!(
        object["metadata"]["ownerReferences"][0]["uid"],
        "uid-of-web"
    );
    assert_eq!(
        object["metadata"]["ownerReferences"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(object["metadata"]["annotations"]["seen-by"], "a tool");
    assert_eq!(object["metadata"]["labels"]["team"], "shop");
    assert_eq!(cluster.asked(&Method::PUT, STATUSES), 1);

    // A pod of the same name is on another node by now.
    cluster.put_status("web-shop-shop", object);
    node.kubelet.unpublish(&volume).await.unwrap();
    eventually("it is asked for", || {
        cluster.asked(&Method::DELETE, STATUSES) == 1
    })
    .await;
    all_is_written(&cluster, &node).await;
    assert!(!cluster.status("web-shop-shop").is_null());
    assert_eq!(cluster.asked(&Method::DELETE, "web-shop-shop"), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn without_the_right_to_write_volumes_are_as_good_and_it_is_told_once() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    cluster.forbids(true);
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    for n in 0..5 {
        let volume = volume(&format!("p{n}"));
        node.kubelet.publish(&volume).await.unwrap();
        assert_eq!(node.read(&volume, "password"), b"correct-horse");
    }
    let told = ["status objects cannot be written"];
    eventually("it is told", || node.logged(&told) > 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.logged(&told), 1);
    assert_eq!(
        cluster.asked(&Method::POST, STATUSES),
        1,
        "a no is not asked for again"
    );
}

/// Publishes volumes of a Namespace where no status can be written, until that was tried.
async fn refused(cluster: &FakeApiServer, node: &Scripted, namespace: &str, code: u16) {
    let spec = "{provider: scripted, parameters: {objects: 'a,b'}}";
    cluster.class_in(namespace, "shop", spec, None);
    cluster.fails_in(namespace, code);
    for n in 0..20 {
        let mut volume = volume(&format!("{namespace}-{n}"));
        volume.pod.namespace = namespace.into();
        // The class comes by a watch.
        let start = Instant::now();
        while let Err(status) = node.kubelet.publish(&volume).await {
            assert!(start.elapsed() < PATIENCE, "{status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    eventually("a status was refused", || tried(cluster, namespace) > 0).await;
}

/// How often the object of any volume of a Namespace was to be made.
fn tried(cluster: &FakeApiServer, namespace: &str) -> usize {
    let of_it = format!("/namespaces/{namespace}/{STATUSES}");
    cluster.asked(&Method::POST, &of_it)
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_namespace_where_no_status_can_be_written_holds_up_no_other_one() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    for (namespace, code) in [("full", 403), ("webhook", 500)] {
        refused(&cluster, &node, namespace, code).await;
        let start = Instant::now();
        let name = format!("after-{namespace}");
        node.kubelet.publish(&volume(&name)).await.unwrap();
        exists(&cluster, &format!("{name}-shop-shop")).await;
        assert!(start.elapsed() < Duration::from_secs(8), "{namespace}");
        let tried = tried(&cluster, namespace);
        assert_eq!(tried, 1, "{namespace}: its other volumes wait");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_volume_that_stays_as_it_is_has_a_status_too() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file, immutable: true}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    node.kubelet.publish(&volume("a")).await.unwrap();
    let object = exists(&cluster, "a-shop-shop").await;
    assert!(object["status"]["objects"][0]["version"].is_string());
    assert!(object["status"]["objects"][0]["nextFetchTime"].is_null());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_name_that_would_be_too_long_is_cut_and_has_a_hash() {
    let cluster = FakeApiServer::start();
    let class = "c".repeat(200);
    cluster.class(&class, "{provider: file}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    let volume = PodVolume::of_class(pod(&"p".repeat(100)), &class);
    node.kubelet.publish(&volume).await.unwrap();
    eventually("there is an object", || !cluster.statuses().is_empty()).await;
    let names: Vec<_> = cluster.statuses().into_keys().collect();
    let name = names[0].strip_prefix("shop/").unwrap();
    assert_eq!((names.len(), name.len()), (1, 253));
    assert!(name.starts_with(&format!("{}-shop-ccc", "p".repeat(100))));
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_o3_a_version_in_a_status_is_no_hash_of_the_value() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    node.folders.secret("pin", "1234");
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let status = exists(&cluster, "a-shop-shop").await;
    let version = status["status"]["objects"][0]["version"].clone();
    let version = version.as_str().unwrap();
    assert!(!version.is_empty());
    // Who could try all values would find the one behind a plain hash.
    for value in [
        "1234",
        "correct-horse",
        "correct-horse1234",
        "1234correct-horse",
    ] {
        let hash = Sha256::digest(value);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let tail = version.rsplit('-').next().unwrap();
        assert!(!hex.contains(tail), "{version} is a hash of {value}");
    }
    // The same content in another file is another version.
    node.folders.secret("pin", "4321");
    eventually("it is another", || {
        cluster.status("a-shop-shop")["status"]["objects"][0]["version"] != version
    })
    .await;
    let other = cluster.status("a-shop-shop")["status"]["objects"][0]["version"].clone();
    node.folders.secret("pin", "1234");
    eventually("it is yet another", || {
        let now = cluster.status("a-shop-shop")["status"]["objects"][0]["version"].clone();
        now != other && now != version
    })
    .await;
}
