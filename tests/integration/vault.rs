//! Secrets of a real OpenBao, from the kubelet's call to the file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coffer::fake_kubelet::PodVolume;
use coffer_provider::Provider;
use coffer_provider_vault::{Settings, VaultProvider};
use serde_json::json;
use tonic::Code;

use crate::bao::Bao;
use crate::harness::{Node, eventually, mounts, pod};
use crate::scripted::Scripted;
use crate::secrets_server::SecretsServer;
use crate::stand_in::{Say, StandIn};

/// A volume of pod `name` with the class `bao`, and a token that OpenBao takes for one of the API server's.
pub(crate) fn volume(bao: &Bao, name: &str, account: &str) -> PodVolume {
    let mut pod = pod(name);
    pod.service_account.name = account.into();
    let now = SystemTime::now();
    let expires = now + Duration::from_secs(3600);
    let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = bao.sign(&json!({
        "sub": format!("system:serviceaccount:shop:{account}"),
        "aud": ["vault"],
        "iat": unix(now),
        "nbf": unix(now),
        "exp": unix(expires),
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": {"name": account, "uid": format!("uid-of-{account}")},
            "pod": {"name": pod.name, "uid": pod.uid},
        },
    }));
    let mut volume = PodVolume::of_class(pod, "bao");
    volume.bring_token("vault", &token, expires);
    volume
}

/// A node whose classes may ask OpenBao, or what stands before it, and what that may be.
pub(crate) async fn node_with(address: &str, flags: &[&str]) -> Node {
    let allowed = format!("--vault-address={address}");
    let default = format!("--vault-addr={address}");
    let mut all = vec![allowed.as_str(), default.as_str(), "--vault-mount=jwt"];
    all.extend(flags);
    Node::start_with(&all).await
}

/// Writes a class of the role `role` with these fields and objects, each on a line of its own.
pub(crate) async fn class(node: &Node, name: &str, role: &str, fields: &str, objects: &[&str]) {
    let objects: String = objects
        .iter()
        .map(|object| format!("\n    - {{{object}}}"))
        .collect();
    let spec = format!(
        "provider: vault\n{fields}\nparameters:\n  roleName: {role}\n  objects: |{objects}"
    );
    node.class(name, &spec).await;
}

/// The same volume with another class.
pub(crate) fn of_class(mut volume: PodVolume, class: &str) -> PodVolume {
    let class = ("secretProviderClass".into(), class.into());
    volume.attributes.extend([class]);
    volume
}

/// Makes a role for ServiceAccount `account` of the Namespace `shop`.
pub(crate) async fn role_for(bao: &Bao, role: &str, account: &str, more: serde_json::Value) {
    let mut fields = json!({"bound_subject": format!("system:serviceaccount:shop:{account}")});
    for (name, value) in more.as_object().unwrap() {
        fields[name] = value.clone();
    }
    bao.put(&format!("auth/jwt/role/{role}"), bao.role(fields))
        .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn vault_3_a_class_of_another_namespace_is_none() {
    let bao = Bao::start().await;
    let node = node_with(&bao.url(), &[]).await;
    let spec = "provider: vault\nparameters: {roleName: shop, objects: '- {objectName: a, secretPath: secret/data/a}'}";
    node.folders
        .class_with("name: bao, namespace: other", "other", spec);
    let status = node.kubelet.publish(&volume(&bao, "a", "web")).await;
    let status = status.unwrap_err();
    assert!(status.message().starts_with("ClassNotFound"), "{status}");
    assert_eq!(bao.tokens().await, 0);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_secret_of_openbao_is_mounted_for_its_account_and_rotated() {
    let bao = Bao::start().await;
    let password = |value: &str| json!({"data": {"password": value}});
    bao.put("secret/data/shop", password("correct-horse")).await;
    let role = bao.role(json!({"bound_subject": "system:serviceaccount:shop:web"}));
    bao.put("auth/jwt/role/shop", role).await;

    let address = bao.url();
    let allowed = format!("--vault-address={address}");
    let node = Node::start_with(&[&allowed, "--vault-mount=jwt"]).await;
    let spec = format!(
        "provider: vault\nrefresh: {{interval: 10s}}\nparameters:\n  vaultAddress: {address}\n  \
         roleName: shop\n  objects: |\n    \
         - {{objectName: password, secretPath: secret/data/shop, secretKey: password}}"
    );
    node.class("bao", &spec).await;
    let before = bao.tokens().await;
    let volumes = ["a", "b"].map(|name| volume(&bao, name, "web"));
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
        assert_eq!(node.read(volume, "password"), b"correct-horse");
    }
    assert_eq!(bao.tokens().await, before + 1, "one login for the account");

    let stranger = volume(&bao, "c", "batch");
    let status = node.kubelet.publish(&stranger).await.unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated
        ),
        "{status}"
    );
    assert_eq!(mounts().len(), 2);

    bao.put("secret/data/shop", password("battery-staple"))
        .await;
    for volume in &volumes {
        node.eventually_reads(volume, "password", b"battery-staple")
            .await;
    }
    for volume in &volumes {
        node.kubelet.unpublish(volume).await.unwrap();
    }
    assert!(!node.log().contains("battery-staple") && !node.log().contains("correct-horse"));
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn what_a_store_tells_is_in_the_volume_long_before_the_next_look() {
    // A stand-in of our own for Vault Enterprise, which has events.
    let (events, _) = tokio::sync::broadcast::channel(16);
    let (told, version) = (events.clone(), Arc::new(AtomicU64::new(1)));
    let present = version.clone();
    let store = StandIn::after_login(move |seen| {
        let number = present.load(Ordering::SeqCst);
        let created = "2026-01-01T00:00:00Z";
        match seen.path.as_str() {
            path if path.contains("/events/") => Say::Events(told.clone()),
            path if path.contains("/ui/mounts/") => Say::Json(
                200,
                json!({"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}),
            ),
            "/v1/secret/metadata/shop" => Say::Json(
                200,
                json!({"data": {"current_version": number,
                    "versions": {number.to_string(): {"created_time": created, "deletion_time": "", "destroyed": false}}}}),
            ),
            _ => Say::Json(
                200,
                json!({"data": {"data": {"value": format!("v{number}")},
                    "metadata": {"version": number, "created_time": created}}}),
            ),
        }
    })
    .await;
    let node = node_with(&store.url(), &["--vault-events"]).await;
    let object = "objectName: a, secretPath: secret/data/shop, secretKey: value";
    class(&node, "bao", "web", "refresh: {interval: 1h}", &[object]).await;
    let bao_of_nobody = Bao::start().await;
    let volume = volume(&bao_of_nobody, "a", "web");
    node.kubelet.publish(&volume).await.unwrap();
    let subscribed = || {
        store
            .seen()
            .iter()
            .any(|seen| seen.path.contains("/events/"))
    };
    eventually("the events are followed", subscribed).await;
    for number in 2..5_u64 {
        version.store(number, Ordering::SeqCst);
        let event = json!({"data": {"event": {"metadata": {"path": "secret/data/shop", "modified": "true"}}}});
        events.send(event.to_string()).unwrap();
        node.eventually_reads(&volume, "a", format!("v{number}").as_bytes())
            .await;
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn vault_2_a_value_of_openbao_becomes_a_secret_of_the_cluster() {
    let bao = Bao::start().await;
    // "correct-horse", as it was stored by somebody who encodes.
    let stored = json!({"data": {"password": "Y29ycmVjdC1ob3JzZQ=="}});
    bao.put("secret/data/shop", stored).await;
    role_for(&bao, "shop", "web", json!({})).await;
    let provider = VaultProvider::new(Settings {
        address: Some(bao.url()),
        allowed_addresses: vec![bao.url()],
        auth_mount: "jwt".into(),
        ..Settings::default()
    });
    let api = SecretsServer::start().await;
    api.pod("web-0", "uid-of-web-0", &[("ReplicaSet", "web", "rs-1")]);
    let spec = "provider: vault
parameters:
  roleName: shop
  objects: |
    - {objectName: nested/password, secretPath: /v1/secret/data/shop, secretKey: password, encoding: base64}
secretObjects:
- secretName: shop
  type: Opaque
  labels: {environment: test}
  data: [{objectName: nested/password, key: password}]";
    let vault: Arc<dyn Provider> = Arc::new(provider.unwrap());
    let node = Scripted::start_syncing_with(api.client().await, spec, [("vault", vault)]).await;
    let volume = of_class(volume(&bao, "web-0", "web"), "shop");
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "nested/password"), "correct-horse");

    let secret = api.secret("shop").unwrap();
    assert_eq!(secret["data"], json!({"password": "Y29ycmVjdC1ob3JzZQ=="}));
    let labels = &secret["metadata"]["labels"];
    assert_eq!(labels["environment"], "test");
    assert_eq!(labels["secrets-store.csi.k8s.io/managed"], "true");
    let owners = secret["metadata"]["ownerReferences"].as_array().unwrap();
    let owners: Vec<_> = owners.iter().map(|owner| &owner["uid"]).collect();
    assert_eq!(owners, ["rs-1"]);
}
