//! A node for one test: folders, the driver on its socket, a kubelet that calls it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coffer::fake_kubelet::{FakeKubelet, PodVolume, connect};
use coffer_proto::csi::GetPluginInfoRequest;
use coffer_proto::csi::identity_client::IdentityClient;
use coffer_provider::{Pod, ServiceAccount};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Far above anything that a step takes on a busy machine: whoever waits that long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// Gives this thread, and every thread and process that it starts from now on, mounts of its own.
pub(crate) fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: run through cargo xtask test");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of our own");
}

/// The folders of a node.
pub(crate) struct Folders {
    pub(crate) root: TempDir,
}

impl Folders {
    pub(crate) fn new() -> Self {
        own_mounts();
        let root = tempfile::tempdir().unwrap();
        for folder in ["kubelet/pods", "secrets", "classes"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn kubelet(&self) -> FakeKubelet {
        FakeKubelet::new(&self.at("kubelet"), &self.at("plugin/csi.sock"))
    }

    /// Writes a secret of the Namespace `shop`, as a careful editor does: no reader sees half of it.
    pub(crate) fn secret(&self, name: &str, content: impl AsRef<[u8]>) {
        replace(&self.at("secrets/shop").join(name), content.as_ref());
    }

    /// Writes a class of the Namespace `shop`.
    pub(crate) fn class(&self, name: &str, spec: &str) {
        self.class_with(&format!("name: {name}, namespace: shop"), name, spec);
    }

    /// Writes a class with this metadata into the file `name`.
    pub(crate) fn class_with(&self, metadata: &str, name: &str, spec: &str) {
        let spec = spec.trim().replace('\n', "\n  ");
        let text = format!(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
             metadata: {{{metadata}}}\nspec:\n  {spec}\n"
        );
        replace(
            &self.at("classes").join(format!("{name}.yaml")),
            text.as_bytes(),
        );
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        // The temporary folder cannot go while something is mounted in it.
        for target in mounts() {
            let _ = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

pub(crate) fn replace(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let beside = path.with_extension("new");
    fs::write(&beside, content).unwrap();
    fs::rename(beside, path).unwrap();
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

/// A volume of pod `name` with the class `shop`.
pub(crate) fn volume(name: &str) -> PodVolume {
    PodVolume::of_class(pod(name), "shop")
}

/// The volumes that are mounted for this thread: the target path of each.
pub(crate) fn mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let ours = table.lines().filter(|line| line.starts_with("coffer"));
    ours.map(|line| line.split(' ').nth(1).unwrap().into())
        .collect()
}

/// Which mount a path lies on.
pub(crate) fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} does not hold");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The driver as a process of its own.
pub(crate) struct Node {
    pub(crate) folders: Folders,
    pub(crate) kubelet: FakeKubelet,
    pub(crate) metrics: SocketAddr,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    driver: Option<Child>,
}

impl Node {
    /// A node with the class `shop` (everything in `secrets/shop`) and one secret, `password`.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        Self::start_in(flags, &[]).await
    }

    /// The same, with more in the environment of the driver.
    pub(crate) async fn start_in(flags: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_as("provider: file", flags, env).await
    }

    /// A node with this class `shop`.
    pub(crate) async fn start_with_class(spec: &str, flags: &[&str]) -> Self {
        Self::start_as(spec, flags, &[]).await
    }

    async fn start_as(spec: &str, flags: &[&str], env: &[(&str, &str)]) -> Self {
        let folders = Folders::new();
        folders.class("shop", spec);
        folders.secret("password", "correct-horse");
        let mut node = Self {
            kubelet: folders.kubelet(),
            folders,
            metrics: free_address(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            driver: None,
        };
        node.run().await;
        node
    }

    /// Starts the driver, and waits until it answers.
    pub(crate) async fn run(&mut self) {
        let driver = self.spawn();
        self.driver = Some(driver);
        self.answers().await;
    }

    /// Another process of the driver beside the one that there is, as in an upgrade; from now on it is
    /// the one of this node. Gives the one before.
    pub(crate) fn run_another(&mut self) -> Child {
        let another = self.spawn();
        self.driver.replace(another).unwrap()
    }

    fn spawn(&self) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_coffer"));
        command.arg("node");
        // The classes are in files, unless there is an API server.
        if !self
            .flags
            .iter()
            .any(|flag| flag.starts_with("--kubeconfig="))
        {
            let classes = self.folders.at("classes");
            command.arg(format!("--classes={}", classes.display()));
        }
        command
            .arg(format!(
                "--endpoint=unix://{}",
                self.folders.at("plugin/csi.sock").display()
            ))
            .arg(format!(
                "--kubelet-root={}",
                self.folders.at("kubelet").display()
            ))
            .arg(format!(
                "--file-root={}",
                self.folders.at("secrets").display()
            ))
            .arg(format!(
                "--provider-volume={}",
                self.folders.at("providers").display()
            ))
            .arg("--additional-provider-volume-paths=")
            .arg(format!("--metrics-addr={}", self.metrics))
            .arg("--node-id=node-1")
            // A variable, so that a test can choose another one by a flag.
            .env("COFFER_LOG_LEVEL", "trace")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(&self.flags)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Waits until the driver answers.
    pub(crate) async fn answers(&mut self) {
        let start = Instant::now();
        while !serves(&self.folders).await {
            let exited = self.driver.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none(), "the driver ended:\n{}", self.log());
            assert!(
                start.elapsed() < PATIENCE,
                "the driver does not answer:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.driver.as_ref().unwrap().id()
    }

    /// Sends the driver a signal and waits for its end.
    pub(crate) fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut driver = self.driver.take().unwrap();
        kill(Pid::from_raw(driver.id() as i32), signal).unwrap();
        driver.wait().unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self.folders.at("log")
    }

    /// Writes a class of the Namespace `shop` that is new or has changed, and waits until the driver has read it.
    pub(crate) async fn class(&self, name: &str, spec: &str) {
        let words = ["class read", &format!("class=shop/{name} ")];
        let read = self.logged(&words);
        self.folders.class(name, spec);
        eventually("the class is read", || self.logged(&words) > read).await;
    }

    /// Waits until the driver has read what classes the API server has, in each of its processes.
    pub(crate) async fn classes_of_the_cluster_are_read(&self) {
        eventually("the classes are read", || {
            self.logged(&["classes read from the API server"]) >= self.logged(&["driver started"])
        })
        .await;
    }

    /// Everything that the driver has printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Lines of the log with all of these words.
    pub(crate) fn logged(&self, words: &[&str]) -> usize {
        let lines = BufReader::new(File::open(self.log_file()).unwrap()).lines();
        lines
            .map(Result::unwrap)
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count()
    }

    /// A file of a published volume.
    pub(crate) fn read(&self, volume: &PodVolume, path: &str) -> Vec<u8> {
        fs::read(self.kubelet.target(volume).join(path)).unwrap()
    }

    /// Waits until a file of a published volume has this content.
    pub(crate) async fn eventually_reads(&self, volume: &PodVolume, path: &str, content: &[u8]) {
        let file = self.kubelet.target(volume).join(path);
        eventually(&format!("{path} has its new content"), || {
            fs::read(&file).is_ok_and(|found| found == content)
        })
        .await;
    }

    /// Asks the HTTP server of the driver.
    pub(crate) async fn http(&self, path: &str) -> String {
        http(self.metrics, path).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut driver) = self.driver.take() {
            let _ = driver.kill();
            let _ = driver.wait();
        }
        if std::thread::panicking() {
            println!("log of the driver:\n{}", self.log());
        }
    }
}

/// Whether a driver answers there. A socket that is bound is not enough: it serves a moment later.
pub(crate) async fn serves(folders: &Folders) -> bool {
    let ask = async {
        let channel = connect(&folders.at("plugin/csi.sock")).await?;
        let request = GetPluginInfoRequest {};
        IdentityClient::new(channel).get_plugin_info(request).await
    };
    tokio::time::timeout(PATIENCE, ask)
        .await
        .is_ok_and(|answer| answer.is_ok())
}

/// Asks the HTTP server of a driver.
pub(crate) async fn http(server: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The sum of all counters of a scrape whose lines start with `name` and hold all of these words.
pub(crate) fn counted(scrape: &str, name: &str, words: &[&str]) -> u64 {
    let lines = scrape.lines().filter(|line| line.starts_with(name));
    lines
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Below the ports that the kernel gives to whoever asks for any, so that nobody takes it in the meantime.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(251);
    loop {
        let next = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (next % 10_000) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
