//! A driver that starts again believes what the volumes of the one before say.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use coffer::cache::Look;
use coffer::volume::{HeldObject, LAYOUT, Record};

use serde_json::json;

use crate::pods::{Account, MINUTE, Node, SECOND, class, class_with, pass, web};

fn record(volume: &crate::pods::Volume, version: &str, left: Option<Duration>) -> Record {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let sources = volume.spec.sources().iter();
    let keys = sources.flat_map(|s| s.objects.iter().map(|object| s.object_key(object)));
    let held = HeldObject {
        version: version.into(),
        expires: left.map(|left| (since_1970 + left).as_secs()),
        once: false,
    };
    Record {
        layout: LAYOUT,
        immutable: false,
        class: volume.spec.class_hash().into(),
        objects: keys
            .map(|key| (key, held.clone()))
            .collect::<BTreeMap<_, _>>(),
    }
}

#[tokio::test(start_paused = true)]
async fn unchanged_values_are_not_read_again_and_are_checked_in_spread_order() {
    let node = Node::new();
    let mut volumes = Vec::new();
    for number in 0..100 {
        let account = Account::new("shop", "web", &format!("account-{number}"));
        let volume = node.volume(&account.pod(&number.to_string()), class("db"));
        volume.subscription.adopt(&record(&volume, "0", None));
        volumes.push(volume);
    }
    pass(SECOND).await;
    assert_eq!(node.store.requests(), 0, "no burst at the start");
    pass(2 * MINUTE).await;
    let looks = node.store.state().looks.clone();
    assert!(looks.len() >= 100);
    let start = looks[0];
    for tenth in 0..10 {
        let in_it = looks
            .iter()
            .filter(|at| (**at - start).as_secs() / 12 == tenth);
        assert!(in_it.count() <= 30, "spread");
    }
    assert_eq!(node.store.fetches(), 0);
    for volume in &volumes {
        assert!(matches!(volume.subscription.look(), Look::Versions(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_volume_that_is_taken_over_puts_nothing_off() {
    let node = Node::new();
    let spec = class_with("cert", json!({"sharing": "ServiceAccount"}));
    let left = |seconds| Some(SECOND * seconds);
    let first = node.volume(&web().pod("a"), spec.clone());
    first.subscription.adopt(&record(&first, "0", left(80)));
    pass(45 * SECOND).await;
    assert_eq!(node.store.fetches(), 0);
    let second = node.volume(&web().pod("b"), spec);
    second.subscription.adopt(&record(&second, "0", left(35)));
    pass(15 * SECOND).await;
    assert_eq!(node.store.fetches(), 1, "at 60 to 70 % of its life");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_changed_meanwhile_is_read_within_the_interval() {
    let node = Node::new();
    node.store.change("db");
    let volume = node.volume(&web().pod("a"), class("db"));
    volume.subscription.adopt(&record(&volume, "0", None));
    let told = volume.subscriber.changed();
    assert!(
        tokio::time::timeout(2 * MINUTE + SECOND, told)
            .await
            .is_ok()
    );
    assert_eq!(volume.values().unwrap(), ["GET db of uid-of-web v1"]);
}

#[tokio::test(start_paused = true)]
async fn what_ends_by_itself_is_made_anew_before_its_end_and_not_sooner() {
    let node = Node::new();
    let mut volumes = Vec::new();
    for pod in 0..20 {
        let volume = node.volume(&web().pod(&pod.to_string()), class("lease"));
        volume
            .subscription
            .adopt(&record(&volume, "old", Some(30 * MINUTE)));
        volumes.push(volume);
    }
    pass(15 * MINUTE).await;
    assert_eq!(node.store.requests(), 0);
    pass(14 * MINUTE).await;
    assert_eq!(node.store.fetches(), 20, "each pod its own");
    let state = node.store.state();
    let first = state.fetches[0].at;
    assert!(
        state.fetches.last().unwrap().at - first > MINUTE,
        "and not all at once"
    );
}
