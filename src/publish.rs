//! The one path of a volume: publish, republish and unpublish. Between them `look.rs` keeps it fresh.

mod look;
mod secrets;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::SystemTime;

use coffer_provider::Life;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use self::look::ROTATIONS;
use self::secrets::{files, stamp};
use crate::cache::{Given, SecretCache, Subscriber, Tidings};
use crate::catalog::Catalog;
use crate::class::{ClassName, SecretProviderClass};
use crate::classes::Classes;
use crate::error::PublishError;
pub use crate::flight::STORE_DEADLINE;
use crate::identity::Requester;
use crate::payload::Payload;
use crate::pod_status::Shown;
use crate::registry::{Followed, Published, Registry, Turn};
use crate::report::Reports;
use crate::rotation;
use crate::spec::VolumeSpec;
use crate::sync::SecretSync;
use crate::telemetry::Metrics;
use crate::volume::{HeldObject, LAYOUT, Outcome, Record, State, TargetPath, VolumeError, Volumes};

/// What the kubelet asks for, checked as far as the request alone allows. Holds secrets: no `Debug`.
pub struct PublishRequest {
    /// The volume, by the kubelet's name for it.
    pub volume_id: String,
    /// Where it is wanted.
    pub target: TargetPath,
    /// For whom.
    pub requester: Arc<Requester>,
    /// What the pod wrote into `volumeAttributes`, without the class.
    pub attributes: BTreeMap<String, String>,
    /// `volumeAttributes.secretProviderClass`
    pub class: Option<String>,
    /// The pod's fsGroup.
    pub fs_group: Option<u32>,
}

/// A publish that has gone well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What it did to the volume.
    pub outcome: Outcome,
    /// The first provider of the volume; empty while that is not known.
    pub provider: &'static str,
}

/// Brings volumes onto the node and keeps them fresh.
pub struct Publisher {
    classes: Classes,
    catalog: Catalog,
    cache: SecretCache,
    volumes: Arc<Volumes>,
    registry: Registry,
    metrics: Arc<Metrics>,
    reports: Reports,
    sync: Option<SecretSync>,
    rotations: Semaphore,
}

impl Publisher {
    /// A publisher of these parts; without `sync` it makes no Kubernetes Secrets.
    #[must_use]
    pub fn new(
        classes: Classes,
        catalog: Catalog,
        cache: SecretCache,
        volumes: Arc<Volumes>,
        metrics: Arc<Metrics>,
        reports: Reports,
        sync: Option<SecretSync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            classes,
            catalog,
            cache,
            volumes,
            registry: Registry::default(),
            metrics,
            reports,
            sync,
            rotations: Semaphore::new(ROTATIONS),
        })
    }

    /// What is counted about volumes.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The node's volumes.
    #[must_use]
    pub fn volumes(&self) -> &Arc<Volumes> {
        &self.volumes
    }

    /// Makes sure that a volume is there, whole.
    ///
    /// A volume that is complete stays as it is and no store is asked, whatever has become of its
    /// class, its provider or its token (R1): the kubelet only repeats itself, and some kubelets take
    /// a pod's volume away when such a call fails (kubernetes#121271). A new volume is read from its
    /// stores first and touched last, so that a store that says no leaves nothing to undo.
    ///
    /// Runs to its end once it is polled: spawn it, so that a caller who gives up does not stop it
    /// half-way.
    ///
    /// # Errors
    /// Nothing new is mounted, and what was complete still is.
    pub async fn publish(
        self: Arc<Self>,
        request: PublishRequest,
        deadline: Instant,
    ) -> Result<Done, PublishError> {
        let started = Instant::now();
        let turn = timeout_at(deadline, self.registry.turn(&request.volume_id)).await;
        let mut turn = turn.map_err(|_| PublishError::Busy)?;
        let request = Arc::new(request);
        if let Some(published) = &*turn {
            check_same(&published.request, &request)?;
        }
        let outcome = match self.state(&request.target).await? {
            State::Complete(record) => {
                self.keep(&mut turn, request, record);
                Outcome::Unchanged
            }
            State::Inherited => {
                self.keep(&mut turn, request, None);
                Outcome::Unchanged
            }
            State::Absent | State::Empty => {
                let mounted = self.mount(&mut turn, request.clone(), deadline).await;
                let took = started.elapsed();
                self.reports
                    .mounted(&request, turn.as_ref(), &mounted, took);
                mounted?
            }
        };
        let provider = provider(turn.as_ref().and_then(|volume| volume.followed.as_ref()));
        Ok(Done { outcome, provider })
    }

    async fn mount(
        self: &Arc<Self>,
        turn: &mut Turn,
        request: Arc<PublishRequest>,
        deadline: Instant,
    ) -> Result<Outcome, PublishError> {
        let name = class_name(&request)?;
        let class = in_time(turn, deadline, self.classes.find_soon(&name)).await??;
        let mut spec = self.catalog.resolve(class.clone(), &request.attributes)?;
        in_time(turn, deadline, spec.identify(&request.requester.pod)).await?;
        if !self.catalog.pod_attributes_win() {
            self.reports.resolved(&request, &spec);
        }
        let subscriber = Subscriber::new(request.volume_id.clone(), request.requester.clone());
        let (subscription, tidings) = self.cache.subscribe(&spec, &subscriber)?;
        let secrets = in_time(turn, deadline, subscription.read()).await??;
        let payload = self.payload(&spec, &secrets, &request)?;
        let record = record(&spec, &secrets, SystemTime::now())?;
        let stamp = stamp(&record, subscription.age());
        let synced = self
            .sync(
                spec.class(),
                &request,
                files(&payload),
                stamp,
                None,
                deadline,
            )
            .await;
        let (target, mounted) = (request.target.clone(), record.clone());
        let outcome = self
            .on_node(move |volumes| volumes.mount(&target, &payload, &mounted))
            .await?;
        told_written(&spec, &secrets);
        let shown = Some(Shown::of(&spec));
        // One that stays as it is has no more use for its stores: with the subscription, all of that ends.
        let (followed, told) = match record.immutable {
            true => (None, silence()),
            false => (Some(Followed { spec, subscription }), tidings),
        };
        let look_at = synced.as_ref().map(|synced| synced.due);
        let follower = self.follow(&request, &subscriber, Some(&class), Some(told), look_at);
        **turn = Some(Published {
            request,
            record: Some(record),
            shown,
            synced,
            told_of_subpaths: false,
            subscriber,
            followed,
            follower,
        });
        self.metrics.volumes.set(self.registry.len() as i64);
        Ok(outcome)
    }

    /// A republish of a complete volume. One that an earlier process made is followed from now on.
    fn keep(
        self: &Arc<Self>,
        turn: &mut Turn,
        request: Arc<PublishRequest>,
        record: Option<Record>,
    ) {
        let Some(published) = &mut **turn else {
            info!(volume.id = %request.volume_id, "volume taken over");
            let subscriber = Subscriber::new(request.volume_id.clone(), request.requester.clone());
            let follower = self.follow(&request, &subscriber, None, None, None);
            **turn = Some(Published {
                request,
                record,
                shown: None,
                synced: None,
                told_of_subpaths: false,
                subscriber,
                followed: None,
                follower,
            });
            self.metrics.volumes.set(self.registry.len() as i64);
            return;
        };
        published.subscriber.renew(request.requester.clone());
        published.request = request;
        match &published.followed {
            Some(followed) if !followed.subscription.is_outlived() => {
                followed.subscription.republished();
            }
            _ => published.subscriber.tell(),
        }
    }

    /// From now on the volume is written again when something changes; also what has changed in its class since
    /// that was `seen`.
    fn follow(
        self: &Arc<Self>,
        request: &PublishRequest,
        subscriber: &Arc<Subscriber>,
        seen: Option<&SecretProviderClass>,
        tidings: Option<Tidings>,
        look_at: Option<Instant>,
    ) -> AbortOnDropHandle<()> {
        let class = class_name(request).map(|name| self.classes.watch(&name, seen));
        let follow = rotation::follow(
            self.clone(),
            subscriber.clone(),
            class.ok(),
            tidings,
            look_at,
        );
        AbortOnDropHandle::new(tokio::spawn(follow))
    }

    /// Takes a volume away. Needs no class, no store and no memory of the volume, and does not wait
    /// for a store that somebody else waits for.
    ///
    /// # Errors
    /// When something of the volume is left.
    pub async fn unpublish(
        self: Arc<Self>,
        volume_id: String,
        target: TargetPath,
    ) -> Result<(), PublishError> {
        self.registry.give_up(&volume_id);
        let mut turn = self.registry.turn(&volume_id).await;
        *turn = None;
        let unmounted = self.on_node(move |volumes| volumes.unmount(&target)).await;
        if unmounted.is_ok() {
            self.reports.gone(&volume_id);
        }
        drop(turn);
        self.metrics.volumes.set(self.registry.len() as i64);
        unmounted
    }

    fn payload(
        &self,
        spec: &VolumeSpec,
        secrets: &[Vec<Given>],
        request: &PublishRequest,
    ) -> Result<Payload, PublishError> {
        Payload::project(spec, secrets, request.fs_group, self.volumes.limits())
    }

    async fn state(&self, target: &TargetPath) -> Result<State, PublishError> {
        let target = target.clone();
        self.on_node(move |volumes| volumes.state(&target)).await
    }

    /// Runs blocking work off the async threads, to its end whoever waits.
    async fn on_node<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Volumes) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let volumes = self.volumes.clone();
        match tokio::task::spawn_blocking(move || work(&volumes)).await {
            Ok(done) => Ok(done?),
            Err(error) => resume_unwind(error.into_panic()),
        }
    }
}

/// Waits for stores no longer than until the deadline, or until nobody wants the volume any more.
async fn in_time<T>(
    turn: &Turn,
    deadline: Instant,
    work: impl Future<Output = T>,
) -> Result<T, PublishError> {
    let started = Instant::now();
    tokio::select! {
        done = timeout_at(deadline, work) => done.map_err(|_| {
            // The time that it got, without the moments that it took to come here.
            let seconds = deadline.duration_since(started).as_secs_f64().round();
            PublishError::DeadlineExceeded(seconds as u64)
        }),
        () = turn.given_up() => Err(PublishError::Unpublished),
    }
}

fn class_name(request: &PublishRequest) -> Result<ClassName, PublishError> {
    Ok(ClassName {
        namespace: request.requester.pod.namespace.clone(),
        name: request.class.clone().ok_or(PublishError::NoClass)?,
    })
}

/// The CSI spec wants a volume that is published differently to be told apart. What the kubelet may
/// change from call to call (tokens, secrets) is not compared.
fn check_same(before: &PublishRequest, now: &PublishRequest) -> Result<(), PublishError> {
    if before.target != now.target {
        return Err(PublishError::Elsewhere(before.target.clone()));
    }
    let same = before.fs_group == now.fs_group
        && before.class == now.class
        && before.attributes == now.attributes;
    if same {
        Ok(())
    } else {
        Err(PublishError::Different)
    }
}

/// The name for metrics.
fn provider(followed: Option<&Followed>) -> &'static str {
    let first = followed.and_then(|followed| followed.spec.sources().first());
    first.map_or("", |source| source.provider)
}

/// Tells the sources what the volume holds of theirs, where it holds all of it under its own name.
fn told_written(spec: &VolumeSpec, secrets: &[Vec<Given>]) {
    if !spec.items().is_empty() {
        return;
    }
    for (source, given) in spec.sources().iter().zip(secrets) {
        let given: Vec<_> = given.iter().flatten().collect();
        source.source.written(&given);
    }
}

/// Nobody tells anything any more.
fn silence() -> Tidings {
    stream::empty().boxed()
}

/// What a volume says about itself with these secrets.
fn record(spec: &VolumeSpec, read: &[Vec<Given>], now: SystemTime) -> Result<Record, PublishError> {
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let ends = |life: &Life| match life {
        // What the store replaces is looked at by a new process as what anybody may change.
        Life::Static | Life::Rotates(_) | Life::Once => None,
        Life::Expires(left) | Life::Leased { duration: left, .. } => {
            Some((since_1970 + *left).as_secs())
        }
    };
    let objects = spec
        .sources()
        .iter()
        .zip(read)
        .flat_map(|(source, secrets)| {
            let given = source.objects.iter().zip(secrets);
            given.filter_map(|(object, secret)| {
                let secret = secret.as_ref()?;
                let held = HeldObject {
                    version: secret.version.as_str().to_owned(),
                    expires: ends(&secret.life),
                    once: matches!(secret.life, Life::Once),
                };
                Some((source.object_key(object), held))
            })
        });
    let record = Record {
        layout: LAYOUT,
        class: spec.class_hash().to_owned(),
        objects: objects.collect(),
        immutable: spec.immutable(),
    };
    let leased = |given: &Given| matches!(given, Some(secret) if is_leased(&secret.life));
    if record.immutable && read.iter().flatten().any(leased) {
        return Err(PublishError::LeaseCannotStay(spec.class_name().clone()));
    }
    match record.size() {
        size if size > Record::MAX_BYTES => Err(PublishError::TooLarge {
            what: "bytes of names and versions to remember",
            size,
            limit: Record::MAX_BYTES,
        }),
        _ => Ok(record),
    }
}

fn is_leased(life: &Life) -> bool {
    matches!(life, Life::Leased { .. })
}
