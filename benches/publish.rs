//! What a volume costs, as ratios against the bare system calls in the same run.
//!
//! `cargo bench`, as root or in a user namespace of one's own. Times on a shared machine are noisy:
//! the ratios are what to compare, and nothing here fails by being slow.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at the first thing that does not work"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use coffer::catalog::Catalog;
use coffer::class::{ClassName, Mode, SecretProviderClass};
use coffer::classes::{Classes, Feed};
use coffer::config::Config;
use coffer::driver;
use coffer::fake_kubelet::{FakeKubelet, PodVolume, token_of};
use coffer::payload::{Limits, Payload};
use coffer::tokens::TokenSource;
use coffer::volume::{LAYOUT, Outcome, Record, TargetRules, Volumes};
use coffer::volume_path::VolumePath;
use coffer_proto::csi::NodeUnpublishVolumeRequest;
use coffer_provider::testing::ScriptedProvider;
use coffer_provider::{IdentifiedBy, Pod, SecretBytes, ServiceAccount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use rustix::fs::{AtFlags, Mode as Bits, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use tokio_util::sync::CancellationToken;

const FILES: [&str; 3] = ["username", "password", "token"];
const ROUNDS: usize = 2000;
/// Volumes that rotate in turn, since each of them rests for a second after a swap.
const SWAPPED: usize = 200;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("run as root, or through: unshare --user --map-root-user --mount cargo bench");
        std::process::exit(1);
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    // Both ends of a thousand connections are in this process.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();

    println!("3 small files, p50 of {ROUNDS} rounds");
    let bare = bare_calls(&folder.path().join("bare"));
    let core = core(&folder.path().join("core"));
    let front = runtime.block_on(front_door(&folder.path().join("front")));
    row("publish, bare system calls", bare.publish, None);
    row(
        "publish, build + write + attach",
        core.publish,
        Some((bare.publish, 1.5)),
    );
    row(
        "publish, over a fresh connection",
        front.publish,
        Some((bare.publish, 5.0)),
    );
    row("an empty call over a fresh connection", front.empty, None);
    row("swap, bare system calls", bare.swap, None);
    row(
        "swap, with the comparison before it",
        core.swap,
        Some((bare.swap, 4.0)),
    );
    row("unpublish, bare system calls", bare.unpublish, None);
    row("unpublish", core.unpublish, Some((bare.unpublish, 4.0)));
    row("republish, one after the other", front.republish, None);
    println!(
        "\n{:<44}{:>12}",
        "with 32 in flight, client and driver in one process", ""
    );
    println!(
        "{:<44}{:>10.0}/s   {:.2} ms of CPU each",
        "publish + unpublish", front.publishes.0, front.publishes.1
    );
    println!(
        "{:<44}{:>10.0}/s   {:.3} ms of CPU each",
        "republish", front.republishes.0, front.republishes.1
    );
    runtime.block_on(at_once(&folder.path().join("at-once")));
    memory(&folder.path().join("memory"), &runtime);
}

fn row(what: &str, p50: Duration, budget: Option<(Duration, f64)>) {
    let micros = p50.as_secs_f64() * 1e6;
    match budget {
        None => println!("{what:<44}{micros:>10.1} µs"),
        Some((bare, budget)) => {
            let ratio = p50.as_secs_f64() / bare.as_secs_f64();
            println!("{what:<44}{micros:>10.1} µs   {ratio:.2} × bare (budget {budget})");
        }
    }
}

fn p50(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    times.push(start.elapsed());
    done
}

struct Costs {
    publish: Duration,
    swap: Duration,
    unpublish: Duration,
}

/// The fewest system calls that give the same volume: a tmpfs with its files behind `..data`.
fn bare_calls(folder: &Path) -> Costs {
    let target = folder.join("target");
    fs::create_dir_all(folder).unwrap();
    let (mut publish, mut swap, mut unpublish) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let root = timed(&mut publish, || bare_publish(&target));
        if round % 4 == 0 {
            timed(&mut swap, || bare_swap(&root));
        }
        drop(root);
        timed(&mut unpublish, || {
            umount2(&target, MntFlags::MNT_DETACH).unwrap();
            fs::remove_dir(&target).unwrap();
        });
    }
    Costs {
        publish: p50(publish),
        swap: p50(swap),
        unpublish: p50(unpublish),
    }
}

fn bare_publish(target: &Path) -> OwnedFd {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for (key, value) in [
        ("source", "bare"),
        ("size", "16m"),
        ("nr_inodes", "4096"),
        ("mode", "0755"),
    ] {
        fsconfig_set_string(tmpfs.as_fd(), key, value).unwrap();
    }
    fsconfig_create(tmpfs.as_fd()).unwrap();
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap();
    let root = rustix::fs::openat(
        &mount,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY,
        Bits::empty(),
    )
    .unwrap();
    bare_write(&root, "..1");
    rustix::fs::symlinkat("..1", &root, "..data").unwrap();
    for name in FILES {
        rustix::fs::symlinkat(format!("..data/{name}"), &root, name).unwrap();
    }
    rustix::fs::mkdir(target, Bits::from_bits_retain(0o750)).unwrap();
    let folder = rustix::fs::open(target, OFlags::PATH | OFlags::DIRECTORY, Bits::empty()).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", &folder, "", flags).unwrap();
    root
}

fn bare_write(root: &OwnedFd, generation: &str) {
    rustix::fs::mkdirat(root, generation, Bits::from_bits_retain(0o755)).unwrap();
    let folder = rustix::fs::openat(
        root,
        generation,
        OFlags::RDONLY | OFlags::DIRECTORY,
        Bits::empty(),
    )
    .unwrap();
    for name in FILES {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = rustix::fs::openat(&folder, name, flags, Bits::from_bits_retain(0o600)).unwrap();
        rustix::io::write(&file, b"a value of some thirty characters").unwrap();
        rustix::fs::fchmod(&file, Bits::from_bits_retain(0o644)).unwrap();
    }
}

fn bare_swap(root: &OwnedFd) {
    bare_write(root, "..2");
    rustix::fs::symlinkat("..2", root, "..data_tmp").unwrap();
    rustix::fs::renameat(root, "..data_tmp", root, "..data").unwrap();
    for name in FILES {
        rustix::fs::unlinkat(root, format!("..1/{name}"), AtFlags::empty()).unwrap();
    }
    rustix::fs::unlinkat(root, "..1", AtFlags::REMOVEDIR).unwrap();
}

fn pod(name: &str) -> Pod {
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

fn rules(folder: &Path) -> TargetRules {
    TargetRules {
        pods: folder.join("pods"),
        conformance_root: None,
    }
}

/// The same through the part of the driver that touches the node, with all of its checks.
fn core(folder: &Path) -> Costs {
    let volumes = Volumes::probe(rules(folder), Limits::default()).unwrap();
    let target = |name: &str| {
        let path = folder.join(format!(
            "pods/{name}/volumes/kubernetes.io~csi/secrets/mount"
        ));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        volumes.rules().parse(path.to_str().unwrap()).unwrap()
    };
    let payloads: Vec<_> = ["one", "two"].map(payload).into();
    let record = Record {
        layout: LAYOUT,
        immutable: false,
        class: "c".repeat(64),
        objects: BTreeMap::new(),
    };
    let (mut publish, mut swap, mut unpublish) = (Vec::new(), Vec::new(), Vec::new());
    let only = target("only");
    for _ in 0..ROUNDS {
        timed(&mut publish, || {
            volumes.mount(&only, &payloads[0], &record).unwrap()
        });
        timed(&mut unpublish, || volumes.unmount(&only).unwrap());
    }
    let targets: Vec<_> = (0..SWAPPED)
        .map(|n| target(&format!("swapped-{n}")))
        .collect();
    for target in &targets {
        volumes.mount(target, &payloads[0], &record).unwrap();
    }
    // The second swap is the one that removes a generation, as each does from then on.
    for payload in [&payloads[1], &payloads[0]] {
        std::thread::sleep(Duration::from_secs(1));
        swap.clear();
        for target in &targets {
            let outcome = timed(&mut swap, || {
                volumes.rotate(target, payload, &record).unwrap()
            });
            assert_eq!(outcome, Outcome::Rotated);
        }
    }
    for target in &targets {
        volumes.unmount(target).unwrap();
    }
    Costs {
        publish: p50(publish),
        swap: p50(swap),
        unpublish: p50(unpublish),
    }
}

fn payload(value: &str) -> Payload {
    let files = FILES.map(|name| {
        let bytes = format!("{value} of some thirty characters").into_bytes();
        (
            VolumePath::new(name).unwrap(),
            SecretBytes::new(bytes),
            Mode::DEFAULT,
        )
    });
    Payload::new(files, None, &Limits::default()).unwrap()
}

struct FrontDoor {
    publish: Duration,
    empty: Duration,
    republish: Duration,
    publishes: (f64, f64),
    republishes: (f64, f64),
}

/// The driver behind its socket, in this process.
struct Driver {
    kubelet: FakeKubelet,
    /// The classes can change for as long as it is there.
    _feed: Feed,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Driver {
    /// With the class `shop`, which has these objects of a scripted store.
    async fn start(folder: &Path, store: &ScriptedProvider, objects: &[&str]) -> Self {
        for name in objects {
            store.set_value(name, "a value of some thirty characters");
        }
        let name = ClassName {
            namespace: "shop".into(),
            name: "shop".into(),
        };
        let parameters = serde_json::json!({"objects": objects.join(",")});
        let spec = serde_json::json!({"provider": "scripted", "parameters": parameters});
        let (classes, feed) = Classes::new();
        let class = SecretProviderClass::new(name.clone(), spec);
        feed.replace([(name, class.map(Arc::new))].into());
        let config = Config {
            socket: folder.join("plugin/csi.sock"),
            node_id: "bench".into(),
            driver_name: "secrets-store.csi.k8s.io".into(),
            rules: rules(folder),
            token_source: TokenSource::Secrets,
            limits: Limits::default(),
            bounds: Default::default(),
            cache: Default::default(),
            classes: None,
            kubeconfig: None,
            remove_startup_taint: false,
            file_root: None,
            vault: Default::default(),
            #[cfg(feature = "aws")]
            aws: Default::default(),
            plugins: Default::default(),
            sync: Default::default(),
            metrics: None,
        };
        let kubelet = FakeKubelet::new(folder, &config.socket);
        let catalog = Catalog::default().with("scripted", Arc::new(store.clone()));
        let stop = CancellationToken::new();
        let running = tokio::spawn(driver::run_with(config, catalog, classes, stop.clone()));
        while kubelet.node().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self {
            kubelet,
            _feed: feed,
            stop,
            running,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// With a store that answers from memory.
async fn front_door(folder: &Path) -> FrontDoor {
    let store = ScriptedProvider::default();
    let driver = Driver::start(folder, &store, &FILES).await;
    let kubelet = &driver.kubelet;
    let only = PodVolume::of_class(pod("only"), "shop");
    let (mut publish, mut empty, mut republish) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        kubelet.prepare(&only).unwrap();
        let start = Instant::now();
        publish_once(kubelet, &only).await;
        publish.push(start.elapsed());
        let start = Instant::now();
        publish_once(kubelet, &only).await;
        republish.push(start.elapsed());
        unpublish_once(kubelet, &only).await;
        let start = Instant::now();
        let mut node = kubelet.node().await.unwrap();
        node.node_get_capabilities(coffer_proto::csi::NodeGetCapabilitiesRequest {})
            .await
            .unwrap();
        empty.push(start.elapsed());
    }
    let publishes = in_flight(kubelet, 4000, async |kubelet, volume| {
        kubelet.prepare(volume).unwrap();
        publish_once(kubelet, volume).await;
        unpublish_once(kubelet, volume).await;
    })
    .await;
    for n in 0..32 {
        let volume = PodVolume::of_class(pod(&format!("p{n}")), "shop");
        kubelet.publish(&volume).await.unwrap();
    }
    let republishes = in_flight(kubelet, 16_000, publish_once).await;
    driver.stop().await;
    FrontDoor {
        publish: p50(publish),
        empty: p50(empty),
        republish: p50(republish),
        publishes,
        republishes,
    }
}

/// Pods that start at once, each over a connection of its own, with a store that takes its time.
async fn at_once(folder: &Path) {
    const PODS: usize = 1000;
    const ACCOUNTS: usize = 50;
    let store = ScriptedProvider::identified_by(IdentifiedBy::Token {
        audience: "vault".into(),
        store: "https://store".into(),
        role: "shop".into(),
    });
    store.set_latency(Duration::from_millis(20));
    let driver = Driver::start(folder, &store, &["a", "b", "c", "d"]).await;
    let pods: Vec<_> = (0..PODS)
        .map(|n| {
            let mut volume = PodVolume::of_class(pod(&format!("p{n}")), "shop");
            volume.pod.service_account.name = format!("account-{}", n % ACCOUNTS);
            let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
            volume.bring_token("vault", &token_of(&volume.pod), in_an_hour);
            driver.kubelet.prepare(&volume).unwrap();
            volume
        })
        .collect();
    let start = Instant::now();
    let publishes = pods.iter().map(async |volume| {
        publish_once(&driver.kubelet, volume).await;
        start.elapsed()
    });
    let mut took = futures_util::future::join_all(publishes).await;
    let all = start.elapsed();
    took.sort();
    println!(
        "\n{PODS} publishes at once, {ACCOUNTS} identities × 4 objects, a store that takes 20 ms, \
         50 requests a second"
    );
    println!(
        "{:<44}{:>10.0}/s   p50 {:.2} s, p99 {:.2} s (budget 5), {} objects fetched (budget {})",
        "publish",
        PODS as f64 / all.as_secs_f64(),
        took[PODS / 2].as_secs_f64(),
        took[PODS * 99 / 100].as_secs_f64(),
        store.fetches(),
        ACCOUNTS * 4,
    );
    for volume in &pods {
        unpublish_once(&driver.kubelet, volume).await;
    }
    driver.stop().await;
}

async fn publish_once(kubelet: &FakeKubelet, volume: &PodVolume) {
    let request = kubelet.publish_request(volume);
    kubelet
        .node()
        .await
        .unwrap()
        .node_publish_volume(request)
        .await
        .unwrap();
}

async fn unpublish_once(kubelet: &FakeKubelet, volume: &PodVolume) {
    let request = NodeUnpublishVolumeRequest {
        volume_id: volume.volume_id(),
        target_path: kubelet.target(volume).to_string_lossy().into_owned(),
    };
    kubelet
        .node()
        .await
        .unwrap()
        .node_unpublish_volume(request)
        .await
        .unwrap();
}

/// Calls a second and CPU milliseconds for each, of `calls` by 32 pods.
async fn in_flight<F>(kubelet: &FakeKubelet, calls: usize, call: F) -> (f64, f64)
where
    F: AsyncFn(&FakeKubelet, &PodVolume) + Clone,
{
    let (start, cpu) = (Instant::now(), cpu());
    let pods = (0..32).map(|n| {
        let (volume, call) = (
            PodVolume::of_class(pod(&format!("p{n}")), "shop"),
            call.clone(),
        );
        async move {
            for _ in 0..calls / 32 {
                call(kubelet, &volume).await;
            }
        }
    });
    futures_util::future::join_all(pods).await;
    let used = self::cpu() - cpu;
    let calls = calls as f64;
    (
        calls / start.elapsed().as_secs_f64(),
        used.as_secs_f64() * 1e3 / calls,
    )
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Memory of the real binary: idle, and with 250 volumes (their tmpfs pages are not in it).
fn memory(folder: &Path, runtime: &tokio::runtime::Runtime) {
    for name in FILES {
        fs::create_dir_all(folder.join("secrets/shop")).unwrap();
        fs::write(folder.join("secrets/shop").join(name), "a value").unwrap();
    }
    fs::create_dir_all(folder.join("classes")).unwrap();
    fs::write(
        folder.join("classes/shop.yaml"),
        "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
         metadata: {name: shop, namespace: shop}\nspec: {provider: file}\n",
    )
    .unwrap();
    let socket = folder.join("plugin/csi.sock");
    let mut driver = std::process::Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["node", "--node-id=bench", "--metrics-addr=127.0.0.1:0"])
        .arg(format!("--endpoint=unix://{}", socket.display()))
        .arg(format!("--kubelet-root={}", folder.display()))
        .arg(format!("--classes={}", folder.join("classes").display()))
        .arg(format!("--file-root={}", folder.join("secrets").display()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", driver.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    };
    let kubelet = FakeKubelet::new(folder, &socket);
    let (idle, full) = runtime.block_on(async {
        while kubelet.node().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let idle = resident();
        for n in 0..250 {
            let volume = PodVolume::of_class(pod(&format!("m{n}")), "shop");
            kubelet.publish(&volume).await.unwrap();
        }
        (idle, resident())
    });
    println!(
        "\n{:<44}{idle:>10.1} MiB   (budget 15)",
        "resident memory, idle"
    );
    println!(
        "{:<44}{full:>10.1} MiB   (budget 25)",
        "resident memory, 250 volumes"
    );
    driver.kill().unwrap();
    driver.wait().unwrap();
    for n in 0..250 {
        let volume = PodVolume::of_class(pod(&format!("m{n}")), "shop");
        umount2(&kubelet.target(&volume), MntFlags::MNT_DETACH).unwrap();
    }
}
