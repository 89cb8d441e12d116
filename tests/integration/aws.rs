//! Secrets of AWS, from the kubelet's call to the file: moto counts the calls, ministack says no, and a stub of our
//! own is out of order.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer::fake_kubelet::PodVolume;
use serde_json::json;
use tonic::Code;

use crate::aws_servers::{Ministack, Moto};
use crate::aws_stub::{Reply, Stub};
use crate::harness::{Node, PATIENCE, counted, mounts, pod, replace};

pub(crate) const WEST: &str = "us-west-2";

/// The flags by which a process takes the server at `address` for AWS, and the file that they name.
pub(crate) fn flags(address: &str) -> (Vec<String>, tempfile::NamedTempFile) {
    let authority = rcgen::generate_simple_self_signed(["nowhere.example".to_owned()]).unwrap();
    let ca = tempfile::NamedTempFile::new().unwrap();
    fs::write(ca.path(), authority.cert.pem()).unwrap();
    let url = format!("http://{address}");
    let flags = vec![
        format!("--ca-file={}", ca.path().display()),
        format!("--aws-endpoint-secretsmanager={url}"),
        format!("--aws-endpoint-ssm={url}"),
        format!("--aws-endpoint-sts={url}"),
        format!("--aws-region={WEST}"),
    ];
    (flags, ca)
}

/// A driver that takes the server at `address` for AWS, without the environment of whoever runs the tests.
async fn node(address: &str, env: &[(&str, &str)]) -> Node {
    node_with(address, env, &[]).await
}

/// The same with more flags.
async fn node_with(address: &str, env: &[(&str, &str)], more: &[&str]) -> Node {
    let (flags, _ca) = flags(address);
    let flags = flags.iter().map(String::as_str).chain(more.iter().copied());
    let flags: Vec<_> = flags.collect();
    Node::start_in(&flags, env).await
}

/// A ServiceAccount of the Namespace `shop` with a role, beside the classes.
fn account(node: &Node, name: &str, role: &str) {
    let file = format!("classes/account-{name}.yaml");
    replace(&node.folders.at(&file), manifest(name, role).as_bytes());
}

pub(crate) fn manifest(name: &str, role: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  namespace: shop\n  name: {name}\n  annotations:\n    \
         eks.amazonaws.com/role-arn: arn:aws:iam::123456789012:role/{role}\n"
    )
}

async fn class(node: &Node, name: &str, fields: &str, objects: &str) {
    let objects = objects.trim().replace('\n', "\n    ");
    let spec = format!("provider: aws\n{fields}\nparameters:\n  objects: |\n    {objects}");
    node.class(name, &spec).await;
}

/// A volume of pod `name` with a token of `account` for STS.
pub(crate) fn volume(name: &str, account: &str, class: &str) -> PodVolume {
    volume_for("sts.amazonaws.com", name, account, class)
}

fn volume_for(audience: &str, name: &str, account: &str, class: &str) -> PodVolume {
    let mut pod = pod(name);
    pod.service_account.name = account.into();
    let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let claims = json!({
        "iss": "https://issuer.example",
        "sub": format!("system:serviceaccount:shop:{account}"),
        // A list by the API server; the stand-in for STS knows only this.
        "aud": audience,
        "exp": 4_000_000_000_u64,
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": {"name": account, "uid": format!("uid-of-{account}")},
            "pod": {"name": pod.name, "uid": pod.uid},
        },
    });
    let token = format!("{}.{}.c2ln", part(json!({"alg": "RS256"})), part(claims));
    let mut volume = PodVolume::of_class(pod, class);
    let expires = SystemTime::now() + Duration::from_secs(3600);
    volume.bring_token(audience, &token, expires);
    volume
}

fn calls(calls: &[(&str, usize)]) -> BTreeMap<String, usize> {
    let owned = |&(name, count): &(&str, usize)| (name.to_owned(), count);
    calls.iter().map(owned).collect()
}

/// Waits until AWS was asked for so many objects more with this outcome.
async fn asked(node: &Node, outcome: &str, times: u64) {
    let words = ["provider=\"aws\"", &format!("outcome=\"{outcome}\"")];
    let count = async || {
        let scrape = node.http("/metrics").await;
        counted(&scrape, "coffer_store_requests_total", &words)
    };
    let before = count().await;
    let start = std::time::Instant::now();
    while count().await < before + times {
        assert!(start.elapsed() < 2 * PATIENCE, "{outcome} too seldom");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Which generation a volume shows.
fn generation(node: &Node, volume: &PodVolume) -> PathBuf {
    fs::read_link(node.kubelet.target(volume).join("..data")).unwrap()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn aws_statements_2_to_5_what_a_mount_a_tick_and_a_change_cost() {
    let moto = Moto::start().await;
    for number in 0..3 {
        let name = format!("app/s{number}");
        moto.server.secret(WEST, &name, r#"{"user":"web"}"#).await;
    }
    for number in 0..12 {
        let name = format!("/app/p{number}");
        moto.server.parameter(WEST, &name, "p").await;
    }
    let node = node(&moto.server.address, &[]).await;
    account(&node, "web", "shop");
    let secrets: String = (0..3)
        .map(|n| format!("- {{objectName: app/s{n}, objectType: secretsmanager}}\n"))
        .collect();
    let parameters: String = (0..12)
        .map(|n| format!("- {{objectName: /app/p{n}, objectType: ssmparameter}}\n"))
        .collect();
    class(&node, "calm", "", &(secrets + &parameters)).await;
    let one = "- {objectName: app/s0, objectType: secretsmanager, jmesPath: [{path: user, objectAlias: user}]}";
    class(&node, "quick", "refresh: {interval: 10s}", one).await;

    moto.record().await;
    node.kubelet
        .publish(&volume("a", "web", "calm"))
        .await
        .unwrap();
    let first = calls(&[
        ("AssumeRoleWithWebIdentity", 1),
        ("BatchGetSecretValue", 1),
        // Ten in each.
        ("GetParameters", 2),
    ]);
    assert_eq!(moto.counts().await, first);

    moto.record().await;
    for number in 0..10 {
        let volume = volume(&format!("more-{number}"), "web", "calm");
        node.kubelet.publish(&volume).await.unwrap();
        assert_eq!(node.read(&volume, "_app_p11"), b"p");
    }
    assert_eq!(moto.counts().await, calls(&[]), "further pods of the role");

    let quick = ["q", "r", "s"].map(|name| volume(name, "web", "quick"));
    moto.record().await;
    for volume in &quick {
        node.kubelet.publish(volume).await.unwrap();
        assert_eq!(node.read(volume, "user"), b"web");
    }
    let mut read = moto.counts().await;
    // On a slow machine the first look comes before all three are there.
    read.remove("DescribeSecret");
    assert_eq!(read, calls(&[("GetSecretValue", 1)]));

    let before = quick.each_ref().map(|volume| generation(&node, volume));
    moto.record().await;
    asked(&node, "unchanged", 2).await;
    let mut unchanged = moto.counts().await;
    let looks = unchanged.remove("DescribeSecret").unwrap_or_default();
    assert!((2..=3).contains(&looks), "{looks} looks for three pods");
    assert_eq!(unchanged, calls(&[]));
    for (volume, before) in quick.iter().zip(&before) {
        assert_eq!(generation(&node, volume), *before, "nothing was written");
    }

    moto.record().await;
    moto.server
        .change(WEST, "app/s0", r#"{"user":"new"}"#)
        .await;
    for volume in &quick {
        node.eventually_reads(volume, "user", b"new").await;
        assert_eq!(node.read(volume, "app_s0"), br#"{"user":"new"}"#);
    }
    let mut counts = moto.counts().await;
    assert_eq!(counts.remove("PutSecretValue"), Some(1), "our own");
    assert_eq!(counts.remove("GetSecretValue"), Some(1), "{counts:?}");
    let looks = counts.remove("DescribeSecret").unwrap_or_default();
    assert!((1..=3).contains(&looks), "{looks} looks");
    assert_eq!(
        counts,
        calls(&[]),
        "no login for the rest of the token's life"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn aws_statement_10_who_is_denied_gets_an_error_of_their_own_and_no_value_of_others() {
    let aws = Ministack::start().await;
    aws.secret("app/db", "canary").await;
    let db = "arn:aws:secretsmanager:us-west-2:123456789012:secret:app/db*";
    let may_read = [
        ("secretsmanager:GetSecretValue", db),
        ("secretsmanager:DescribeSecret", db),
    ];
    aws.role("shop", "shop:web", &may_read).await;
    aws.role("poor", "shop:poor", &[]).await;
    let node = node(&aws.server.address, &[]).await;
    account(&node, "web", "shop");
    account(&node, "poor", "poor");
    // Its annotation names a role that does not trust it.
    account(&node, "stranger", "shop");
    class(
        &node,
        "db",
        "",
        "- {objectName: app/db, objectType: secretsmanager}",
    )
    .await;

    let web = volume("a", "web", "db");
    node.kubelet.publish(&web).await.unwrap();
    assert_eq!(node.read(&web, "app_db"), b"canary");
    for (name, says) in [
        (
            "poor",
            "app/db: access denied (AccessDeniedException 403, GetSecretValue in us-west-2 as arn:aws:iam::123456789012:role/poor)",
        ),
        (
            "stranger",
            "AssumeRoleWithWebIdentity in us-west-2 as system:serviceaccount:shop:stranger",
        ),
        (
            "nobody",
            "the ServiceAccount shop/nobody needs the annotation eks.amazonaws.com/role-arn",
        ),
    ] {
        let status = node.kubelet.publish(&volume(name, name, "db")).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(says), "{}", status.message());
    }
    assert_eq!(mounts().len(), 1, "nothing is left of the others");
    let again = volume("b", "web", "db");
    node.kubelet.publish(&again).await.unwrap();
    assert_eq!(node.read(&again, "app_db"), b"canary");

    // From now on the account has another role, which may read nothing: no further pod gets what the first one read.
    aws.role("less", "shop:web", &[]).await;
    account(&node, "web", "less");
    let status = node.kubelet.publish(&volume("c", "web", "db")).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("role/less"), "{status}");
    for running in [&web, &again] {
        node.kubelet.publish(running).await.unwrap();
        assert_eq!(node.read(running, "app_db"), b"canary");
    }
    assert!(!node.log().contains("canary"));
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d9_keys_of_the_environment_and_the_metadata_service_lend_no_pod_a_role() {
    let metadata = Stub::start(|_, _| Reply::Answer(200, vec![], "canary".into())).await;
    let moto = Moto::start().await;
    moto.server.secret(WEST, "app/db", "x").await;
    let url = format!("http://{}", metadata.address);
    let env = [
        ("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT"),
        ("AWS_SECRET_ACCESS_KEY", "canary"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url),
        ("AWS_ENDPOINT_URL", &url),
        ("HTTP_PROXY", &url),
    ];
    let node = node(&moto.server.address, &env).await;
    account(&node, "web", "shop");
    class(
        &node,
        "db",
        "",
        "- {objectName: app/db, objectType: secretsmanager}",
    )
    .await;
    moto.record().await;
    node.kubelet
        .publish(&volume("a", "web", "db"))
        .await
        .unwrap();
    let no_role = node.kubelet.publish(&volume("b", "nobody", "db")).await;
    assert_eq!(no_role.unwrap_err().code(), Code::PermissionDenied);
    let mut no_token = volume("c", "web", "db");
    no_token.secrets.clear();
    assert!(node.kubelet.publish(&no_token).await.is_err());

    let recorded = moto.recorded().await;
    assert_eq!(recorded.len(), 2, "a login and a read");
    for request in recorded {
        let signature = request.header("authorization").unwrap_or_default();
        assert!(!signature.contains("AKIA"), "{signature}");
    }
    assert!(metadata.seen().is_empty(), "{:?}", metadata.seen());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn aws_statement_9_an_outage_leaves_old_files_and_lets_new_pods_in_for_a_while() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    let moto = Moto::start().await;
    moto.server.secret(WEST, "app/db", "old").await;
    let throttled = Arc::new(AtomicBool::new(false));
    let (address, throttles) = (moto.server.address.clone(), throttled.clone());
    let stub = Stub::start(move |_, _| match throttles.load(Ordering::SeqCst) {
        true => Reply::throttle(),
        false => Reply::Forward(address.clone()),
    })
    .await;
    let node = node(&stub.address, &[]).await;
    account(&node, "web", "shop");
    let db = "- {objectName: app/db, objectType: secretsmanager}";
    class(
        &node,
        "stale",
        "refresh: {interval: 10s, maxStale: 10m}",
        db,
    )
    .await;
    class(&node, "strict", "refresh: {interval: 10s}", db).await;
    let (stale, strict) = (volume("a", "web", "stale"), volume("b", "web", "strict"));
    for volume in [&stale, &strict] {
        node.kubelet.publish(volume).await.unwrap();
    }

    throttled.store(true, Ordering::SeqCst);
    moto.server.change(WEST, "app/db", "new").await;
    asked(&node, "StoreUnavailable", 2).await;
    // Past the interval: what was read last is not fresh any more.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let late = volume("c", "web", "stale");
    node.kubelet.publish(&late).await.unwrap();
    let refused = node.kubelet.publish(&volume("d", "web", "strict")).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("asked too often"), "{refused}");
    for volume in [&stale, &strict, &late] {
        node.kubelet.publish(volume).await.unwrap();
        assert_eq!(node.read(volume, "app_db"), b"old");
    }
    let scrape = node.http("/metrics").await;
    assert_eq!(counted(&scrape, "coffer_cache_failing", &[]), 1);

    throttled.store(false, Ordering::SeqCst);
    for volume in [&stale, &strict, &late] {
        node.eventually_reads(volume, "app_db", b"new").await;
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn aws_pod_identity_is_asked_once_with_the_token_for_its_own_audience() {
    const AUDIENCE: &str = "pods.eks.amazonaws.com";
    let moto = Moto::start().await;
    moto.server.parameter(WEST, "/app/flag", "on").await;
    let agent = Stub::start(|_, _| {
        let lent = json!({
            "AccessKeyId": "ASIAAGENT", "SecretAccessKey": "s", "Token": "t",
            "AccountId": "123456789012", "Expiration": "2099-01-01T00:00:00.123456789Z",
        });
        Reply::Answer(200, vec![], lent.to_string())
    })
    .await;
    let address = format!("--aws-pod-identity-ipv4=http://{}", agent.address);
    let node = node_with(&moto.server.address, &[], &[&address]).await;
    let spec = "provider: aws\nparameters:\n  usePodIdentity: 'true'\n  preferredAddressType: ipv4\n  objects: |\n    \
         - {objectName: /app/flag, objectType: ssmparameter, objectAlias: flag}";
    node.class("flag", spec).await;
    for name in ["a", "b", "c"] {
        let volume = volume_for(AUDIENCE, name, "web", "flag");
        node.kubelet.publish(&volume).await.unwrap();
        assert_eq!(node.read(&volume, "flag"), b"on");
    }
    let [lent] = &agent.seen()[..] else {
        panic!("{} requests", agent.seen().len());
    };
    assert_eq!(lent.path, "/v1/credentials");
    let token = lent.header("authorization").unwrap_or_default();
    assert_eq!(token.split('.').count(), 3, "the token as it is");

    let wrong = node.kubelet.publish(&volume("d", "web", "flag")).await;
    let wrong = wrong.unwrap_err();
    assert!(wrong.message().contains(AUDIENCE), "{wrong}");
}
