//! The kubelet repeats itself every minute or so: what that does, and what it never does.

use std::fs;
use std::time::Duration;

use coffer::fake_kubelet::{PodVolume, token_of};
use coffer_provider::ErrorKind;
use coffer_provider::testing::Answer;
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tonic::Code;

use crate::harness::{Node, PATIENCE, device, eventually, mounts, volume};
use crate::scripted::{AUDIENCE, Scripted, seconds_from_now, volume_of};

const SPEC: &str = "provider: scripted\nparameters: {objects: 'a,b'}";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r1_a_complete_volume_is_ok_whatever_is_wrong_with_its_store_class_or_token() {
    let node = Scripted::start_with_tokens().await;
    let volume = volume_of("a", "web");
    node.kubelet.publish(&volume).await.unwrap();
    let mount = device(&node.kubelet.target(&volume));
    let republish = async |cause: &str, volume: &PodVolume| {
        for _ in 0..3 {
            let call = timeout(PATIENCE, node.kubelet.publish(volume)).await;
            call.expect(cause).expect(cause);
        }
        assert_eq!(node.read(volume, "a"), "one", "{cause}");
        assert_eq!(node.read(volume, "b"), "two", "{cause}");
        assert_eq!(device(&node.kubelet.target(volume)), mount, "{cause}");
    };
    let noticed = async |cause: &str, failed: u64| {
        let start = std::time::Instant::now();
        while node.failed_looks().await <= failed {
            assert!(start.elapsed() < PATIENCE, "{cause}: nobody notices");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };

    let says = |kind| Answer::Error(kind, "no".into());
    for (cause, answer) in [
        ("the store is down", says(ErrorKind::Unavailable)),
        ("the store is late", says(ErrorKind::DeadlineExceeded)),
        ("the store denies", says(ErrorKind::PermissionDenied)),
        ("the token is refused", says(ErrorKind::Unauthenticated)),
        ("the object is gone", says(ErrorKind::NotFound)),
        ("the answer is nonsense", says(ErrorKind::InvalidAnswer)),
        ("it is too large", Answer::Value(vec![1; 5 << 20])),
        (
            "its name is hostile",
            Answer::Files(vec![("../x".into(), vec![], None)]),
        ),
    ] {
        let failed = node.failed_looks().await;
        node.store.set("a", answer);
        noticed(cause, failed).await;
        republish(cause, &volume).await;
        node.store.set_value("a", "one");
    }
    for (cause, spec) in [
        ("the provider is gone", "provider: nobody"),
        ("the parameters are wrong", "provider: scripted"),
        (
            "the class is invalid",
            "provider: scripted\nsharing: Everybody",
        ),
        ("the class has no provider", "defaultMode: 0400"),
    ] {
        let failed = node.failed_looks().await;
        node.folders.class("shop", spec);
        noticed(cause, failed).await;
        republish(cause, &volume).await;
    }
    let failed = node.failed_looks().await;
    fs::remove_file(node.folders.at("classes/shop.yaml")).unwrap();
    noticed("the class is deleted", failed).await;
    republish("the class is deleted", &volume).await;
    node.folders.class("shop", SPEC);

    for (cause, tokens) in [
        ("no token", None),
        ("garbage for tokens", Some("garbage")),
        ("no token for the audience", Some("{}")),
    ] {
        let mut republished = volume.clone();
        republished.secrets.clear();
        let tokens = tokens.map(|tokens| (TOKENS.to_owned(), tokens.to_owned()));
        republished.secrets.extend(tokens);
        republish(cause, &republished).await;
    }
    let mut other = volume.clone();
    other.pod.uid = "uid-of-another".into();
    for (cause, pod, left) in [
        ("an expired token", &volume.pod, -1),
        ("a token of another pod", &other.pod, 3600),
    ] {
        let mut republished = volume.clone();
        republished.bring_token(AUDIENCE, &token_of(pod), seconds_from_now(left));
        republish(cause, &republished).await;
    }

    republish("all is well", &volume).await;
    node.store.set_value("b", "new");
    eventually("it is kept fresh", || node.read(&volume, "b") == "new").await;
    node.store.set_value("b", "two");
    eventually("it is kept fresh", || node.read(&volume, "b") == "two").await;
    let asked = node.store.fetches();
    node.store.set("a", Answer::Hang);
    eventually("the store is asked", || node.store.fetches() > asked).await;
    republish("the store hangs", &volume).await;
    assert_eq!(mounts().len(), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r1_a_volume_of_an_earlier_process_is_ok_although_its_class_and_secrets_are_gone() {
    let mut node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    node.end(Signal::SIGKILL);
    fs::remove_file(node.folders.at("classes/shop.yaml")).unwrap();
    fs::remove_file(node.folders.at("secrets/shop/password")).unwrap();
    node.run().await;
    for _ in 0..2 {
        node.kubelet.publish(&volume).await.unwrap();
    }
    eventually("it is told", || {
        node.logged(&["volume not rotated", "shop/shop: not found"]) > 0
    })
    .await;
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
    node.folders.class("shop", "provider: file");
    node.folders.secret("password", "battery-staple");
    node.eventually_reads(&volume, "password", b"battery-staple")
        .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn after_a_restart_nothing_is_read_anew_or_rewritten_and_a_bad_token_is_waited_out() {
    let mut node = Scripted::start_with_tokens().await;
    let annotate = |node: &Scripted, mark: &str| {
        let mark = format!("secrets-store.csi.x-k8s.io/refresh: '{mark}'");
        let metadata = format!("name: shop, namespace: shop, annotations: {{{mark}}}");
        let spec = format!("{SPEC}\nrefresh: {{strategy: Cache, interval: 1h}}");
        node.folders.class_with(&metadata, "shop", &spec);
    };
    annotate(&node, "1");
    node.restart().await;
    let volumes: Vec<_> = (0..20)
        .map(|n| volume_of(&format!("p{n}"), &format!("account-{n}")))
        .collect();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    let generation = |node: &Scripted, volume: &PodVolume| {
        let target = node.kubelet.target(volume);
        (
            device(&target),
            fs::read_link(target.join("..data")).unwrap(),
        )
    };
    let before: Vec<_> = volumes.iter().map(|v| generation(&node, v)).collect();
    node.restart().await;
    for (n, volume) in volumes.iter().enumerate() {
        let mut bad = volume.clone();
        match n % 3 {
            0 => bad.secrets.clear(),
            1 => drop(bad.secrets.insert(TOKENS.into(), "garbage".into())),
            _ => bad.bring_token(AUDIENCE, &token_of(&bad.pod), seconds_from_now(-1)),
        }
        node.kubelet.publish(&bad).await.unwrap();
        node.kubelet.publish(&bad).await.unwrap();
    }
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    annotate(&node, "2");
    node.eventually_asked("unchanged", 40).await;
    assert_eq!(node.store.fetches(), 40);
    let after: Vec<_> = volumes.iter().map(|v| generation(&node, v)).collect();
    assert_eq!(after, before);

    node.store.set_value("a", "new");
    annotate(&node, "3");
    for volume in &volumes {
        eventually("it is kept fresh", || node.read(volume, "a") == "new").await;
    }
    // To write a volume again takes all of its values, and this process had none of them.
    assert_eq!(node.store.fetches(), 40 + 40);
    assert_eq!(mounts().len(), 20);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_c4_what_a_store_denies_is_kept_by_running_pods_and_given_to_no_new_one() {
    let node = Scripted::start().await;
    let running = volume("a");
    node.kubelet.publish(&running).await.unwrap();
    for (kind, code) in [
        (ErrorKind::PermissionDenied, Code::PermissionDenied),
        (ErrorKind::NotFound, Code::NotFound),
    ] {
        let asked = node.store.fetches();
        node.store.set("a", Answer::Error(kind, "no".into()));
        eventually("the store is asked", || node.store.fetches() > asked).await;
        let status = node.kubelet.publish(&volume("b")).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        node.kubelet.publish(&running).await.unwrap();
        assert_eq!(node.read(&running, "a"), "one");
        assert_eq!(mounts().len(), 1);

        node.store.set_value("a", "one");
        let start = std::time::Instant::now();
        // A failure is remembered for a moment.
        while let Err(status) = node.kubelet.publish(&volume("b")).await {
            assert!(start.elapsed() < PATIENCE, "{status}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.kubelet.unpublish(&volume("b")).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn with_get_each_republish_has_the_store_asked_once_and_waits_for_nothing() {
    let node = Scripted::start().await;
    let get = format!("{SPEC}\nrefresh: {{strategy: Get}}");
    node.class("get", &get).await;
    let volume = PodVolume::of_class(volume("a").pod, "get");
    node.kubelet.publish(&volume).await.unwrap();
    for round in 1..=3 {
        node.kubelet.publish(&volume).await.unwrap();
        node.eventually_asked("unchanged", 2 * round).await;
    }
    assert_eq!(node.asked("read").await, 2, "what is the same is not read");

    node.store.set_value("a", "new");
    // Long enough for a look that must not be.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.read(&volume, "a"), "one", "nobody has asked");
    node.kubelet.publish(&volume).await.unwrap();
    eventually("it is read", || node.read(&volume, "a") == "new").await;
    assert_eq!((node.asked("read").await, node.store.fetches()), (3, 3));

    node.store.set("b", Answer::Hang);
    for _ in 0..3 {
        // The store never answers: whoever waited for it would wait for a minute.
        let call = timeout(PATIENCE, node.kubelet.publish(&volume)).await;
        call.expect("it waits for nothing").unwrap();
    }
    eventually("the store is asked", || node.store.fetches() == 4).await;
    assert_eq!(node.read(&volume, "b"), "two");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn another_refresh_annotation_on_the_class_has_the_store_asked_now() {
    let node = Scripted::start().await;
    let spec = format!("{SPEC}\nrefresh: {{strategy: Cache, interval: 1h}}");
    let annotate = |mark: &str| {
        let mark = format!("secrets-store.csi.x-k8s.io/refresh: '{mark}'");
        let metadata = format!("name: slow, namespace: shop, annotations: {{{mark}}}");
        node.folders.class_with(&metadata, "slow", &spec);
    };
    node.class("slow", &spec).await;
    let volume = PodVolume::of_class(volume("a").pod, "slow");
    node.kubelet.publish(&volume).await.unwrap();
    node.store.set_value("a", "new");
    for _ in 0..3 {
        node.kubelet.publish(&volume).await.unwrap();
    }
    assert_eq!(node.store.fetches(), 2, "it is not due");

    annotate("1");
    eventually("it is read", || node.read(&volume, "a") == "new").await;
    node.eventually_asked("unchanged", 1).await;
    assert_eq!(node.store.fetches(), 3, "only what has changed is read");
    annotate("2");
    node.eventually_asked("unchanged", 3).await;
    // The same mark once more, in a file that was written again.
    annotate("2");
    annotate("2");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.asked("unchanged").await, 3);
    assert_eq!(node.store.fetches(), 3);
}
