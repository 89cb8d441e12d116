//! What a pod writes beside its class, and who wins.

use coffer::config::Config;
use coffer::fake_kubelet::PodVolume;
use coffer_provider::testing::ScriptedProvider;

use crate::harness::volume;
use crate::scripted::Scripted;

/// A volume whose pod wants another object than its class.
fn another(name: &str) -> PodVolume {
    let mut volume = volume(name);
    let objects = ("objects".to_owned(), "other".to_owned());
    volume.attributes.extend([objects]);
    volume
}

/// Which of both objects such a volume holds, with this configuration.
async fn holds(differs: fn(&mut Config)) -> [bool; 2] {
    let node = Scripted::start_as(ScriptedProvider::default(), [], differs).await;
    node.store.set_value("other", "the pod's");
    let volume = another("a");
    node.kubelet.publish(&volume).await.unwrap();
    ["a", "other"].map(|file| node.kubelet.target(&volume).join(file).exists())
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d10_the_class_wins() {
    assert_eq!(holds(|_| ()).await, [true, false]);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_administrator_can_let_pods_win() {
    let pods_win = |config: &mut Config| config.bounds.pod_attributes_win = true;
    assert_eq!(holds(pods_win).await, [false, true]);
}
