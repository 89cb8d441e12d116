//! What a volume is kept like: it follows its class, its sources and its pod's account, whatever happens at what
//! moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Node, PATIENCE, eventually, volume};
use crate::scripted::{Scripted, volume_of, with_token};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_class_that_changes_during_a_first_mount_is_followed() {
    let node = Scripted::start().await;
    node.store.set_latency(Duration::from_secs(3));
    let (kubelet, slow) = (node.kubelet.clone(), volume("a"));
    let published = tokio::spawn(async move { kubelet.publish(&slow).await });
    eventually("the store is asked", || node.store.fetches() > 0).await;
    node.folders.class(
        "shop",
        "provider: scripted\nparameters: {objects: 'a,b'}\ndefaultMode: 0400",
    );
    published.await.unwrap().unwrap();
    node.store.set_latency(Duration::ZERO);
    let file = node.kubelet.target(&volume("a")).join("a");
    eventually("the volume is like its class", || {
        fs::metadata(&file).is_ok_and(|file| file.mode() & 0o777 == 0o400)
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_volume_that_is_taken_over_while_its_secret_fails_is_told_of_changes_again() {
    let mut node = Node::start().await;
    let volumes = [volume("a"), volume("b")];
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    node.end(Signal::SIGTERM);
    fs::remove_dir_all(node.folders.at("secrets/shop")).unwrap();
    node.run().await;
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
        let id = volume.volume_id();
        eventually("the volume says that it cannot be read", || {
            node.logged(&["volume not rotated", &id]) > 0
        })
        .await;
    }
    let [first, second] = &volumes;
    node.folders.secret("password", "back");
    node.eventually_reads(second, "password", b"back").await;
    // From now on nobody but its own watch tells it.
    node.kubelet.unpublish(first).await.unwrap();
    node.folders.secret("password", "changed");
    node.eventually_reads(second, "password", b"changed").await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_volume_whose_service_account_is_made_anew_is_rotated_as_the_new_one() {
    let node = Scripted::start_with_tokens().await;
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}\nrefresh: {interval: 10s}";
    node.class("quick", spec).await;
    let mut volume = volume_of("a", "web");
    let class = "secretProviderClass".to_owned();
    volume.attributes.insert(class, "quick".into());
    node.kubelet.publish(&volume).await.unwrap();
    volume.pod.service_account.uid = Some("another".into());
    let volume = with_token(volume);
    node.store.set_value("a", "new");
    let file = node.kubelet.target(&volume).join("a");
    let start = Instant::now();
    while fs::read(&file).unwrap() != b"new" {
        assert!(start.elapsed() < 2 * PATIENCE, "it stays what it was");
        node.kubelet.publish(&volume).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
