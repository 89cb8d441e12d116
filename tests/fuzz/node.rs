//! A node for one test: mounts of its own, a kubelet's folders, and where wanted the driver in this
//! process.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use coffer::catalog::Catalog;
use coffer::class::{ClassName, SecretProviderClass};
use coffer::classes::{Classes, Feed};
use coffer::config::{Config, NodeArgs};
use coffer::driver;
use coffer::fake_kubelet::{FakeKubelet, PodVolume};
use coffer::volume::TargetRules;
use coffer_provider::{Pod, ServiceAccount};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Far above anything that a step takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// The kubelet's root. Recorded requests name it, so it is the same on every machine: each test has a
/// `/tmp` of its own.
pub(crate) const KUBELET: &str = "/tmp/kubelet";

/// Gives this thread and all that it starts from now on mounts of its own, with a `/tmp` that is empty
/// but for the kubelet's root. They go with the thread.
pub(crate) fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: run through cargo xtask test");
    let (none, flags) = (None::<&str>, MsFlags::empty());
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).expect("mounts of our own");
    mount(Some("test"), "/tmp", Some("tmpfs"), flags, none).expect("a /tmp of our own");
    fs::create_dir_all(Path::new(KUBELET).join("pods")).unwrap();
}

pub(crate) fn rules() -> TargetRules {
    TargetRules {
        pods: Path::new(KUBELET).join("pods"),
        conformance_root: None,
    }
}

/// Whether this is a user namespace: there is one user and one group.
pub(crate) fn in_a_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    !map.contains("4294967295")
}

/// A pod of the Namespace `shop`.
pub(crate) fn pod(name: &str) -> Pod {
    Pod {
        name: name.into(),
        namespace: "shop".into(),
        uid: format!("uid-of-{name}"),
        service_account: ServiceAccount {
            name: "web".into(),
            uid: None,
        },
    }
}

pub(crate) fn volume_of(pod_name: &str, class: &str) -> PodVolume {
    PodVolume::of_class(pod(pod_name), class)
}

/// Makes this the class `name` of the Namespace `shop`.
pub(crate) fn put_class(feed: &Feed, name: &str, spec: Value) {
    let name = ClassName {
        namespace: "shop".into(),
        name: name.into(),
    };
    let class = SecretProviderClass::new(name.clone(), spec).map(Arc::new);
    feed.put(name, class);
}

/// What is mounted for this thread at a path.
pub(crate) fn mounts_at(target: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let at = target.to_str().unwrap();
    table
        .lines()
        .filter(|line| line.split(' ').nth(1) == Some(at))
        .count()
}

/// How many volumes are mounted for this thread, wherever.
pub(crate) fn volumes() -> usize {
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    table
        .lines()
        .filter(|line| line.starts_with("coffer"))
        .count()
}

/// Every file of a volume, through its links as a pod sees them.
pub(crate) fn files_in(target: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    add_files(target, "", &mut files);
    files
}

fn add_files(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if prefix.is_empty() && name.starts_with("..") {
            continue;
        }
        let at = folder.join(&name);
        let path = format!("{prefix}{name}");
        match fs::metadata(&at).unwrap().is_dir() {
            true => add_files(&at, &format!("{path}/"), files),
            false => drop(files.insert(path, fs::read(&at).unwrap())),
        }
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    node: NodeArgs,
}

/// The driver in this process, on a socket.
pub(crate) struct Node {
    pub(crate) kubelet: FakeKubelet,
    pub(crate) classes: Feed,
    metrics: SocketAddr,
    stop: CancellationToken,
}

impl Node {
    pub(crate) async fn start(catalog: Catalog) -> Self {
        own_mounts();
        let socket = PathBuf::from("/tmp/plugin/csi.sock");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let metrics = listener.local_addr().unwrap();
        drop(listener);
        let args = Cli::try_parse_from([
            "coffer",
            "--endpoint=unix:///tmp/plugin/csi.sock",
            &format!("--kubelet-root={KUBELET}"),
            &format!("--metrics-addr={metrics}"),
            "--node-id=node-1",
            // They come from the test.
            "--classes=/tmp",
        ]);
        let config = Config::try_from(args.unwrap().node).unwrap();
        let (classes, feed) = Classes::new();
        let stop = CancellationToken::new();
        tokio::spawn(driver::run_with(config, catalog, classes, stop.clone()));
        let kubelet = FakeKubelet::new(Path::new(KUBELET), &socket);
        let start = Instant::now();
        while kubelet.node().await.is_err() {
            assert!(start.elapsed() < PATIENCE, "the driver does not answer");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self {
            kubelet,
            classes: feed,
            metrics,
            stop,
        }
    }

    /// How often the driver has counted something.
    pub(crate) async fn counted(&self, metric: &str) -> u64 {
        let mut stream = tokio::net::TcpStream::connect(self.metrics).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(metric));
        let count = line.unwrap_or_else(|| panic!("{metric} is not in\n{answer}"));
        count.trim().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
