//! A million reads against an oracle: no identity ever gets what the store would not have given it
//! within the TTL.

use std::collections::HashMap;
use std::time::Duration;

use coffer::cache::Settings;
use coffer::pacer::Rate;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::pods::{Account, Node, Volume, pass};
use crate::store::BOUND_TO_PODS;

const IDENTITIES: usize = 20;
const OBJECTS: usize = 20;
const ROUNDS: usize = 1300;
/// Objects of one volume at most, reads of one round.
const WIDTH: usize = 10;
const READS: usize = 100;
/// Of the 400 pairs of an identity and an object, how many the store refuses at most.
const DENIED: usize = 12;
const TTL: Duration = Duration::from_secs(10);

/// A volume of an account, and whom the store takes its pod for.
struct Held {
    account: usize,
    asked_as: String,
    objects: Vec<usize>,
    volume: Volume,
}

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

    /// The same for a volume whose role is bound to its pod.
    fn change_of_pod(
        &mut self,
        node: &Node,
        held: &Held,
        object: &str,
        now: Instant,
        version: Option<u64>,
    ) {
        if held.asked_as.starts_with("pod-") {
            let denied = (held.asked_as.clone(), object.to_owned());
            let refused = node.store.state().denied.contains(&denied);
            self.change(&held.asked_as, object, now, version.filter(|_| !refused));
        }
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
        bytes: 18_000,
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
    let mut volumes: Vec<Held> = Vec::new();
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
                for held in &volumes {
                    let right = (!denied[held.account][what]).then_some(versions[what]);
                    oracle.change_of_pod(&node, held, &object, now, right);
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
                for held in volumes.iter().filter(|held| held.account == who) {
                    oracle.change_of_pod(&node, held, &object, now, right);
                }
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
        // A role that is bound to pods: each of them is somebody of its own.
        let pod = format!("pod-{round}");
        let bound = chance.usize(0..4) == 0;
        let mut asked_as = accounts[who].uid.clone();
        if bound {
            class["sharing"] = json!("Pod");
            class["parameters"]["role"] = json!(BOUND_TO_PODS);
            asked_as.clone_from(&pod);
            for &object in &named {
                let refused = chance.usize(0..20) == 0;
                if refused {
                    node.store.deny(&pod, &format!("o{object}"));
                }
                let right = (!refused && !denied[who][object]).then_some(versions[object]);
                oracle.change(&pod, &format!("o{object}"), now, right);
            }
        }
        if chance.usize(0..8) == 0 {
            class["refresh"] = json!({"strategy": "Get", "interval": "10s"});
        }
        let volume = node.volume(&accounts[who].pod(&pod), class);
        volumes.push(Held {
            account: who,
            asked_as,
            objects: named,
            volume,
        });
        // Many read at once, some of them with little patience.
        let reads = (0..READS).map(|_| {
            let held = &volumes[chance.usize(0..volumes.len())];
            let patience = Duration::from_millis(chance.u64(1..200));
            async move { (held, timeout(patience, held.volume.read()).await) }
        });
        for (held, read) in futures_util::future::join_all(reads).await {
            let Ok(Ok(values)) = read else {
                refused += held.objects.len();
                continue;
            };
            let now = Instant::now();
            for (object, value) in held.objects.iter().zip(&values) {
                let account = &accounts[held.account].uid;
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
        // A store that is away for an hour would be asked some hundred thousand times, and nothing be learnt.
        node.store.state().down &= step < 10_000;
        pass(Duration::from_millis(step)).await;
    }
    let reads = served + refused;
    assert!(reads >= 1_000_000, "{reads} reads");
    assert!(served > reads / 2, "{served} of {reads} were answered");
    let fetched = node.store.fetches();
    assert!(
        fetched * 2 < served,
        "{fetched} fetches for {served} answers: it is a cache"
    );
}
