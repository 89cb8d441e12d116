//! Stores that say no, and stores that are away.

use std::time::Duration;

use coffer::cache::{Look, Settings};
use coffer::error::Reason;
use coffer::pacer::Rate;
use coffer_provider::ErrorKind;
use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::pods::{MINUTE, Node, SECOND, class, class_with, pass, web};

#[tokio::test(start_paused = true)]
async fn rule_c4_what_the_store_refuses_is_given_to_nobody_any_more() {
    let node = Node::new();
    let running = node.volume(&web().pod("a"), class("db"));
    running.read().await.unwrap();
    let _ = running.subscriber.changed().now_or_never();
    node.store.deny("uid-of-web", "db");
    pass(2 * MINUTE).await;
    assert!(
        running.subscriber.changed().now_or_never().is_some(),
        "it is told"
    );
    assert!(matches!(running.subscription.look(), Look::Failing(_)));
    let next = node.volume(
        &web().pod("b"),
        class_with("db", json!({"refresh": {"maxStale": "1h"}})),
    );
    let error = next.read().await.unwrap_err();
    assert_eq!(
        error.reason(),
        Reason::PermissionDenied,
        "no maxStale helps"
    );
    node.store.allow("uid-of-web", "db");
    pass(2 * MINUTE).await;
    assert!(running.subscriber.changed().now_or_never().is_some());
    assert!(matches!(running.subscription.look(), Look::Versions(_)));
}

#[tokio::test(start_paused = true)]
async fn rule_c5_a_failure_is_everybodys_and_soon_forgotten() {
    let node = Node::new();
    node.store.state().latency = SECOND;
    node.store.state().down = true;
    let volumes: Vec<_> = (0..20)
        .map(|pod| node.volume(&web().pod(&pod.to_string()), class("db")))
        .collect();
    let cancelled = tokio::time::timeout(SECOND / 2, volumes[0].read());
    let (cancelled, reads) =
        tokio::join!(cancelled, join_all(volumes[1..].iter().map(|v| v.read())));
    assert!(cancelled.is_err(), "who asked first has gone");
    for read in reads {
        assert_eq!(read.unwrap_err().reason(), Reason::StoreUnavailable);
    }
    assert_eq!(node.store.fetches(), 1);
    node.store.state().down = false;
    pass(5 * SECOND).await;
    assert!(volumes[0].read().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_waits_for_is_given_up() {
    let node = Node::new();
    node.store.state().hangs = true;
    let volume = node.volume(&web().pod("a"), class("db"));
    assert!(tokio::time::timeout(SECOND, volume.read()).await.is_err());
    node.store.state().hangs = false;
    assert!(volume.read().await.is_ok(), "a new question, at once");
    assert_eq!(node.store.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_becomes_due_during_a_question_is_looked_at_also_where_that_is_given_up() {
    let node = Node::new();
    let running = node.volume(&web().pod("a"), class("db"));
    running.read().await.unwrap();
    node.store.state().hangs = true;
    let always = json!({"refresh": {"strategy": "Get"}});
    let impatient = node.volume(&web().pod("b"), class_with("db", always));
    let given_up = tokio::time::timeout(3 * SECOND, impatient.read());
    let told = async {
        pass(SECOND).await;
        node.store.change("db");
        running.subscription.mark_due(0);
    };
    assert!(tokio::join!(given_up, told).0.is_err());
    node.store.state().hangs = false;
    pass(2 * SECOND).await;
    assert_eq!(running.values().unwrap(), ["GET db of uid-of-web v1"]);
    assert_eq!(
        node.store.fetches(),
        3,
        "the answer was newer than the news"
    );
}

#[tokio::test(start_paused = true)]
async fn rule_r11_a_provider_that_panics_in_a_look_is_asked_again() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("db"));
    volume.read().await.unwrap();
    node.store.change("db");
    node.store.state().panics = true;
    pass(3 * MINUTE).await;
    let Look::Failing(error) = volume.subscription.look() else {
        panic!("nobody hears of it");
    };
    assert_eq!(error.reason(), Reason::InvalidAnswer);
    node.store.state().panics = false;
    pass(MINUTE).await;
    assert_eq!(volume.values().unwrap(), ["GET db of uid-of-web v1"]);
}

#[tokio::test(start_paused = true)]
async fn a_first_mount_does_not_wait_behind_the_refreshes_of_its_store() {
    let node = Node::with(Settings {
        rate: Rate::UNLIMITED,
        slots: 2,
        ..Settings::default()
    });
    let [hung, behind] = ["o0", "o1"].map(|object| node.volume(&web().pod("a"), class(object)));
    hung.read().await.unwrap();
    behind.read().await.unwrap();
    node.store.change("o0");
    node.store.state().hangs = true;
    hung.subscription.mark_due(0);
    pass(SECOND).await;
    assert_eq!(
        node.store.fetches(),
        3,
        "the one slot of refreshes is taken"
    );
    node.store.change("o1");
    behind.subscription.mark_due(0);
    pass(SECOND).await;
    node.store.state().hangs = false;
    let always = class_with("o1", json!({"refresh": {"strategy": "Get"}}));
    let next = node.volume(&web().pod("b"), always);
    let read = tokio::time::timeout(SECOND, next.read()).await;
    assert_eq!(read.unwrap().unwrap(), ["GET o1 of uid-of-web v1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_absent_and_optional_is_looked_for_in_its_interval_and_fails_nobody() {
    let node = Node::new();
    node.store.state().missing.insert("db".into());
    let optional = json!({"optional": true, "refresh": {"interval": "10m"}});
    let without = node.volume(&web().pod("a"), class_with("db,api", optional));
    without.read().await.unwrap();
    let before = node.store.requests();
    pass(60 * MINUTE).await;
    // Six intervals of two objects, each looked at in the last fifth of its own.
    let looks = node.store.requests() - before;
    assert!((10..=16).contains(&looks), "{looks}");
    node.cache.measure();
    assert_eq!(node.metrics.cache_failing.get(), 0);

    // Somebody cannot do without it.
    let needs = node.volume(&web().pod("b"), class("db"));
    assert!(needs.read().await.is_err());
    node.cache.measure();
    assert_eq!(node.metrics.cache_failing.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_given_up_after_a_minute() {
    let node = Node::new();
    node.store.state().hangs = true;
    let volume = node.volume(&web().pod("a"), class("db"));
    let start = Instant::now();
    let error = volume.read().await.unwrap_err();
    assert_eq!(error.reason(), Reason::DeadlineExceeded);
    assert_eq!(start.elapsed(), MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_questions_stuck_in_one_store_take_nothing_from_another() {
    let node = Node::new();
    let at = |address: &str, object: usize| json!({"provider": "store", "parameters": {"address": address, "objects": format!("o{object}")}});
    node.store.state().hangs = true;
    let stuck: Vec<_> = (0..100)
        .map(|object| node.volume(&web().pod("a"), at("https://stuck", object)))
        .collect();
    let waiting = tokio::spawn(async move { join_all(stuck.iter().map(|v| v.read())).await });
    pass(SECOND).await;
    assert_eq!(node.store.fetches(), 16, "the slots of the one store");
    node.store.state().hangs = false;
    let start = Instant::now();
    for object in 0..100 {
        let volume = node.volume(&web().pod("b"), at("https://fine", object));
        volume.read().await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "nobody has waited");
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn stale_answers_are_for_those_who_opt_in_and_no_longer_than_they_say() {
    let node = Node::new();
    let running = node.volume(&web().pod("a"), class("db"));
    running.read().await.unwrap();
    node.store.state().down = true;
    pass(5 * MINUTE).await;
    let read = async |stale: &str| {
        let class = class_with("db", json!({"refresh": {"maxStale": stale}}));
        let volume = node.volume(&web().pod("b"), class);
        volume.read().await.map_err(|error| error.reason())
    };
    assert_eq!(read("0s").await, Err(Reason::StoreUnavailable));
    assert!(read("1h").await.is_ok());
    assert_eq!(read("1m").await, Err(Reason::StoreUnavailable));
    assert!(running.values().is_some(), "who has it keeps it");
}

/// 200 volumes of 50 accounts, and a store that is away for ten minutes.
#[tokio::test(start_paused = true)]
async fn rule_s12_after_an_outage_all_are_fresh_within_an_interval_and_nobody_storms_the_store() {
    let settings = coffer::cache::Settings::default();
    let node = Node::with(settings);
    let mut volumes = Vec::new();
    for number in 0..200 {
        let account = crate::pods::Account::new("shop", "web", &format!("account-{}", number % 50));
        let volume = node.volume(&account.pod(&number.to_string()), class("db"));
        volume.read().await.unwrap();
        volumes.push(volume);
    }
    pass(5 * MINUTE).await;
    node.store.state().down = true;
    node.store.change("db");
    pass(10 * MINUTE).await;
    for volume in &volumes {
        assert!(volume.values().unwrap()[0].ends_with("v0"), "what they had");
    }
    node.store.state().down = false;
    node.store.state().fetches.clear();
    pass(2 * MINUTE + 10 * SECOND).await;
    for volume in &volumes {
        assert!(volume.values().unwrap()[0].ends_with("v1"), "all are fresh");
    }
    let state = node.store.state();
    let first = state.fetches[0].at;
    let in_second = |second: u32| {
        let at = |fetch: &&crate::store::Fetch| (fetch.at - first).as_secs() == u64::from(second);
        state.fetches.iter().filter(at).count()
    };
    let most = (0..130).map(in_second).max().unwrap();
    assert!(
        most <= settings.rate.per_second as usize + 50,
        "{most} in one second"
    );
    assert!(
        state.fetches.len() <= 100,
        "{} for 50 entries",
        state.fetches.len()
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_ever_more_rarely() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("db"));
    volume.read().await.unwrap();
    node.store.state().down = true;
    pass(30 * MINUTE).await;
    let fetches = node.store.fetches();
    // A full minute of back-off with full jitter is half a minute on average.
    assert!((30..110).contains(&fetches), "{fetches} in half an hour");
    let _ = ErrorKind::Unavailable;
}
