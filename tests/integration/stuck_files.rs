//! A folder of the file provider whose file system does not answer, as NFS does without its server.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

use coffer::fake_kubelet::PodVolume;
use nix::mount::{MsFlags, mount};
use tokio::time::timeout;

use crate::harness::{Node, PATIENCE, eventually, pod, volume};

/// The threads of a process that wait in the kernel and cannot be interrupted.
fn stuck_threads(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")));
    // Behind the name, which is in brackets.
    stats
        .filter(|stat| stat.as_ref().is_ok_and(|stat| stat.contains(") D ")))
        .count()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn reads_of_files_that_never_end_hold_up_no_unpublish() {
    const PODS: usize = 24;
    let node = Node::start().await;
    let mounted = volume("mounted");
    node.kubelet.publish(&mounted).await.unwrap();
    let volumes: Vec<_> = (0..PODS)
        .map(|n| {
            let class = format!("class-{n}");
            let spec = format!("provider: file\nparameters: {{objects: \"[file-{n}]\"}}");
            node.folders.class(&class, &spec);
            PodVolume::of_class(pod(&format!("p{n}")), &class)
        })
        .collect();
    // A file system that is served by nobody, until this is closed.
    let served = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        served.as_raw_fd()
    );
    let none = MsFlags::empty();
    let (fuse, secrets) = (Some("fuse"), node.folders.at("secrets"));
    mount(fuse, &secrets, fuse, none, Some(options.as_str())).unwrap();

    for volume in volumes {
        let kubelet = node.kubelet.clone();
        tokio::spawn(async move { kubelet.publish(&volume).await });
    }
    eventually("reads are stuck", || stuck_threads(node.pid()) >= 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let gone = timeout(PATIENCE, node.kubelet.unpublish(&mounted)).await;
    assert!(gone.expect("it does not wait for them").is_ok());
    // One more may be waiting for a disk just then.
    eventually("four are stuck", || stuck_threads(node.pid()) == 4).await;
    // And the pods hear of it.
    let late = timeout(PATIENCE, node.kubelet.publish(&volume("late"))).await;
    let status = late.expect("it is told in time").unwrap_err();
    let why = "earlier reads of it have not ended";
    assert!(status.message().contains(why), "{status}");
    drop(served);
}
