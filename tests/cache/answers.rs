//! What is taken out of one answer of a store stays together, and what there is once is not read again.

use std::time::Duration;

use coffer::cache::{Look, Settings};
use coffer::pacer::Rate;
use serde_json::json;
use tokio::time::Instant;

use crate::pods::{MINUTE, Node, SECOND, Volume, class, class_with, pass, web};
use crate::store::Role;

const HOUR: Duration = Duration::from_secs(3600);
const CREDS: &str = "lease/user,lease/password";

/// The lease that each value of a volume is of.
fn leases(volume: &Volume) -> Vec<String> {
    let lease = |value: &String| {
        let words = value.split(' ').find(|word| word.starts_with("lease-"));
        words.unwrap().to_owned()
    };
    volume.values().unwrap().iter().map(lease).collect()
}

#[tokio::test(start_paused = true)]
async fn two_objects_of_one_lease_are_renewed_by_one_request_and_made_anew_together() {
    let node = Node::new();
    node.store.state().renews = Some(HOUR);
    let volume = node.volume(&web().pod("a"), class(CREDS));
    volume.read().await.unwrap();
    pass(10 * HOUR).await;
    assert_eq!(leases(&volume), ["lease-1", "lease-1"]);
    let renewals = node.store.state().renewals;
    assert!((14..=17).contains(&renewals), "{renewals}");
    for round in 2..=6 {
        node.store.state().renews = Some(MINUTE);
        pass(HOUR).await;
        let of = leases(&volume);
        assert_eq!(of[0], of[1], "round {round}");
        assert_ne!(of[0], "lease-1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_needs_more_of_an_answer_than_another_has_one_of_its_own() {
    let node = Node::new();
    let one = node.volume(&web().pod("a"), class("lease/user"));
    one.read().await.unwrap();
    let both = node.volume(&web().pod("a"), class(CREDS));
    both.read().await.unwrap();
    assert_eq!(leases(&both), ["lease-2", "lease-2"]);
    assert_eq!(leases(&one), ["lease-1"]);
    assert!(node.store.state().released.is_empty());
    for hour in 0..20 {
        pass(HOUR).await;
        let of = leases(&both);
        assert_eq!(of[0], of[1], "hour {hour}");
        assert_ne!(of[0], leases(&one)[0], "hour {hour}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_volumes_that_want_parts_of_an_answer_at_once_have_each_a_whole_one() {
    let node = Node::new();
    node.store.state().latency = Duration::from_millis(20);
    let specs = ["lease/user", CREDS, "lease/password", CREDS];
    let volumes = specs.map(|objects| node.volume(&web().pod("a"), class(objects)));
    let reads = volumes.iter().map(|volume| volume.read());
    for read in futures_util::future::join_all(reads).await {
        let values = read.unwrap();
        let lease = |value: &String| value.split(' ').nth(4).unwrap().to_owned();
        assert!(
            values.iter().all(|value| lease(value) == lease(&values[0])),
            "{values:?}"
        );
    }
    for hour in 0..20 {
        pass(HOUR).await;
        for volume in &volumes {
            let of = leases(volume);
            assert!(of.iter().all(|lease| *lease == of[0]), "hour {hour}");
        }
    }
    assert_eq!(
        leases(&volumes[1]),
        leases(&volumes[3]),
        "the same set is shared"
    );
}

#[tokio::test(start_paused = true)]
async fn a_part_that_had_to_make_room_brings_the_rest_of_its_answer_along() {
    let settings = Settings {
        bytes: 1500,
        rate: Rate::UNLIMITED,
        ..Settings::default()
    };
    let node = Node::with(settings);
    node.store.state().size = 500;
    node.store.state().renews = Some(HOUR);
    let volume = node.volume(&web().pod("a"), class(CREDS));
    volume.read().await.unwrap();
    let other = node.volume(&web().pod("a"), class("x,y"));
    other.read().await.unwrap();
    assert!(volume.values().is_none(), "a part of it is not there");
    pass(SECOND).await;
    let of = leases(&volume);
    assert_eq!(of[0], of[1]);
}

#[tokio::test(start_paused = true)]
async fn what_there_is_once_is_not_read_again_while_a_volume_has_it() {
    let node = Node::new();
    for strategy in ["Cache", "Get"] {
        let spec = class_with("once,db", json!({"refresh": {"strategy": strategy}}));
        let volume = node.volume(&web().pod(strategy), spec);
        let first = volume.read().await.unwrap();
        let asked = |object: &str| {
            let state = node.store.state();
            let asked = state.fetches.iter().filter(|f| f.request.ends_with(object));
            asked.count()
        };
        let before = asked("once");
        for _ in 0..100 {
            volume.subscription.republished();
            volume.subscription.mark_due(0);
            node.store.change("db");
            pass(MINUTE).await;
        }
        assert_eq!(asked("once"), before, "{strategy}");
        assert!(asked("db") > 50, "{strategy}: the other one is");
        assert_eq!(volume.values().unwrap()[0], first[0]);
        volume.subscription.marked("the author wants it");
        pass(SECOND).await;
        assert_eq!(asked("once"), before + 1, "{strategy}");
        assert_ne!(volume.values().unwrap()[0], first[0]);
    }
    let (a, b) = (
        node.volume(&web().pod("a"), class("once")),
        node.volume(&web().pod("b"), class("once")),
    );
    assert_ne!(a.read().await.unwrap(), b.read().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_there_is_once_is_the_last_to_make_room() {
    let settings = Settings {
        bytes: 2500,
        rate: Rate::UNLIMITED,
        ..Settings::default()
    };
    let node = Node::with(settings);
    node.store.state().size = 500;
    let volume = node.volume(&web().pod("a"), class("once"));
    let first = volume.read().await.unwrap();
    let others = node.volume(&web().pod("a"), class("a,b,c,d,e,f"));
    others.read().await.unwrap();
    assert_eq!(volume.values().unwrap(), first);
}

/// A node whose store has a static role.
fn with_role(period: Duration, late: Duration) -> Node {
    let node = Node::new();
    let since = Instant::now();
    node.store.state().role = Some(Role {
        since,
        period,
        late,
    });
    node
}

#[tokio::test(start_paused = true)]
async fn a_static_role_is_looked_at_just_after_its_rotation_and_not_before() {
    let node = with_role(HOUR, Duration::ZERO);
    let spec = class_with("role", json!({"refresh": {"interval": "10s"}}));
    let volumes = ["a", "b"].map(|pod| node.volume(&web().pod(pod), spec.clone()));
    for volume in &volumes {
        volume.read().await.unwrap();
    }
    pass(4 * SECOND).await;
    for hour in 1..=20 {
        pass(HOUR - 5 * SECOND).await;
        assert_eq!(
            node.store.requests(),
            hour,
            "once for each rotation, for all"
        );
        pass(5 * SECOND).await;
        for volume in &volumes {
            assert!(volume.values().unwrap()[0].ends_with(&format!("rotated {hour}")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_late_with_a_rotation_is_asked_again_in_growing_pauses() {
    let node = with_role(HOUR, 10 * MINUTE);
    let volume = node.volume(&web().pod("a"), class("role"));
    volume.read().await.unwrap();
    pass(HOUR + 9 * MINUTE).await;
    let looks = node.store.requests();
    // After 2, 4, 8 and 16 s, and then each 30.
    assert!((18..=22).contains(&looks), "{looks}");
    assert!(matches!(volume.subscription.look(), Look::Versions(_)));
    pass(MINUTE + 31 * SECOND).await;
    assert!(volume.values().unwrap()[0].ends_with("rotated 1"));
    let looks = node.store.requests();
    pass(48 * MINUTE).await;
    assert_eq!(node.store.requests(), looks, "and then left alone");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_no_more_is_replaced_in_the_same_look() {
    let node = Node::new();
    node.store.state().renews = Some(HOUR);
    let volume = node.volume(&web().pod("a"), class(CREDS));
    volume.read().await.unwrap();
    node.store.state().gone = true;
    pass(43 * MINUTE).await;
    assert_eq!(leases(&volume), ["lease-2", "lease-2"]);
    assert!(matches!(volume.subscription.look(), Look::Versions(_)));
}

#[tokio::test(start_paused = true)]
async fn with_sharing_pod_each_pod_is_logged_in_and_out_by_itself() {
    let node = Node::new();
    let spec = || class_with("db", json!({"sharing": "Pod"}));
    let volumes = ["a", "b"].map(|pod| node.volume(&web().pod(pod), spec()));
    for volume in &volumes {
        volume.read().await.unwrap();
    }
    assert_eq!(node.store.fetches(), 2);
    let [a, b] = volumes;
    drop(a);
    pass(MINUTE).await;
    assert_eq!(node.store.state().logged_out, ["a"]);
    drop(b);
    pass(MINUTE).await;
    assert_eq!(node.store.state().logged_out, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_an_answer_does_not_have_costs_no_further_leases() {
    let node = Node::new();
    node.store.state().renews = Some(HOUR);
    node.store.state().missing.insert("lease/port".into());
    let optional = json!({"items": [
        {"object": "lease/user", "path": "user"},
        {"object": "lease/port", "path": "port", "optional": true},
    ]});
    let volume = node.volume(
        &web().pod("a"),
        class_with("lease/user,lease/port", optional),
    );
    volume.read().await.unwrap();
    pass(10 * HOUR).await;
    let fetches = node.store.fetches();
    // Both, each time that the lease would be renewed.
    assert!((2 * 14..=2 * 18).contains(&fetches), "{fetches}");
}

#[tokio::test(start_paused = true)]
async fn the_administrator_can_keep_all_pods_apart() {
    let node = Node::with(Settings {
        pods_apart: true,
        rate: Rate::UNLIMITED,
        ..Settings::default()
    });
    for sharing in ["ServiceAccount", "Pod"] {
        let before = node.store.fetches();
        let spec = || class_with("db", json!({ "sharing": sharing }));
        let volumes = ["a", "b"].map(|pod| node.volume(&web().pod(pod), spec()));
        for volume in &volumes {
            volume.read().await.unwrap();
        }
        assert_eq!(node.store.fetches(), before + 2, "{sharing}");
        drop(volumes);
        pass(MINUTE).await;
        let logged_out = std::mem::take(&mut node.store.state().logged_out);
        assert_eq!(logged_out, ["a", "b"], "{sharing}");
    }
}
