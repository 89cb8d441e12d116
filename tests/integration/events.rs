//! What the owner of a pod hears of its volume, and how often.

use std::fs;
use std::time::Duration;

use axum::http::Method;
use coffer::fake_kubelet::{PodVolume, token_of};
use coffer_provider::ErrorKind;
use coffer_provider::testing::{Answer, ScriptedProvider};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::fake_api_server::FakeApiServer;
use crate::harness::{Node, counted, eventually, pod, volume};
use crate::scripted::{AUDIENCE, Scripted, by_token, seconds_from_now, with_token};

/// Long enough for what must not come.
const MEANWHILE: Duration = Duration::from_millis(500);

async fn hears(cluster: &FakeApiServer, pod: &str, reason: &str, note: &str) {
    eventually(&format!("{pod} hears of {reason}"), || {
        !cluster.notes(pod, reason).is_empty()
    })
    .await;
    assert_eq!(cluster.notes(pod, reason), [note]);
}

/// The condition of a type in a status object.
fn condition(status: &Value, kind: &str) -> Value {
    let conditions = status["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == kind)
        .cloned()
        .unwrap_or_default()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r1_a_rotation_that_fails_is_an_event_a_metric_and_a_condition_and_no_error() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let status = || cluster.status("a-shop-shop");
    eventually("there is a status", || status()["status"].is_object()).await;
    assert_eq!(condition(&status(), "Refreshed")["status"], "True");

    node.store.set(
        "b",
        Answer::Error(ErrorKind::Unavailable, "the store is down".into()),
    );
    let note = "provider scripted: the store is down; the volume keeps what it has";
    hears(&cluster, "a", "SecretsRotationFailed", note).await;
    eventually("the condition says so", || {
        condition(&status(), "Refreshed")["status"] == "False"
    })
    .await;
    let refreshed = condition(&status(), "Refreshed");
    assert_eq!(refreshed["reason"], "StoreUnavailable");
    assert_eq!(refreshed["message"], "provider scripted: the store is down");
    assert_eq!(
        status()["status"]["objects"][1]["lastError"],
        "the store is down"
    );
    assert_eq!(status()["status"]["objects"][0].get("lastError"), None);
    let labels = ["provider=\"scripted\"", "error_type=\"StoreUnavailable\""];
    let failed = counted(
        &node.http("/metrics").await,
        "rotation_reconcile_error_total",
        &labels,
    );
    assert!(failed > 0);
    for _ in 0..5 {
        node.kubelet.publish(&volume).await.expect("it is complete");
    }
    tokio::time::sleep(MEANWHILE).await;
    assert_eq!(cluster.notes("a", "SecretsRotationFailed").len(), 1, "once");
    assert_eq!(node.read(&volume, "b"), "two");

    node.store.set_value("b", "new");
    let note = "the files of the volume were replaced by newer ones";
    hears(&cluster, "a", "SecretsRotated", note).await;
    eventually("the condition is over", || {
        condition(&status(), "Refreshed")["status"] == "True"
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_event_is_about_the_pod_and_says_who_reports() {
    let cluster = FakeApiServer::start();
    cluster.class(
        "shop",
        "{provider: file, parameters: {objects: '[password]'}}",
    );
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    let mut volume = volume("a");
    volume.attributes.insert("objects".into(), "[other]".into());
    volume.attributes.insert("unused".into(), "x".into());
    node.kubelet.publish(&volume).await.unwrap();
    let note = "volumeAttributes of the pod give objects, and so does its SecretProviderClass: the class wins; remove them from the pod, or let pods win (--pod-attributes-win)";
    hears(&cluster, "a", "VolumeAttributeOverridden", note).await;
    let [event] = &cluster.events()[..] else {
        panic!("one event, not {:?}", cluster.events());
    };
    let regarding = json!({
        "apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "shop", "uid": "uid-of-a",
    });
    assert_eq!(event["regarding"], regarding);
    for (field, value) in [
        ("type", "Warning"),
        ("action", "Mount"),
        ("reportingController", "secrets-store.csi.k8s.io"),
        ("reportingInstance", "node-1"),
    ] {
        assert_eq!(event[field], value, "{field}");
    }
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert!(event["eventTime"].is_string());
    let written = "coffer_events_total{reason=\"VolumeAttributeOverridden\",outcome=\"written\"} 1";
    let mut scrape = String::new();
    for _ in 0..100 {
        scrape = node.http("/metrics").await;
        if scrape.contains(written) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{scrape}");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_pod_that_is_denied_hears_it_once_and_that_it_was_mounted_after_all() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let answer = Answer::Error(ErrorKind::PermissionDenied, "role shop may not".into());
    node.store.set("b", answer);
    let volume = volume("a");
    for _ in 0..4 {
        node.kubelet.publish(&volume).await.unwrap_err();
    }
    let note = "provider scripted: role shop may not";
    hears(&cluster, "a", "SecretsAccessDenied", note).await;
    node.store.set_value("b", "two");
    eventually_publishes(&node, &volume).await;
    let note = "the volume is mounted; before, it could not be: PermissionDenied";
    hears(&cluster, "a", "SecretsMountedLate", note).await;
    assert_eq!(cluster.notes("a", "SecretsAccessDenied").len(), 1);
    // One that could be mounted at once is no news.
    let next = crate::harness::volume("b");
    node.kubelet.publish(&next).await.unwrap();
    tokio::time::sleep(MEANWHILE).await;
    assert!(cluster.notes("b", "SecretsMountedLate").is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_namespace_where_no_event_can_be_written_holds_up_no_other_one() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let spec = "{provider: scripted, parameters: {objects: 'a,b'}}";
    cluster.class_in("webhook", "shop", spec, None);
    cluster.fails_in("webhook", 500);
    let mut first = volume("a");
    first.pod.namespace = "webhook".into();
    eventually_publishes(&node, &first).await;
    node.store.set_value("a", "new");
    let tried = || cluster.asked(&Method::POST, "/namespaces/webhook/events");
    eventually("its Event is refused", || tried() > 0).await;

    let second = volume("b");
    node.kubelet.publish(&second).await.unwrap();
    node.store.set_value("b", "new");
    let note = "the files of the volume were replaced by newer ones";
    hears(&cluster, "b", "SecretsRotated", note).await;
    assert_eq!(tried(), 3, "and it is not tried for ever");
}

/// A denial is remembered for some seconds.
async fn eventually_publishes(node: &Scripted, volume: &PodVolume) {
    for _ in 0..100 {
        if node.kubelet.publish(volume).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is never published");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_c4_a_running_pod_hears_that_its_store_says_no_now() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let answer = Answer::Error(ErrorKind::PermissionDenied, "role shop may not".into());
    node.store.set("a", answer);
    let note = "provider scripted: role shop may not; the volume keeps what it has";
    hears(&cluster, "a", "SecretsAccessDenied", note).await;
    assert_eq!(node.read(&volume, "a"), "one");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r6_r7_pods_hear_of_an_edit_that_cannot_be_and_of_a_class_that_is_gone() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    cluster.class("shop", "{provider: nobody, parameters: {objects: 'a'}}");
    let note = "SecretProviderClass shop/shop: there is no provider \"nobody\"; this node has scripted; the volume keeps what it has";
    hears(&cluster, "a", "SecretsRotationFailed", note).await;
    assert_eq!(node.read(&volume, "b"), "two");

    // Another pod, since the first one has heard something by this reason.
    cluster.class("shop", "{provider: scripted, parameters: {objects: 'a,b'}}");
    let next = crate::harness::volume("b");
    eventually_publishes(&node, &next).await;
    cluster.delete_class("shop");
    let note = "failed to get secretproviderclass shop/shop: not found, create it in the pod's Namespace; the volume keeps what it has";
    hears(&cluster, "b", "SecretsRotationFailed", note).await;
    assert_eq!(node.read(&next, "a"), "one");
    eventually("its status says so", || {
        condition(&cluster.status("b-shop-shop"), "Refreshed")["reason"] == "ClassNotFound"
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_change_that_an_immutable_volume_refuses_is_told() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    let spec = "{provider: scripted, parameters: {objects: 'a'}, immutable: true}";
    cluster.class("fixed", spec);
    let volume = PodVolume::of_class(pod("a"), "fixed");
    eventually_publishes(&node, &volume).await;
    cluster.class("fixed", &spec.replace("'a'", "'b'"));
    let note = "SecretProviderClass shop/fixed has changed, and the volume is immutable: it keeps what it has, make the pod anew for the change";
    hears(&cluster, "a", "ImmutableChangeRefused", note).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r12_the_owner_of_a_subpath_hears_that_it_stays_as_it_is() {
    let cluster = FakeApiServer::start();
    cluster.class("shop", "{provider: file}");
    let node = Node::start_with(&[&cluster.flag()]).await;
    node.classes_of_the_cluster_are_read().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let bound = "kubelet/pods/uid-of-a/volume-subpaths/secrets/web/0";
    let bound = node.folders.at(bound);
    fs::create_dir_all(bound.parent().unwrap()).unwrap();
    fs::write(&bound, "").unwrap();
    let file = fs::canonicalize(node.kubelet.target(&volume).join("password")).unwrap();
    let none = None::<&str>;
    mount(Some(&file), &bound, none, MsFlags::MS_BIND, none).unwrap();
    node.folders.secret("password", "battery-staple");
    let note = "a container mounts a file of this volume by subPath: it keeps the file of its start, and no rotation reaches it; mount the whole volume instead";
    hears(&cluster, "a", "SubPathNotRotated", note).await;
    node.kubelet.unpublish(&volume).await.unwrap();
    umount2(&bound, MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d3_two_republishes_without_a_good_token_are_told() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, by_token(AUDIENCE)).await;
    cluster.class(
        "asking",
        "{provider: scripted, parameters: {objects: 'a,b'}, refresh: {strategy: Get}}",
    );
    let mut volume = with_token(PodVolume::of_class(pod("a"), "asking"));
    eventually_publishes(&node, &volume).await;
    let token = token_of(&volume.pod);
    volume.bring_token(AUDIENCE, &token, seconds_from_now(-1));
    for _ in 0..5 {
        node.kubelet.publish(&volume).await.unwrap();
        // The schedule looks after each of them, and not once for all.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let note = "a secret is due, and no valid token of the pod has come to ask for it: the volume keeps what it has";
    hears(&cluster, "a", "SecretsRotationFailed", note).await;
    let status = || cluster.status("a-shop-asking");
    eventually("its status says so", || {
        condition(&status(), "Refreshed")["reason"] == "NoToken"
    })
    .await;
    volume.bring_token(AUDIENCE, &token, seconds_from_now(600));
    node.kubelet.publish(&volume).await.unwrap();
    eventually("that is over", || {
        condition(&status(), "Refreshed")["status"] == "True"
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn what_is_older_than_its_class_allows_is_called_stale_once() {
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, ScriptedProvider::default()).await;
    cluster.class(
        "often",
        "{provider: scripted, parameters: {objects: 'a'}, refresh: {strategy: Cache, interval: 10s}}",
    );
    let volume = PodVolume::of_class(pod("a"), "often");
    eventually_publishes(&node, &volume).await;
    node.store
        .set("a", Answer::Error(ErrorKind::Unavailable, "down".into()));
    let status = || cluster.status("a-shop-often");
    for _ in 0..300 {
        if !cluster.notes("a", "SecretsStale").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let note = "a secret has ended, or is older than refresh.interval and refresh.maxStale of its class allow: the volume keeps what it has until its store can be read again";
    hears(&cluster, "a", "SecretsStale", note).await;
    assert_eq!(
        cluster.notes("a", "SecretsRotationFailed").len(),
        1,
        "it came first"
    );
    eventually("its status says so", || {
        condition(&status(), "Stale")["status"] == "True"
    })
    .await;
    node.store.set_value("a", "new");
    for _ in 0..300 {
        if condition(&status(), "Stale")["status"] == "False" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(condition(&status(), "Stale")["status"], "False");
    assert_eq!(node.read(&volume, "a"), "new");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_o1_no_secret_and_no_token_in_what_the_api_server_is_told() {
    const CANARY: &str = "canary-51d0c7";
    let cluster = FakeApiServer::start();
    let node = Scripted::start_in(&cluster, by_token(AUDIENCE)).await;
    node.store.set_value("a", CANARY);
    let volume = with_token(volume("a"));
    node.kubelet.publish(&volume).await.unwrap();
    node.store.set_value("b", &format!("{CANARY}-2"));
    eventually("it is rotated", || {
        !cluster.notes("a", "SecretsRotated").is_empty()
    })
    .await;
    node.store.set(
        "b",
        Answer::Error(ErrorKind::InvalidAnswer, "not JSON".into()),
    );
    eventually("it fails", || {
        !cluster.notes("a", "SecretsRotationFailed").is_empty()
    })
    .await;
    eventually("the status has both objects", || {
        cluster.status("a-shop-shop")["status"]["objects"]
            .as_array()
            .map(Vec::len)
            == Some(2)
    })
    .await;
    let told = format!("{:?} {:?}", cluster.events(), cluster.statuses());
    let token = token_of(&volume.pod);
    let claims = token.split('.').nth(1).unwrap();
    for form in [
        CANARY.to_owned(),
        base64(CANARY),
        hex(CANARY),
        claims.to_owned(),
    ] {
        assert!(!told.contains(&form), "{form} in {told}");
    }
}

/// The middle of it, which does not depend on what is around.
fn base64(text: &str) -> String {
    use ::base64::Engine;
    let encoded = ::base64::prelude::BASE64_STANDARD.encode(text);
    encoded[..12].to_owned()
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
