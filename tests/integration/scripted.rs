//! Stores that hang, fail and come back, which real files never do: the driver runs in this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use coffer::catalog::Catalog;
use coffer::class::ClassName;
use coffer::class_folder;
use coffer::classes::Classes;
use coffer::config::Config;
use coffer::driver;
use coffer::fake_kubelet::{FakeKubelet, PodVolume, token_of};
use coffer::kube::ApiServer;
use coffer::payload::Limits;
use coffer::tokens::TokenSource;
use coffer::volume::TargetRules;
use coffer_provider::testing::{Answer, ScriptedProvider};
use coffer_provider::{ErrorKind, IdentifiedBy, Provider};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::fake_api_server::FakeApiServer;
use crate::harness::{
    Folders, PATIENCE, counted, eventually, free_address, http, mounts, serves, volume,
};

/// What the kubelet has to bring a token for, where the store wants one.
pub(crate) const AUDIENCE: &str = "vault";

/// The driver in this process.
pub(crate) struct Scripted {
    pub(crate) folders: Folders,
    pub(crate) kubelet: FakeKubelet,
    pub(crate) store: ScriptedProvider,
    metrics: SocketAddr,
    catalog: Catalog,
    classes: Classes,
    /// What its configuration has that others have not.
    differs: fn(&mut Config),
    kubeconfig: Option<PathBuf>,
    /// Where Secrets are made, of classes that are in the folder all the same.
    api_server: Option<ApiServer>,
    stop: CancellationToken,
    driver: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Scripted {
    /// A node whose class `shop` reads the objects `a` and `b` of a scripted store.
    pub(crate) async fn start() -> Self {
        Self::start_with(ScriptedProvider::default(), []).await
    }

    /// The same with a store that wants a token.
    pub(crate) async fn start_with_tokens() -> Self {
        Self::start_with(by_token(AUDIENCE), []).await
    }

    /// The same with this store, and with others that have names of their own.
    pub(crate) async fn start_with<const N: usize>(
        store: ScriptedProvider,
        others: [(&'static str, Arc<dyn Provider>); N],
    ) -> Self {
        Self::start_as(store, others, |_| ()).await
    }

    /// The same with another configuration.
    pub(crate) async fn start_as<const N: usize>(
        store: ScriptedProvider,
        others: [(&'static str, Arc<dyn Provider>); N],
        differs: fn(&mut Config),
    ) -> Self {
        let folders = Folders::new();
        folders.class("shop", "provider: scripted\nparameters: {objects: 'a,b'}");
        Self::start_at(folders, store, others, differs, None, None).await
    }

    /// The same with this store in a cluster, which has the class `shop`.
    pub(crate) async fn start_in(cluster: &FakeApiServer, store: ScriptedProvider) -> Self {
        cluster.class("shop", "{provider: scripted, parameters: {objects: 'a,b'}}");
        let kubeconfig = Some(cluster.kubeconfig());
        let node = Self::start_at(Folders::new(), store, [], |_| (), kubeconfig, None).await;
        node.knows("shop", "shop").await;
        node
    }

    /// The same as [`Self::start`] with Secrets at an API server, as its class wants them.
    pub(crate) async fn start_syncing(api_server: ApiServer, secrets: &str) -> Self {
        let spec =
            format!("provider: scripted\nparameters: {{objects: 'a,b'}}\nsecretObjects: {secrets}");
        Self::start_syncing_with(api_server, &spec, []).await
    }

    /// The same with this class `shop`, and other stores.
    pub(crate) async fn start_syncing_with<const N: usize>(
        api_server: ApiServer,
        spec: &str,
        others: [(&'static str, Arc<dyn Provider>); N],
    ) -> Self {
        let folders = Folders::new();
        folders.class("shop", spec);
        let store = ScriptedProvider::default();
        let syncs = |config: &mut Config| config.sync.sync_secrets = true;
        Self::start_at(folders, store, others, syncs, None, Some(api_server)).await
    }

    async fn start_at<const N: usize>(
        folders: Folders,
        store: ScriptedProvider,
        others: [(&'static str, Arc<dyn Provider>); N],
        differs: fn(&mut Config),
        kubeconfig: Option<PathBuf>,
        api_server: Option<ApiServer>,
    ) -> Self {
        store.set_value("a", "one");
        store.set_value("b", "two");
        let catalog = Catalog::default().with("scripted", Arc::new(store.clone()));
        let catalog = others
            .into_iter()
            .fold(catalog, |catalog, (name, other)| catalog.with(name, other));
        let mut node = Self {
            kubelet: folders.kubelet(),
            metrics: free_address(),
            stop: CancellationToken::new(),
            driver: None,
            differs,
            folders,
            store,
            catalog,
            classes: Classes::new().0,
            kubeconfig,
            api_server,
        };
        node.run().await;
        node
    }

    /// Starts the driver, and waits until it answers.
    async fn run(&mut self) {
        let mut config = Config {
            socket: self.folders.at("plugin/csi.sock"),
            node_id: "node-1".into(),
            driver_name: "secrets-store.csi.k8s.io".into(),
            rules: TargetRules {
                pods: self.folders.at("kubelet/pods"),
                conformance_root: None,
            },
            token_source: TokenSource::Secrets,
            limits: Limits::default(),
            bounds: Default::default(),
            cache: Default::default(),
            classes: Some(self.folders.at("classes")),
            kubeconfig: None,
            remove_startup_taint: false,
            file_root: None,
            vault: Default::default(),
            #[cfg(feature = "aws")]
            aws: Default::default(),
            plugins: Default::default(),
            sync: Default::default(),
            metrics: Some(self.metrics),
        };
        (self.differs)(&mut config);
        let (classes, api_server) = match self.kubeconfig.as_deref() {
            None => (
                class_folder::follow(&self.folders.at("classes")).unwrap(),
                self.api_server.clone(),
            ),
            Some(kubeconfig) => {
                let api_server = ApiServer::of(Some(kubeconfig)).await.unwrap();
                (api_server.classes(), Some(api_server))
            }
        };
        self.classes = classes.clone();
        self.stop = CancellationToken::new();
        let (catalog, stop) = (self.catalog.clone(), self.stop.clone());
        let driver = driver::run_reporting(config, catalog, classes, api_server, stop);
        self.driver = Some(tokio::spawn(driver));
        let start = Instant::now();
        while !serves(&self.folders).await {
            assert!(start.elapsed() < PATIENCE, "the driver does not answer");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the driver and starts another one, which knows nothing of the first.
    pub(crate) async fn restart(&mut self) {
        self.stop.cancel();
        self.driver.take().unwrap().await.unwrap().unwrap();
        self.run().await;
    }

    /// Writes a new class of the Namespace `shop`, and waits until the driver knows it.
    pub(crate) async fn class(&self, name: &str, spec: &str) {
        self.folders.class(name, spec);
        self.knows("shop", name).await;
    }

    /// Waits until the driver knows a class of this name.
    pub(crate) async fn knows(&self, namespace: &str, name: &str) {
        let class = ClassName {
            namespace: namespace.into(),
            name: name.into(),
        };
        eventually("the class is read", || self.classes.find(&class).is_ok()).await;
    }

    /// Asks the HTTP server of the driver.
    pub(crate) async fn http(&self, path: &str) -> String {
        http(self.metrics, path).await
    }

    /// How many objects the stores were asked for, with this outcome.
    pub(crate) async fn asked(&self, outcome: &str) -> u64 {
        let outcome = format!("outcome=\"{outcome}\"");
        let scrape = http(self.metrics, "/metrics").await;
        counted(&scrape, "coffer_store_requests_total", &[&outcome])
    }

    /// Waits until the stores were asked for so many objects with this outcome.
    pub(crate) async fn eventually_asked(&self, outcome: &str, times: u64) {
        let start = Instant::now();
        loop {
            let asked = self.asked(outcome).await;
            if asked == times {
                return;
            }
            let late = start.elapsed() > PATIENCE;
            assert!(asked < times && !late, "{outcome}: {asked}, not {times}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many looks at volumes have failed.
    pub(crate) async fn failed_looks(&self) -> u64 {
        let scrape = http(self.metrics, "/metrics").await;
        counted(&scrape, "rotation_reconcile_error_total", &[])
    }

    pub(crate) fn read(&self, volume: &PodVolume, path: &str) -> String {
        std::fs::read_to_string(self.kubelet.target(volume).join(path)).unwrap()
    }

    /// Publishes as a kubelet that waits only so long.
    pub(crate) async fn publish_within(
        &self,
        volume: &PodVolume,
        patience: Duration,
    ) -> tonic::Status {
        self.kubelet.prepare(volume).unwrap();
        let mut request = Request::new(self.kubelet.publish_request(volume));
        request.set_timeout(patience);
        let mut client = self.kubelet.node().await.unwrap();
        client.node_publish_volume(request).await.unwrap_err()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A store that knows callers by their tokens.
pub(crate) fn by_token(audience: &str) -> ScriptedProvider {
    ScriptedProvider::identified_by(IdentifiedBy::Token {
        audience: audience.into(),
        store: "https://store".into(),
        role: "shop".into(),
    })
}

/// A volume of pod `name`, which runs as `account` and has a good token.
pub(crate) fn volume_of(name: &str, account: &str) -> PodVolume {
    let mut volume = volume(name);
    volume.pod.service_account.name = account.into();
    with_token(volume)
}

/// The same volume with a good token of its pod.
pub(crate) fn with_token(mut volume: PodVolume) -> PodVolume {
    volume.bring_token(AUDIENCE, &token_of(&volume.pod), seconds_from_now(3600));
    volume
}

/// A time so many seconds from now.
pub(crate) fn seconds_from_now(seconds: i64) -> SystemTime {
    let apart = Duration::from_secs(seconds.unsigned_abs());
    match seconds < 0 {
        true => SystemTime::now() - apart,
        false => SystemTime::now() + apart,
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn every_answer_of_a_store_has_its_code_and_leaves_nothing() {
    let node = Scripted::start().await;
    for (kind, code) in [
        (ErrorKind::InvalidParameters, Code::InvalidArgument),
        (ErrorKind::NotFound, Code::NotFound),
        (ErrorKind::PermissionDenied, Code::PermissionDenied),
        (ErrorKind::Unauthenticated, Code::Unauthenticated),
        (ErrorKind::TooLarge, Code::FailedPrecondition),
        (ErrorKind::Unavailable, Code::Unavailable),
        (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded),
        (ErrorKind::InvalidAnswer, Code::Internal),
    ] {
        node.store.set(
            "b",
            Answer::Error(kind, "the store says no\n\u{1b}[31m".into()),
        );
        let volume = volume("a");
        for _ in 0..2 {
            let status = node.kubelet.publish(&volume).await.unwrap_err();
            assert_eq!(status.code(), code, "{kind:?}: {status}");
            let message = status.message();
            assert!(
                message.contains("the store says no\\u{a}\\u{1b}[31m"),
                "{message}"
            );
        }
        assert!(mounts().is_empty(), "{kind:?}");
        assert!(!node.kubelet.target(&volume).exists(), "{kind:?}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p1_p3_p4_hostile_files_of_a_store_are_refused_before_anything_is_mounted() {
    let node = Scripted::start().await;
    let file = |name: &str, mode| (name.to_owned(), b"x".to_vec(), mode);
    for (wrong, files) in [
        ("p1 parent", vec![file("../../etc/passwd", None)]),
        ("p1 absolute", vec![file("/etc/passwd", None)]),
        ("p1 empty", vec![file("", None)]),
        ("p1 data", vec![file("..data", None)]),
        ("p1 NUL", vec![file("a\0b", None)]),
        ("p1 escape", vec![file("a\u{1b}[2Jb", None)]),
        ("p2 long", vec![file(&"x".repeat(256), None)]),
        ("p2 deep", vec![file(&["d"; 33].join("/"), None)]),
        ("p3 twice", vec![file("x", None), file("x", None)]),
        ("p3 in the way", vec![file("x", None), file("x/y", None)]),
        ("p4 setuid", vec![file("x", Some(0o4755))]),
        ("p4 sticky", vec![file("x", Some(0o1000))]),
        ("p4 huge", vec![file("x", Some(u32::MAX))]),
    ] {
        node.store.set("b", Answer::Files(files));
        let volume = volume("a");
        let status = node.kubelet.publish(&volume).await.expect_err(wrong);
        assert_eq!(status.code(), Code::InvalidArgument, "{wrong}: {status}");
        assert!(
            !status.message().contains(|c: char| c.is_control()),
            "{wrong}: {status}"
        );
        assert!(mounts().is_empty(), "{wrong}");
        assert!(!node.kubelet.target(&volume).exists(), "{wrong}");
    }
    node.store.set(
        "b",
        Answer::Files(vec![file("x", Some(0)), file("y/z", Some(0o400))]),
    );
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let mode = |path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(node.kubelet.target(&volume).join(path))
            .unwrap()
            .mode()
            & 0o7777
    };
    assert_eq!(
        (mode("x"), mode("y/z")),
        (0o644, 0o400),
        "0 is the default mode"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_w8_one_object_that_fails_keeps_the_whole_set() {
    let node = Scripted::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let generation = || std::fs::read_link(node.kubelet.target(&volume).join("..data")).unwrap();
    let before = generation();
    let asked = node.store.fetches();
    node.store
        .set("b", Answer::Error(ErrorKind::Unavailable, "down".into()));
    node.store.set_value("a", "one more");
    eventually("the store is asked", || node.store.fetches() >= asked + 2).await;
    assert_eq!(
        (node.read(&volume, "a").as_str(), generation()),
        ("one", before)
    );
    node.store.set_value("b", "two more");
    eventually("both are new", || node.read(&volume, "b") == "two more").await;
    assert_eq!(node.read(&volume, "a"), "one more");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r2_a_republish_asks_no_store_and_touches_nothing() {
    let node = Scripted::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let mount = crate::harness::device(&node.kubelet.target(&volume));
    let asked = node.store.fetches();
    node.store.set_latency(Duration::from_secs(3600));
    for _ in 0..100 {
        node.kubelet.publish(&volume).await.unwrap();
    }
    assert_eq!(node.store.fetches(), asked);
    assert_eq!(crate::harness::device(&node.kubelet.target(&volume)), mount);
    assert_eq!(mounts().len(), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r3_an_unpublish_wins_over_the_publish_before_it() {
    let node = Scripted::start().await;
    node.store.set_latency(Duration::from_millis(200));
    for round in 0..10 {
        let volume = volume(&format!("p{round}"));
        node.kubelet.prepare(&volume).unwrap();
        let (kubelet, published) = (node.kubelet.clone(), volume.clone());
        let publish = tokio::spawn(async move { kubelet.publish(&published).await });
        tokio::time::sleep(Duration::from_millis(30 * round)).await;
        node.kubelet.unpublish(&volume).await.unwrap();
        assert!(mounts().is_empty(), "round {round}");
        let done = publish.await.unwrap();
        if let Err(status) = done {
            // Cut short, or so late that the kubelet had taken the folder away.
            let late = status
                .message()
                .contains("its parent folder does not exist");
            assert!(status.code() == Code::Aborted || late, "{status}");
        }
        // Nor later: the answer of the store comes in the meantime.
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(mounts().is_empty(), "round {round}, later");
    }
    // A rotation that is on its way is no different.
    let volume = volume("rotating");
    node.kubelet.publish(&volume).await.unwrap();
    node.store.set_value("a", "new");
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.kubelet.unpublish(&volume).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(mounts().is_empty());
    assert!(!node.kubelet.target(&volume).exists());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r4_an_unpublish_does_not_wait_for_a_store_that_hangs() {
    let node = Scripted::start().await;
    node.store.set("b", Answer::Hang);
    let volume = volume("a");
    let (kubelet, hanging) = (node.kubelet.clone(), volume.clone());
    let publish = tokio::spawn(async move { kubelet.publish(&hanging).await });
    eventually("the store is asked", || node.store.fetches() > 0).await;
    let start = Instant::now();
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(publish.await.unwrap().unwrap_err().code(), Code::Aborted);
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r5_a_caller_who_gives_up_and_unpublishes_finds_nothing_left() {
    let node = Scripted::start().await;
    node.store.set_latency(Duration::from_secs(2));
    let volume = volume("a");
    node.kubelet.prepare(&volume).unwrap();
    let mut client = node.kubelet.node().await.unwrap();
    let request = node.kubelet.publish_request(&volume);
    // The call is dropped, as when the kubelet restarts in the middle of it.
    let call = tokio::time::timeout(
        Duration::from_millis(100),
        client.node_publish_volume(request),
    );
    assert!(call.await.is_err());
    drop(client);
    eventually("the publish goes on without its caller", || {
        mounts().len() == 1
    })
    .await;
    assert_eq!(node.read(&volume, "a"), "one", "and the volume is whole");
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_s1_a_store_that_hangs_is_given_up_before_the_kubelet_does() {
    let node = Scripted::start().await;
    node.store.set("b", Answer::Hang);
    let volume = volume("a");
    let status = node.publish_within(&volume, Duration::from_secs(10)).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(
        status.message().contains("the store did not answer"),
        "ours, not the client's: {status}"
    );
    assert!(mounts().is_empty());
    node.store.set_value("b", "two");
    node.kubelet
        .publish(&volume)
        .await
        .expect("at once when it is back");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_operation_in_flight_is_waited_for_until_shortly_before_the_deadline() {
    let node = Scripted::start().await;
    node.store.set("b", Answer::Hang);
    let volume = volume("a");
    node.kubelet.prepare(&volume).unwrap();
    let (kubelet, hanging) = (node.kubelet.clone(), volume.clone());
    let first = tokio::spawn(async move { kubelet.publish(&hanging).await });
    eventually("the store is asked", || node.store.fetches() > 0).await;
    let status = node.publish_within(&volume, Duration::from_secs(10)).await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(first.await.unwrap().is_err());
    assert!(node.folders.root.path().exists());
}
