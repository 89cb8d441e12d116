//! A million reads against an oracle: no identity ever gets what the store would not have given it
//! within the TTL.

use std::collections::HashMap;
use std::time::Duration;

use coffer::cache::Settings;
use coffer::pacer::Rate;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::pods::{Account, Node, Volume, pass};

const IDENTITIES: usize = 20;
const OBJECTS: usize = 20;
const ROUNDS: usize = 1300;
/// Objects of one volume at most, reads of one round.
const WIDTH: usize = 10;
const READS: usize = 100;
/// Of the 400 pairs of an identity and an object, how many the store refuses at most.
const DENIED: usize = 12;
const TTL: Duration = Duration::from_secs(10);

/// A version that was right, and when it stopped to be.
type Right = (u64, Option<Instant>);

/// What the store would have answered, and until when.
#[derive(Default)]
struct Oracle {
    /// By account and object.
    good: HashMap<(String, String), Vec<Right>>,
}

impl Oracle {
    fn change(&mut self, who: &str, object: &str, now: Instant, version: Option<u64>) {
        let good = self.good.entry((who.into(), object.into())).or_default();
        if let Some((_, until @ None)) = good.last_mut() {
            *until = Some(now);
        }
        good.retain(|(_, until)| until.is_none_or(|until| now < until + 2 * TTL));
        good.extend(version.map(|version| (version, None)));
    }

    fn check(&self, who: &str, object: &str, version: u64, now: Instant) {
        let good = self.good.get(&(who.to_owned(), object.to_owned()));
        let is_good = good.is_some_and(|good| {
            good.iter().any(|(right, until)| {
                *right == version && until.is_none_or(|until| now <= until + TTL)
            })
        });
        assert!(is_good, "{who} got version {version} of {object}");
    }
}

#[tokio::test(start_paused = true)]
async fn rule_c1_rule_c9_a_million_reads_give_nothing_that_the_store_would_not_have_given() {
    let mut chance = fastrand::Rng::with_seed(0x00c0_ffe2);
    let node = Node::with(Settings {
        // Small enough that values leave now and then.
        bytes: 12_000,
        rate: Rate::UNLIMITED,
        seed: 1,
        ..Settings::default()
    });
    let mut oracle = Oracle::default();
    let start = Instant::now();
    // Each name twice, of accounts with different UIDs.
    let accounts: Vec<_> = (0..IDENTITIES)
        .map(|n| {
            Account::new(
                &format!("ns-{}", n % 2),
                &format!("sa-{}", n % 5),
                &format!("account-{n}"),
            )
        })
        .collect();
    for account in &accounts {
        for object in 0..OBJECTS {
            oracle.change(&account.uid, &format!("o{object}"), start, Some(0));
        }
    }
    let mut versions = [0u64; OBJECTS];
    let mut denied = [[false; OBJECTS]; IDENTITIES];
    let mut volumes: Vec<(usize, Vec<usize>, Volume)> = Vec::new();
    let mut served = 0usize;
    let mut refused = 0usize;
    for round in 0..ROUNDS {
        // Something happens at the store.
        let now = Instant::now();
        for _ in 0..chance.usize(0..3) {
            let (who, what) = (chance.usize(0..IDENTITIES), chance.usize(0..OBJECTS));
            let object = format!("o{what}");
            let refused = denied.iter().flatten().filter(|denied| **denied).count();
            if chance.usize(0..4) > 0 || (refused >= DENIED && !denied[who][what]) {
                versions[what] += 1;
                node.store.change(&object);
                for (who, account) in accounts.iter().enumerate() {
                    let right = (!denied[who][what]).then_some(versions[what]);
                    oracle.change(&account.uid, &object, now, right);
                }
            } else {
                denied[who][what] = !denied[who][what];
                let account = &accounts[who].uid;
                match denied[who][what] {
                    true => node.store.deny(account, &object),
                    false => node.store.allow(account, &object),
                }
                let right = (!denied[who][what]).then_some(versions[what]);
                oracle.change(account, &object, now, right);
            }
        }
        node.store.state().down = chance.usize(0..20) == 0;
        node.store.state().latency = Duration::from_millis(chance.u64(0..50));
        // Pods come and go.
        if volumes.len() > 60 {
            volumes.swap_remove(chance.usize(0..volumes.len()));
        }
        let who = chance.usize(0..IDENTITIES);
        let objects: Vec<_> = (0..WIDTH).map(|_| chance.usize(0..OBJECTS)).collect();
        let mut named: Vec<_> = objects.clone();
        named.sort_unstable();
        named.dedup();
        let names: Vec<_> = named.iter().map(|object| format!("o{object}")).collect();
        let mut class = json!({"provider": "store", "parameters": {"objects": names.join(",")}, "refresh": {"interval": "10s"}});
        if chance.usize(0..4) == 0 {
            class["sharing"] = json!("Pod");
        }
        if chance.usize(0..8) == 0 {
            class["refresh"] = json!({"strategy": "Get", "interval": "10s"});
        }
        let pod = accounts[who].pod(&format!("pod-{round}"));
        volumes.push((who, named, node.volume(&pod, class)));
        // Many read at once, some of them with little patience.
        let reads = (0..READS).map(|_| {
            let (who, objects, volume) = &volumes[chance.usize(0..volumes.len())];
            let patience = Duration::from_millis(chance.u64(1..200));
            async move { (*who, objects, timeout(patience, volume.read()).await) }
        });
        for (who, objects, read) in futures_util::future::join_all(reads).await {
            let Ok(Ok(values)) = read else {
                refused += objects.len();
                continue;
            };
            let now = Instant::now();
            for (object, value) in objects.iter().zip(&values) {
                let account = &accounts[who].uid;
                let prefix = format!("GET o{object} of {account} v");
                let version = value
                    .strip_prefix(&prefix)
                    .unwrap_or_else(|| panic!("{account} asked for o{object} and got {value:?}"));
                oracle.check(
                    account,
                    &format!("o{object}"),
                    version.parse().unwrap(),
                    now,
                );
                served += 1;
            }
        }
        // Time passes; now and then a lot of it, as after a suspension.
        let step = match chance.usize(0..200) {
            0 => 3_600_000,
            _ => chance.u64(1..3000),
        };
        pass(Duration::from_millis(step)).await;
    }
    let reads = served + refused;
    assert!(reads >= 1_000_000, "{reads} reads");
    assert!(served > reads / 2, "{served} of {reads} were answered");
    let fetched = node.store.fetches();
    assert!(
        fetched * 3 < served,
        "{fetched} fetches for {served} answers: it is a cache"
    );
}
