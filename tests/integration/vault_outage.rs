//! OpenBao is killed and comes back, with everything that it had, under fifty volumes with leases.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::bao::Bao;
use crate::harness::{Node, mounts};
use crate::rabbitmq::{enable_rabbitmq, made_and_ended};
use crate::stand_in::StandIn;
use crate::vault::{class, node_with, role_for, volume};

const KV: &str = "objectName: kv, secretPath: secret/data/common, secretKey: value";
const USER: &str = "objectName: user, secretPath: rabbitmq/creds/app, secretKey: username";
const PASS: &str = "objectName: pass, secretPath: rabbitmq/creds/app, secretKey: password";

/// Requests in a second; twice as many at once.
const RATE: usize = 10;
const LEASE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts for so long how many requests come in each second. The most is what is of interest.
async fn busiest_second(counted: &StandIn, time: Duration) -> usize {
    let mut busiest = 0;
    let start = Instant::now();
    while start.elapsed() < time {
        counted.asked();
        let begun = Instant::now();
        sleep(Duration::from_secs(1)).await;
        let asked = counted.asked().len();
        // On a busy machine it was more than a second.
        let seconds = begun.elapsed().as_secs_f64().max(1.0);
        busiest = busiest.max((asked as f64 / seconds).ceil() as usize);
    }
    busiest
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_s2_and_s12_a_store_that_is_killed_under_fifty_leases_loses_none_and_meets_no_burst() {
    let mut bao = Bao::start_kept().await;
    let users = enable_rabbitmq(&bao, "60s", "1h").await;
    let value = |value: &str| json!({"data": {"value": value}});
    bao.put("secret/data/common", value("before")).await;
    role_for(&bao, "web", "web", json!({})).await;
    let counted = bao.counted().await;
    let rate = format!("--store-rate={RATE}");
    let node = node_with(&counted.url(), &[&rate]).await;
    let refresh = "refresh: {interval: 10s}";
    class(&node, "bao", "web", refresh, &[KV, USER, PASS]).await;
    let volumes: Vec<_> = (0..50)
        .map(|pod| volume(&bao, &format!("pod-{pod}"), "web"))
        .collect();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    let held = |node: &Node| -> Vec<_> {
        let pair = |volume| (node.read(volume, "user"), node.read(volume, "pass"));
        volumes.iter().map(pair).collect()
    };
    let before = held(&node);
    assert_eq!(made_and_ended(&users), (50, 0));

    bao.kill();
    // As long as leases can stand it: they are renewed at 60 % of their life.
    let down = Instant::now();
    while down.elapsed() < LEASE / 4 {
        for volume in &volumes {
            node.kubelet.publish(volume).await.unwrap();
        }
        assert_eq!(held(&node), before, "the files are as they were");
        sleep(Duration::from_millis(200)).await;
    }
    bao.wake().await;
    let back = Instant::now();
    bao.put("secret/data/common", value("after")).await;
    let busiest = busiest_second(&counted, INTERVAL).await;
    assert!(busiest <= 3 * RATE, "{busiest} requests in a second");
    while !volumes
        .iter()
        .all(|volume| node.read(volume, "kv") == b"after")
    {
        let limit = INTERVAL + Duration::from_secs(40);
        assert!(back.elapsed() < limit, "not fresh:\n{}", node.log());
        sleep(Duration::from_millis(50)).await;
    }

    // Every lease was renewed meanwhile, at the least once: none has ended, and none was made anew.
    let busiest = busiest_second(&counted, LEASE).await;
    assert!(busiest <= 3 * RATE, "{busiest} requests in a second");
    assert_eq!(made_and_ended(&users), (50, 0));
    assert_eq!(held(&node), before);
    assert_eq!(bao.tokens().await, 1);
    assert_eq!(mounts().len(), 50);
}
