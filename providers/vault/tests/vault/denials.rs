//! What is made of a 403, and of what a store does not tell: at a stand-in, for what OpenBao does not do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use coffer_provider::{ErrorKind, Life};
use serde_json::json;

use crate::hostile::caller;
use crate::stand_in::{Say, Seen, StandIn};
use crate::{bad, class, good, provider, read_one, source, text, with};

const DENIED: &str = "- {objectName: a, secretPath: kv/app, secretKey: user}";
const SECRET: &str = "- {objectName: a, secretPath: secret/data/a, secretKey: value}";

/// A login that proves nothing of its token, since that may be used up at any time.
fn unproven(token: &str) -> Say {
    Say::Json(
        200,
        json!({"auth": {"client_token": token, "lease_duration": 3600, "renewable": true,
            "token_type": "service", "num_uses": 100}}),
    )
}

#[tokio::test]
async fn rule_s4_a_denial_is_not_believed_while_the_store_cannot_look_the_token_up() {
    for (status, kind) in [
        (429, ErrorKind::Unavailable),
        (412, ErrorKind::Unavailable),
        (500, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (404, ErrorKind::InvalidAnswer),
        (200, ErrorKind::PermissionDenied),
    ] {
        let store = StandIn::start(move |seen| match seen.path.as_str() {
            path if path.ends_with("/login") => unproven("s.canary"),
            path if path.ends_with("/lookup-self") => {
                Say::status(status, "", r#"{"errors":["it is busy"]}"#)
            }
            _ => Say::Json(403, json!({"errors": ["permission denied"]})),
        })
        .await;
        let error = bad(read_one(
            &*source(&provider(&[&store.url()]), &class(DENIED)),
            &caller(),
        )
        .await);
        assert_eq!(error.kind(), kind, "{status}");
    }
}

#[tokio::test]
async fn a_role_that_may_not_look_its_token_up_keeps_it_and_its_leases_after_a_denial() {
    let logins = AtomicUsize::new(0);
    let ended = Arc::new(AtomicBool::new(false));
    let has_ended = ended.clone();
    let is_denied = move |seen: &Seen| {
        let token = seen.headers.get("x-vault-token");
        has_ended.load(Ordering::SeqCst) && token.is_some_and(|token| token == "s.0")
    };
    let store = StandIn::start(move |seen| match seen.path.as_str() {
        _ if is_denied(seen) => Say::Json(403, json!({"errors": ["permission denied"]})),
        path if path.ends_with("/login") => {
            let before = logins.fetch_add(1, Ordering::SeqCst);
            unproven(&format!("s.{before}"))
        }
        path if path.ends_with("/leases/renew") => {
            Say::Json(200, json!({"lease_duration": 3600, "renewable": true}))
        }
        path if path.ends_with("/creds") => Say::Json(
            200,
            json!({"lease_id": "a", "lease_duration": 3600, "renewable": true,
                "data": {"value": "v"}}),
        ),
        _ => Say::Json(403, json!({"errors": ["permission denied"]})),
    })
    .await;
    let provider = provider(&[&store.url()]);
    let creds = "- {objectName: a, secretPath: db/creds, secretKey: value}";
    let creds = source(&provider, &class(creds));
    let denied = source(&provider, &class(DENIED));
    let Life::Leased { lease, .. } = good(read_one(&*creds, &caller()).await).life else {
        panic!("it is leased")
    };
    for _ in 0..3 {
        let error = bad(read_one(&*denied, &caller()).await);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    assert!(creds.renew(&caller(), &lease).await.is_ok());
    assert_eq!(store.last_token(), "s.0");
    // Nor has it been proven: one that has ended after all is replaced.
    ended.store(true, Ordering::SeqCst);
    drop(good(read_one(&*creds, &caller()).await));
    assert_eq!(store.last_token(), "s.2");
    let seen = store.seen();
    let logins = seen.iter().filter(|seen| seen.is_login()).count();
    assert_eq!(logins, 3, "one to find out, and none for each read");
    let revoked = seen.iter().find(|seen| seen.path.ends_with("/revoke-self"));
    assert_eq!(revoked.unwrap().headers["x-vault-token"], "s.1");
}

/// A secret of KV v2.
fn versioned() -> Say {
    Say::Json(
        200,
        json!({"data": {"data": {"value": "v"}, "metadata": {"version": 1, "created_time": "t"}}}),
    )
}

/// Its metadata.
fn metadata() -> Say {
    let version = json!({"created_time": "t", "deletion_time": "", "destroyed": false});
    Say::Json(
        200,
        json!({"data": {"current_version": 1, "versions": {"1": version}}}),
    )
}

/// Its mount.
fn mount() -> Say {
    Say::Json(
        200,
        json!({"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}),
    )
}

#[tokio::test]
async fn a_token_that_ended_is_no_denial_of_the_metadata() {
    let logins = AtomicUsize::new(0);
    let store = StandIn::start(move |seen| match seen.path.as_str() {
        path if path.ends_with("/login") => {
            let before = logins.fetch_add(1, Ordering::SeqCst);
            unproven(&format!("s.{before}"))
        }
        path if path.contains("/ui/mounts/") => mount(),
        path if path.contains("/data/") => versioned(),
        // It has ended since.
        _ if seen.headers["x-vault-token"] == "s.0" => {
            Say::Json(403, json!({"errors": ["permission denied"]}))
        }
        _ => metadata(),
    })
    .await;
    let source = source(&provider(&[&store.url()]), &class(SECRET));
    let secret = good(read_one(&*source, &caller()).await);
    for _ in 0..2 {
        let versions = source.versions(&caller(), source.objects()).await;
        assert_eq!(versions, [Some(secret.version.clone())]);
    }
}

#[tokio::test]
async fn a_denial_of_the_metadata_is_of_one_namespace() {
    let store = StandIn::after_login(|seen| match seen.path.as_str() {
        path if path.contains("/ui/mounts/") => mount(),
        path if path.contains("/data/") => versioned(),
        path if path.contains("/metadata/") && seen.headers["x-vault-namespace"] == "a" => {
            Say::Json(403, json!({"errors": ["permission denied"]}))
        }
        _ => metadata(),
    })
    .await;
    let provider = provider(&[&store.url()]);
    for (namespace, is_known) in [("a", false), ("b", true), ("a", false)] {
        let namespaces = [("vaultAuthNamespace", "l"), ("vaultNamespace", namespace)];
        let source = source(&provider, &with(&namespaces, SECRET));
        drop(good(read_one(&*source, &caller()).await));
        let versions = source.versions(&caller(), source.objects()).await;
        assert_eq!(versions[0].is_some(), is_known, "{namespace}");
    }
    let asked = store.asked();
    let asked = asked.iter().filter(|asked| asked.contains("/metadata/"));
    assert_eq!(asked.count(), 2, "it is remembered");
}

#[tokio::test]
async fn a_mount_that_the_store_does_not_tell_is_asked_for_once() {
    for (status, questions) in [(403, 1), (404, 1), (503, 2)] {
        let store = StandIn::after_login(move |seen| match seen.path.contains("/ui/mounts/") {
            true => Say::status(status, "", r#"{"errors":["no"]}"#),
            false => versioned(),
        })
        .await;
        let source = source(&provider(&[&store.url()]), &class(SECRET));
        for _ in 0..2 {
            assert_eq!(text(&good(read_one(&*source, &caller()).await)), "v");
        }
        let asked = store.asked();
        let asked = asked.iter().filter(|asked| asked.contains("/ui/mounts/"));
        assert_eq!(asked.count(), questions, "{status}");
    }
}

#[tokio::test]
async fn a_mount_that_is_waited_for_holds_up_no_other() {
    let store = StandIn::after_login(|seen| match seen.path.as_str() {
        "/v1/sys/internal/ui/mounts/slow/data/a" => Say::Silence,
        path if path.contains("/ui/mounts/") => mount(),
        _ => versioned(),
    })
    .await;
    let provider = provider(&[&store.url()]);
    let slow = "- {objectName: a, secretPath: slow/data/a, secretKey: value}";
    let slow = source(&provider, &class(slow));
    let waits = tokio::spawn(async move { read_one(&*slow, &caller()).await });
    while !store
        .seen()
        .iter()
        .any(|seen| seen.path.ends_with("/slow/data/a") && seen.path.contains("/ui/"))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let other = source(&provider, &class(SECRET));
    let other_caller = caller();
    let read = read_one(&*other, &other_caller);
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert_eq!(text(&good(read.unwrap())), "v");
    waits.abort();
}
