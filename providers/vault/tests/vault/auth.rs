//! Logins: who is taken for whom, how often, and what is left behind.

use std::time::Duration;

use coffer_provider::{Caller, ErrorKind, IdentifiedBy, Sharing, Source};
use coffer_provider_vault::{Flavour, Settings, VaultProvider};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::bao::Bao;
use crate::stand_in::{Say, StandIn};
use crate::{bad, class, good, provider, read_one, settings, source, text, with};

const OBJECT: &str = "- {objectName: a, secretPath: secret/data/db, secretKey: user}";

const NOTHING: &str = r#"path "nothing" { capabilities = ["read"] }"#;

async fn with_db() -> Bao {
    let bao = Bao::start().await;
    bao.put("secret/data/db", json!({"data": {"user": "u1"}}))
        .await;
    bao
}

async fn refused(source: &dyn Source, caller: &Caller, kind: ErrorKind, says: &[&str]) {
    let error = bad(read_one(source, caller).await);
    assert_eq!(error.kind(), kind, "{error}");
    for says in says {
        assert!(
            error.to_string().contains(says),
            "{error} does not say {says}"
        );
    }
    let again = bad(read_one(source, caller).await);
    assert_eq!(
        again.to_string(),
        error.to_string(),
        "it is the same each time"
    );
    if let Some(token) = &caller.token {
        assert!(!format!("{error:?}").contains(token.expose()));
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_8_and_12_jwt_auth_takes_the_right_service_account_only() {
    let bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    for parameters in [
        &[][..],
        &[("vaultAuthMountPath", "jwt")],
        &[("vaultKubernetesMountPath", "/jwt/")],
    ] {
        let source = source(&provider, &with(parameters, OBJECT));
        assert_eq!(text(&good(read_one(&*source, &bao.app()).await)), "u1");
    }
    let source = source(&provider, &class(OBJECT));
    let stranger = bao.pod("other", "vault", 600);
    let says = [
        "auth/jwt/login: the store refuses the login as role app: ",
        "invalid subject",
    ];
    refused(&*source, &stranger, ErrorKind::Unauthenticated, &says).await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_8_kubernetes_auth_asks_the_cluster() {
    let bao = with_db().await;
    let cluster = StandIn::start(|seen| {
        let review: Value = serde_json::from_slice(&seen.body).unwrap();
        let claims = review["spec"]["token"]
            .as_str()
            .unwrap()
            .split('.')
            .nth(1)
            .unwrap();
        let claims =
            base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims);
        let claims: Value = serde_json::from_slice(&claims.unwrap()).unwrap();
        let user = json!({"username": claims["sub"], "uid": "b2c9",
            "groups": ["system:serviceaccounts", "system:authenticated"]});
        Say::Raw(created(
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "status": {"authenticated": true, "audiences": ["vault"], "user": user}}),
        ))
    })
    .await;
    bao.put("sys/auth/kubernetes", json!({"type": "kubernetes"}))
        .await;
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()])
        .unwrap()
        .cert
        .pem();
    bao.put(
        "auth/kubernetes/config",
        json!({"kubernetes_host": cluster.url(), "kubernetes_ca_cert": ca,
        "pem_keys": [bao.public_key()], "disable_local_ca_jwt": true}),
    )
    .await;
    bao.put(
        "auth/kubernetes/role/app",
        json!({"bound_service_account_names": "app",
        "bound_service_account_namespaces": "test", "audience": "vault", "token_policies": "app",
        "token_ttl": "20m"}),
    )
    .await;
    let provider = provider(&[&bao.url()]);
    let kubernetes = &[("vaultKubernetesMountPath", "kubernetes")];
    let source = source(&provider, &with(kubernetes, OBJECT));
    assert_eq!(text(&good(read_one(&*source, &bao.app()).await)), "u1");
    assert_eq!(
        cluster.asked(),
        ["POST /apis/authentication.k8s.io/v1/tokenreviews"]
    );
    let stranger = bao.pod("other", "vault", 600);
    let says = ["service account name not authorized"];
    refused(&*source, &stranger, ErrorKind::Unauthenticated, &says).await;
}

fn created(body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_10_an_audience_of_ones_own() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/own",
        bao.role(json!({"bound_audiences": "custom"})),
    )
    .await;
    let provider = provider(&[&bao.url()]);
    let own = source(
        &provider,
        &with(&[("roleName", "own"), ("audience", "custom")], OBJECT),
    );
    let IdentifiedBy::Token { audience, .. } = own.identified_by() else {
        panic!("by a token")
    };
    assert_eq!(audience, "custom");
    assert_eq!(
        text(&good(read_one(&*own, &bao.pod("app", "custom", 600)).await)),
        "u1"
    );
    let usual = source(&provider, &class(OBJECT));
    let says = [
        "invalid audience",
        "the token is for audience vault; the role and the class",
    ];
    refused(
        &*usual,
        &bao.pod("app", "custom", 600),
        ErrorKind::Unauthenticated,
        &says,
    )
    .await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_login_that_fails_says_what_is_wrong() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/open",
        bao.role(json!({"bound_audiences": null})),
    )
    .await;
    let provider = provider(&[&bao.url()]);
    for (parameters, says) in [
        (
            &[("roleName", "none")][..],
            &["as role none", "role \"none\" could not be found"][..],
        ),
        (
            &[("vaultAuthMountPath", "k8s")],
            &[
                "auth/k8s/login",
                "permission denied",
                "is this the auth mount, in this namespace",
            ],
        ),
        // A role that names no audience takes no token that does.
        (
            &[("roleName", "open")],
            &["audience", "the role and the class must name the same"],
        ),
    ] {
        let source = source(&provider, &with(parameters, OBJECT));
        refused(&*source, &bao.app(), ErrorKind::Unauthenticated, says).await;
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn openbao_has_its_own_names_and_its_own_audience() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/bao",
        bao.role(json!({"bound_audiences": "openbao"})),
    )
    .await;
    let provider = VaultProvider::new(Settings {
        flavour: Flavour::OpenBao,
        address: None,
        ..settings(&[&bao.url()])
    });
    let provider = provider.unwrap();
    let caller = bao.pod("app", "openbao", 600);
    for prefix in ["bao", "openbao", "vault"] {
        let address = format!("{prefix}Address");
        let role = format!("{prefix}RoleName");
        let url = bao.url();
        let class = with(
            &[(&address, &url), (&role, "bao"), ("roleName", "none")],
            OBJECT,
        );
        assert_eq!(
            text(&good(read_one(&*source(&provider, &class), &caller).await)),
            "u1"
        );
    }
}

#[tokio::test]
async fn rule_d3_a_token_that_is_about_to_end_is_not_sent() {
    let store = StandIn::after_login(|_| Say::Silence).await;
    let provider = provider(&[&store.url()]);
    let source = source(&provider, &class(OBJECT));
    let mut caller = coffer_provider::testing::caller("test");
    refused(
        &*source,
        &caller,
        ErrorKind::Unauthenticated,
        &["no token for audience vault", "tokenRequests"],
    )
    .await;
    let soon = std::time::SystemTime::now() + Duration::from_secs(5);
    caller.token = Some(coffer_provider::ServiceAccountToken::new(
        "jwt-canary".into(),
        soon,
    ));
    refused(
        &*source,
        &caller,
        ErrorKind::Unauthenticated,
        &["has expired"],
    )
    .await;
    assert_eq!(store.asked(), [""; 0]);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn two_service_accounts_never_share_a_token() {
    let bao = with_db().await;
    bao.put("sys/policies/acl/nothing", json!({"policy": NOTHING}))
        .await;
    let other = json!({"bound_subject": "", "token_policies": "nothing"});
    // The same role for both, but what it gives is for the one who asks.
    bao.put("auth/jwt/role/app", bao.role(json!({"bound_subject": ""})))
        .await;
    bao.put("auth/jwt/role/other", bao.role(other)).await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let shared = source(&provider, &class(OBJECT));
    let tokens = async |caller: &Caller| {
        drop(good(read_one(&*shared, caller).await));
        counted.last_token()
    };
    let one = tokens(&bao.app()).await;
    let two = tokens(&bao.pod("two", "vault", 600)).await;
    assert_ne!(one, two);
    assert_eq!(tokens(&bao.app()).await, one);

    let mut reborn = bao.app();
    reborn.pod.service_account.uid = Some("another".into());
    assert_ne!(
        tokens(&reborn).await,
        one,
        "an account that was made anew is another one"
    );

    let denied = source(&provider, &with(&[("roleName", "other")], OBJECT));
    let error = bad(read_one(&*denied, &bao.app()).await);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        error.to_string(),
        "secret/data/db: the store does not allow it to role other"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn with_sharing_pod_each_pod_has_a_token_of_its_own_and_takes_it_along() {
    let bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(OBJECT));
    let callers = ["a", "b"].map(|uid| {
        let mut caller = bao.app();
        caller.pod.uid = uid.to_owned();
        caller.sharing = Sharing::Pod;
        caller
    });
    for caller in &callers {
        for _ in 0..3 {
            drop(good(read_one(&*source, caller).await));
        }
    }
    assert_eq!(bao.tokens().await, 2);
    drop(good(read_one(&*source, &bao.app()).await));
    assert_eq!(
        bao.tokens().await,
        3,
        "and the others of the account share one"
    );
    for (caller, left) in callers.iter().zip([2, 1]) {
        source.log_out(caller).await;
        assert_eq!(bao.tokens().await, left);
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_denial_costs_one_read_and_a_dead_token_one_login_and_one_read() {
    let bao = with_db().await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let allowed = source(&provider, &class(OBJECT));
    let denied = "- {objectName: a, secretPath: secret/other/db, secretKey: user}";
    let denied = source(&provider, &class(denied));
    let caller = bao.app();

    // Right after a login nobody doubts the token.
    let error = bad(read_one(&*denied, &caller).await);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let mut asked = counted.asked();
    // On a slow machine it is not right after.
    asked.retain(|asked| !asked.contains("lookup-self"));
    assert_eq!(
        asked,
        ["POST /v1/auth/jwt/login", "GET /v1/secret/other/db"]
    );
    drop(good(read_one(&*allowed, &caller).await));

    // Fifty readers find out that it is dead: there is one login for them all.
    let token = counted.last_token();
    bao.put("auth/token/revoke", json!({"token": token})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    counted.asked();
    let all = join_all((0..50).map(|_| read_one(&*allowed, &caller))).await;
    assert!(all.iter().all(Result::is_ok));
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!((count("/login"), count("lookup-self")), (1, 1), "{asked:?}");
    assert!(count("/data/") <= 100, "each reads once more at most");

    // The policy says no for longer than a login proves anything: that is looked up, and remembered.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..3 {
        assert_eq!(
            bad(read_one(&*denied, &caller).await).kind(),
            ErrorKind::PermissionDenied
        );
    }
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!(
        (count("/login"), count("lookup-self"), count("/other/")),
        (0, 1, 3),
        "{asked:?}"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn the_token_is_renewed_while_it_is_used_and_revoked_at_the_end() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/app",
        bao.role(json!({"token_ttl": "20s", "token_max_ttl": "60s"})),
    )
    .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    drop(good(read_one(&*source, &caller).await));
    counted.asked();
    drop(good(read_one(&*source, &caller).await));
    assert_eq!(counted.asked(), ["GET /v1/secret/data/db"], "it is young");
    tokio::time::sleep(Duration::from_secs(15)).await;
    let all = join_all((0..20).map(|_| read_one(&*source, &caller))).await;
    assert!(all.iter().all(Result::is_ok));
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!(
        (count("renew-self"), count("/login"), count("/data/")),
        (1, 0, 20),
        "{asked:?}"
    );
    assert_eq!(bao.tokens().await, 1);

    source.log_out(&caller).await;
    assert_eq!(counted.asked(), ["POST /v1/auth/token/revoke-self"]);
    assert_eq!(bao.tokens().await, 0);
    source.log_out(&caller).await;
    assert_eq!(counted.asked(), [""; 0], "there is nobody to log out");
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_token_at_its_last_end_is_replaced_and_not_left_behind() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/app",
        bao.role(json!({"token_ttl": "10s", "token_explicit_max_ttl": "10s"})),
    )
    .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    drop(good(read_one(&*source, &caller).await));
    tokio::time::sleep(Duration::from_millis(7500)).await;
    counted.asked();
    // The renewal brings what is left of the ten seconds; that one's end is near, too.
    drop(good(read_one(&*source, &caller).await));
    tokio::time::sleep(Duration::from_millis(800)).await;
    drop(good(read_one(&*source, &caller).await));
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!((count("/login"), count("/data/")), (1, 2), "{asked:?}");
    assert!(count("renew-self") <= 1, "{asked:?}");
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn batch_tokens_are_neither_renewed_nor_revoked() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/app",
        bao.role(json!({"token_type": "batch"})),
    )
    .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    assert_eq!(text(&good(read_one(&*source, &caller).await)), "u1");
    counted.asked();
    source.log_out(&caller).await;
    assert_eq!(counted.asked(), [""; 0]);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn policy_taken_away_is_a_denial_without_a_new_login() {
    let bao = with_db().await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    drop(good(read_one(&*source, &caller).await));
    bao.put("sys/policies/acl/app", json!({"policy": NOTHING}))
        .await;
    counted.asked();
    for _ in 0..3 {
        let error = bad(read_one(&*source, &caller).await);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    assert!(!counted.asked().iter().any(|asked| asked.contains("/login")));
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn rule_s1_a_store_that_is_down_is_unavailable_at_once_and_back_at_once() {
    let mut bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    bao.kill();
    let error = bad(read_one(&*source, &caller).await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        error.to_string(),
        format!("{} refuses connections", bao.url())
    );
    bao.restart().await;
    bao.put("secret/data/db", json!({"data": {"user": "u2"}}))
        .await;
    assert_eq!(text(&good(read_one(&*source, &caller).await)), "u2");
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn inline_auth_leaves_no_token_behind() {
    let bao = with_db().await;
    bao.put("sys/mounts/ssh", json!({"type": "ssh"})).await;
    let otp = json!({"key_type": "otp", "default_user": "ubuntu", "cidr_list": "0.0.0.0/0"});
    bao.put("ssh/roles/otp", otp).await;
    let policy = r#"path "secret/*" { capabilities = ["read"] } path "ssh/creds/*" { capabilities = ["update"] }"#;
    bao.put("sys/policies/acl/app", json!({"policy": policy}))
        .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let inline = &[("vaultInlineAuth", "true")];
    let source = source(&provider, &with(inline, OBJECT));
    assert_eq!(text(&good(read_one(&*source, &bao.app()).await)), "u1");
    assert_eq!(text(&good(read_one(&*source, &bao.app()).await)), "u1");
    let asked = counted.asked();
    assert!(
        !asked.iter().any(|asked| asked.contains("/login")),
        "{asked:?}"
    );
    assert_eq!(bao.tokens().await, 0);

    let says = [
        "auth/jwt/login: the store refuses the login as role app: ",
        "invalid subject",
    ];
    let stranger = bao.pod("other", "vault", 600);
    refused(&*source, &stranger, ErrorKind::Unauthenticated, &says).await;
    let denied = "- {objectName: a, secretPath: kv1/app, secretKey: user}";
    let denied = self::source(&provider, &with(inline, denied));
    let says = ["kv1/app: the store does not allow it to role app"];
    refused(&*denied, &bao.app(), ErrorKind::PermissionDenied, &says).await;
    let leased = "- {objectName: otp, secretPath: ssh/creds/otp, method: PUT, secretArgs: {ip: 10.0.0.1}, secretKey: key}";
    let leased = self::source(&provider, &with(inline, leased));
    let says = ["ssh/creds/otp: inline authentication is for what has no lease"];
    refused(&*leased, &bao.app(), ErrorKind::InvalidParameters, &says).await;
    source.log_out(&bao.app()).await;
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_role_without_the_default_policy_does_not_log_in_for_each_denial() {
    let bao = with_db().await;
    bao.put(
        "auth/jwt/role/app",
        bao.role(json!({"token_no_default_policy": true})),
    )
    .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let denied = "- {objectName: a, secretPath: secret/other/db, secretKey: user}";
    let denied = source(&provider, &class(denied));
    let caller = bao.app();
    assert_eq!(
        bad(read_one(&*denied, &caller).await).kind(),
        ErrorKind::PermissionDenied
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    counted.asked();
    // It may not look its token up, so one more login finds out that the policy is meant.
    for _ in 0..5 {
        assert_eq!(
            bad(read_one(&*denied, &caller).await).kind(),
            ErrorKind::PermissionDenied
        );
    }
    let asked = counted.asked();
    let logins = asked.iter().filter(|asked| asked.contains("/login"));
    assert!((1..=2).contains(&logins.count()), "{asked:?}");
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_token_that_is_used_up_is_replaced() {
    let bao = with_db().await;
    bao.put("auth/jwt/role/app", bao.role(json!({"token_num_uses": 2})))
        .await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(OBJECT));
    for _ in 0..5 {
        assert_eq!(text(&good(read_one(&*source, &bao.app()).await)), "u1");
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn tokens_that_a_restarted_store_has_forgotten_are_replaced() {
    let mut bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    assert_eq!(text(&good(read_one(&*source, &caller).await)), "u1");
    tokio::time::sleep(Duration::from_secs(2)).await;
    bao.restart().await;
    bao.put("secret/data/db", json!({"data": {"user": "u2"}}))
        .await;
    assert_eq!(text(&good(read_one(&*source, &caller).await)), "u2");
    assert_eq!(bao.tokens().await, 1);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn rule_s4_quotas_and_a_seal_are_told_apart_from_denials() {
    let bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(OBJECT));
    let caller = bao.app();
    drop(good(read_one(&*source, &caller).await));
    bao.put(
        "sys/quotas/config",
        json!({"enable_rate_limit_response_headers": true}),
    )
    .await;
    let quota = json!({"path": "secret", "rate": 1, "interval": "60s"});
    bao.put("sys/quotas/rate-limit/q", quota).await;
    let mut error = None;
    for _ in 0..3 {
        error = error.or(read_one(&*source, &caller).await.err());
    }
    let error = error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        error.to_string(),
        "secret/data/db: the store limits how often it is asked"
    );
    assert!(
        error
            .retry_after()
            .is_some_and(|after| after <= Duration::from_secs(60))
    );

    bao.put("sys/seal", json!({})).await;
    let error = bad(read_one(&*source, &caller).await);
    assert_eq!(
        (error.kind(), error.to_string()),
        (
            ErrorKind::Unavailable,
            "secret/data/db: the store is sealed".into()
        )
    );
}
