//! A node on which everything starts at once, and one where a store hangs meanwhile.

use std::sync::Arc;
use std::time::Duration;

use coffer::fake_kubelet::PodVolume;
use coffer_provider::testing::{Answer, ScriptedProvider};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::harness::{eventually, mounts, volume};
use crate::scripted::{Scripted, volume_of};

/// Both ends of each connection are in this process.
fn allow_many_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

fn publish_all(node: &Scripted, volumes: &[PodVolume]) -> JoinSet<Result<(), Status>> {
    let mut calls = JoinSet::new();
    for volume in volumes {
        let (kubelet, volume) = (node.kubelet.clone(), volume.clone());
        calls.spawn(async move { kubelet.publish(&volume).await });
    }
    calls
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_thousand_publishes_at_once_ask_the_store_once_for_each_object_of_an_identity() {
    allow_many_descriptors();
    let node = Scripted::start_with_tokens().await;
    for object in ["a", "b", "c", "d"] {
        node.store.set_value(object, object);
    }
    node.store.set_latency(Duration::from_millis(20));
    let spec = "provider: scripted\nparameters: {objects: 'a,b,c,d'}";
    node.class("many", spec).await;
    let volumes: Vec<_> = (0..1000)
        .map(|n| {
            let mut volume = volume_of(&format!("p{n}"), &format!("account-{}", n % 50));
            let class = ("secretProviderClass".into(), "many".into());
            volume.attributes.extend([class]);
            volume
        })
        .collect();
    for done in publish_all(&node, &volumes).join_all().await {
        done.unwrap();
    }
    assert_eq!(node.store.fetches(), 50 * 4);
    assert_eq!(node.asked("read").await, 50 * 4);
    assert_eq!(mounts().len(), 1000);
    for volume in &volumes {
        assert_eq!(node.read(volume, "d"), "d", "{}", volume.pod.name);
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_change_costs_a_few_looks_however_many_volumes_are_told_of_it() {
    let node = Scripted::start().await;
    node.store.set_latency(Duration::from_millis(20));
    let volumes: Vec<_> = (0..100).map(|n| volume(&format!("p{n}"))).collect();
    for done in publish_all(&node, &volumes).join_all().await {
        done.unwrap();
    }
    let looks = async || node.asked("read").await + node.asked("unchanged").await;
    assert_eq!(looks().await, 2);
    node.store.set_value("a", "new");
    eventually("all have it", || {
        volumes.iter().all(|volume| node.read(volume, "a") == "new")
    })
    .await;
    let told = looks().await;
    // A few at most, of both objects, since the store does not say which one it is about.
    assert!(told <= 20, "{told} looks for one change");

    let mark = "annotations: {secrets-store.csi.x-k8s.io/refresh: now}";
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}";
    node.store.set_value("b", "newer");
    node.folders.class_with(
        &format!("name: shop, namespace: shop, {mark}"),
        "shop",
        spec,
    );
    eventually("all have it", || {
        volumes
            .iter()
            .all(|volume| node.read(volume, "b") == "newer")
    })
    .await;
    // The annotation comes to the driver a moment after the change, while the volumes are written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let marked = looks().await - told;
    assert!(marked <= 20, "{marked} looks for a change and a mark");
    assert_eq!(node.store.fetches(), 4, "only what is new is read");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_hundred_calls_stuck_in_a_store_take_no_slot_from_another() {
    let hung = ScriptedProvider::default();
    let other = [("hung", Arc::new(hung.clone()) as _)];
    let node = Scripted::start_with(Default::default(), other).await;
    node.class("hung", "provider: hung").await;
    let stuck: Vec<_> = (0..100)
        .map(|n| {
            let object = format!("object-{n}");
            hung.set(&object, Answer::Hang);
            let mut volume = PodVolume::of_class(volume(&format!("stuck-{n}")).pod, "hung");
            volume.attributes.insert("objects".into(), object);
            volume
        })
        .collect();
    let mut calls = publish_all(&node, &stuck);
    eventually("its own slots are taken", || hung.fetches() == 16).await;

    let volumes: Vec<_> = (0..100).map(|n| volume(&format!("p{n}"))).collect();
    for done in publish_all(&node, &volumes).join_all().await {
        done.unwrap();
    }
    assert_eq!(node.store.fetches(), 2);
    assert_eq!(mounts().len(), 100);
    node.store.set_value("a", "new");
    eventually("they rotate, too", || {
        volumes.iter().all(|volume| node.read(volume, "a") == "new")
    })
    .await;
    assert_eq!(hung.fetches(), 16, "all of them are still stuck");
    assert!(calls.try_join_next().is_none(), "and so are the calls");

    for volume in &stuck {
        node.kubelet.unpublish(volume).await.unwrap();
    }
    for done in calls.join_all().await {
        assert_eq!(done.unwrap_err().code(), Code::Aborted);
    }
    assert_eq!(mounts().len(), 100);
}
