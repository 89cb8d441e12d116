//! Moving over from secrets-store-csi-driver: its volumes are there, mounted, and the kubelet calls for them.

use std::fs;
use std::os::unix::fs::symlink;

use coffer::fake_kubelet::PodVolume;
use nix::mount::{MsFlags, mount};

use tonic::Code;

use crate::harness::{Node, device, volume};

/// A volume as it mounts one.
fn mount_as_it_does(node: &Node, volume: &PodVolume) {
    node.kubelet.prepare(volume).unwrap();
    let target = node.kubelet.target(volume);
    fs::create_dir_all(&target).unwrap();
    mount(
        Some("tmpfs"),
        &target,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r1_its_volumes_are_ok_and_are_kept_fresh_from_now_on() {
    let mut node = Node::start().await;
    let (own, plain) = (volume("own"), volume("plain"));
    mount_as_it_does(&node, &own);
    let target = node.kubelet.target(&own);
    fs::create_dir(target.join("..2026_11_21_10_00_00.1")).unwrap();
    fs::write(target.join("..2026_11_21_10_00_00.1/password"), "old").unwrap();
    symlink("..2026_11_21_10_00_00.1", target.join("..data")).unwrap();
    symlink("..data/password", target.join("password")).unwrap();
    mount_as_it_does(&node, &plain);
    fs::write(node.kubelet.target(&plain).join("password"), "old").unwrap();

    let before = [&own, &plain].map(|volume| device(&node.kubelet.target(volume)));
    for volume in [&own, &plain] {
        node.kubelet.publish(volume).await.expect("it is complete");
        node.eventually_reads(volume, "password", b"correct-horse")
            .await;
    }
    let after = [&own, &plain].map(|volume| device(&node.kubelet.target(volume)));
    assert_eq!(after, before, "containers have these");

    node.folders.secret("password", "rotated");
    for volume in [&own, &plain] {
        node.eventually_reads(volume, "password", b"rotated").await;
    }
    // They are like its own from now on, also for the next process.
    node.end(nix::sys::signal::Signal::SIGTERM);
    node.run().await;
    for volume in [&own, &plain] {
        node.kubelet.publish(volume).await.unwrap();
        node.kubelet.unpublish(volume).await.unwrap();
        assert!(!node.kubelet.target(volume).exists());
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_volume_that_it_left_empty_is_filled_before_the_kubelet_hears_ok() {
    let node = Node::start().await;
    let volume = volume("empty");
    mount_as_it_does(&node, &volume);
    let before = device(&node.kubelet.target(&volume));
    node.class("shop", "provider: file\nparameters: {objects: '[none]'}")
        .await;
    let refused = node.kubelet.publish(&volume).await;
    let refused = refused.expect_err("there is nothing to fill it with");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    node.class("shop", "provider: file").await;
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
    assert_eq!(device(&node.kubelet.target(&volume)), before);
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(!node.kubelet.target(&volume).exists());
}
