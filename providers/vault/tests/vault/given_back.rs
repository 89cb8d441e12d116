//! What is given back, and when: at a stand-in, since OpenBao neither hangs nor fails on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coffer_provider::{Caller, Lease, Life, Source};
use coffer_provider_vault::{Limits, Settings, VaultProvider};
use futures_util::future::join;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::hostile::caller;
use crate::stand_in::{Say, Seen, StandIn};
use crate::{class, good, provider, read_one, settings, source};

const CREDS: &str = "- {objectName: user, secretPath: db/creds/app, secretKey: username}";
const RENEW_LEASE: &str = "POST /v1/sys/leases/renew";
const RENEW_TOKEN: &str = "POST /v1/auth/token/renew-self";
const REVOKE: &str = "POST /v1/auth/token/revoke-self";

/// A moment that a mount has before it is given up.
const MOMENT: Duration = Duration::from_millis(200);

/// What a store with leases of an hour says, whose tokens live for so many seconds.
fn leasing(seen: &Seen, token: u64) -> Say {
    let answer = match seen.path.as_str() {
        "/v1/auth/token/revoke-self" => return Say::status(204, "", ""),
        "/v1/sys/leases/renew" => json!({"lease_duration": 3600, "renewable": true}),
        path if path.starts_with("/v1/auth/") => {
            json!({"auth": {"client_token": "s.canary", "lease_duration": token, "renewable": true,
                "token_type": "service"}})
        }
        path => json!({"lease_id": format!("{path}/1"), "lease_duration": 3600, "renewable": true,
            "data": {"username": "u"}}),
    };
    Say::Json(200, answer)
}

async fn lease(source: &dyn Source, caller: &Caller) -> Lease {
    match good(read_one(source, caller).await).life {
        Life::Leased { lease, .. } => lease,
        _ => panic!("it is leased"),
    }
}

/// A pod that has gone: its token may have ended.
fn gone() -> Caller {
    Caller {
        token: None,
        ..caller()
    }
}

async fn until_asked(store: &StandIn, what: &str, times: usize) -> Vec<Seen> {
    for _ in 0..200 {
        let seen = store.seen();
        let asked = |seen: &&Seen| format!("{} {}", seen.method, seen.path) == what;
        let asked: Vec<_> = seen.iter().filter(asked).cloned().collect();
        if asked.len() >= times {
            return asked;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} is not asked for {times} times: {:?}", store.asked());
}

#[tokio::test]
async fn a_token_that_would_end_before_its_lease_is_renewed_first() {
    let store = StandIn::start(|seen| leasing(seen, 10)).await;
    let source = source(&provider(&[&store.url()]), &class(CREDS));
    let lease = lease(&*source, &caller()).await;
    // It is not due yet.
    sleep(Duration::from_secs(1)).await;
    store.asked();
    let renewed = source.renew(&caller(), &lease).await.ok().unwrap();
    assert_eq!(store.asked(), [RENEW_TOKEN, RENEW_LEASE]);
    let Life::Leased { duration, .. } = renewed else {
        panic!("it is leased")
    };
    assert!(
        duration > Duration::from_secs(9),
        "as long as the token can live: {duration:?}"
    );
    assert!(source.renew(&caller(), &lease).await.is_ok());
    assert_eq!(
        store.asked(),
        [RENEW_LEASE],
        "the token has all it can have"
    );
}

#[tokio::test]
async fn a_token_that_comes_after_its_mount_was_given_up_is_revoked() {
    let store = StandIn::start(|seen| match seen.is_login() {
        true => Say::Late(2 * MOMENT, Box::new(leasing(seen, 3600))),
        false => leasing(seen, 3600),
    })
    .await;
    let source = source(&provider(&[&store.url()]), &class(CREDS));
    let mount = caller();
    assert!(timeout(MOMENT, read_one(&*source, &mount)).await.is_err());
    source.log_out(&gone()).await;
    assert_eq!(store.asked(), ["POST /v1/auth/jwt/login", REVOKE]);
}

#[tokio::test]
async fn a_lease_whose_mount_was_given_up_is_ended() {
    let store = StandIn::start(|seen| match seen.path.ends_with("/slow") {
        true => Say::Silence,
        false => leasing(seen, 3600),
    })
    .await;
    let objects = format!("{CREDS}\n- {{objectName: b, secretPath: db/creds/slow, secretKey: a}}");
    let source = source(&provider(&[&store.url()]), &class(&objects));
    let caller = caller();
    let mount = source.fetch(&caller, source.objects());
    assert!(timeout(5 * MOMENT, mount).await.is_err());
    let ended = until_asked(&store, RENEW_LEASE, 1).await;
    let body: Value = serde_json::from_slice(&ended[0].body).unwrap();
    assert_eq!(
        body,
        json!({"lease_id": "/v1/db/creds/app/1", "increment": 1})
    );
}

#[tokio::test]
async fn what_a_store_cannot_take_back_now_is_offered_again() {
    let failures = Arc::new(AtomicUsize::new(0));
    let failed = failures.clone();
    let fails = move |seen: &Seen| {
        let ends = seen.path.ends_with("/revoke-self") || seen.path.ends_with("/leases/renew");
        ends && failed.fetch_add(1, Ordering::SeqCst) < 2
    };
    let store = StandIn::start(move |seen| match fails(seen) {
        true => Say::status(503, "", r#"{"errors":["Vault is sealed"]}"#),
        false => leasing(seen, 3600),
    })
    .await;
    let source = source(&provider(&[&store.url()]), &class(CREDS));
    let lease = lease(&*source, &caller()).await;
    source.release(&gone(), &[lease], Duration::ZERO).await;
    until_asked(&store, RENEW_LEASE, 3).await;
    failures.store(0, Ordering::SeqCst);
    source.log_out(&gone()).await;
    until_asked(&store, REVOKE, 3).await;
    sleep(2 * Duration::from_secs(1)).await;
    let asked = store.asked();
    let count = |what: &str| asked.iter().filter(|asked| *asked == what).count();
    assert_eq!((count(RENEW_LEASE), count(REVOKE)), (3, 3), "{asked:?}");
}

#[tokio::test]
async fn a_store_that_hangs_over_a_token_is_offered_it_again_and_nobody_gets_it_meanwhile() {
    let revoked = AtomicUsize::new(0);
    let store = StandIn::start(move |seen| match seen.path.ends_with("/revoke-self") {
        true if revoked.fetch_add(1, Ordering::SeqCst) == 0 => Say::Silence,
        _ => leasing(seen, 3600),
    })
    .await;
    let provider = VaultProvider::new(Settings {
        limits: Limits {
            attempt: 2 * MOMENT,
            ..Limits::default()
        },
        ..settings(&[&store.url()])
    });
    let source = source(&provider.unwrap(), &class(CREDS));
    lease(&*source, &caller()).await;
    assert!(timeout(MOMENT, source.log_out(&gone())).await.is_err());
    lease(&*source, &caller()).await;
    until_asked(&store, REVOKE, 2).await;
    let logins = store.seen().iter().filter(|seen| seen.is_login()).count();
    assert_eq!(logins, 2, "the next pod is not given what is being ended");
}

#[tokio::test]
async fn a_lease_is_given_back_once_and_without_a_login() {
    let store = StandIn::start(|seen| leasing(seen, 1)).await;
    let source = source(&provider(&[&store.url()]), &class(CREDS));
    let of_two_objects = [
        lease(&*source, &caller()).await,
        lease(&*source, &caller()).await,
    ];
    store.asked();
    let at_once = Duration::ZERO;
    source.release(&gone(), &of_two_objects, at_once).await;
    assert_eq!(store.asked(), [RENEW_LEASE]);
    sleep(Duration::from_millis(1100)).await;
    source.release(&caller(), &of_two_objects, at_once).await;
    assert!(store.asked().is_empty(), "it has ended with its token");
}

#[tokio::test]
async fn a_lease_of_the_last_pod_ends_with_its_token() {
    let store = StandIn::start(|seen| leasing(seen, 3600)).await;
    let source = source(&provider(&[&store.url()]), &class(CREDS));
    let leases = [lease(&*source, &caller()).await];
    store.asked();
    let gone = gone();
    let release = source.release(&gone, &leases, Duration::ZERO);
    join(release, source.log_out(&gone)).await;
    assert_eq!(store.asked(), [REVOKE]);
}
