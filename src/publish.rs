//! The one path of a volume: publish, republish, rotation and unpublish.

mod secrets;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::SystemTime;

use coffer_provider::{Life, Version};
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::cache::{Given, Look, SecretCache, Subscriber, Tidings, Told};
use crate::catalog::Catalog;
use crate::class::{ClassName, SecretProviderClass};
use crate::classes::Classes;
use crate::error::PublishError;
use crate::events::EventReason;
pub use crate::flight::STORE_DEADLINE;
use crate::identity::Requester;
use crate::payload::Payload;
use crate::pod_status::Shown;
use crate::registry::{Followed, Published, Registry, Turn};
use crate::report::Reports;
use crate::rotation;
use crate::spec::VolumeSpec;
use crate::sync::{SecretSync, Synced};
use crate::telemetry::Metrics;
use crate::volume::{HeldObject, LAYOUT, Outcome, Record, State, TargetPath, VolumeError, Volumes};
use secrets::{files, stamp};

/// For whoever has such a container.
const SUB_PATH: &str = "a container mounts a file of this volume by subPath: it keeps the file of its start, and no rotation reaches it; mount the whole volume instead";

/// How many volumes are written again at one time.
const ROTATIONS: usize = 16;

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

/// What a look at a published volume has come to.
pub(crate) struct Looked {
    /// What it did to the volume.
    pub(crate) outcome: Outcome,
    /// These replace those before.
    pub(crate) tidings: Option<Tidings>,
    /// When to look again, whatever is told until then.
    pub(crate) look_again: Option<Instant>,
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
        let mut spec = self.catalog.resolve(class, &request.attributes)?;
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
        let published = self.published(
            request,
            Some(record),
            subscriber,
            followed,
            Some(told),
            synced,
        );
        **turn = Some(Published { shown, ..published });
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
            **turn = Some(self.published(request, record, subscriber, None, None, None));
            self.metrics.volumes.set(self.registry.len() as i64);
            return;
        };
        published.subscriber.renew(request.requester.clone());
        published.request = request;
        match &published.followed {
            Some(followed) => followed.subscription.republished(),
            None => published.subscriber.tell(),
        }
    }

    fn published(
        self: &Arc<Self>,
        request: Arc<PublishRequest>,
        record: Option<Record>,
        subscriber: Arc<Subscriber>,
        followed: Option<Followed>,
        tidings: Option<Tidings>,
        synced: Option<Synced>,
    ) -> Published {
        let class = class_name(&request).map(|name| self.classes.watch(&name));
        let look_at = synced.as_ref().map(|synced| synced.due);
        let follow = rotation::follow(
            self.clone(),
            subscriber.clone(),
            class.ok(),
            tidings,
            look_at,
        );
        Published {
            request,
            record,
            shown: None,
            synced,
            told_of_subpaths: false,
            subscriber,
            followed,
            follower: AbortOnDropHandle::new(tokio::spawn(follow)),
        }
    }

    /// Looks at what is new for a published volume, in its class and in the cache, and writes it again
    /// where that is something else than it has.
    ///
    /// # Errors
    /// The volume keeps what it has.
    pub(crate) async fn rotate(self: &Arc<Self>, volume_id: &str) -> Result<Looked, PublishError> {
        let started = Instant::now();
        let _one_of_many = self.rotations.acquire().await;
        let mut turn = self.registry.turn(volume_id).await;
        let provider = provider(turn.as_ref().and_then(|volume| volume.followed.as_ref()));
        let mut tidings = None;
        let looked = self.look(&mut turn, &mut tidings).await;
        self.metrics.rotated(provider, &looked, started.elapsed());
        self.reports.looked(turn.as_ref(), &looked);
        let synced = turn.as_ref().and_then(|volume| volume.synced.as_ref());
        let look_again = synced.map(|synced| synced.due);
        looked.map(|outcome| Looked {
            outcome,
            tidings,
            look_again,
        })
    }

    async fn look(
        self: &Arc<Self>,
        turn: &mut Turn,
        tidings: &mut Option<Tidings>,
    ) -> Result<Outcome, PublishError> {
        let published = turn.as_mut().ok_or(PublishError::Unpublished)?;
        let class = self.classes.find(&class_name(&published.request)?)?;
        if let Some(record) = published.record.as_ref().filter(|held| held.immutable) {
            if record.class != class.hash {
                return Err(PublishError::Immutable(class.name.clone()));
            }
            self.sync_when_due(published, &class).await;
            return Ok(Outcome::Unchanged);
        }
        match &mut published.followed {
            Some(followed) if followed.spec.class_hash() == class.hash => {
                if followed.spec.refresh_mark() != class.refresh_mark.as_deref() {
                    let mark = class.refresh_mark.as_deref().unwrap_or_default();
                    followed
                        .subscription
                        .marked(&format!("{} {mark}", class.name));
                    followed.spec.refreshed(class.clone());
                }
            }
            _ => *tidings = Some(self.follow_class(turn, class.clone()).await?),
        }
        if let Some(published) = &mut **turn {
            self.sync_when_due(published, &class).await;
        }
        let outcome = self.write_what_is_new(turn).await?;
        if let Some(published) = &mut **turn
            && published.record.as_ref().is_some_and(|held| held.immutable)
        {
            if published.followed.take().is_some() {
                info!(volume.id = %published.request.volume_id, "volume stays as it is from now on");
            }
            *tidings = Some(silence());
        }
        Ok(outcome)
    }

    /// From now on the volume is kept like `class`. Its secrets are read first, unless an earlier process
    /// wrote them: as long as that fails, the volume stays what it was (R6).
    async fn follow_class(
        self: &Arc<Self>,
        turn: &mut Turn,
        class: Arc<SecretProviderClass>,
    ) -> Result<Tidings, PublishError> {
        let published = turn.as_ref().ok_or(PublishError::Unpublished)?;
        let mut spec = self.catalog.resolve(class, &published.request.attributes)?;
        let deadline = Instant::now() + STORE_DEADLINE;
        in_time(
            turn,
            deadline,
            spec.identify(&published.request.requester.pod),
        )
        .await?;
        let (subscription, tidings) = self.cache.subscribe(&spec, &published.subscriber)?;
        match &published.record {
            Some(record) if record.class == spec.class_hash() => subscription.adopt(record),
            _ => {
                let secrets = in_time(turn, deadline, subscription.read()).await??;
                // A set that cannot be laid out is not followed.
                self.payload(&spec, &secrets, &published.request)?;
            }
        }
        if let Some(published) = &mut **turn {
            published.shown = Some(Shown::of(&spec));
            published.followed = Some(Followed { spec, subscription });
        }
        Ok(tidings)
    }

    async fn write_what_is_new(&self, turn: &mut Turn) -> Result<Outcome, PublishError> {
        let published = turn.as_mut().ok_or(PublishError::Unpublished)?;
        let Some(Followed { spec, subscription }) = &published.followed else {
            return Ok(Outcome::Unchanged);
        };
        let versions = match subscription.look() {
            Look::Versions(versions) => versions,
            Look::Waiting => return Ok(Outcome::Unchanged),
            Look::Failing(error) => return Err(error),
        };
        if let Some(record) = &published.record
            && is_current(record, spec, &versions)
        {
            return Ok(Outcome::Unchanged);
        }
        let Some(secrets) = subscription.values() else {
            return Ok(Outcome::Unchanged);
        };
        let payload = self.payload(spec, &secrets, &published.request)?;
        let record = record(spec, &secrets, SystemTime::now())?;
        // In one step with the files (D14): whoever sees the one sees the other.
        published.synced = self
            .sync(
                spec.class(),
                &published.request,
                files(&payload),
                stamp(&record, subscription.age()),
                published.synced.as_ref(),
                Instant::now() + STORE_DEADLINE,
            )
            .await;
        let (target, next) = (published.request.target.clone(), record.clone());
        let outcome = self
            .on_node(move |volumes| volumes.rotate(&target, &payload, &next))
            .await?;
        if !matches!(outcome, Outcome::TooSoon(_)) {
            published.record = Some(record);
            told_written(spec, &secrets);
        }
        if outcome == Outcome::Rotated {
            self.look_for_subpaths(published).await?;
        }
        Ok(outcome)
    }

    /// Counts a rotation that a container does not see (R12), and says so once for each volume.
    async fn look_for_subpaths(&self, published: &mut Published) -> Result<(), PublishError> {
        let target = published.request.target.clone();
        let by_subpath = move |volumes: &Volumes| Ok(volumes.is_mounted_by_subpath(&target));
        if !self.on_node(by_subpath).await? {
            return Ok(());
        }
        self.metrics.past_subpaths.inc();
        if !std::mem::replace(&mut published.told_of_subpaths, true) {
            let volume_id = &published.request.volume_id;
            let pod = &published.request.requester.pod;
            warn!(volume.id = %volume_id, pod.namespace = %pod.namespace, pod.name = %pod.name, "{SUB_PATH}");
            let events = self.reports.events();
            events.tell(pod, volume_id, EventReason::SubPathNotReached, SUB_PATH);
        }
        Ok(())
    }

    /// A source of the volume has told something: the cache looks at it.
    pub(crate) async fn told(&self, volume_id: &str, told: Told) {
        let mut turn = self.registry.turn(volume_id).await;
        if let Some(followed) = turn
            .as_mut()
            .and_then(|published| published.followed.as_mut())
        {
            match told {
                Told::Changed(source) => followed.subscription.mark_due(source),
                Told::Ended(source) => {
                    let interval = followed.spec.interval();
                    followed.subscription.ask_instead(source, interval);
                }
            }
        }
    }

    /// Removes what readers of a volume have left behind by now.
    pub(crate) async fn sweep(&self, volume_id: &str) -> Result<Outcome, PublishError> {
        let turn = self.registry.turn(volume_id).await;
        let published = turn.as_ref().ok_or(PublishError::Unpublished)?;
        let target = published.request.target.clone();
        self.on_node(move |volumes| volumes.sweep(&target)).await
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

/// Whether a volume holds these versions, as far as versions can tell.
fn is_current(record: &Record, spec: &VolumeSpec, versions: &BTreeMap<String, Version>) -> bool {
    record.class == spec.class_hash()
        && record.objects.len() == versions.len()
        && versions.iter().all(|(object, version)| {
            let held = record.objects.get(object);
            held.is_some_and(|held| !held.version.is_empty() && held.version == version.as_str())
        })
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
