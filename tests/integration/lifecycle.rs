//! Restarts, reboots, kills and the end of a pod.

use std::fs::{self, File};
use std::io::Read;
use std::time::Instant;

use nix::sys::signal::Signal;
use tonic::Code;

use crate::harness::{Node, device, eventually, mounts, pod, volume};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t7_a_volume_outlives_its_driver_and_rotates_again_after_a_republish() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut node = Node::start().await;
        let volume = volume("a");
        node.kubelet.publish(&volume).await.unwrap();
        let target = node.kubelet.target(&volume);
        let mount = device(&target);
        let generation = fs::read_link(target.join("..data")).unwrap();

        let status = node.end(signal);
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        assert_eq!(
            node.read(&volume, "password"),
            b"correct-horse",
            "while no driver runs"
        );
        node.run().await;
        node.kubelet.publish(&volume).await.unwrap();
        assert_eq!(
            (device(&target), mounts().len()),
            (mount, 1),
            "the same mount, no other"
        );
        assert_eq!(
            fs::read_link(target.join("..data")).unwrap(),
            generation,
            "nothing is rewritten"
        );

        node.folders.secret("password", "battery-staple");
        node.eventually_reads(&volume, "password", b"battery-staple")
            .await;
        assert_eq!(device(&target), mount);
        node.kubelet.unpublish(&volume).await.unwrap();
        assert!(mounts().is_empty());
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_change_while_no_driver_ran_is_noticed_after_a_republish() {
    let mut node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    node.end(Signal::SIGKILL);
    node.folders.secret("password", "battery-staple");
    node.run().await;
    node.kubelet.publish(&volume).await.unwrap();
    node.eventually_reads(&volume, "password", b"battery-staple")
        .await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t8_unpublish_is_ok_when_there_is_nothing() {
    let mut node = Node::start().await;
    let volume = volume("a");
    node.kubelet
        .unpublish(&volume)
        .await
        .expect("never published, no folder");
    node.kubelet.prepare(&volume).unwrap();
    node.kubelet
        .unpublish(&volume)
        .await
        .expect("never published");
    node.kubelet.publish(&volume).await.unwrap();
    node.end(Signal::SIGKILL);
    node.run().await;
    node.kubelet
        .unpublish(&volume)
        .await
        .expect("by a driver that never heard of it");
    node.kubelet
        .unpublish(&volume)
        .await
        .expect("and once more");
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t9_after_a_reboot_the_folder_goes_and_a_new_volume_comes() {
    let node = Node::start().await;
    let volume = volume("a");
    let target = node.kubelet.target(&volume);
    node.kubelet.prepare(&volume).unwrap();
    fs::create_dir(&target).unwrap();
    node.kubelet
        .unpublish(&volume)
        .await
        .expect("the folder is there, nothing is mounted");
    assert!(!target.exists());

    node.kubelet.prepare(&volume).unwrap();
    fs::create_dir(&target).unwrap();
    node.kubelet
        .publish(&volume)
        .await
        .expect("onto the folder of before the reboot");
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t11_unpublish_does_not_wait_for_an_open_file() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let mut held = File::open(node.kubelet.target(&volume).join("password")).unwrap();
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(!node.kubelet.target(&volume).exists());
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(
        content, "correct-horse",
        "whoever holds it can read it to its end"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t12_files_below_the_volume_are_never_deleted() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let target = node.kubelet.target(&volume);
    nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
    fs::write(target.join("somebody's"), "keep me").unwrap();
    let status = node.kubelet.unpublish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(
        status.message().contains("files lie in the folder itself"),
        "{status}"
    );
    assert_eq!(
        fs::read_to_string(target.join("somebody's")).unwrap(),
        "keep me"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t13_a_volume_that_was_taken_away_is_restored_by_the_next_republish() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let target = node.kubelet.target(&volume);
    nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
    node.folders.secret("password", "battery-staple");
    eventually("the driver notices", || {
        node.logged(&["volume not rotated", "no longer mounted"]) > 0
    })
    .await;
    assert!(
        fs::read_dir(&target).unwrap().next().is_none(),
        "not a byte on the disk"
    );
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "password"), b"battery-staple");
    assert_eq!(mounts().len(), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r9_sigterm_leaves_the_mounts_and_a_start_with_250_volumes_takes_no_longer() {
    let mut node = Node::start().await;
    for n in 0..250 {
        node.kubelet
            .publish(&volume(&format!("p{n}")))
            .await
            .unwrap();
    }
    let stopping = Instant::now();
    assert!(node.end(Signal::SIGTERM).success());
    assert!(stopping.elapsed().as_secs() < 20);
    assert_eq!(mounts().len(), 250);
    assert!(
        !node.folders.at("plugin/csi.sock").exists(),
        "the socket is taken away"
    );
    let starting = Instant::now();
    node.run().await;
    node.kubelet.publish(&volume("new")).await.unwrap();
    let took = starting.elapsed();
    assert!(took.as_secs() < 20, "the promise is one second: {took:?}");
    for n in 0..250 {
        node.kubelet
            .unpublish(&volume(&format!("p{n}")))
            .await
            .unwrap();
    }
    assert_eq!(mounts(), [node.kubelet.target(&volume("new"))]);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t15_ten_thousand_rounds_leave_nothing_behind() {
    let node = Node::start().await;
    let status = |name: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", node.pid()))
            .unwrap()
            .count()
    };
    let rounds = async |count: usize| {
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..8 {
            let kubelet = node.kubelet.clone();
            workers.spawn(async move {
                let volume =
                    coffer::fake_kubelet::PodVolume::of_class(pod(&format!("w{worker}")), "shop");
                let mut client = kubelet.node().await.unwrap();
                for _ in 0..count / 8 {
                    kubelet.prepare(&volume).unwrap();
                    client
                        .node_publish_volume(kubelet.publish_request(&volume))
                        .await
                        .unwrap();
                    let request = coffer_proto::csi::NodeUnpublishVolumeRequest {
                        volume_id: volume.volume_id(),
                        target_path: kubelet.target(&volume).to_string_lossy().into_owned(),
                    };
                    client.node_unpublish_volume(request).await.unwrap();
                }
            });
        }
        workers.join_all().await;
    };
    // What a warm process has: its threads, and the memory that its allocator keeps.
    rounds(800).await;
    eventually("connections are closed", || descriptors() < 40).await;
    let (fds, threads, rss) = (descriptors(), status("Threads:"), status("VmRSS:"));
    rounds(10_000).await;
    assert!(mounts().is_empty());
    eventually("no descriptor is left", || descriptors() <= fds).await;
    // Two that work, sixteen that wait for the kernel, and the few that watch files.
    assert!(status("Threads:") <= 26, "{} threads", status("Threads:"));
    let grown = status("VmRSS:").saturating_sub(rss);
    assert!(
        grown < 8 * 1024,
        "memory grew by {grown} KiB over 10,000 rounds"
    );
    println!("10,000 rounds: {fds} descriptors, {threads} threads, {rss} + {grown} KiB");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_w4_what_a_killed_driver_left_behind_goes_when_the_next_one_starts() {
    let mut node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    node.end(Signal::SIGKILL);
    let target = node.kubelet.target(&volume);
    fs::create_dir_all(target.join("..2020_01_01_00_00_00.0/a/b")).unwrap();
    fs::write(target.join("..2020_01_01_00_00_00.0/a/b/c"), "half").unwrap();
    std::os::unix::fs::symlink("..2020_01_01_00_00_00.0", target.join("..data_tmp")).unwrap();
    // Readers of the generation before the present one have a second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    node.run().await;
    let mut names: Vec<_> = fs::read_dir(&target)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names.len(),
        3,
        "the link, the generation and the file: {names:?}"
    );
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
    assert_eq!(
        node.logged(&["driver started", "volumes=1"]),
        1,
        "and it is said that it was found"
    );
}
