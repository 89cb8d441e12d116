//! Secrets of the cluster, made from volumes: against an API server that tells who wrote what.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer::class::{ClassName, SecretProviderClass};
use coffer::fake_kubelet::PodVolume;
use coffer::sync::{CHECK, CLASS, MANAGED, SecretSync, Stamp, Synced, SyncedVolume, VERSION};
use coffer_provider::testing::ScriptedProvider;
use coffer_provider::{Provider, SecretBytes};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{eventually, mounts, pod};
use crate::scripted::Scripted;
use crate::secrets_server::{Fault, SecretsServer};

const DRIVER: &str = "secrets-store.csi.k8s.io";

/// The Secret `s` with every file of the volume.
fn all_files() -> Value {
    json!([{"secretName": "s", "allFiles": true}])
}

/// A volume of pod `name` with the class `shop`, whose file `password` has this value and version.
fn volume(name: &str, objects: Value, version: &str, password: &str) -> SyncedVolume {
    let spec = json!({"provider": "file", "secretObjects": objects});
    let class = ClassName {
        namespace: "shop".into(),
        name: "shop".into(),
    };
    let objects = [("object".to_owned(), version.to_owned())];
    SyncedVolume {
        class: Arc::new(SecretProviderClass::new(class, spec).unwrap()),
        pod: pod(name),
        files: [("password".to_owned(), SecretBytes::new(password.into()))].into(),
        stamp: Stamp::new(SystemTime::now(), objects.into()),
    }
}

fn read_before(mut volume: SyncedVolume, seconds: u64) -> SyncedVolume {
    let read = SystemTime::now() - Duration::from_secs(seconds);
    volume.stamp = Stamp::new(read, volume.stamp.objects);
    volume
}

/// A node with its own driver, which knows nothing of others.
async fn node(api: &SecretsServer) -> SecretSync {
    SecretSync::new(api.client().await.secrets(DRIVER), false)
}

async fn write(node: &SecretSync, volume: SyncedVolume, before: Option<&Synced>) -> Synced {
    node.write(volume, before, Instant::now() + Duration::from_secs(60))
        .await
}

/// The same as [`write`] of a volume that was not there before, without problems.
async fn mounted(node: &SecretSync, volume: SyncedVolume) -> Synced {
    let synced = write(node, volume, None).await;
    assert_eq!(synced.problems, Vec::<String>::new());
    synced
}

fn data(secret: &Value) -> Value {
    secret["data"].clone()
}

/// `value` in base64.
fn base64(value: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(value)
}

fn owners(secret: &Value) -> Vec<&str> {
    let owners = secret["metadata"]["ownerReferences"].as_array();
    let owners = owners.map_or(&[][..], Vec::as_slice).iter();
    owners.map(|owner| owner["uid"].as_str().unwrap()).collect()
}

/// Time goes on, for what looks at the clock and not at sockets.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_secret_is_made_whole_with_one_request_and_kept_by_its_pods_owner() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[("ReplicaSet", "web-5d", "rs-1")]);
    let objects = json!([{
        "secretName": "s", "type": "kubernetes.io/basic-auth",
        "labels": {"environment": "test"}, "annotations": {"note": "x"},
        "data": [{"objectName": "password", "key": "password"}],
    }]);
    mounted(&node(&api).await, volume("web", objects, "3", "hunter2")).await;
    let secret = api.secret("s").unwrap();
    assert_eq!(secret["type"], "kubernetes.io/basic-auth");
    assert_eq!(data(&secret), json!({"password": base64("hunter2")}));
    assert_eq!(
        secret["metadata"]["labels"],
        json!({"environment": "test", MANAGED: "true"})
    );
    assert_eq!(secret["metadata"]["annotations"]["note"], "x");
    assert_eq!(secret["metadata"]["annotations"][CLASS], "shop");
    let version = secret["metadata"]["annotations"][VERSION].as_str().unwrap();
    assert!(version.contains(r#""objects":{"object":"3"}"#), "{version}");
    assert_eq!(
        secret["metadata"]["ownerReferences"],
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "rs-1"}])
    );
    assert_eq!(api.counted().0, 1);
}

#[tokio::test]
async fn a_pod_that_nobody_owns_keeps_its_secret_itself() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    mounted(&node(&api).await, volume("web", all_files(), "1", "a")).await;
    let secret = api.secret("s").unwrap();
    assert_eq!(secret["metadata"]["ownerReferences"][0]["kind"], "Pod");
    assert_eq!(owners(&secret), ["uid-of-web"]);
    // A pod of that name that is another one by now has no say.
    api.pod("other", "uid-of-its-successor", &[]);
    mounted(&node(&api).await, volume("other", all_files(), "2", "b")).await;
    assert_eq!(
        data(&api.secret("s").unwrap()),
        json!({"password": base64("a")})
    );
}

#[tokio::test]
async fn rule_k1_every_request_is_about_the_namespace_of_the_pod() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    for name in [
        "../../../kube-system/secrets/x",
        "kube-system/x",
        "s%2F..",
        "s?x=y",
    ] {
        let objects = json!([{"secretName": name, "allFiles": true}]);
        let synced = write(&node, volume("web", objects, "1", "a"), None).await;
        let [problem] = synced.problems.as_slice() else {
            panic!("{name}");
        };
        assert!(
            problem.contains("spec.secretObjects[0].secretName: must be a name"),
            "{problem}"
        );
    }
    mounted(&node, volume("web", all_files(), "1", "a")).await;
    for request in &api.cluster().requests {
        assert!(request.contains(" /api/v1/namespaces/shop/"), "{request}");
    }
}

#[tokio::test]
async fn rule_k2_tokens_for_the_cluster_are_not_made() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    for (kind, problem) in [
        (
            "kubernetes.io/service-account-token",
            "type: a token for the API server is not made from a store",
        ),
        (
            "bootstrap.kubernetes.io/token",
            "type: lets nodes join the cluster: the administrator has to allow it",
        ),
    ] {
        let objects = json!([{"secretName": "s", "type": kind, "allFiles": true}]);
        let synced = write(&node, volume("web", objects, "1", "a"), None).await;
        assert!(
            synced.problems[0].contains(problem),
            "{:?}",
            synced.problems
        );
    }
    assert_eq!(api.counted(), (0, 0), "nobody is asked");
    // Where it is allowed, the rules of the type are what is left.
    let allowing = SecretSync::new(api.client().await.secrets(DRIVER), true);
    let objects =
        json!([{"secretName": "s", "type": "bootstrap.kubernetes.io/token", "allFiles": true}]);
    let synced = write(&allowing, volume("web", objects, "1", "a"), None).await;
    assert!(
        synced.problems[0].contains("the Namespace kube-system alone"),
        "{:?}",
        synced.problems
    );
}

#[tokio::test]
async fn rule_k3_a_secret_of_somebody_else_stays_byte_for_byte() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let foreign = json!({"type": "Opaque", "data": {"password": base64("theirs")},
        "metadata": {"labels": {"app": "theirs"}}});
    api.cluster().put("s", foreign);
    let before = api.secret("s");
    let objects =
        json!([{"secretName": "s", "allFiles": true}, {"secretName": "t", "allFiles": true}]);
    let node = node(&api).await;
    let synced = write(&node, volume("web", objects, "1", "ours"), None).await;
    assert_eq!(
        synced.problems,
        [format!(
            "Secret s is there already, and none of this driver's: it stays as it is. Delete it, take another secretName, or give it the label {MANAGED}=true"
        )]
    );
    assert_eq!(api.secret("s"), before);
    assert!(api.secret("t").is_some(), "it hinders no other one");
    // Whoever gives it the label gives it away.
    api.cluster().edit("s", |secret| {
        secret["metadata"]["labels"][MANAGED] = json!("true");
    });
    mounted(&node, volume("web", all_files(), "1", "ours")).await;
    let taken = api.secret("s").unwrap();
    assert_eq!(data(&taken), json!({"password": base64("ours")}));
    assert_eq!(taken["metadata"]["labels"]["app"], "theirs");
    // And whoever takes it off takes it over.
    api.cluster().edit("s", |secret| {
        secret["metadata"]["labels"]
            .as_object_mut()
            .unwrap()
            .remove(MANAGED);
        secret["data"] = json!({"password": base64("theirs again")});
    });
    let before = api.secret("s");
    let synced = write(&node, volume("web", all_files(), "2", "ours"), None).await;
    assert!(
        synced.problems[0].contains("none of this driver's"),
        "{:?}",
        synced.problems
    );
    assert_eq!(api.secret("s"), before);
}

#[tokio::test]
async fn rule_k3_a_secret_that_somebody_makes_at_the_same_moment_is_theirs() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let foreign =
        || json!({"type": "Opaque", "data": {"password": base64("theirs")}, "metadata": {}});
    // Between our look and our POST.
    api.meets(
        "POST",
        Fault::Before(Box::new(move |cluster| cluster.put("s", foreign()))),
    );
    let driver = node(&api).await;
    let synced = write(&driver, volume("web", all_files(), "1", "ours"), None).await;
    assert!(
        synced.problems[0].contains("none of this driver's"),
        "{:?}",
        synced.problems
    );
    assert_eq!(
        data(&api.secret("s").unwrap()),
        json!({"password": base64("theirs")})
    );

    // Between our look at one of ours and our PATCH: it is gone, and another one has its name.
    api.cluster().delete("s");
    mounted(&driver, volume("web", all_files(), "1", "ours")).await;
    let swap = move |cluster: &mut crate::secrets_server::Cluster| {
        cluster.delete("s");
        cluster.put("s", foreign());
    };
    api.meets("PATCH", Fault::Before(Box::new(swap)));
    let synced = write(&driver, volume("web", all_files(), "2", "ours"), None).await;
    assert!(
        synced.problems[0].contains("none of this driver's"),
        "{:?}",
        synced.problems
    );
    assert_eq!(
        data(&api.secret("s").unwrap()),
        json!({"password": base64("theirs")})
    );
}

#[tokio::test]
async fn rule_k3_an_owner_is_given_to_the_secret_that_was_looked_at_and_to_no_other() {
    let api = SecretsServer::start().await;
    for pod in ["web", "late"] {
        api.pod(pod, &format!("uid-of-{pod}"), &[]);
    }
    let node = node(&api).await;
    mounted(&node, volume("web", all_files(), "1", "ours")).await;
    let swap = move |cluster: &mut crate::secrets_server::Cluster| {
        cluster.delete("s");
        cluster.put("s", json!({"type": "Opaque", "data": {}, "metadata": {}}));
    };
    api.meets("PATCH", Fault::Before(Box::new(swap)));
    let synced = write(&node, volume("late", all_files(), "1", "ours"), None).await;
    assert!(
        synced.problems[0].contains("none of this driver's"),
        "{:?}",
        synced.problems
    );
    assert_eq!(owners(&api.secret("s").unwrap()), Vec::<&str>::new());
}

#[tokio::test]
async fn rule_k4_of_two_classes_the_first_keeps_the_secret() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    mounted(&node, volume("web", all_files(), "1", "first")).await;
    let before = api.secret("s");
    let mut second = volume("web", all_files(), "9", "second");
    let class = Arc::make_mut(&mut second.class);
    class.name.name = "other".into();
    let synced = write(&node, second, None).await;
    assert_eq!(
        synced.problems,
        [
            "Secret s belongs to the SecretProviderClass shop, and keeps its content: take another secretName"
        ]
    );
    assert_eq!(api.secret("s"), before);
}

#[tokio::test]
async fn rule_k5_each_owner_has_a_manager_of_its_own_and_nothing_is_deleted() {
    let api = SecretsServer::start().await;
    let nodes = [node(&api).await, node(&api).await];
    for (at, node) in nodes.iter().enumerate() {
        let (name, rs) = (format!("web-{at}"), format!("rs-{at}"));
        api.pod(
            &name,
            &format!("uid-of-{name}"),
            &[("ReplicaSet", "web", &rs)],
        );
        mounted(node, volume(&name, all_files(), "1", "a")).await;
    }
    // Known by their UIDs: both have one name.
    assert_eq!(owners(&api.secret("s").unwrap()), ["rs-0", "rs-1"]);
    let one = format!("{DRIVER} (Update)");
    assert_eq!(api.cluster().managers("s", "owner|rs-0"), [one.as_str()]);
    assert_eq!(
        api.cluster().managers("s", "owner|rs-1"),
        [format!("{DRIVER}/rs-1")]
    );
    assert_eq!(
        api.counted().0,
        2,
        "one made it, the other one is its owner too"
    );

    // A rotation on one node leaves the other one's owner.
    mounted(&nodes[0], volume("web-0", all_files(), "2", "b")).await;
    assert_eq!(owners(&api.secret("s").unwrap()), ["rs-0", "rs-1"]);
    // The cluster takes an owner away that is gone: nobody brings it back.
    api.cluster().edit("s", |secret| {
        let owners = secret["metadata"]["ownerReferences"]
            .as_array_mut()
            .unwrap();
        owners.retain(|owner| owner["uid"] != "rs-0");
    });
    mounted(&nodes[1], volume("web-1", all_files(), "2", "b")).await;
    assert_eq!(owners(&api.secret("s").unwrap()), ["rs-1"]);
    for request in &api.cluster().requests {
        let method = request.split(' ').next().unwrap();
        assert!(["GET", "POST", "PATCH"].contains(&method), "{request}");
    }
}

#[tokio::test]
async fn rule_k6_what_the_api_server_refuses_is_told_and_hinders_nobody() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    for (fault, problem, soon) in [
        (
            Fault::Answer(403, "secrets is forbidden"),
            "could not be written: the driver may not (secrets is forbidden): does the chart",
            false,
        ),
        (
            Fault::Answer(422, "metadata.labels: Invalid value"),
            "could not be written: metadata.labels: Invalid value",
            false,
        ),
        (
            Fault::Answer(413, "too large"),
            "could not be written: too large",
            false,
        ),
        (
            Fault::Answer(401, "who are you"),
            "could not be written: who are you",
            true,
        ),
        (
            Fault::Answer(500, "away"),
            "could not be written: away",
            true,
        ),
    ] {
        api.meets("POST", fault);
        let synced = write(&node, volume("web", all_files(), "1", "hunter2"), None).await;
        let [told] = synced.problems.as_slice() else {
            panic!("{problem}: {:?}", synced.problems);
        };
        assert!(told.starts_with(&format!("Secret s {problem}")), "{told}");
        assert_eq!(synced.due < Instant::now() + CHECK / 2, soon, "{told}");
    }
    // Somebody else is always faster, for a while.
    for _ in 0..5 {
        api.meets("POST", Fault::Answer(409, "already exists"));
    }
    let synced = write(&node, volume("web", all_files(), "1", "a"), None).await;
    assert!(
        synced.problems[0].contains("is written by others"),
        "{:?}",
        synced.problems
    );
    // One mebibyte is what a Secret may have.
    let large = "x".repeat((1 << 20) + 1);
    let synced = write(&node, volume("web", all_files(), "1", &large), None).await;
    assert!(
        synced.problems[0].contains("1048577 bytes, 1048576 are allowed"),
        "{:?}",
        synced.problems
    );
    // And then all is well.
    mounted(&node, volume("web", all_files(), "1", "a")).await;
}

#[tokio::test]
async fn rule_k6_an_api_server_that_hangs_is_not_waited_for() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    api.meets("GET", Fault::Hang);
    let deadline = Instant::now() + Duration::from_millis(200);
    let synced = node
        .write(volume("web", all_files(), "1", "a"), None, deadline)
        .await;
    assert!(
        synced.problems[0].contains("took too long"),
        "{:?}",
        synced.problems
    );
    assert!(
        synced.due < Instant::now() + CHECK / 2,
        "it is tried again soon"
    );
    write(&node, volume("web", all_files(), "1", "a"), Some(&synced)).await;
    assert!(api.secret("s").is_some());
}

/// Secrets that nobody changes: what is asked is whether they are the same, and nothing is written.
#[tokio::test]
async fn rule_k7_secrets_that_are_as_they_should_be_cost_no_write_and_are_never_listed() {
    const SECRETS: usize = 100;
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[("ReplicaSet", "web", "rs")]);
    let objects = |at: usize| json!([{"secretName": format!("s-{at}"), "allFiles": true}]);
    let first = node(&api).await;
    let mut volumes = Vec::new();
    for at in 0..SECRETS {
        volumes.push(mounted(&first, volume("web", objects(at), "1", "a")).await);
    }
    let (made, read) = api.counted();
    assert_eq!((made, read), (SECRETS, SECRETS));

    for round in 1..=10 {
        pass(CHECK * 2).await;
        for (at, synced) in volumes.iter_mut().enumerate() {
            *synced = write(&first, volume("web", objects(at), "1", "a"), Some(synced)).await;
            assert!(synced.problems.is_empty());
        }
        assert_eq!(
            api.counted(),
            (SECRETS, SECRETS * (round + 1)),
            "round {round}"
        );
    }
    // A process that comes after it reads each of them once.
    let second = node(&api).await;
    for at in 0..SECRETS {
        mounted(&second, volume("web", objects(at), "1", "a")).await;
    }
    assert_eq!(api.counted(), (SECRETS, SECRETS * 12));
    for request in &api.cluster().requests {
        let by_name = request.starts_with("GET /api/v1/namespaces/shop/secrets/s-")
            || request.starts_with("GET /api/v1/namespaces/shop/pods/web");
        let makes = request.starts_with("POST /api/v1/namespaces/shop/secrets?fieldManager=");
        assert!(by_name || makes, "{request}");
        assert!(!request.contains("watch"), "{request}");
    }
}

#[tokio::test]
async fn volumes_of_one_class_look_at_their_secret_together() {
    let api = SecretsServer::start().await;
    let node = node(&api).await;
    let mut pods = Vec::new();
    for at in 0..20 {
        let name = format!("web-{at}");
        api.pod(
            &name,
            &format!("uid-of-{name}"),
            &[("ReplicaSet", "web", "rs")],
        );
        pods.push((
            mounted(&node, volume(&name, all_files(), "1", "a")).await,
            name,
        ));
    }
    // Each mount has made sure that it is there.
    assert_eq!(api.counted(), (1, 20));
    pass(CHECK * 2).await;
    for (synced, name) in &pods {
        write(&node, volume(name, all_files(), "1", "a"), Some(synced)).await;
    }
    assert_eq!(api.counted(), (1, 21));
}

#[tokio::test]
async fn what_somebody_changes_in_a_secret_is_put_back_and_what_is_theirs_stays() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    let synced = mounted(&node, volume("web", all_files(), "1", "ours")).await;
    let right = json!({"password": base64("ours")});
    type Change = fn(&mut Value);
    let changes: [Change; 4] = [
        |secret| secret["data"]["password"] = json!(base64("theirs")),
        |secret| secret["data"]["more"] = json!(base64("theirs")),
        |secret| drop(secret["data"].as_object_mut().unwrap().remove("password")),
        |secret| secret["metadata"]["annotations"] = json!({"theirs": "x"}),
    ];
    for change in changes {
        api.cluster().edit("s", change);
        pass(CHECK * 2).await;
        let synced = write(
            &node,
            volume("web", all_files(), "1", "ours"),
            Some(&synced),
        )
        .await;
        assert!(synced.problems.is_empty());
        let secret = api.secret("s").unwrap();
        assert_eq!(data(&secret), right);
        assert_eq!(secret["metadata"]["annotations"][CLASS], "shop");
    }
    assert_eq!(
        api.secret("s").unwrap()["metadata"]["annotations"]["theirs"],
        "x"
    );

    // Somebody deletes it. The next look brings it back, and so does the next pod, at once.
    api.cluster().delete("s");
    pass(CHECK * 2).await;
    write(
        &node,
        volume("web", all_files(), "1", "ours"),
        Some(&synced),
    )
    .await;
    assert_eq!(data(&api.secret("s").unwrap()), right);
    api.cluster().delete("s");
    mounted(&node, volume("web", all_files(), "1", "ours")).await;
    assert_eq!(data(&api.secret("s").unwrap()), right);
}

#[tokio::test]
async fn a_rotation_changes_the_secret_and_a_key_that_is_gone_goes() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    let mut two = volume("web", all_files(), "1", "old");
    two.files
        .insert("user".into(), SecretBytes::new(b"bob".to_vec()));
    let synced = mounted(&node, two).await;
    let synced = write(&node, volume("web", all_files(), "2", "new"), Some(&synced)).await;
    assert!(synced.problems.is_empty());
    let secret = api.secret("s").unwrap();
    assert_eq!(data(&secret), json!({"password": base64("new")}));
    let version = secret["metadata"]["annotations"][VERSION].as_str().unwrap();
    assert!(version.contains(r#"{"object":"2"}"#), "{version}");
    let (writes, _) = api.counted();
    // What was just written is not looked at again before it is due.
    let reads = api.counted().1;
    write(&node, volume("web", all_files(), "2", "new"), Some(&synced)).await;
    assert_eq!(api.counted(), (writes, reads));
}

#[tokio::test]
async fn the_version_of_a_secret_never_goes_back() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let [behind, ahead] = [node(&api).await, node(&api).await];
    for (old, new) in [("4", "5"), ("AWSCURRENT a", "AWSCURRENT b")] {
        api.cluster().delete("s");
        mounted(&ahead, volume("web", all_files(), new, "new")).await;
        // A further pod on a node whose cache has not heard of it yet.
        let stale = read_before(volume("web", all_files(), old, "old"), 60);
        mounted(&behind, stale).await;
        let secret = api.secret("s").unwrap();
        assert_eq!(data(&secret), json!({"password": base64("new")}), "{old}");
        // It finds the new version too, and there is nothing to do.
        let (writes, _) = api.counted();
        mounted(&behind, volume("web", all_files(), new, "new")).await;
        assert_eq!(api.counted().0, writes);
    }
    // Between a look and the write another node writes something newer.
    api.cluster().delete("s");
    mounted(&behind, volume("web", all_files(), "1", "one")).await;
    let newer = move |cluster: &mut crate::secrets_server::Cluster| {
        cluster.edit("s", |secret| {
            secret["data"] = json!({"password": base64("three")});
            let version = r#"{"read":"2026-01-01T00:00:00Z","objects":{"object":"3"}}"#;
            secret["metadata"]["annotations"][VERSION] = json!(version);
        });
    };
    api.meets("PATCH", Fault::Before(Box::new(newer)));
    mounted(
        &behind,
        read_before(volume("web", all_files(), "2", "two"), 100_000_000),
    )
    .await;
    assert_eq!(
        data(&api.secret("s").unwrap()),
        json!({"password": base64("three")})
    );
}

#[tokio::test]
async fn an_immutable_secret_is_made_once_and_its_change_is_told() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[("ReplicaSet", "web", "rs-1")]);
    api.pod("new", "uid-of-new", &[("ReplicaSet", "web", "rs-2")]);
    let objects = || json!([{"secretName": "s", "allFiles": true, "immutable": true}]);
    let node = node(&api).await;
    let synced = mounted(&node, volume("web", objects(), "1", "old")).await;
    assert_eq!(api.secret("s").unwrap()["immutable"], true);
    let synced = write(&node, volume("web", objects(), "2", "new"), Some(&synced)).await;
    assert_eq!(
        synced.problems,
        ["Secret s is immutable, and keeps its content: delete it for the change"]
    );
    assert_eq!(
        data(&api.secret("s").unwrap()),
        json!({"password": base64("old")})
    );
    // Who keeps it is not content.
    mounted(&node, volume("new", objects(), "1", "old")).await;
    assert_eq!(owners(&api.secret("s").unwrap()), ["rs-1", "rs-2"]);
    // A class that wants it changeable again cannot have that, and is not refused for it.
    mounted(&node, volume("web", all_files(), "1", "old")).await;
    assert_eq!(api.secret("s").unwrap()["immutable"], true);
}

#[tokio::test]
async fn a_secret_that_upstream_made_is_adopted_with_its_owners() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[("ReplicaSet", "web", "rs-2")]);
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs-1"});
    api.cluster().put(
        "s",
        json!({
            "type": "Opaque",
            "data": {"password": base64("old"), "gone": base64("x")},
            "metadata": {"labels": {MANAGED: "true", "theirs": "x"}, "ownerReferences": [owner]},
        }),
    );
    mounted(&node(&api).await, volume("web", all_files(), "1", "new")).await;
    let secret = api.secret("s").unwrap();
    assert_eq!(data(&secret), json!({"password": base64("new")}));
    assert_eq!(secret["metadata"]["labels"]["theirs"], "x");
    assert_eq!(secret["metadata"]["annotations"][CLASS], "shop");
    assert_eq!(owners(&secret), ["rs-1", "rs-2"]);
}

#[tokio::test]
async fn a_type_that_cannot_change_is_told() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    mounted(&node, volume("web", all_files(), "1", "a")).await;
    let objects = json!([{"secretName": "s", "allFiles": true, "type": "example.com/mine"}]);
    let synced = write(&node, volume("web", objects, "1", "a"), None).await;
    assert_eq!(
        synced.problems,
        ["Secret s has the type Opaque, which cannot be changed: delete it for the change"]
    );
}

/// As when a Deployment of many replicas starts all over the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_come_at_once_make_one_secret_with_all_owners() {
    let api = SecretsServer::start().await;
    let mut nodes = Vec::new();
    for at in 0..5 {
        let name = format!("web-{at}");
        api.pod(
            &name,
            &format!("uid-of-{name}"),
            &[("ReplicaSet", "web", &format!("rs-{at}"))],
        );
        let node = node(&api).await;
        nodes.push(tokio::spawn(async move {
            let mut synced = write(&node, volume(&name, all_files(), "1", "a"), None).await;
            while !synced.problems.is_empty() {
                synced = write(&node, volume(&name, all_files(), "1", "a"), Some(&synced)).await;
            }
        }));
    }
    for node in nodes {
        node.await.unwrap();
    }
    let secret = api.secret("s").unwrap();
    let mut owners = owners(&secret);
    owners.sort_unstable();
    assert_eq!(owners, ["rs-0", "rs-1", "rs-2", "rs-3", "rs-4"]);
    assert_eq!(data(&secret), json!({"password": base64("a")}));
}

#[tokio::test]
async fn no_value_is_in_what_is_told() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let node = node(&api).await;
    let types = [
        "kubernetes.io/tls",
        "kubernetes.io/ssh-auth",
        "kubernetes.io/dockercfg",
        "kubernetes.io/dockerconfigjson",
    ];
    let keys = [
        ("tls.crt", "tls.key"),
        ("ssh-privatekey", "x"),
        (".dockercfg", "x"),
        (".dockerconfigjson", "x"),
    ];
    for (kind, (one, other)) in types.into_iter().zip(keys) {
        let objects = json!([
            {"secretName": "s", "type": kind, "data": [
                {"objectName": "password", "key": one}, {"objectName": "password", "key": other}]},
            {"secretName": "t", "data": [{"objectName": "password", "split": "JSON"}]},
        ]);
        let synced = write(&node, volume("web", objects, "1", "{\"hunter2"), None).await;
        assert_eq!(synced.problems.len(), 2);
        for problem in synced.problems {
            assert!(
                problem.starts_with("SecretProviderClass shop/shop: spec.secretObjects["),
                "{problem}"
            );
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
    assert_eq!(api.counted().0, 0);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_secret_is_there_when_the_publish_answers_and_changes_with_the_files() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[("ReplicaSet", "web", "rs-1")]);
    let secrets = "[{secretName: s, data: [{objectName: a, key: password}]}]";
    let node = Scripted::start_syncing(api.client().await, secrets).await;
    let volume = crate::harness::volume("web");
    node.kubelet.publish(&volume).await.unwrap();
    let password = |value: &str| json!({"password": base64(value)});
    assert_eq!(data(&api.secret("s").unwrap()), password("one"));
    assert_eq!(node.read(&volume, "a"), "one");

    // The kubelet repeats itself, and nobody is asked.
    let requests = api.cluster().requests.len();
    for _ in 0..20 {
        node.kubelet.publish(&volume).await.unwrap();
    }
    assert_eq!(api.cluster().requests.len(), requests);

    node.store.set_value("a", "three");
    node.folders.class_with(
        "name: shop, namespace: shop, annotations: {secrets-store.csi.x-k8s.io/refresh: now}",
        "shop",
        &format!("provider: scripted\nparameters: {{objects: 'a,b'}}\nsecretObjects: {secrets}"),
    );
    eventually("the file changes", || node.read(&volume, "a") == "three").await;
    assert_eq!(data(&api.secret("s").unwrap()), password("three"));
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_k6_a_volume_is_mounted_whatever_becomes_of_its_secrets() {
    let api = SecretsServer::start().await;
    for pod in ["web", "late"] {
        api.pod(pod, &format!("uid-of-{pod}"), &[]);
    }
    let foreign = json!({"type": "Opaque", "data": {"password": base64("theirs")}, "metadata": {}});
    api.cluster().put("s", foreign);
    let before = api.secret("s");
    let secrets = "[{secretName: s, allFiles: true}, {secretName: t, allFiles: true}]";
    let node = Scripted::start_syncing(api.client().await, secrets).await;
    let volume = crate::harness::volume("web");
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(mounts().len(), 1);
    assert_eq!(node.read(&volume, "a"), "one");
    assert_eq!(api.secret("s"), before);
    assert!(api.secret("t").is_some());

    // The API server forgets what it should do: it is tried again, by nobody's call.
    api.cluster().delete("t");
    api.meets("POST", Fault::Answer(500, "away"));
    let late = crate::harness::volume("late");
    node.kubelet.publish(&late).await.unwrap();
    assert_eq!(node.read(&late, "a"), "one");
    assert!(api.secret("t").is_none());
    eventually("it is made up for", || api.secret("t").is_some()).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_api_server_that_hangs_holds_up_no_other_volume_and_no_unpublish() {
    const PODS: usize = 20;
    let api = SecretsServer::start().await;
    let plain = ScriptedProvider::default();
    plain.set_value("p", "before");
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}\n\
                secretObjects: [{secretName: s, allFiles: true}]";
    let others: [(&str, Arc<dyn Provider>); 1] = [("plain", Arc::new(plain.clone()))];
    let node = Scripted::start_syncing_with(api.client().await, spec, others).await;
    let class = "provider: plain\nparameters: {objects: p}";
    node.folders.class("plain", class);
    let file = PodVolume::of_class(pod("plain"), "plain");
    node.kubelet.publish(&file).await.unwrap();
    let volumes: Vec<_> = (0..PODS)
        .map(|n| crate::harness::volume(&format!("p{n}")))
        .collect();
    for volume in &volumes {
        api.pod(&volume.pod.name, &volume.pod.uid, &[]);
        node.kubelet.publish(volume).await.unwrap();
    }

    let requests = api.cluster().requests.len();
    for _ in 0..PODS {
        api.meets("GET", Fault::Hang);
        api.meets("PATCH", Fault::Hang);
    }
    node.store.set_value("a", "new");
    eventually("the API server is asked", || {
        api.cluster().requests.len() > requests
    })
    .await;
    let start = Instant::now();
    plain.set_value("p", "after");
    eventually("the plain volume is written", || {
        node.read(&file, "p") == "after"
    })
    .await;
    for volume in &volumes {
        node.kubelet.unpublish(volume).await.unwrap();
    }
    // A hung request is given up after ten seconds.
    assert!(start.elapsed() < Duration::from_secs(8), "{start:?}");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_new_process_reads_each_secret_once_and_asks_no_store() {
    let api = SecretsServer::start().await;
    api.pod("web", "uid-of-web", &[]);
    let secrets = "[{secretName: s, allFiles: true}]";
    let mut node = Scripted::start_syncing(api.client().await, secrets).await;
    let volume = crate::harness::volume("web");
    node.kubelet.publish(&volume).await.unwrap();
    let reads = |api: &SecretsServer| api.counted().1;
    let (writes, before) = api.counted();

    node.restart().await;
    node.kubelet.publish(&volume).await.unwrap();
    eventually("it is looked at", || reads(&api) == before + 1).await;
    assert_eq!(api.counted().0, writes);

    // Somebody deletes it while there is no driver: what is in the volume is all that it takes.
    api.cluster().delete("s");
    node.restart().await;
    node.kubelet.publish(&volume).await.unwrap();
    eventually("it is back", || api.secret("s").is_some()).await;
    let expected = json!({"a": base64("one"), "b": base64("two")});
    assert_eq!(data(&api.secret("s").unwrap()), expected);
    assert_eq!(
        node.asked("read").await,
        0,
        "by the process that is there now"
    );
}
