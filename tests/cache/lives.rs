//! When an entry is looked at: by its strategy, by its own life, when it is told.

use std::time::Duration;

use coffer::cache::Look;
use futures_util::FutureExt;
use serde_json::json;
use tokio::time::Instant;

use crate::pods::{MINUTE, Node, SECOND, class, class_with, pass, web};
use crate::store::Role;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_change_reaches_the_volume_within_the_interval_and_a_second() {
    let node = Node::new();
    for (interval, seconds) in [("10s", 10), ("2m", 120), ("1h", 3600)] {
        let class = class_with("db", json!({"refresh": {"interval": interval}}));
        let volume = node.volume(&web().pod("a"), class);
        volume.read().await.unwrap();
        for round in 0..20 {
            let _ = volume.subscriber.changed().now_or_never();
            pass(Duration::from_secs(seconds * 3 + round)).await;
            node.store.change("db");
            let told = volume.subscriber.changed();
            let limit = Duration::from_secs(seconds + 1);
            assert!(
                tokio::time::timeout(limit, told).await.is_ok(),
                "{interval}"
            );
            let version = node.store.state().versions["db"];
            assert!(volume.values().unwrap()[0].ends_with(&format!("v{version}")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_gauges_tell_of_what_somebody_else_may_change_and_of_what_ends_for_good() {
    let node = Node::new();
    node.store.state().role = Some(Role {
        since: Instant::now(),
        period: MINUTE,
        late: Duration::ZERO,
    });
    let role = node.volume(&web().pod("a"), class("role,db"));
    role.read().await.unwrap();
    pass(30 * SECOND).await;
    node.cache.measure();
    assert_eq!(node.metrics.next_expiry.get(), -1, "it is only replaced");
    let cert = node.volume(&web().pod("a"), class("cert"));
    cert.read().await.unwrap();
    pass(10 * HOUR).await;
    node.cache.measure();
    assert!(node.metrics.oldest_look.get() <= 120);
    assert_eq!(node.metrics.next_expiry.get(), 14 * 3600);
    assert_eq!(node.metrics.failing_expiry.get(), -1);
    node.store.state().down = true;
    pass(8 * HOUR).await;
    node.cache.measure();
    assert_eq!(node.metrics.failing_expiry.get(), 6 * 3600);
    drop(cert);
    node.cache.measure();
    assert_eq!(node.metrics.next_expiry.get(), -1, "nobody has it any more");
}

#[tokio::test(start_paused = true)]
async fn a_class_with_a_shorter_interval_is_served_by_the_same_entry() {
    let node = Node::new();
    let patient = node.volume(
        &web().pod("a"),
        class_with("db", json!({"refresh": {"interval": "1h"}})),
    );
    patient.read().await.unwrap();
    let hasty = node.volume(
        &web().pod("b"),
        class_with("db", json!({"refresh": {"interval": "10s"}})),
    );
    hasty.read().await.unwrap();
    assert_eq!(node.store.fetches(), 1);
    pass(MINUTE).await;
    let looks = node.store.state().looks.len();
    assert!((5..=8).contains(&looks), "{looks}");
    drop(hasty);
    pass(MINUTE).await;
    node.store.state().looks.clear();
    pass(50 * MINUTE).await;
    assert!(node.store.state().looks.len() <= 2);
}

#[tokio::test(start_paused = true)]
async fn get_looks_after_each_republish_and_at_no_other_time() {
    let node = Node::new();
    let volume = node.volume(
        &web().pod("a"),
        class_with("db", json!({"refresh": {"strategy": "Get"}})),
    );
    volume.read().await.unwrap();
    pass(10 * HOUR).await;
    assert_eq!(node.store.requests(), 1);
    for round in 1..=5 {
        node.store.change("db");
        volume.subscription.republished();
        pass(SECOND).await;
        assert!(volume.values().unwrap()[0].ends_with(&format!("v{round}")));
    }
    let asked = node.store.requests();
    volume.subscription.republished();
    pass(SECOND).await;
    assert_eq!(node.store.requests(), asked + 1, "one cheap question");
    let next = node.volume(
        &web().pod("b"),
        class_with("db", json!({"refresh": {"strategy": "Get"}})),
    );
    next.read().await.unwrap();
    assert_eq!(node.store.fetches(), 7, "a new pod gets what is there now");
}

#[tokio::test(start_paused = true)]
async fn a_republish_alone_asks_nobody() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("db"));
    volume.read().await.unwrap();
    for _ in 0..1000 {
        volume.subscription.republished();
    }
    pass(SECOND).await;
    assert_eq!(node.store.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_in_time_for_as_long_as_the_store_lets_it_live() {
    let node = Node::new();
    node.store.state().renews = Some(HOUR);
    let volume = node.volume(&web().pod("a"), class("lease"));
    let first = volume.read().await.unwrap();
    pass(10 * HOUR).await;
    assert_eq!(volume.values().unwrap(), first, "the same credentials");
    let renewals = node.store.state().renewals;
    assert!(
        (14..=17).contains(&renewals),
        "{renewals} at 60 to 70 % of an hour"
    );
    assert_eq!(node.store.fetches(), 1);
    // It comes to its longest life: made anew at once, and the old one goes after a grace.
    node.store.state().renews = Some(10 * MINUTE);
    pass(45 * MINUTE).await;
    assert_ne!(volume.values().unwrap(), first);
    assert_eq!(node.store.fetches(), 2);
    let released = node.store.state().released.clone();
    assert_eq!(released, [("lease-1".to_owned(), MINUTE)]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_made_anew_before_it_ends() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("lease"));
    volume.read().await.unwrap();
    for hour in 1..=10 {
        pass(HOUR).await;
        let Look::Versions(_) = volume.subscription.look() else {
            panic!("hour {hour}");
        };
    }
    let fetches = node.store.fetches();
    assert!(
        (13..=17).contains(&fetches),
        "{fetches} at 60 to 80 % of an hour"
    );
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_and_given_up_before_the_end() {
    let node = Node::new();
    node.store.state().renews = Some(HOUR);
    let volume = node.volume(&web().pod("a"), class("lease"));
    let first = volume.read().await.unwrap();
    node.store.state().renews = None;
    pass(50 * MINUTE).await;
    assert_eq!(volume.values().unwrap(), first);
    pass(5 * MINUTE).await;
    assert_ne!(volume.values().unwrap(), first, "made anew after 85 %");
    assert_eq!(node.store.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_made_anew_by_its_own_life() {
    let node = Node::new();
    let volume = node.volume(
        &web().pod("a"),
        class_with("cert", json!({"refresh": {"interval": "10s"}})),
    );
    volume.read().await.unwrap();
    pass(10 * 24 * HOUR).await;
    let fetches = node.store.fetches();
    assert!((14..=18).contains(&fetches), "{fetches} in ten lives");
    assert_eq!(node.store.requests(), fetches, "nothing else was asked");
}

#[tokio::test(start_paused = true)]
async fn what_is_told_during_a_look_is_looked_at_once_more() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("db"));
    volume.read().await.unwrap();
    node.store.state().latency = SECOND;
    node.store.change("db");
    volume.subscription.mark_due(0);
    pass(SECOND / 2).await;
    node.store.change("db");
    volume.subscription.mark_due(0);
    pass(5 * SECOND).await;
    assert!(volume.values().unwrap()[0].ends_with("v2"));
}
