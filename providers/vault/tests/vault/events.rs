//! Events of Vault Enterprise, told by a stand-in: no OpenBao has them, and Vault itself was not tried.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coffer_provider::{Changes, ServiceAccountToken, Source};
use coffer_provider_vault::{Settings, VaultProvider};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::time::timeout;

use crate::bao::Bao;
use crate::hostile::caller;
use crate::stand_in::{Say, StandIn};
use crate::{class, good, read_one, settings, source, with};

const OBJECT: &str = "- {objectName: a, secretPath: secret/data/a, secretKey: value}";
const SUBSCRIBE: &str = "GET /v1/sys/events/subscribe/kv*?json=true";

/// Long enough for what has to come, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

fn following(address: &str) -> VaultProvider {
    VaultProvider::new(Settings {
        events: true,
        ..settings(&[address])
    })
    .unwrap()
}

/// A store that tells what is sent.
async fn telling() -> (StandIn, broadcast::Sender<String>) {
    let (events, _) = broadcast::channel(16);
    let told = events.clone();
    let store = StandIn::after_login(move |seen| match seen.path.contains("/events/") {
        true => Say::Events(told.clone()),
        false => Say::Json(200, json!({"data": {"value": "v"}})),
    })
    .await;
    (store, events)
}

fn event(path: &str) -> String {
    json!({"data": {"event": {"metadata": {"path": path, "modified": "true"}},
        "event_type": "kv-v2/data-write"}})
    .to_string()
}

async fn next(changes: &mut Changes) -> Option<()> {
    let next = timeout(SOON, changes.next()).await;
    next.expect("something is told")
}

async fn nothing(changes: &mut Changes) {
    let next = timeout(Duration::from_millis(200), changes.next()).await;
    assert!(next.is_err(), "nothing is told");
}

fn watch(source: &dyn Source) -> Changes {
    source.watch(&caller()).expect("it may tell")
}

#[tokio::test]
async fn a_change_is_told_to_whom_it_concerns_over_one_connection() {
    let (store, events) = telling().await;
    let provider = following(&store.url());
    let a = source(&provider, &class(OBJECT));
    let b = "- {objectName: b, secretPath: /v1/secret/data/b, secretKey: value}";
    let b = source(&provider, &class(b));
    let (mut of_a, mut of_b) = (watch(&*a), watch(&*b));
    // What came between the last look and the connection is not known.
    assert!(next(&mut of_a).await.is_some() && next(&mut of_b).await.is_some());
    assert_eq!(store.asked(), ["POST /v1/auth/jwt/login", SUBSCRIBE]);
    for path in ["secret/data/a", "secret/data/c", "secret/data/a"] {
        events.send(event(path)).unwrap();
    }
    for _ in 0..2 {
        assert!(next(&mut of_a).await.is_some());
    }
    nothing(&mut of_a).await;
    nothing(&mut of_b).await;
    events.send(event("secret/data/b")).unwrap();
    assert!(next(&mut of_b).await.is_some());
    drop(good(read_one(&*a, &caller()).await));
    assert!(
        store.asked().iter().all(|asked| !asked.contains("login")),
        "with the same token"
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_and_everything_looked_at() {
    let (store, events) = telling().await;
    let provider = following(&store.url());
    let source = source(&provider, &class(OBJECT));
    let mut changes = watch(&*source);
    assert!(next(&mut changes).await.is_some());
    // Broken off, or with an event that is larger than one can be.
    for bad in [String::new(), event(&"a".repeat(100_000))] {
        events.send(bad).unwrap();
        assert!(next(&mut changes).await.is_some(), "it is there again");
        events.send(event("secret/data/a")).unwrap();
        assert!(next(&mut changes).await.is_some());
    }
    // What is no event is passed over.
    for bad in ["<html>", "[]", "null"] {
        events.send(bad.to_owned()).unwrap();
    }
    nothing(&mut changes).await;
}

#[tokio::test]
async fn a_store_that_keeps_breaking_off_is_asked_instead() {
    let (store, events) = telling().await;
    let provider = following(&store.url());
    let source = source(&provider, &class(OBJECT));
    let mut changes = watch(&*source);
    let mut connections = 0;
    while next(&mut changes).await.is_some() {
        connections += 1;
        events.send(String::new()).unwrap();
    }
    assert_eq!(connections, 5);
    assert!(source.watch(&caller()).is_none(), "it is known from now on");
}

#[tokio::test]
async fn a_store_that_tells_nothing_says_so_once() {
    for status in [403, 404] {
        let store = StandIn::after_login(move |seen| match seen.path.contains("/events/") {
            true => Say::status(status, "", r#"{"errors":["unsupported path"]}"#),
            false => Say::Json(200, json!({"data": {"value": "v"}})),
        })
        .await;
        let provider = following(&store.url());
        let source = source(&provider, &class(OBJECT));
        let mut changes = watch(&*source);
        assert!(next(&mut changes).await.is_none(), "{status}");
        assert!(source.watch(&caller()).is_none(), "{status}");
        drop(good(read_one(&*source, &caller()).await));
        let asked = store.asked();
        let asked = asked.iter().filter(|asked| **asked == SUBSCRIBE);
        assert_eq!(asked.count(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_login_that_is_refused_for_now_does_not_end_the_events() {
    let (events, _) = broadcast::channel(16);
    let refused = AtomicUsize::new(0);
    let store = StandIn::start(move |seen| match seen.is_login() {
        true if refused.fetch_add(1, Ordering::SeqCst) == 0 => {
            Say::Json(400, json!({"errors": ["token is expired"]}))
        }
        true => Say::token(),
        false => Say::Events(events.clone()),
    })
    .await;
    let source = source(&following(&store.url()), &class(OBJECT));
    assert!(next(&mut watch(&*source)).await.is_some());
}

#[tokio::test]
async fn events_are_followed_with_the_newest_token_of_a_pod() {
    let (store, _events) = telling().await;
    let source = source(&following(&store.url()), &class(OBJECT));
    let mut ended = caller();
    let expires = std::time::SystemTime::now();
    ended.token = Some(ServiceAccountToken::new("ended".to_owned(), expires));
    let mut first = source.watch(&ended).expect("it may tell");
    let _second = watch(&*source);
    assert!(next(&mut first).await.is_some());
}

#[tokio::test]
async fn a_token_that_the_store_has_lost_does_not_end_the_events() {
    let (events, _) = broadcast::channel(16);
    let logins = AtomicUsize::new(0);
    let store = StandIn::start(move |seen| match seen.is_login() {
        true => {
            let before = logins.fetch_add(1, Ordering::SeqCst);
            let token = format!("s.{before}");
            Say::Json(
                200,
                json!({"auth": {"client_token": token, "lease_duration": 3600, "num_uses": 9}}),
            )
        }
        false if seen.headers["x-vault-token"] == "s.0" => {
            Say::Json(403, json!({"errors": ["permission denied"]}))
        }
        false if !seen.headers.contains_key("sec-websocket-key") => Say::status(400, "", ""),
        false => Say::Events(events.clone()),
    })
    .await;
    let source = source(&following(&store.url()), &class(OBJECT));
    assert!(next(&mut watch(&*source)).await.is_some());
}

#[tokio::test]
async fn rule_s6_no_token_follows_events_to_another_place() {
    let elsewhere = StandIn::start(|_| Say::token()).await;
    let there = elsewhere.url();
    let store = StandIn::after_login(move |_| {
        Say::status(
            307,
            &format!("Location: {there}/v1/sys/events/subscribe/kv\r\n"),
            "",
        )
    })
    .await;
    let provider = following(&store.url());
    let source = source(&provider, &class(OBJECT));
    assert!(next(&mut watch(&*source)).await.is_none());
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn an_answer_that_did_not_understand_the_handshake_is_none() {
    let store = StandIn::after_login(|_| {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: bm9uZQ==\r\n\r\n";
        Say::Raw(head.to_owned())
    })
    .await;
    let provider = following(&store.url());
    let source = source(&provider, &class(OBJECT));
    assert!(next(&mut watch(&*source)).await.is_none());
}

#[tokio::test]
async fn nobody_is_asked_for_events_unless_the_administrator_wants_it() {
    let (store, _) = telling().await;
    let provider = crate::provider(&[&store.url()]);
    let quiet = source(&provider, &class(OBJECT));
    assert!(quiet.watch(&caller()).is_none());
    let inline = with(&[("vaultInlineAuth", "true")], OBJECT);
    let inline = source(&following(&store.url()), &inline);
    assert!(
        inline.watch(&caller()).is_none(),
        "it has no token to follow with"
    );
    assert!(store.asked().is_empty());
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn openbao_has_no_events_and_is_asked_instead() {
    let bao = Bao::start().await;
    let provider = following(&bao.url());
    let source = source(&provider, &class(OBJECT));
    let mut changes = source.watch(&bao.app()).expect("it may tell");
    assert!(next(&mut changes).await.is_none());
}
