//! Who gets whose secrets of a real OpenBao.

use serde_json::json;
use tonic::Code;

use crate::bao::Bao;
use crate::harness::mounts;
use crate::vault::{class, node_with, of_class, role_for, volume};

const COMMON: &str = "objectName: common, secretPath: secret/data/common, secretKey: value";

async fn write(bao: &Bao, path: &str, value: &str) {
    let data = json!({"data": {"value": value}});
    bao.put(&format!("secret/data/{path}"), data).await;
}

async fn policy(bao: &Bao, name: &str, paths: &[&str]) {
    let rule = |path: &&str| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n");
    let policy: String = paths.iter().map(rule).collect();
    let path = format!("sys/policies/acl/{name}");
    bao.put(&path, json!({ "policy": policy })).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_c1_two_service_accounts_never_share_a_byte() {
    let bao = Bao::start().await;
    write(&bao, "common", "of-both").await;
    write(&bao, "web", "canary-of-web").await;
    let both = ["secret/data/common", "secret/metadata/*"];
    policy(&bao, "web", &[&both[..], &["secret/data/web"]].concat()).await;
    policy(&bao, "batch", &both).await;
    for account in ["web", "batch"] {
        let policies = json!({"token_policies": account});
        role_for(&bao, account, account, policies).await;
    }
    let counted = bao.counted().await;
    let node = node_with(&counted.url(), &[]).await;
    let own = "objectName: own, secretPath: secret/data/web, secretKey: value";
    class(&node, "web", "web", "", &[COMMON]).await;
    class(&node, "batch", "batch", "", &[COMMON]).await;
    class(&node, "own-of-web", "web", "", &[own]).await;
    class(&node, "own-as-batch", "batch", "", &[own]).await;

    for pod in 0..3 {
        for account in ["web", "batch"] {
            let volume = volume(&bao, &format!("{account}-{pod}"), account);
            let volume = of_class(volume, account);
            node.kubelet.publish(&volume).await.unwrap();
            assert_eq!(node.read(&volume, "common"), b"of-both");
        }
    }
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!(
        (count("/login"), count("GET /v1/secret/data/common")),
        (2, 2),
        "each account by itself, whatever the other has: {asked:?}"
    );

    let web = of_class(volume(&bao, "web-own", "web"), "own-of-web");
    node.kubelet.publish(&web).await.unwrap();
    assert_eq!(node.read(&web, "own"), b"canary-of-web");
    // With its own role, and with the other's.
    for (pod, class, code) in [
        ("batch-a", "own-as-batch", Code::PermissionDenied),
        ("batch-b", "own-of-web", Code::Unauthenticated),
    ] {
        let batch = of_class(volume(&bao, pod, "batch"), class);
        let status = node.kubelet.publish(&batch).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().contains("canary"), "{status}");
    }
    assert_eq!(mounts().len(), 7);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_role_bound_to_a_pod_claim_gives_each_pod_its_own_with_sharing_pod() {
    let bao = Bao::start().await;
    write(&bao, "common", "for-the-bound").await;
    let bound = json!({
        "bound_claims_type": "glob",
        "bound_claims": {"/kubernetes.io/pod/name": "bound-*"},
        "claim_mappings": {"/kubernetes.io/pod/uid": "pod"},
    });
    role_for(&bao, "bound", "web", bound).await;
    let node = node_with(&bao.url(), &[]).await;
    let pod = "objectName: pod, secretPath: auth/token/lookup-self, secretKeyPointer: /meta/pod";
    class(&node, "own", "bound", "sharing: Pod", &[COMMON, pod]).await;
    class(&node, "shared", "bound", "", &[pod]).await;

    let volumes = ["bound-a", "bound-b"].map(|name| of_class(volume(&bao, name, "web"), "own"));
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
        assert_eq!(node.read(volume, "common"), b"for-the-bound");
        assert_eq!(node.read(volume, "pod"), volume.pod.uid.as_bytes());
    }
    assert_eq!(bao.tokens().await, 2, "one for each pod");
    let other = of_class(volume(&bao, "free", "web"), "own");
    let status = node.kubelet.publish(&other).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");

    // Where the class does not say it, whoever came first speaks for all of the account.
    let shared = ["bound-c", "bound-d"].map(|name| of_class(volume(&bao, name, "web"), "shared"));
    for volume in &shared {
        node.kubelet.publish(volume).await.unwrap();
        assert_eq!(node.read(volume, "pod"), shared[0].pod.uid.as_bytes());
    }
    assert_eq!(bao.tokens().await, 3);
    assert_eq!(mounts().len(), 4);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn policy_taken_away_denies_the_next_new_pod_and_takes_nothing_from_running_ones() {
    let bao = Bao::start().await;
    write(&bao, "common", "as-it-was").await;
    policy(&bao, "web", &["secret/data/common"]).await;
    role_for(&bao, "web", "web", json!({"token_policies": "web"})).await;
    let node = node_with(&bao.url(), &[]).await;
    class(&node, "bao", "web", "refresh: {strategy: Get}", &[COMMON]).await;
    let running = volume(&bao, "running", "web");
    node.kubelet.publish(&running).await.unwrap();
    policy(&bao, "web", &["secret/data/nothing"]).await;

    let new = volume(&bao, "new", "web");
    let status = node.kubelet.publish(&new).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(
        status.message().contains("secret/data/common") && status.message().contains("role web"),
        "{status}"
    );
    for _ in 0..5 {
        node.kubelet.publish(&running).await.unwrap();
        assert_eq!(node.read(&running, "common"), b"as-it-was");
    }
    crate::harness::eventually("the loss is told", || {
        node.logged(&["volume not rotated", "PermissionDenied"]) > 0
    })
    .await;

    policy(&bao, "web", &["secret/data/common"]).await;
    write(&bao, "common", "allowed-again").await;
    for _ in 0..200 {
        node.kubelet.publish(&running).await.unwrap();
        if node.read(&running, "common") == b"allowed-again" {
            return;
        }
        // A denial is believed for a while.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    panic!("it is not fresh again:\n{}", node.log());
}
