//! The one path of a volume: publish, republish, rotation and unpublish.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer_provider::{
    Caller, Changes, IdentifiedBy, Life, Pod, ProviderError, Secret, SecretBytes, Source,
};
use futures_util::future::join_all;
use futures_util::stream;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::catalog::Catalog;
use crate::class::ClassName;
use crate::classes::Classes;
use crate::error::PublishError;
use crate::payload::Payload;
use crate::registry::{Published, Registry, Turn};
use crate::rotation;
use crate::spec::VolumeSpec;
use crate::telemetry::Metrics;
use crate::tokens::{self, Tokens, TokensError};
use crate::volume::{HeldObject, LAYOUT, Outcome, Record, State, TargetPath, VolumeError, Volumes};

/// How long a volume waits for its stores, at most.
pub const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// What the kubelet asks for, checked as far as the request alone allows. Holds secrets: no `Debug`.
pub struct PublishRequest {
    /// The volume, by the kubelet's name for it.
    pub volume_id: String,
    /// Where it is wanted.
    pub target: TargetPath,
    /// For whom.
    pub pod: Pod,
    /// Its tokens. That they cannot be read matters to a volume that is not there yet.
    pub tokens: Result<Tokens, TokensError>,
    /// The data of the Secret that `nodePublishSecretRef` names.
    pub secrets: BTreeMap<String, SecretBytes>,
    /// What the pod wrote into `volumeAttributes`, without the class.
    pub attributes: BTreeMap<String, String>,
    /// `volumeAttributes.secretProviderClass`
    pub class: Option<String>,
    /// The pod's fsGroup.
    pub fs_group: Option<u32>,
}

impl PublishRequest {
    /// The pod as one source gets to see it: with the token for that source's audience and no other.
    fn caller(&self, source: &dyn Source) -> Result<Caller, PublishError> {
        let token = match source.identified_by() {
            IdentifiedBy::Pod | IdentifiedBy::Namespace => None,
            IdentifiedBy::Token { audience, .. } => {
                let tokens =
                    self.tokens
                        .as_ref()
                        .map_err(|error| PublishError::InvalidRequest {
                            field: tokens::KEY,
                            problem: error.to_string(),
                        })?;
                let token = tokens.of(audience).cloned();
                Some(token.ok_or_else(|| PublishError::NoToken(audience.clone()))?)
            }
        };
        Ok(Caller {
            pod: self.pod.clone(),
            token,
            secrets: self.secrets.clone(),
        })
    }
}

/// Brings volumes onto the node and keeps them fresh.
pub struct Publisher {
    classes: Classes,
    catalog: Catalog,
    volumes: Arc<Volumes>,
    registry: Registry,
    metrics: Arc<Metrics>,
}

/// What a volume is about to hold.
struct Fetched {
    payload: Payload,
    record: Record,
}

impl Publisher {
    /// A publisher of these parts.
    #[must_use]
    pub fn new(
        classes: Classes,
        catalog: Catalog,
        volumes: Arc<Volumes>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            classes,
            catalog,
            volumes,
            registry: Registry::default(),
            metrics,
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
    ) -> Result<Outcome, PublishError> {
        let turn = timeout_at(deadline, self.registry.turn(&request.volume_id)).await;
        let mut turn = turn.map_err(|_| PublishError::Busy)?;
        let request = Arc::new(request);
        if let Some(published) = &*turn {
            check_same(&published.request, &request)?;
        }
        match self.state(&request.target).await? {
            State::Complete(record) => {
                self.keep(&mut turn, request, record);
                Ok(Outcome::Unchanged)
            }
            State::Absent => self.mount(&mut turn, request, deadline).await,
        }
    }

    async fn mount(
        self: &Arc<Self>,
        turn: &mut Turn,
        request: Arc<PublishRequest>,
        deadline: Instant,
    ) -> Result<Outcome, PublishError> {
        let name = class_name(&request)?;
        let class = in_time(turn, deadline, self.classes.find_soon(&name)).await??;
        let spec = self.catalog.resolve(class, &request.attributes)?;
        let changes = self.changes(&spec, &request)?;
        let fetched = self.fetch_in_time(turn, &spec, &request, deadline).await?;
        let target = request.target.clone();
        let record = fetched.record.clone();
        let outcome = self
            .on_node(move |volumes| volumes.mount(&target, &fetched.payload, &fetched.record))
            .await?;
        let provider = self.provider_name(&spec);
        **turn = Some(self.published(request, Some(record), provider, Some(changes)));
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
        if let Some(published) = &mut **turn {
            published.request = request;
            return;
        }
        info!(volume.id = %request.volume_id, "volume taken over");
        **turn = Some(self.published(request, record, "", None));
        self.metrics.volumes.set(self.registry.len() as i64);
    }

    fn published(
        self: &Arc<Self>,
        request: Arc<PublishRequest>,
        record: Option<Record>,
        provider: &'static str,
        changes: Option<Changes>,
    ) -> Published {
        let follow = rotation::follow(self.clone(), request.volume_id.clone(), changes);
        Published {
            request,
            record,
            provider,
            follower: AbortOnDropHandle::new(tokio::spawn(follow)),
        }
    }

    /// Looks at the stores of a published volume and writes it again where they have something new.
    /// The stream that comes back tells of everything that changes from before the look on.
    ///
    /// # Errors
    /// The volume keeps what it has.
    pub(crate) async fn rotate(
        self: &Arc<Self>,
        volume_id: &str,
    ) -> Result<(Outcome, Changes), PublishError> {
        let mut turn = self.registry.turn(volume_id).await;
        let published = turn.as_mut().ok_or(PublishError::Unpublished)?;
        let request = published.request.clone();
        let class = self.classes.find(&class_name(&request)?)?;
        let spec = self.catalog.resolve(class, &request.attributes)?;
        published.provider = self.provider_name(&spec);
        let held = published.record.clone();
        let changes = self.changes(&spec, &request)?;
        let deadline = Instant::now() + STORE_DEADLINE;
        if let Some(held) = &held
            && self
                .is_current(&turn, &spec, &request, held, deadline)
                .await?
        {
            return Ok((Outcome::Unchanged, changes));
        }
        let fetched = self.fetch_in_time(&turn, &spec, &request, deadline).await?;
        let record = fetched.record.clone();
        let target = request.target.clone();
        let outcome = self
            .on_node(move |volumes| volumes.rotate(&target, &fetched.payload, &fetched.record))
            .await?;
        if let (Some(published), false) = (&mut *turn, matches!(outcome, Outcome::TooSoon(_))) {
            published.record = Some(record);
        }
        Ok((outcome, changes))
    }

    /// Removes what readers of a volume have left behind by now.
    pub(crate) async fn sweep(&self, volume_id: &str) -> Result<Outcome, PublishError> {
        let turn = self.registry.turn(volume_id).await;
        let published = turn.as_ref().ok_or(PublishError::Unpublished)?;
        let target = published.request.target.clone();
        self.on_node(move |volumes| volumes.sweep(&target)).await
    }

    /// The provider of a published volume, for metrics.
    pub(crate) async fn provider_of(&self, volume_id: &str) -> &'static str {
        let turn = self.registry.turn(volume_id).await;
        turn.as_ref().map_or("", |published| published.provider)
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
        drop(turn);
        self.metrics.volumes.set(self.registry.len() as i64);
        unmounted
    }

    fn provider_name(&self, spec: &VolumeSpec) -> &'static str {
        let provider = spec
            .sources()
            .first()
            .map(|source| source.provider.as_str());
        let names = self.catalog.names();
        names
            .into_iter()
            .find(|name| Some(*name) == provider)
            .unwrap_or("")
    }

    /// Everything that can make the volume different: its class and its sources.
    fn changes(
        &self,
        spec: &VolumeSpec,
        request: &PublishRequest,
    ) -> Result<Changes, PublishError> {
        let class = self.classes.watch(&class_name(request)?);
        let mut changes = vec![class];
        for source in spec.sources() {
            changes.extend(source.source.watch(&request.caller(&*source.source)?));
        }
        Ok(Box::pin(stream::select_all(changes)))
    }

    /// Whether the stores still have what the volume holds, as far as they say so cheaply.
    async fn is_current(
        &self,
        turn: &Turn,
        spec: &VolumeSpec,
        request: &PublishRequest,
        held: &Record,
        deadline: Instant,
    ) -> Result<bool, PublishError> {
        if held.class != spec.class_hash() {
            return Ok(false);
        }
        let asked = spec.sources().iter().map(async |source| {
            let caller = request.caller(&*source.source)?;
            let versions = source.source.versions(&caller, &source.objects).await;
            let same = source
                .objects
                .iter()
                .zip(versions)
                .all(|(object, version)| {
                    let held = held.objects.get(&source.object_key(object));
                    version.is_some_and(|v| held.is_some_and(|held| held.version == v.as_str()))
                });
            Ok::<bool, PublishError>(same)
        });
        let current: Result<Vec<bool>, _> = in_time(turn, deadline, join_all(asked))
            .await?
            .into_iter()
            .collect();
        Ok(current?.into_iter().all(|current| current))
    }

    async fn fetch_in_time(
        &self,
        turn: &Turn,
        spec: &VolumeSpec,
        request: &PublishRequest,
        deadline: Instant,
    ) -> Result<Fetched, PublishError> {
        in_time(turn, deadline, self.fetch(spec, request)).await?
    }

    async fn fetch(
        &self,
        spec: &VolumeSpec,
        request: &PublishRequest,
    ) -> Result<Fetched, PublishError> {
        let reads = spec.sources().iter().map(async |source| {
            let caller = request.caller(&*source.source)?;
            let answers = source.source.fetch(&caller, &source.objects).await;
            let secrets: Result<Vec<Secret>, ProviderError> = answers.into_iter().collect();
            secrets.map_err(|error| PublishError::Provider {
                provider: source.provider.clone(),
                error,
            })
        });
        let read = join_all(reads).await;
        let read: Vec<Vec<Secret>> = read.into_iter().collect::<Result<_, _>>()?;
        let limits = self.volumes.limits();
        Ok(Fetched {
            payload: Payload::project(spec, &read, request.fs_group, limits)?,
            record: record(spec, &read, SystemTime::now()),
        })
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
            PublishError::DeadlineExceeded(deadline.duration_since(started).as_secs())
        }),
        () = turn.given_up() => Err(PublishError::Unpublished),
    }
}

fn class_name(request: &PublishRequest) -> Result<ClassName, PublishError> {
    Ok(ClassName {
        namespace: request.pod.namespace.clone(),
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

fn record(spec: &VolumeSpec, read: &[Vec<Secret>], now: SystemTime) -> Record {
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let ends = |life: &Life| match life {
        Life::Static => None,
        Life::Expires(left) | Life::Leased { duration: left, .. } => {
            Some((since_1970 + *left).as_secs())
        }
    };
    let objects = spec
        .sources()
        .iter()
        .zip(read)
        .flat_map(|(source, secrets)| {
            source.objects.iter().zip(secrets).map(|(object, secret)| {
                let held = HeldObject {
                    version: secret.version.as_str().to_owned(),
                    expires: ends(&secret.life),
                };
                (source.object_key(object), held)
            })
        });
    Record {
        layout: LAYOUT,
        class: spec.class_hash().to_owned(),
        objects: objects.collect(),
    }
}
