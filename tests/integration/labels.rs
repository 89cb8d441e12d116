//! Metrics: their labels are short closed lists, whatever lives on the node.

use std::collections::BTreeSet;

use coffer::fake_kubelet::PodVolume;

use crate::harness::{Node, eventually, pod, volume};

/// Names of labels and, but for the bounds of buckets, how many values each has.
fn labels(scrape: &str) -> BTreeSet<(String, String)> {
    let braces = scrape.lines().filter(|line| !line.starts_with('#'));
    let braces = braces.filter_map(|line| line.split_once('{')?.1.split_once('}'));
    braces
        .flat_map(|(labels, _)| labels.split(','))
        .filter_map(|label| label.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .filter(|(name, _)| name != "le")
        .collect()
}

fn series(scrape: &str) -> BTreeSet<String> {
    let (_, scrape) = scrape.split_once("\r\n\r\n").unwrap();
    let lines = scrape.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').map_or("", |line| line.0).to_owned())
        .collect()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_o4_labels_are_closed_lists_and_their_number_does_not_follow_pods_or_objects() {
    let node = Node::start().await;
    let live = async |name: &str| {
        let secret = format!("object-{name}");
        node.folders.secret(&secret, "value");
        let class = format!("class-{name}");
        let spec = format!("provider: file\nparameters: {{objects: '[{secret}]'}}");
        node.class(&class, &spec).await;
        let mut volume = PodVolume::of_class(pod(&format!("pod-{name}")), &class);
        node.kubelet.publish(&volume).await.unwrap();
        node.kubelet.publish(&volume).await.unwrap();
        node.folders.secret(&secret, "another");
        node.eventually_reads(&volume, &secret, b"another").await;
        std::fs::remove_file(node.folders.at(&format!("secrets/shop/{secret}"))).unwrap();
        let volume_id = volume.volume_id();
        eventually("the loss is told", || {
            node.logged(&["volume not rotated", &volume_id]) > 0
        })
        .await;
        volume.read_only = false;
        node.kubelet.publish(&volume).await.unwrap_err();
        node.kubelet
            .publish(&crate::harness::volume(&format!("none-{name}")))
            .await
            .unwrap();
        let missing = PodVolume::of_class(pod("x"), &format!("missing-{name}"));
        node.kubelet.publish(&missing).await.unwrap_err();
        node.http("/metrics").await
    };
    let first = live("one").await;
    let mut last = String::new();
    for name in ["two", "three", "four"] {
        last = live(name).await;
    }
    node.kubelet.unpublish(&volume("none-one")).await.unwrap();

    let names: BTreeSet<_> = labels(&last).into_iter().map(|(name, _)| name).collect();
    let known = [
        "error_type",
        "kind",
        "os_type",
        "outcome",
        "provider",
        "reason",
        "rotated",
    ];
    assert!(
        names.iter().all(|name| known.contains(&name.as_str())),
        "{names:?}"
    );
    for (name, value) in labels(&last) {
        let word = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        assert!(
            word && value.len() < 40,
            "{name}={value:?} is no word of ours"
        );
        for of_node in ["object", "pod-", "class-", "shop", "one"] {
            assert!(!value.contains(of_node), "{name}={value:?}");
        }
    }
    // A word of a closed list may have come later; four pods, classes and objects would bring more.
    let (first, last) = (series(&first), series(&last));
    let new: Vec<_> = last.difference(&first).collect();
    assert!(new.len() < 3, "{new:?}");
}
