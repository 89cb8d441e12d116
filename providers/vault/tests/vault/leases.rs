//! Leases of a real engine: RabbitMQ's, at a stand-in that sees every user come and go.

use std::time::Duration;

use coffer_provider::{Caller, ErrorKind, Lease, Life, Secret, Sharing, Source};
use serde_json::{Value, json};

use crate::bao::Bao;
use crate::rabbitmq::{alive, enable_rabbitmq, until_alive};
use crate::stand_in::StandIn;
use crate::{class, good, provider, read, read_one, source, text};

const CREDS: &str = "
- {objectName: user, secretPath: rabbitmq/creds/app, secretKey: username}
- {objectName: pass, secretPath: rabbitmq/creds/app, secretKey: password}
";
const USER: &str = "- {objectName: user, secretPath: rabbitmq/creds/app, secretKey: username}";

/// OpenBao with the engine, and the server whose users it makes.
pub(crate) async fn with_rabbitmq(ttl: &str, max_ttl: &str) -> (Bao, StandIn) {
    let bao = Bao::start().await;
    let users = enable_rabbitmq(&bao, ttl, max_ttl).await;
    (bao, users)
}

fn leased(life: &Life) -> (&Lease, Duration, bool) {
    match life {
        Life::Leased {
            lease,
            duration,
            renewable,
        } => (lease, *duration, *renewable),
        _ => panic!("it is leased"),
    }
}

async fn lease(source: &dyn Source, caller: &Caller) -> Secret {
    let secret = good(read_one(source, caller).await);
    leased(&secret.life);
    secret
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_6_two_objects_of_one_path_are_one_lease() {
    let (bao, users) = with_rabbitmq("30s", "90s").await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(CREDS));
    let answers = read(&*source, &bao.app()).await;
    let [user, pass] = answers.try_into().ok().unwrap();
    let (user, pass) = (good(user), good(pass));
    let made = users.seen();
    let made = made
        .iter()
        .find(|seen| seen.path.starts_with("/api/users/") && seen.method == "PUT");
    let made = made.unwrap();
    assert_eq!(made.path, format!("/api/users/{}", text(&user)));
    let body: Value = serde_json::from_slice(&made.body).unwrap();
    assert_eq!(body["password"], text(&pass));
    assert_eq!(alive(&users), 1);
    assert_eq!(user.version, pass.version);
    assert_eq!(
        user.sharing,
        Sharing::Pod,
        "what was made for one pod is not another's"
    );
    let (lease, duration, renewable) = leased(&user.life);
    assert_eq!((duration, renewable), (Duration::from_secs(30), true));
    assert!(!user.version.as_str().contains(lease.expose()));
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_is_renewed_until_its_last_end_and_then_says_so() {
    let (bao, users) = with_rabbitmq("20s", "32s").await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    let (handle, _, _) = leased(&secret.life);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let renewed = source.renew(&caller, handle).await.ok().unwrap();
    let (again, duration, renewable) = leased(&renewed);
    assert_eq!(
        (again.expose(), duration, renewable),
        (handle.expose(), Duration::from_secs(20), true)
    );

    // 20 s have passed, and it may live for 32: the twenty that were asked for are not to be had.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let truncated = source.renew(&caller, handle).await.ok().unwrap();
    let (_, duration, renewable) = leased(&truncated);
    assert!(duration <= Duration::from_secs(12), "{duration:?}");
    assert!(
        !renewable,
        "there is no more of it: it has to be fetched anew"
    );
    until_alive(&users, 0).await;
    let error = source.renew(&caller, handle).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!error.to_string().contains("rabbitmq"), "{error}");
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_that_is_released_ends_at_once_without_a_policy_for_it() {
    let (bao, users) = with_rabbitmq("1h", "2h").await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let (one, two) = (
        lease(&*source, &caller).await,
        lease(&*source, &caller).await,
    );
    assert_eq!(alive(&users), 2);
    let (first, _, _) = leased(&one.life);
    source
        .release(&caller, std::slice::from_ref(first), Duration::ZERO)
        .await;
    until_alive(&users, 1).await;
    let (second, _, _) = leased(&two.life);
    assert!(
        source.renew(&caller, second).await.is_ok(),
        "the other one lives on"
    );
    let asked = counted.asked();
    assert!(
        !asked.iter().any(|asked| asked.contains("leases/revoke")),
        "{asked:?}"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_that_another_one_replaces_ends_after_its_grace_whatever_becomes_of_the_driver() {
    let (bao, users) = with_rabbitmq("1h", "2h").await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    let (handle, _, _) = leased(&secret.life);
    let grace = Duration::from_secs(20);
    source
        .release(&caller, std::slice::from_ref(handle), grace)
        .await;
    drop((source, provider));
    tokio::time::sleep(grace / 4).await;
    assert_eq!(alive(&users), 1, "whoever reads it now has a moment");
    until_alive(&users, 0).await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_that_cannot_be_shortened_is_revoked_after_its_grace_where_that_is_allowed() {
    let (bao, users) = with_rabbitmq("1h", "2h").await;
    let policy = r#"path "rabbitmq/creds/*" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }"#;
    bao.put("sys/policies/acl/app", json!({ "policy": policy }))
        .await;
    bao.put(
        "auth/jwt/role/app",
        bao.role(json!({"token_no_default_policy": true})),
    )
    .await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    let (handle, _, _) = leased(&secret.life);
    let grace = Duration::from_secs(10);
    source
        .release(&caller, std::slice::from_ref(handle), grace)
        .await;
    assert_eq!(alive(&users), 1);
    until_alive(&users, 0).await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_outlives_a_crash_of_the_store_and_is_renewed_after_it() {
    let mut bao = Bao::start_kept().await;
    let users = enable_rabbitmq(&bao, "1h", "2h").await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    let (handle, _, _) = leased(&secret.life);
    bao.kill();
    let error = source.renew(&caller, handle).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    bao.wake().await;
    assert!(source.renew(&caller, handle).await.is_ok());
    assert_eq!(
        (alive(&users), bao.tokens().await),
        (1, 1),
        "with the same token"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn the_leases_of_an_identity_end_when_it_is_logged_out() {
    let (bao, users) = with_rabbitmq("1h", "2h").await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    source.log_out(&caller).await;
    until_alive(&users, 0).await;
    assert_eq!(bao.tokens().await, 0);
    let (handle, _, _) = leased(&secret.life);
    let error = source.renew(&caller, handle).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_lives_no_longer_than_its_token() {
    let (bao, users) = with_rabbitmq("1h", "2h").await;
    let short = json!({"token_ttl": "10s", "token_explicit_max_ttl": "10s"});
    bao.put("auth/jwt/role/app", bao.role(short)).await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    let (handle, duration, _) = leased(&secret.life);
    assert!(duration <= Duration::from_secs(10), "{duration:?}");

    // The token is replaced before its end, but goes on for what hangs on it.
    tokio::time::sleep(Duration::from_millis(7500)).await;
    let fresh = lease(&*source, &caller).await;
    let fresh_token = source.renew(&caller, leased(&fresh.life).0).await;
    assert!(fresh_token.is_ok());
    if let Err(error) = source.renew(&caller, handle).await {
        assert_eq!(
            error.kind(),
            ErrorKind::NotFound,
            "its end cannot be moved any more"
        );
    }
    until_alive(&users, 1).await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_role_that_may_not_renew_is_told_and_not_asked_in_a_loop() {
    let (bao, _users) = with_rabbitmq("1h", "2h").await;
    bao.put(
        "auth/jwt/role/app",
        bao.role(json!({"token_no_default_policy": true})),
    )
    .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(USER));
    let caller = bao.app();
    let secret = lease(&*source, &caller).await;
    counted.asked();
    let error = source
        .renew(&caller, leased(&secret.life).0)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(counted.asked(), ["POST /v1/sys/leases/renew"]);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_that_cannot_be_renewed_says_so() {
    let bao = Bao::start().await;
    bao.put("sys/mounts/ssh", json!({"type": "ssh"})).await;
    bao.put(
        "ssh/roles/otp",
        json!({"key_type": "otp", "default_user": "ubuntu", "cidr_list": "0.0.0.0/0"}),
    )
    .await;
    let policy = json!({"policy": r#"path "ssh/creds/*" { capabilities = ["update"] }"#});
    bao.put("sys/policies/acl/app", policy).await;
    let provider = provider(&[&bao.url()]);
    let object = "- {objectName: otp, secretPath: ssh/creds/otp, method: PUT, secretArgs: {ip: 10.0.0.1}, secretKey: key}";
    let source = source(&provider, &class(object));
    let secret = lease(&*source, &bao.app()).await;
    let (_, duration, renewable) = leased(&secret.life);
    assert!(!renewable);
    assert!(
        duration <= Duration::from_secs(20 * 60),
        "the token ends first: {duration:?}"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_lease_that_nothing_can_be_made_of_is_given_back() {
    let (bao, users) = with_rabbitmq("1h", "2h").await;
    let provider = provider(&[&bao.url()]);
    let misspelt = "- {objectName: a, secretPath: rabbitmq/creds/app, secretKey: pasword}";
    let source = source(&provider, &class(misspelt));
    let error = read_one(&*source, &bao.app()).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "rabbitmq/creds/app: it has no key pasword"
    );
    until_alive(&users, 0).await;
}
