//! Classes that mean harm, and stores that do: from the kubelet's call to its answer.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::net::TcpListener;

use crate::bao::Bao;
use crate::harness::{Node, mounts};
use crate::stand_in::{Say, StandIn};
use crate::vault::{class, node_with, of_class, role_for, volume};

const GOOD: &str = "objectName: a, secretPath: secret/data/common, secretKey: value";

async fn bao() -> Bao {
    let bao = Bao::start().await;
    let data = json!({"data": {"value": "good"}});
    bao.put("secret/data/common", data).await;
    role_for(&bao, "web", "web", json!({})).await;
    bao
}

/// Publishes a volume of this class, which must fail for this reason, and then one that must not.
async fn refused(node: &Node, bao: &Bao, name: &str, reason: &str, says: &str) {
    let hostile = of_class(volume(bao, &format!("pod-{name}"), "web"), name);
    let status = node.kubelet.publish(&hostile).await.unwrap_err();
    let message = status.message();
    assert!(message.starts_with(reason), "{name}: {status}");
    assert!(message.contains(says), "{name}: {status}");
    assert!(!message.contains("canary"), "{name}: {status}");
    let good = of_class(volume(bao, &format!("after-{name}"), "web"), "good");
    node.kubelet.publish(&good).await.unwrap();
    assert_eq!(node.read(&good, "a"), b"good", "after {name}");
    node.kubelet.unpublish(&good).await.unwrap();
    assert!(mounts().is_empty(), "{name} leaves nothing");
}

/// Resident memory of the driver, in MiB.
fn memory(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_s7_no_token_leaves_for_a_place_where_no_store_is() {
    let bao = bao().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let callers = Arc::new(AtomicUsize::new(0));
    let counting = callers.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counting.fetch_add(1, Ordering::SeqCst);
        }
    });
    // Only the default store is named: otherwise every https address may be used, but these.
    let default = format!("--vault-addr={}", bao.url());
    let node = Node::start_with(&[&default, "--vault-mount=jwt"]).await;
    class(&node, "good", "web", "", &[GOOD]).await;
    for (name, address, says) in [
        ("loopback", format!("https://127.0.0.1:{port}"), "loopback"),
        ("short", format!("https://127.1:{port}"), "loopback"),
        ("number", format!("https://2130706433:{port}"), "loopback"),
        ("unspecified", format!("https://0.0.0.0:{port}"), "loopback"),
        ("loopback-6", format!("https://[::1]:{port}"), "loopback"),
        (
            "mapped",
            format!("https://[::ffff:127.0.0.1]:{port}"),
            "loopback",
        ),
        ("name", format!("https://localhost:{port}"), "loopback"),
        ("plain", format!("http://127.0.0.1:{port}"), "https://"),
        ("metadata", "https://169.254.169.254".into(), "link-local"),
        ("metadata-6", "https://[fd00:ec2::254]".into(), "link-local"),
        (
            "socket",
            "unix:///var/run/vault/agent.sock".into(),
            "socket",
        ),
        ("user", format!("https://a:b@127.0.0.1:{port}"), "user"),
    ] {
        let spec = format!(
            "provider: vault\nparameters: {{roleName: web, vaultAddress: '{address}', objects: '- {{{GOOD}}}'}}"
        );
        node.class(name, &spec).await;
        refused(&node, &bao, name, "InvalidClass", says).await;
    }
    assert_eq!(callers.load(Ordering::SeqCst), 0, "nobody was called");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_s8_and_s10_a_hostile_class_or_store_gets_a_clear_error_and_the_driver_keeps_serving()
{
    let bao = bao().await;
    let elsewhere = StandIn::start(|_| Say::token()).await;
    let there = elsewhere.url();
    let evil = StandIn::after_login(move |seen| match seen.path.rsplit('/').next().unwrap() {
        "redirect" => Say::status(307, &format!("Location: {there}/v1/a\r\n"), ""),
        "empty" => Say::status(204, "", ""),
        "html" => Say::status(200, "Content-Type: text/html\r\n", "<html>canary</html>"),
        "deep" => {
            let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
            Say::status(
                200,
                "",
                &format!("{{\"data\":{{\"value\":{open}{close}}}}}"),
            )
        }
        "twice" => Say::status(
            200,
            "",
            r#"{"data":{"value":"canary"},"data":{"value":"canary"}}"#,
        ),
        // Four gibibytes, if anybody took them.
        "endless" => Say::Endless,
        _ => Say::Json(200, json!({"data": {"value": "canary"}})),
    })
    .await;
    let also = format!("--vault-address={}", evil.url());
    let node = node_with(&bao.url(), &[&also]).await;
    class(&node, "good", "web", "", &[GOOD]).await;
    let post = |path: &str| format!("objectName: a, secretPath: {path}, method: POST");
    for (name, object, reason, says) in [
        (
            "dots",
            "objectName: a, secretPath: secret/../sys/seal".to_owned(),
            "InvalidClass",
            "`..`",
        ),
        (
            "slashes",
            "objectName: a, secretPath: secret//common".into(),
            "InvalidClass",
            "empty",
        ),
        (
            "revoke",
            post("auth/token/revoke-self"),
            "InvalidClass",
            "tokens or leases",
        ),
        (
            "revoke-1",
            post("/v1/auth/token/revoke-self"),
            "InvalidClass",
            "tokens or leases",
        ),
        (
            "delete",
            "objectName: a, secretPath: secret/data/common, method: DELETE".into(),
            "InvalidClass",
            "method",
        ),
        (
            "out",
            "objectName: ../../etc/passwd, secretPath: secret/data/common".into(),
            "InvalidClass",
            "objectName",
        ),
        (
            "hash",
            "objectName: a, secretPath: 'secret/data/common#a'".into(),
            "InvalidClass",
            "secretPath",
        ),
    ] {
        class(&node, name, "web", "", &[&object]).await;
        refused(&node, &bao, name, reason, says).await;
    }
    let before = memory(&node);
    for (name, reason, says) in [
        ("redirect", "InvalidAnswer", "redirects"),
        ("empty", "InvalidAnswer", "empty"),
        ("html", "InvalidAnswer", "not a JSON object"),
        ("deep", "InvalidAnswer", "64 levels"),
        ("twice", "InvalidAnswer", "JSON"),
        ("endless", "TooLarge", "bytes"),
    ] {
        let spec = format!(
            "provider: vault\nparameters: {{roleName: web, vaultAddress: '{}', objects: '- {{objectName: a, secretPath: kv/{name}, secretKey: value}}'}}",
            evil.url()
        );
        node.class(name, &spec).await;
        refused(&node, &bao, name, reason, says).await;
    }
    let grown = memory(&node).saturating_sub(before);
    assert!(grown < 64, "{grown} MiB for answers of 4 MiB at most");
    assert!(
        elsewhere.seen().is_empty(),
        "no redirect took a token along"
    );
    for seen in evil.seen() {
        let token = seen.headers.get("x-vault-token");
        assert!(
            token.is_none_or(|token| token == "s.canary"),
            "only its own"
        );
    }
    assert!(!node.log().contains("canary"), "{}", node.log());
}
