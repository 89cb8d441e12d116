//! One read for all that a store cannot tell apart, and for nobody else.

use coffer::cache::{Look, Settings};
use coffer::pacer::Rate;
use futures_util::future::join_all;
use serde_json::json;
use std::time::Duration;

use crate::store::BOUND_TO_PODS;

use crate::pods::{Account, MINUTE, Node, SECOND, Volume, class, class_with, pass, web};

#[tokio::test(start_paused = true)]
async fn a_thousand_pods_of_one_account_are_one_read_and_one_for_each_interval() {
    let node = Node::new();
    node.store.state().latency = Duration::from_millis(20);
    let volumes: Vec<_> = (0..1000)
        .map(|pod| node.volume(&web().pod(&pod.to_string()), class("db,tls")))
        .collect();
    let reads = volumes.iter().map(|volume| volume.read());
    for read in futures_util::future::join_all(reads).await {
        assert_eq!(read.unwrap().len(), 2);
    }
    assert_eq!(node.store.fetches(), 2);
    pass(20 * MINUTE).await;
    let looks = node.store.state().looks.len();
    assert_eq!(node.store.fetches(), 2, "equal versions are not read");
    assert!(
        (20..=26).contains(&looks),
        "{looks} in ten intervals of two objects"
    );
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_one_pod_is_made_for_each_even_when_all_ask_at_once() {
    let node = Node::new();
    node.store.state().latency = Duration::from_millis(20);
    let volumes: Vec<_> = (0..10)
        .map(|pod| node.volume(&web().pod(&format!("pod-{pod}")), class("lease")))
        .collect();
    let reads = volumes.iter().map(|volume| volume.read());
    let reads = futures_util::future::join_all(reads).await;
    let values: std::collections::BTreeSet<_> =
        reads.into_iter().map(|read| read.unwrap()).collect();
    assert_eq!(values.len(), 10, "each its own");
    for (pod, volume) in volumes.iter().enumerate() {
        let value = volume.read().await.unwrap().remove(0);
        assert!(value.ends_with(&format!("for pod-{pod}")), "{value}");
    }
    assert_eq!(node.store.fetches(), 10);

    let shared = class_with("lease", json!({"sharing": "ServiceAccount"}));
    let all: Vec<_> = (0..10)
        .map(|pod| node.volume(&web().pod(&format!("pod-{pod}")), shared.clone()))
        .collect();
    let first = all[0].read().await.unwrap();
    for volume in &all {
        assert_eq!(volume.read().await.unwrap(), first, "the class opts in");
    }
    assert_eq!(node.store.fetches(), 11);
}

#[tokio::test(start_paused = true)]
async fn what_turns_out_to_be_each_pods_own_is_looked_at_for_every_pod_that_lacks_it() {
    let node = Node::new();
    node.store.state().missing.insert("lease".into());
    let spec = class_with("lease,db", json!({"optional": true}));
    let volumes = ["a", "b"].map(|pod| node.volume(&web().pod(pod), spec.clone()));
    for volume in &volumes {
        assert_eq!(volume.read().await.unwrap().len(), 1, "without the lease");
    }
    node.store.state().missing.clear();
    pass(3 * MINUTE).await;
    for volume in &volumes {
        let Look::Versions(versions) = volume.subscription.look() else {
            panic!("{} is not looked at", volume.subscriber.volume_id);
        };
        assert_eq!(versions.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn sharing_pod_gives_each_pod_what_its_own_token_gets() {
    let node = Node::new();
    node.store.deny("b", "db");
    let own = json!({"provider": "store", "sharing": "Pod",
        "parameters": {"objects": "db", "role": BOUND_TO_PODS}});
    let a = node.volume(&web().pod("a"), own.clone());
    let b = node.volume(&web().pod("b"), own);
    assert!(a.read().await.is_ok());
    assert!(b.read().await.is_err(), "the role is bound to the pod");
    assert_eq!(node.store.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_c6_a_waiter_with_a_shorter_deadline_times_out_alone() {
    let node = Node::new();
    node.store.state().latency = 10 * SECOND;
    let volumes: Vec<_> = ["a", "b", "c"]
        .map(|pod| node.volume(&web().pod(pod), class("db")))
        .into();
    let (first, second, third) = tokio::join!(
        tokio::time::timeout(SECOND, volumes[0].read()),
        tokio::time::timeout(30 * SECOND, volumes[1].read()),
        tokio::time::timeout(30 * SECOND, volumes[2].read()),
    );
    assert!(first.is_err(), "and it was the one who asked");
    assert!(second.unwrap().is_ok() && third.unwrap().is_ok());
    assert_eq!(node.store.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_comes_when_its_pod_has_gone_is_given_back() {
    let node = Node::new();
    // The question is that of a pod which goes; another one waits for it.
    node.store.state().latency = 10 * SECOND;
    let gone = node.volume(&web().pod("a"), class("lease"));
    let stays = node.volume(&web().pod("b"), class("lease"));
    let gives_up = async move {
        let read = tokio::time::timeout(SECOND, gone.read()).await;
        drop(gone);
        read
    };
    let (given_up, read) = tokio::join!(gives_up, stays.read());
    assert!(given_up.is_err() && read.is_ok());
    pass(MINUTE).await;
    let given_back = |node: &Node| node.store.state().released.len();
    assert_eq!(given_back(&node), 1, "what the first question brought");
    assert_eq!(node.store.state().logged_out.len(), 0);

    // The last volume goes while its lease is made anew, which takes longer than anybody is remembered.
    node.store.state().latency = 50 * SECOND;
    let made = node.store.fetches();
    while node.store.fetches() == made {
        pass(SECOND).await;
    }
    drop(stays);
    pass(3 * MINUTE).await;
    assert_eq!(given_back(&node), 3, "the old one and the new one");
    assert_eq!(node.store.state().logged_out, ["uid-of-web"]);
}

#[tokio::test(start_paused = true)]
async fn what_there_is_once_is_made_once_for_each_pod_however_slow_the_store_is() {
    let node = Node::with(Settings {
        rate: Rate::UNLIMITED,
        slots: 1,
        ..Settings::default()
    });
    // The last one has its answer after more time than the parted entries are left alone.
    node.store.state().latency = 6 * SECOND;
    let volumes: Vec<_> = (0..8)
        .map(|pod| node.volume(&web().pod(&pod.to_string()), class("once")))
        .collect();
    for read in join_all(volumes.iter().map(|volume| volume.read())).await {
        read.unwrap();
    }
    pass(3 * MINUTE).await;
    assert_eq!(node.store.fetches(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_came_too_late_is_given_back_once_and_its_identity_logged_out() {
    let node = Node::new();
    node.store.state().missing.insert("lease/user".into());
    node.store.state().missing.insert("lease/password".into());
    let optional = json!({"optional": true, "refresh": {"interval": "10s"}});
    let spec = class_with("lease/user,lease/password", optional);
    let volume = node.volume(&web().pod("a"), spec);
    volume.read().await.unwrap();
    node.store.state().missing.clear();
    node.store.state().latency = 50 * SECOND;
    let asked = node.store.fetches();
    while node.store.fetches() == asked {
        pass(SECOND).await;
    }
    drop(volume);
    pass(3 * MINUTE).await;
    assert_eq!(node.store.state().released.len(), 1);
    assert_eq!(node.store.state().logged_out, ["uid-of-web"]);
}

#[tokio::test(start_paused = true)]
async fn rule_c7_values_leave_the_least_recently_used_first_and_come_back_when_needed() {
    let node = Node::with(Settings {
        bytes: 10_000,
        rate: Rate::UNLIMITED,
        ..Settings::default()
    });
    node.store.state().size = 1000;
    let volumes: Vec<_> = (0..20)
        .map(|object| node.volume(&web().pod("a"), class(&format!("o{object}"))))
        .collect();
    for volume in &volumes {
        volume.read().await.unwrap();
    }
    assert_eq!(node.store.fetches(), 20);
    for volume in &volumes[10..] {
        assert!(volume.values().is_some(), "the newer half is there");
    }
    assert!(volumes[0].values().is_none(), "the oldest is not");
    pass(SECOND).await;
    assert!(volumes[0].values().is_some(), "but it was asked for");
    assert_eq!(node.store.fetches(), 21);
    // What left is still compared by its version, and read when that is another one.
    node.store.change("o5");
    pass(2 * MINUTE).await;
    assert_eq!(node.store.fetches(), 22);
}

#[tokio::test(start_paused = true)]
async fn rule_c8_what_nobody_uses_any_more_is_wiped_and_given_back_within_a_minute() {
    let node = Node::new();
    let batch = Account::new("shop", "batch", "uid-of-batch");
    let stays = node.volume(&batch.pod("other"), class("db"));
    stays.read().await.unwrap();
    let volumes: Vec<_> = ["a", "b"]
        .map(|pod| node.volume(&web().pod(pod), class("db,lease")))
        .into();
    for volume in &volumes {
        volume.read().await.unwrap();
    }
    let fetches = node.store.fetches();
    let mut volumes = volumes.into_iter();
    drop(volumes.next());
    pass(MINUTE).await;
    let released = || -> Vec<_> {
        let state = node.store.state();
        let at_once = |(lease, grace): &(String, Duration)| grace.is_zero().then(|| lease.clone());
        state.released.iter().map(at_once).collect()
    };
    assert_eq!(
        released(),
        [Some("lease-1".to_owned())],
        "of the pod that has gone"
    );
    assert!(node.store.state().logged_out.is_empty());
    drop(volumes.next());
    pass(10 * SECOND).await;
    // A pod that takes its place in the meantime finds the shared value.
    let next = node.volume(&web().pod("next"), class("db"));
    next.read().await.unwrap();
    assert_eq!(node.store.fetches(), fetches);
    drop(next);
    pass(MINUTE).await;
    assert_eq!(released().len(), 2);
    assert_eq!(node.store.state().logged_out, ["uid-of-web"]);
    let again = node.volume(&web().pod("again"), class("db"));
    again.read().await.unwrap();
    assert_eq!(node.store.fetches(), fetches + 1, "it was wiped");
    pass(10 * MINUTE).await;
    assert_eq!(
        node.store.state().logged_out,
        ["uid-of-web"],
        "the other is left alone"
    );
}

#[tokio::test(start_paused = true)]
async fn objects_of_one_lease_give_it_back_once() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("lease/user,lease/password"));
    volume.read().await.unwrap();
    let released = || std::mem::take(&mut node.store.state().released);
    // It cannot be renewed: another one takes its place.
    pass(50 * MINUTE).await;
    assert_eq!(released(), [("lease-1".to_owned(), MINUTE)]);
    drop(volume);
    pass(MINUTE).await;
    assert_eq!(released(), [("lease-2".to_owned(), Duration::ZERO)]);
}

/// The last volume of the account goes, and its lease and its login with it.
async fn gives_back_all(node: &Node, volume: Volume) {
    drop(volume);
    pass(MINUTE).await;
    let state = node.store.state();
    assert_eq!(state.released, [("lease-1".to_owned(), Duration::ZERO)]);
    assert_eq!(state.logged_out, ["uid-of-web"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_pod_is_logged_out_though_the_store_hangs_over_its_lease() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("lease"));
    volume.read().await.unwrap();
    node.store.state().hangs = true;
    gives_back_all(&node, volume).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_token_has_ended_still_gives_back_what_it_has() {
    let node = Node::new();
    let volume = node.volume(&web().pod("a"), class("lease"));
    volume.read().await.unwrap();
    let ended = web().pod_with("a", Duration::ZERO);
    volume.subscriber.renew(ended);
    gives_back_all(&node, volume).await;
}

#[tokio::test(start_paused = true)]
async fn rule_c9_a_hit_is_no_older_than_the_interval() {
    let node = Node::new();
    let first = node.volume(&web().pod("a"), class("db"));
    first.read().await.unwrap();
    // Nobody is left who would look at it.
    drop(first);
    pass(20 * SECOND).await;
    let get = class_with("db", json!({"refresh": {"interval": "10s"}}));
    let second = node.volume(&web().pod("b"), get);
    second.read().await.unwrap();
    assert_eq!(node.store.fetches(), 2, "20 s are more than its 10 s");
    let third = node.volume(&web().pod("c"), class("db"));
    third.read().await.unwrap();
    assert_eq!(node.store.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_answers_of_a_role_that_is_bound_to_pods_are_kept_too() {
    let node = Node::new();
    node.store.state().latency = Duration::from_millis(20);
    node.store.deny("b", "tls");
    let own = json!({"provider": "store", "sharing": "Pod", "refresh": {"interval": "10s"},
        "parameters": {"objects": "db,tls", "role": BOUND_TO_PODS}});
    let a = node.volume(&web().pod("a"), own.clone());
    let b = node.volume(&web().pod("b"), own);
    for _ in 0..30 {
        assert!(a.read().await.is_ok());
        assert!(b.read().await.is_err());
        pass(SECOND).await;
    }
    let of_a = node
        .store
        .state()
        .fetches
        .iter()
        .filter(|fetch| fetch.pod == "a")
        .count();
    assert_eq!(of_a, 2);
    let state = node.store.state();
    let of_b = |object: &str| {
        let of = |fetch: &&crate::store::Fetch| fetch.pod == "b" && fetch.request.ends_with(object);
        state.fetches.iter().filter(of).count()
    };
    assert_eq!(of_b("db"), 1);
    assert!(of_b("tls") <= 30, "{}", of_b("tls"));
}
