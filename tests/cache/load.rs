//! Many volumes: how often a store is asked, and how evenly.

use std::collections::HashMap;

use futures_util::FutureExt;

use crate::pods::{Account, MINUTE, Node, class, pass};

#[tokio::test(start_paused = true)]
async fn rule_s11_a_thousand_volumes_are_asked_for_by_identity_and_evenly() {
    let node = Node::new();
    let mut volumes = Vec::new();
    for number in 0..1000 {
        let account = Account::new("shop", "web", &format!("account-{}", number % 500));
        let volume = node.volume(&account.pod(&number.to_string()), class("db,tls"));
        volume.read().await.unwrap();
        volumes.push(volume);
    }
    assert_eq!(node.store.fetches(), 1000, "500 identities, 2 objects");
    for volume in &volumes {
        let _ = volume.subscriber.changed().now_or_never();
    }
    pass(4 * MINUTE).await;
    node.store.state().looks.clear();
    pass(6 * MINUTE).await;
    let looks = node.store.state().looks.clone();
    let mut seconds = HashMap::new();
    for look in &looks {
        *seconds.entry((*look - looks[0]).as_secs()).or_insert(0) += 1;
    }
    let mean = looks.len() as f64 / 360.0;
    let most = seconds.values().copied().max().unwrap_or(0);
    assert!(
        f64::from(most) <= 3.0 * mean,
        "{most} in a second, {mean:.1} on average"
    );
    // 1,000 entries, every 96 to 120 s.
    assert!(
        (3000..=3800).contains(&looks.len()),
        "{} looks in 6 min",
        looks.len()
    );
    assert_eq!(node.store.fetches(), 1000, "nothing was read");
    for volume in &volumes {
        assert!(
            volume.subscriber.changed().now_or_never().is_none(),
            "nobody was woken"
        );
    }
}
