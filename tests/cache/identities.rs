//! Who is told apart from whom, and what a token is good for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer::error::{PublishError, Reason};
use coffer_provider::Sharing;
use serde_json::json;

use crate::pods::{AUDIENCE, Account, MINUTE, Node, SECOND, class, class_with, pass, web};

#[tokio::test(start_paused = true)]
async fn rule_c1_two_accounts_are_two_reads_and_one_never_has_the_others() {
    let node = Node::new();
    let (a, b) = (web(), Account::new("shop", "batch", "uid-of-batch"));
    node.store.deny("uid-of-batch", "db");
    let of_a = node.volume(&a.pod("a"), class("db"));
    assert_eq!(of_a.read().await.unwrap(), ["GET db of uid-of-web v0"]);
    let of_b = node.volume(&b.pod("b"), class("db"));
    let error = of_b.read().await.unwrap_err();
    assert_eq!(error.reason(), Reason::PermissionDenied, "{error}");
    assert!(of_b.values().is_none());
    assert_eq!(node.store.fetches(), 2);
    node.store.allow("uid-of-batch", "db");
    pass(5 * SECOND).await;
    assert_eq!(of_b.read().await.unwrap(), ["GET db of uid-of-batch v0"]);
}

#[tokio::test(start_paused = true)]
async fn rule_c2_an_account_of_another_namespace_or_made_anew_is_another_one() {
    let node = Node::new();
    let accounts = [
        web(),
        Account::new("other", "web", "uid-elsewhere"),
        Account::new("shop", "web", "uid-made-anew"),
    ];
    let mut volumes = Vec::new();
    for (pod, account) in accounts.iter().enumerate() {
        let volume = node.volume(&account.pod(&pod.to_string()), class("db"));
        let expected = format!("GET db of {} v0", account.uid);
        assert_eq!(volume.read().await.unwrap(), [expected]);
        volumes.push(volume);
    }
    assert_eq!(node.store.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn rule_c3_every_part_of_a_request_tells_it_apart() {
    let node = Node::new();
    let pod = web().pod("a");
    let classes = [
        class("db"),
        class("tls"),
        json!({"provider": "other", "parameters": {"objects": "db"}}),
        json!({"provider": "store", "parameters": {"objects": "db", "method": "POST"}}),
        json!({"provider": "store", "parameters": {"objects": "db", "address": "https://b"}}),
        json!({"provider": "store", "parameters": {"objects": "db", "role": "admin"}}),
        class_with("db", json!({"sharing": "Pod"})),
        class_with("db", json!({"sharing": "ServiceAccount"})),
    ];
    let mut volumes = Vec::new();
    for (reads, class) in classes.into_iter().enumerate() {
        let volume = node.volume(&pod, class);
        volume.read().await.unwrap();
        assert_eq!(node.store.fetches(), reads + 1);
        volume.read().await.unwrap();
        assert_eq!(
            node.store.fetches(),
            reads + 1,
            "the second time from memory"
        );
        volumes.push(volume);
    }
}

#[tokio::test(start_paused = true)]
async fn rule_d1_a_token_of_somebody_else_goes_nowhere() {
    let node = Node::new();
    let in_a_day = SystemTime::now() + 1440 * MINUTE;
    for (wrong, whose, pod) in [
        ("Namespace", Account::new("other", "web", "u"), "a"),
        ("ServiceAccount", Account::new("shop", "admin", "u"), "a"),
        ("pod", web(), "another"),
    ] {
        let tokens = json!({ AUDIENCE: whose.token(pod, in_a_day) });
        let pod = web().pod_with_tokens("a", &tokens);
        let refused = node.try_volume(&pod, class("db")).err().expect(wrong);
        assert_eq!(refused.reason(), Reason::InvalidRequest);
        let expected = format!("has a token of another {wrong} than the kubelet names");
        assert!(refused.to_string().contains(&expected), "{refused}");
    }
    let no_jwt =
        json!({ AUDIENCE: {"token": "canary", "expirationTimestamp": "2099-01-01T00:00:00Z"} });
    let pod = web().pod_with_tokens("a", &no_jwt);
    let refused = node
        .try_volume(&pod, class("db"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.ends_with("is not one of a ServiceAccount"),
        "{refused}"
    );
    assert!(!refused.contains("canary"));
    assert_eq!(node.store.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn rule_d3_a_token_near_its_end_is_not_sent_and_the_next_one_is_waited_for() {
    let node = Node::new();
    for left in [0, 9] {
        let pod = web().pod_with("old", Duration::from_secs(left));
        let volume = node.volume(&pod, class("db"));
        let error = volume.read().await.unwrap_err();
        assert!(matches!(error, PublishError::TokenExpired(_)), "{error}");
    }
    assert_eq!(node.store.requests(), 0);

    let volume = node.volume(&web().pod_with("a", Duration::from_secs(60)), class("db"));
    volume.read().await.unwrap();
    let asked = node.store.requests();
    // The wall clock stands still in this test: the token ends by being replaced with one that has.
    volume.subscriber.renew(web().pod_with("a", Duration::ZERO));
    node.store.change("db");
    pass(30 * MINUTE).await;
    assert_eq!(node.store.requests(), asked, "nothing was sent");
    for _ in 0..3 {
        volume.subscription.republished();
        pass(SECOND).await;
    }
    assert_eq!(node.store.requests(), asked);
    volume.subscriber.renew(web().pod("a"));
    volume.subscription.republished();
    pass(SECOND).await;
    assert_eq!(volume.values().unwrap(), ["GET db of uid-of-web v1"]);
}

#[tokio::test(start_paused = true)]
async fn the_newest_token_of_any_live_pod_is_used_and_none_of_a_pod_that_is_gone() {
    let node = Node::new();
    let volumes: Vec<_> = [60, 3600, 600]
        .into_iter()
        .enumerate()
        .map(|(pod, left)| {
            let pod = web().pod_with(&format!("pod-{pod}"), Duration::from_secs(left));
            node.volume(&pod, class("db"))
        })
        .collect();
    for volume in &volumes {
        volume.read().await.unwrap();
    }
    let last_pod = || node.store.state().fetches.last().unwrap().pod.clone();
    assert_eq!(last_pod(), "pod-0", "who came first has asked for all");
    node.store.change("db");
    pass(2 * MINUTE).await;
    assert_eq!((node.store.fetches(), last_pod().as_str()), (2, "pod-1"));
    let mut volumes = volumes;
    drop(volumes.remove(1));
    node.store.change("db");
    pass(2 * MINUTE).await;
    assert_eq!((node.store.fetches(), last_pod().as_str()), (3, "pod-2"));
}

#[tokio::test(start_paused = true)]
async fn rule_d4_rule_d5_rule_d6_a_source_gets_the_token_of_its_own_audience() {
    let node = Node::new();
    let in_a_day = SystemTime::now() + 1440 * MINUTE;
    let token = |account: &Account| account.token("a", in_a_day);
    let tokens = json!({AUDIENCE: token(&web()), "": token(&web()), "other": {"token": "x", "expirationTimestamp": "2099-01-01T00:00:00Z"}});
    let pod = web().pod_with_tokens("a", &tokens);
    let source = |audience: &str| {
        let class =
            json!({"provider": "store", "parameters": {"objects": "db", "audience": audience}});
        node.spec(class).sources()[0].source.clone()
    };
    let caller = pod
        .caller(&*source(AUDIENCE), Sharing::ServiceAccount)
        .map_err(|e| e.to_string())
        .unwrap();
    let sent = caller.token.unwrap();
    assert_eq!(Some(sent.expose()), tokens[AUDIENCE]["token"].as_str());
    for (audience, message) in [
        ("", "the audience is empty"),
        ("sts", "there is no token for the audience \"sts\""),
    ] {
        let error = pod
            .caller(&*source(audience), Sharing::ServiceAccount)
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let without = node.spec(
        json!({"provider": "store", "parameters": {"objects": "db", "identifiedBy": "namespace"}}),
    );
    let caller = pod
        .caller(&*without.sources()[0].source, Sharing::ServiceAccount)
        .map_err(|e| e.to_string())
        .unwrap();
    assert!(caller.token.is_none(), "none where none is needed");
    assert!(Arc::strong_count(&pod) == 1);
}
