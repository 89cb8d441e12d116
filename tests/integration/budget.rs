//! What the volumes of a node may take together: counted before the kernel is asked, refused with words.

use std::fs;
use std::path::{Path, PathBuf};

use coffer::fake_kubelet::PodVolume;
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use tonic::Code;

use crate::harness::{Node, eventually, mounts, pod, volume};

const MIB: u64 = 1 << 20;

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn two_hundred_volumes_of_the_largest_size_are_refused_before_memory_runs_out() {
    let budget = 64 * MIB;
    let node = Node::start_with(&["--node-budget=64Mi"]).await;
    // The memory limit that the chart computes for this budget.
    let group = MemoryGroup::new(64 * MIB + 2 * budget);
    if let Some(group) = &group {
        group.enter(node.pid());
    }
    let content = |version: u8| vec![version; 4 * MIB as usize];
    node.folders.secret("password", content(b'1'));

    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let kubelet = node.kubelet.clone();
        calls.spawn(async move {
            let volume = volume(&format!("p{n}"));
            let published = kubelet.publish(&volume).await;
            (volume, published)
        });
    }
    let mut there = Vec::new();
    for (volume, published) in calls.join_all().await {
        match published {
            Ok(()) => there.push(volume),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let message = status.message();
                assert!(
                    message.starts_with("NodeExhausted: the volume needs ")
                        && message.ends_with("--node-budget (nodeBudget in the chart) is 67108864"),
                    "{message}"
                );
                assert!(!node.kubelet.target(&volume).exists());
            }
        }
    }
    // Two generations of 4 MiB and a little for each.
    assert_eq!(there.len(), 7);
    assert_eq!(mounts().len(), 7);
    let in_use = |volumes: &[PodVolume]| -> u64 {
        let used = |volume| {
            let stats = statvfs(&node.kubelet.target(volume)).unwrap();
            (stats.blocks() - stats.blocks_free()) * stats.fragment_size()
        };
        volumes.iter().map(used).sum()
    };

    for version in [b'2', b'3'] {
        node.folders.secret("password", content(version));
        for volume in &there {
            let file = node.kubelet.target(volume).join("password");
            eventually("it rotates", || {
                assert!(in_use(&there) <= budget);
                fs::read(&file).is_ok_and(|found| found == content(version))
            })
            .await;
        }
    }
    let counted = metric(&node, "coffer_volume_bytes").await;
    assert!(counted <= budget && counted > 7 * 8 * MIB, "{counted}");
    assert_eq!(metric(&node, "coffer_node_budget_bytes").await, budget);

    // What goes makes room for one, and no more.
    let gone = there.pop().unwrap();
    node.kubelet.unpublish(&gone).await.unwrap();
    node.kubelet.publish(&volume("next")).await.unwrap();
    let status = node.kubelet.publish(&gone).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    match &group {
        Some(group) => {
            println!(
                "in a memory cgroup: at most {} MiB in use",
                group.most() / MIB
            );
            assert_eq!(group.kills(), 0, "nobody was killed for memory");
        }
        None => println!("without a memory cgroup, which only root can make: by counting alone"),
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn volumes_of_an_earlier_process_count_and_go_on_rotating() {
    let mut node = Node::start_with(&["--node-budget=1Mi"]).await;
    node.folders.secret("password", [b'1'; 100_000]);
    let mut there = Vec::new();
    let refused = loop {
        let volume = volume(&format!("p{}", there.len()));
        match node.kubelet.publish(&volume).await {
            Ok(()) => there.push(volume),
            Err(status) => break (volume, status),
        }
    };
    assert_eq!(refused.1.code(), Code::ResourceExhausted, "{}", refused.1);
    assert_eq!(there.len(), 4);
    let before = metric(&node, "coffer_volume_bytes").await;

    node.end(Signal::SIGKILL);
    node.run().await;
    let after = metric(&node, "coffer_volume_bytes").await;
    assert!(
        (before..before + 8 * 4096).contains(&after),
        "counted from what they really take: {before}, {after}"
    );
    let status = node.kubelet.publish(&refused.0).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");

    for volume in &there {
        node.kubelet.publish(volume).await.unwrap();
    }
    node.folders.secret("password", [b'2'; 100_000]);
    for volume in &there {
        node.eventually_reads(volume, "password", &[b'2'; 100_000])
            .await;
    }
    // One that wants to grow beyond the budget keeps what it has.
    node.folders.secret("password", [b'3'; 300_000]);
    eventually("it is told", || {
        node.logged(&["volume not rotated", "--node-budget"]) >= 2
    })
    .await;
    node.kubelet.unpublish(&there[0]).await.unwrap();
    for volume in &there[1..] {
        node.kubelet.publish(volume).await.expect("it is complete");
    }
    // With room again, they follow by themselves.
    node.kubelet.unpublish(&there[1]).await.unwrap();
    node.kubelet.unpublish(&there[2]).await.unwrap();
    node.eventually_reads(&there[3], "password", &[b'3'; 300_000])
        .await;
    node.kubelet.unpublish(&there[3]).await.unwrap();
    eventually_metric(&node, "coffer_volume_bytes", 0).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_volume_may_reach_each_of_its_limits_and_pass_none() {
    let node = Node::start_with(&["--max-volume-bytes=5000", "--max-volume-files=3"]).await;
    for (bytes, files, fits) in [
        (4999, 2, true),
        (5000, 3, true),
        (5001, 3, false),
        (5000, 4, false),
        (0, 3, true),
        (0, 4, false),
    ] {
        let name = format!("v{bytes}-{files}");
        node.folders.secret(&format!("{name}/0"), vec![b'x'; bytes]);
        for file in 1..files {
            node.folders.secret(&format!("{name}/{file}"), "");
        }
        let spec = format!("provider: file\nparameters: {{objects: '[{name}]'}}");
        node.class(&name, &spec).await;
        let volume = PodVolume::of_class(pod(&name), &name);
        let published = node.kubelet.publish(&volume).await;
        match (fits, published) {
            (true, Ok(())) => node.kubelet.unpublish(&volume).await.unwrap(),
            (false, Err(status)) => {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().starts_with("TooLarge: "), "{status}");
            }
            (_, other) => panic!("{bytes} bytes in {files} files: {other:?}"),
        }
    }
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_request_may_reach_its_limit_and_not_pass_it() {
    use prost::Message;
    let limit = 64 << 10;
    let node = Node::start_with(&["--max-request-bytes=64Ki"]).await;
    for (size, fits) in [(limit - 1, true), (limit, true), (limit + 1, false)] {
        let volume = volume(&format!("s{size}"));
        node.kubelet.prepare(&volume).unwrap();
        let mut request = node.kubelet.publish_request(&volume);
        // Where it neither adds a field nor changes how its length is written.
        request.staging_target_path = "x".repeat(60_000);
        let more = size - request.encoded_len();
        request.staging_target_path.push_str(&"x".repeat(more));
        assert_eq!(request.encoded_len(), size);
        let mut client = node.kubelet.node().await.unwrap();
        let answer = client.node_publish_volume(request).await;
        match fits {
            true => drop(answer.unwrap()),
            false => assert_eq!(answer.unwrap_err().code(), Code::OutOfRange),
        }
    }
    assert_eq!(mounts().len(), 2);
}

async fn metric(node: &Node, name: &str) -> u64 {
    let scrape = node.http("/metrics").await;
    let line = scrape
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in\n{scrape}"))
        .parse()
        .unwrap()
}

async fn eventually_metric(node: &Node, name: &str, value: u64) {
    let start = std::time::Instant::now();
    while metric(node, name).await != value {
        assert!(
            start.elapsed() < crate::harness::PATIENCE,
            "{name} is not {value}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A memory cgroup below the one of this process, of either version; none without the right to make one.
struct MemoryGroup {
    folder: PathBuf,
    parent: PathBuf,
    unified: bool,
}

impl MemoryGroup {
    fn new(limit: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let line = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers
                .split(',')
                .any(|c| c == "memory")
                .then_some(path)
        });
        let (parent, unified) = match line {
            Some(path) => (Path::new("/sys/fs/cgroup/memory").join(&path[1..]), false),
            None => {
                let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
                (Path::new("/sys/fs/cgroup").join(path), true)
            }
        };
        let folder = parent.join(format!("coffer-test-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let group = Self {
            folder,
            parent,
            unified,
        };
        let file = group.file("memory.limit_in_bytes", "memory.max");
        fs::write(file, limit.to_string()).ok()?;
        Some(group)
    }

    fn file(&self, first: &str, unified: &str) -> PathBuf {
        self.folder.join(if self.unified { unified } else { first })
    }

    fn enter(&self, pid: u32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn most(&self) -> u64 {
        let most = fs::read_to_string(self.file("memory.max_usage_in_bytes", "memory.peak"));
        most.map_or(0, |most| most.trim().parse().unwrap())
    }

    fn kills(&self) -> u64 {
        let events = self.file("memory.oom_control", "memory.events");
        let events = fs::read_to_string(events).unwrap();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.unwrap().parse().unwrap()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Whoever is still in it goes back; a group with charges of files that are gone can be removed.
        for pid in fs::read_to_string(self.folder.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
