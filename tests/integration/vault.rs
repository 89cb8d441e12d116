//! Secrets of a real OpenBao, from the kubelet's call to the file.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coffer::fake_kubelet::PodVolume;
use serde_json::json;
use tonic::Code;

use crate::bao::Bao;
use crate::harness::{Node, mounts, pod};

/// A volume of pod `name`, with a token that OpenBao takes for one of the API server's.
fn volume(bao: &Bao, name: &str, account: &str) -> PodVolume {
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
    node.folders.class(
        "bao",
        &format!(
            "provider: vault\nrefresh: {{interval: 10s}}\nparameters:\n  vaultAddress: {address}\n  \
             roleName: shop\n  objects: |\n    \
             - {{objectName: password, secretPath: secret/data/shop, secretKey: password}}"
        ),
    );
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
