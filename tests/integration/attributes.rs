//! What a pod writes beside its class, and who wins.

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

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d10_the_class_wins_unless_the_administrator_lets_pods_win() {
    for win in [false, true] {
        let differs = match win {
            false => |_: &mut coffer::config::Config| (),
            true => |config: &mut coffer::config::Config| config.bounds.pod_attributes_win = true,
        };
        let node = Scripted::start_as(ScriptedProvider::default(), [], differs).await;
        node.store.set_value("other", "the pod's");
        let volume = another("a");
        node.kubelet.publish(&volume).await.unwrap();
        let has = |file: &str| node.kubelet.target(&volume).join(file).exists();
        assert_eq!((has("a"), has("other")), (!win, win));
        node.kubelet.unpublish(&volume).await.unwrap();
    }
}
