//! One line for everything that was read on behalf of somebody.

use std::fs;

use crate::harness::{Node, counted, eventually, volume};

const LINE: &str = "secret asked for";

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn every_fetch_leaves_one_line_that_says_who_what_and_how_it_ended_without_the_value() {
    let node = Node::start().await;
    node.folders.secret("user", "alice-in-chains");
    let spec = "provider: file\nparameters: {objects: [password, user]}";
    node.folders
        .class("shop", &spec.replace("[", "'[").replace("]", "]'"));
    eventually("the class is read", || node.logged(&["class read"]) > 1).await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    for object in ["object=password", "object=user"] {
        let who = ["pod.namespace=shop", "pod.name=a", "service_account=web"];
        let line = [
            &[
                LINE,
                "coffer::audit",
                "provider=\"file\"",
                "outcome=\"read\"",
                object,
            ],
            &who[..],
        ];
        assert_eq!(node.logged(&line.concat()), 1, "{object}:\n{}", node.log());
    }
    let second = crate::harness::volume("b");
    node.kubelet.publish(&second).await.unwrap();
    for _ in 0..10 {
        node.kubelet.publish(&volume).await.unwrap();
    }
    assert_eq!(node.logged(&[LINE]), 2, "the answer is shared");

    node.folders.secret("password", "battery-staple");
    node.eventually_reads(&second, "password", b"battery-staple")
        .await;
    node.eventually_reads(&volume, "password", b"battery-staple")
        .await;
    fs::remove_file(node.folders.at("secrets/shop/user")).unwrap();
    eventually("the loss is told", || {
        node.logged(&[LINE, "object=user", "outcome=\"SecretNotFound\""]) > 0
    })
    .await;
    node.folders.secret("user", "alice-in-chains");
    eventually("it is there again", || {
        node.logged(&[LINE, "object=user", "outcome=\"read\""]) > 1
    })
    .await;
    let scrape = node.http("/metrics").await;
    let asked = counted(&scrape, "coffer_store_requests_total", &[]);
    let unchanged = counted(&scrape, "coffer_store_requests_total", &["unchanged"]);
    assert_eq!(node.logged(&[LINE]) as u64, asked - unchanged, "{scrape}");
    for value in ["correct-horse", "battery-staple", "alice-in-chains"] {
        assert_eq!(node.logged(&[value]), 0);
    }
}
