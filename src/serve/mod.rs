//! The edge to another driver of secrets-store volumes: a provider of ours as one of its plugins.
//!
//! That driver never says that a volume is gone. One that rotates asks again for every volume in each of its
//! intervals: what it has not asked for during three of them is let go of, and its leases and its login are given
//! back. One that does not rotate asks for a volume once, and the pod uses what came then for as long as it runs. So
//! a volume that was asked for only once is let go of as well, but its leases and its login end by themselves.

mod convert;
mod socket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use coffer_proto::provider::csi_driver_provider_server::{
    CsiDriverProvider, CsiDriverProviderServer,
};
use coffer_proto::provider::{MountRequest, MountResponse, VersionRequest, VersionResponse};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::cache::{SecretCache, Subscriber, Subscription};
use crate::catalog::Catalog;
use crate::class::SecretProviderClass;
use crate::csi;
use crate::error::PublishError;
use crate::identity::Requester;
use crate::payload::{Limits, Payload};
use crate::publish::STORE_DEADLINE;
use crate::spec::VolumeSpec;

pub use socket::PluginSocket;

/// The protocol, by the name that both sides give it.
const PROTOCOL: &str = "v1alpha1";

/// How many intervals a volume is kept that nobody asks for.
const KEPT: u32 = 3;

/// How long calls have to end after the process was told to.
const DRAIN: Duration = Duration::from_secs(8);

/// Most bytes of one request: the parameters of a class, tokens and secrets.
const REQUEST_BYTES: usize = 4 << 20;

/// A provider, served to another driver. Clones are the same one.
#[derive(Clone)]
pub struct Served(Arc<Inner>);

struct Inner {
    provider: &'static str,
    catalog: Catalog,
    cache: SecretCache,
    limits: Limits,
    interval: Duration,
    volumes: Mutex<HashMap<VolumeKey, Held>>,
}

/// A volume, as far as the other driver tells them apart.
#[derive(Clone, PartialEq, Eq, Hash)]
struct VolumeKey {
    pod_uid: String,
    target_path: String,
}

struct Held {
    volume: Arc<Volume>,
    subscriber: Arc<Subscriber>,
    asked: Instant,
    /// It was asked for again, not only once more for a first time that came to nothing.
    rotates: bool,
}

struct Volume {
    spec: VolumeSpec,
    subscription: Subscription,
    first_given: OnceLock<Instant>,
}

/// What the other driver asks for, checked as far as the request alone allows.
struct Asked {
    key: VolumeKey,
    requester: Requester,
    class: SecretProviderClass,
}

impl Served {
    /// Serves the provider of this name in `catalog`, whose answers are good for `interval`.
    #[must_use]
    pub fn new(
        provider: &'static str,
        catalog: Catalog,
        cache: SecretCache,
        limits: Limits,
        interval: Duration,
    ) -> Self {
        Self(Arc::new(Inner {
            provider,
            catalog,
            cache,
            limits,
            interval,
            volumes: Mutex::default(),
        }))
    }

    /// Serves until `stop`, and lets go of volumes that nobody asks for any more.
    ///
    /// # Errors
    /// When the server fails by itself.
    pub async fn run(
        self,
        socket: PluginSocket,
        stop: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let releasing = self.clone();
        let release = async move {
            loop {
                sleep(releasing.0.interval).await;
                releasing.release();
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(release));
        let cache = self.0.cache.clone();
        let looking_until = stop.clone();
        tokio::spawn(async move { cache.run(looking_until).await });
        let (connections, _remove) = socket.into_parts();
        let service = CsiDriverProviderServer::new(self)
            .max_decoding_message_size(REQUEST_BYTES)
            .max_encoding_message_size(usize::MAX);
        let serve = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
        let give_up = async {
            stop.cancelled().await;
            sleep(DRAIN).await;
        };
        tokio::select! {
            served = serve => served,
            // A driver that does not let go of its connection is no reason to stay.
            () = give_up => Ok(()),
        }
    }

    fn volumes(&self) -> MutexGuard<'_, HashMap<VolumeKey, Held>> {
        let volumes = self.0.volumes.lock();
        volumes.unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the volumes that were not asked for during three intervals, and with them what the store gave.
    fn release(&self) {
        let kept = self.0.interval * KEPT;
        let mut volumes = self.volumes();
        let before = volumes.len();
        volumes.retain(|_, held| {
            let stays = held.asked.elapsed() <= kept;
            if !stays {
                held.subscriber.set_gives_back(held.rotates);
            }
            stays
        });
        let (released, left) = (before - volumes.len(), volumes.len());
        drop(volumes);
        if released > 0 {
            info!(released, left, "volumes that nobody asks for are let go of");
        }
    }

    async fn read(&self, asked: Asked, deadline: Instant) -> Result<MountResponse, PublishError> {
        let started = Instant::now();
        let late = |_| PublishError::DeadlineExceeded(deadline.duration_since(started).as_secs());
        let volume = timeout_at(deadline, self.volume(asked)).await;
        let volume = volume.map_err(late)??;
        let read = timeout_at(deadline, volume.subscription.read()).await;
        let secrets = read.map_err(late)??;
        let payload = Payload::project(&volume.spec, &secrets, None, &self.0.limits)?;
        volume.first_given.get_or_init(Instant::now);
        Ok(convert::response(&volume.spec, &secrets, &payload))
    }

    /// The volume in the cache: the one of the last time, unless its class has become another one.
    async fn volume(&self, asked: Asked) -> Result<Arc<Volume>, PublishError> {
        let requester = Arc::new(asked.requester);
        if let Some(held) = self.volumes().get_mut(&asked.key)
            && held.volume.spec.class_hash() == asked.class.hash
        {
            held.asked = Instant::now();
            // Whoever had an answer and could not write it asks again, too, but not that late.
            let given = held.volume.first_given.get();
            held.rotates |= given.is_some_and(|given| given.elapsed() >= self.0.interval / 2);
            held.subscriber.renew(requester);
            held.volume.subscription.republished();
            return Ok(held.volume.clone());
        }
        let mut spec = self
            .0
            .catalog
            .resolve(Arc::new(asked.class), &Default::default())?;
        spec.identify(&requester.pod).await;
        let subscriber = Subscriber::new(asked.key.target_path.clone(), requester);
        // Until that driver asks again, the pod uses what has been replaced here.
        subscriber.set_gives_back(false);
        // Its tidings go unheard: it is asked for, and not told.
        let (subscription, _) = self.0.cache.subscribe(&spec, &subscriber)?;
        let volume = Arc::new(Volume {
            spec,
            subscription,
            first_given: OnceLock::new(),
        });
        let held = Held {
            volume: volume.clone(),
            subscriber,
            asked: Instant::now(),
            rotates: false,
        };
        if let Some(before) = self.volumes().insert(asked.key, held) {
            // Its driver asks again, so the pod has what is new in a moment.
            before.subscriber.set_gives_back(before.rotates);
        }
        Ok(volume)
    }
}

#[tonic::async_trait]
impl CsiDriverProvider for Served {
    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: PROTOCOL.to_owned(),
            runtime_name: format!("coffer-{}", self.0.provider),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn mount(
        &self,
        request: Request<MountRequest>,
    ) -> Result<Response<MountResponse>, Status> {
        let time = csi::time_for_stores(request.metadata(), STORE_DEADLINE);
        let deadline = Instant::now() + time;
        let asked = convert::asked(request.into_inner(), self.0.provider, self.0.interval);
        let read = match asked {
            Ok(asked) => self.read(asked, deadline).await,
            Err(error) => Err(error),
        };
        read.map(Response::new).map_err(|error| {
            let reason = error.reason().as_str();
            let detail = error.detail().unwrap_or_default();
            warn!(provider = self.0.provider, reason, %error, detail, "volume not read");
            csi::status(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;
    use async_trait::async_trait;
    use coffer_provider::{
        Caller, Format, IdentifiedBy, Lease, Life, ObjectRef, Parameters, Provider, ProviderError,
        Secret, SecretBytes, SecretFile, Sharing, Source, Version,
    };
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LEASE: Duration = Duration::from_secs(15);

    const INTERVAL: Duration = Duration::from_secs(10);

    /// A store of one leased secret, which counts what it is asked.
    #[derive(Default)]
    struct Store {
        object: Vec<ObjectRef>,
        /// Each look at it gives another lease.
        is_not_renewed: bool,
        counts: Arc<Counts>,
    }

    #[derive(Default)]
    struct Counts {
        read: AtomicUsize,
        renewed: AtomicUsize,
        released: AtomicUsize,
        logged_out: AtomicUsize,
    }

    impl Counts {
        fn seen(&self) -> [usize; 3] {
            [&self.read, &self.released, &self.logged_out]
                .map(|count| count.load(Ordering::Relaxed))
        }
    }

    impl Store {
        fn life(&self) -> Life {
            let read = self.counts.read.load(Ordering::Relaxed);
            let number = if self.is_not_renewed { read } else { 0 };
            Life::Leased {
                lease: Lease::new(format!("lease{number}")),
                duration: LEASE,
                renewable: !self.is_not_renewed,
            }
        }
    }

    impl Provider for Store {
        fn source(&self, _: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
            Ok(Arc::new(Self {
                object: vec![ObjectRef {
                    name: "a".into(),
                    request: "a".into(),
                }],
                counts: self.counts.clone(),
                is_not_renewed: self.is_not_renewed,
            }))
        }
    }

    #[async_trait]
    impl Source for Store {
        fn identified_by(&self) -> &IdentifiedBy {
            &IdentifiedBy::Namespace
        }

        fn objects(&self) -> &[ObjectRef] {
            &self.object
        }

        async fn fetch(
            &self,
            _: &Caller,
            objects: &[ObjectRef],
        ) -> Vec<Result<Secret, ProviderError>> {
            self.counts.read.fetch_add(1, Ordering::Relaxed);
            let secret = || Secret {
                files: vec![SecretFile {
                    name: "a".into(),
                    bytes: SecretBytes::new(b"one".to_vec()),
                    format: Format::Opaque,
                    mode: None,
                }],
                version: Version::new("1").expect("good"),
                life: self.life(),
                sharing: Sharing::Pod,
            };
            objects.iter().map(|_| Ok(secret())).collect()
        }

        async fn renew(&self, _: &Caller, _: &Lease) -> Result<Life, ProviderError> {
            self.counts.renewed.fetch_add(1, Ordering::Relaxed);
            Ok(self.life())
        }

        async fn release(&self, _: &Caller, leases: &[Lease], _: Duration) {
            let released = &self.counts.released;
            released.fetch_add(leases.len(), Ordering::Relaxed);
        }

        async fn log_out(&self, _: &Caller) {
            self.counts.logged_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn request(pod_uid: &str) -> MountRequest {
        MountRequest {
            attributes: serde_json::json!({
                "csi.storage.k8s.io/pod.name": "web-0",
                "csi.storage.k8s.io/pod.namespace": "shop",
                "csi.storage.k8s.io/pod.uid": pod_uid,
                "csi.storage.k8s.io/serviceAccount.name": "web",
                "csi.storage.k8s.io/ephemeral": "true",
                "secretProviderClass": "shop",
            })
            .to_string(),
            secrets: "null".into(),
            target_path: format!("/pods/{pod_uid}"),
            permission: "420".into(),
            current_object_version: vec![],
        }
    }

    fn serve(store: Store) -> (Served, Arc<Counts>, Arc<Metrics>) {
        let counts = store.counts.clone();
        let catalog = Catalog::default().with("leasing", Arc::new(store));
        let metrics = Arc::new(Metrics::default());
        let cache = SecretCache::new(Default::default(), metrics.clone());
        let looking = cache.clone();
        tokio::spawn(async move { looking.run(CancellationToken::new()).await });
        let served = Served::new("leasing", catalog, cache, Limits::default(), INTERVAL);
        (served, counts, metrics)
    }

    async fn ask(served: &Served, pod_uid: &str) {
        let answer = served.mount(Request::new(request(pod_uid))).await;
        let answer = answer.expect("read").into_inner();
        assert_eq!(answer.files[0].contents, b"one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_was_asked_for_once_keeps_its_lease_and_its_login_when_it_is_let_go_of() {
        let (served, counts, metrics) = serve(Store::default());
        ask(&served, "once").await;
        ask(&served, "once").await;
        for _ in 0..KEPT * 4 {
            sleep(INTERVAL).await;
            served.release();
        }
        assert!(served.volumes().is_empty());
        served.0.cache.measure();
        assert_eq!(metrics.cache_entries.get(), 0, "its values are wiped");
        assert_eq!(counts.seen(), [1, 0, 0], "its pod may run for long");
        let renewed = counts.renewed.load(Ordering::Relaxed);
        sleep(INTERVAL * 10).await;
        assert_eq!(counts.renewed.load(Ordering::Relaxed), renewed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_another_one_replaces_is_left_to_the_pods_that_still_use_it() {
        let (served, counts, _) = serve(Store {
            is_not_renewed: true,
            ..Store::default()
        });
        for _ in 0..20 {
            ask(&served, "a").await;
            sleep(INTERVAL).await;
        }
        let [read, released, _] = counts.seen();
        assert!(read > 10, "{read}");
        assert_eq!(
            released, 0,
            "the other driver has not asked for the new one"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_nobody_asks_for_gives_its_lease_back_after_three_intervals() {
        let interval = INTERVAL;
        let (served, counts, _) = serve(Store::default());
        let ask = async |pod_uid| ask(&served, pod_uid).await;
        for _ in 0..2 {
            ask("kept").await;
            ask("gone").await;
            assert_eq!(counts.seen(), [2, 0, 0], "a lease for each pod");
            sleep(interval / 2).await;
        }
        ask("gone").await;
        for _ in 0..KEPT {
            sleep(interval).await;
            ask("kept").await;
            served.release();
            assert_eq!(served.volumes().len(), 2);
        }
        assert_eq!(
            counts.seen(),
            [2, 0, 0],
            "what is kept is renewed, not made anew"
        );
        assert!(counts.renewed.load(Ordering::Relaxed) >= 4);
        sleep(Duration::from_millis(1)).await;
        served.release();
        assert_eq!(served.volumes().len(), 1);
        // The cache keeps it a little longer, for a pod that takes the place of that one.
        for _ in 0..6 {
            sleep(interval).await;
            ask("kept").await;
        }
        assert_eq!(counts.seen(), [2, 1, 0], "the other one stays as it is");
        sleep(interval * 20).await;
        served.release();
        sleep(interval * 20).await;
        assert_eq!(
            counts.seen(),
            [2, 2, 1],
            "with the last one the store is left"
        );
    }
}
