//! What a real OpenBao is left with: counted there.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::bao::Bao;
use crate::harness::PATIENCE;
use crate::rabbitmq::{alive, enable_rabbitmq, made_and_ended, until_alive};
use crate::vault::{class, node_with, of_class, role_for, volume};

const KV: &str = "objectName: kv, secretPath: secret/data/common, secretKey: value";
const USER: &str = "objectName: user, secretPath: rabbitmq/creds/app, secretKey: username";
const PASS: &str = "objectName: pass, secretPath: rabbitmq/creds/app, secretKey: password";
const CERT: &str = "objectName: tls, secretPath: pki/issue/web, method: PUT, \
    secretArgs: {common_name: a.example.com, ttl: TTL}, format: tls";

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn vault_6_and_7_a_thousand_unchanged_rotations_leave_a_token_for_each_identity_and_a_lease_for_each_pod()
 {
    let bao = Bao::start().await;
    bao.enable_pki().await;
    let users = enable_rabbitmq(&bao, "1h", "24h").await;
    let data = json!({"data": {"value": "unchanged"}});
    bao.put("secret/data/common", data).await;
    for account in ["web", "batch"] {
        role_for(&bao, account, account, json!({})).await;
    }
    let counted = bao.counted().await;
    let node = node_with(&counted.url(), &["--store-rate=10000"]).await;
    let cert = CERT.replace("TTL", "24h");
    let mut volumes = Vec::new();
    for account in ["web", "batch"] {
        let get = "refresh: {strategy: Get}";
        class(&node, account, account, get, &[KV, USER, PASS, &cert]).await;
        for pod in 0..2 {
            let pod = volume(&bao, &format!("{account}-{pod}"), account);
            volumes.push(of_class(pod, account));
        }
    }
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
        let user = String::from_utf8(node.read(volume, "user")).unwrap();
        let made = users.seen();
        let made = made
            .iter()
            .find(|seen| seen.path == format!("/api/users/{user}"));
        let made: serde_json::Value = serde_json::from_slice(&made.unwrap().body).unwrap();
        assert_eq!(
            made["password"].as_str().unwrap().as_bytes(),
            node.read(volume, "pass")
        );
    }
    let before: Vec<_> = volumes
        .iter()
        .map(|volume| node.read(volume, "tls/tls.crt"))
        .collect();

    // Each republish is a look at the store, as often as the one before is over.
    counted.asked();
    let (mut looks, start) = (0, Instant::now());
    while looks < 1000 {
        for volume in &volumes {
            node.kubelet.publish(volume).await.unwrap();
        }
        let asked = counted.asked();
        for asked in &asked {
            let cheap = asked == "GET /v1/secret/metadata/common";
            assert!(cheap, "an unchanged rotation costs {asked}");
        }
        looks += asked.len();
        assert!(start.elapsed() < 15 * PATIENCE, "{looks} looks");
    }
    assert_eq!(bao.tokens().await, 2, "one for each identity");
    assert_eq!(made_and_ended(&users), (4, 0), "one for each pod");
    for (volume, before) in volumes.iter().zip(&before) {
        assert_eq!(node.read(volume, "tls/tls.crt"), *before);
    }

    // What a pod had goes with it, and the token with the last of its account.
    for volume in &volumes[..3] {
        node.kubelet.unpublish(volume).await.unwrap();
    }
    until_alive(&users, 1).await;
    let start = Instant::now();
    while bao.tokens().await > 1 {
        assert!(start.elapsed() < PATIENCE, "a token is left behind");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(alive(&users), 1, "batch's other pod is still there");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn vault_5_a_certificate_is_issued_no_more_than_once_in_six_tenths_of_its_life() {
    let bao = Bao::start().await;
    bao.enable_pki().await;
    role_for(&bao, "web", "web", json!({})).await;
    let counted = bao.counted().await;
    let mut node = node_with(&counted.url(), &[]).await;
    let cert = CERT.replace("TTL", "20s");
    class(&node, "bao", "web", "refresh: {interval: 10s}", &[&cert]).await;
    let volumes = ["a", "b"].map(|pod| volume(&bao, pod, "web"));
    let given = Instant::now();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    let read = |node: &crate::harness::Node| -> Vec<Vec<u8>> {
        let certificates = volumes
            .iter()
            .map(|volume| node.read(volume, "tls/tls.crt"));
        certificates.collect()
    };
    let first = read(&node);
    assert_ne!(first[0], first[1], "each pod its own");

    // A driver that starts again keeps what is good.
    node.end(nix::sys::signal::Signal::SIGKILL);
    node.run().await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        for volume in &volumes {
            node.kubelet.publish(volume).await.unwrap();
        }
        let now = read(&node);
        if given.elapsed() < Duration::from_secs(11) {
            assert_eq!(now, first, "it is good for 12 s at least");
        }
        // The republishes of a kubelet in a hurry.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let asked = counted.asked();
    let issued = asked
        .iter()
        .filter(|asked| asked.contains("pki/issue"))
        .count();
    // At the start, and once in 12 s at most.
    let most = 2 + 2 * (given.elapsed().as_secs() as usize / 12);
    assert!(
        (4..=most).contains(&issued),
        "{issued} for two pods: {asked:?}"
    );
    assert_ne!(read(&node)[0], first[0]);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn after_a_restart_leases_are_made_anew_once_before_their_end() {
    const LEASE: Duration = Duration::from_secs(60);
    let bao = Bao::start().await;
    let users = enable_rabbitmq(&bao, "60s", "1h").await;
    role_for(&bao, "web", "web", json!({})).await;
    let mut node = node_with(&bao.url(), &[]).await;
    class(
        &node,
        "bao",
        "web",
        "refresh: {interval: 10s}",
        &[USER, PASS],
    )
    .await;
    let volumes: Vec<_> = (0..5)
        .map(|pod| volume(&bao, &format!("pod-{pod}"), "web"))
        .collect();
    let given = Instant::now();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    node.end(nix::sys::signal::Signal::SIGKILL);
    node.run().await;
    while given.elapsed() < LEASE {
        for volume in &volumes {
            node.kubelet.publish(volume).await.unwrap();
            let generation =
                || std::fs::read_link(node.kubelet.target(volume).join("..data")).unwrap();
            // It may change between two files.
            let (user, pass, seen) = loop {
                let before = generation();
                let user = String::from_utf8(node.read(volume, "user")).unwrap();
                let read = (user, node.read(volume, "pass"), users.seen());
                if generation() == before {
                    break read;
                }
            };
            let mut of_it = seen
                .iter()
                .filter(|seen| seen.path == format!("/api/users/{user}"));
            let last = of_it.next_back().unwrap();
            assert_eq!(last.method, "PUT", "the user that a pod has is alive");
            let made: serde_json::Value = serde_json::from_slice(&last.body).unwrap();
            let password = made["password"].as_str().unwrap();
            assert_eq!(password.as_bytes(), pass);
        }
        let counts = made_and_ended(&users);
        if given.elapsed() < LEASE / 2 {
            assert_eq!(counts, (5, 0), "no burst at the start");
        }
        // The republishes of a kubelet in a hurry.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (made, _) = made_and_ended(&users);
    assert_eq!(made, 10, "each once");
    until_alive(&users, 5).await;
}
