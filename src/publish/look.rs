//! A look at a published volume: what is new in its class and in the cache is written into it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use coffer_provider::Version;
use tokio::time::Instant;
use tracing::{info, warn};

use super::secrets::{files, stamp};
use super::{
    Publisher, STORE_DEADLINE, class_name, in_time, provider, record, silence, told_written,
};
use crate::cache::{Look, Tidings, Told};
use crate::class::SecretProviderClass;
use crate::error::PublishError;
use crate::events::EventReason;
use crate::pod_status::Shown;
use crate::registry::{Followed, Published, Turn};
use crate::spec::VolumeSpec;
use crate::volume::{Outcome, Record, Volumes};

/// For whoever has such a container.
const SUB_PATH: &str = "a container mounts a file of this volume by subPath: it keeps the file of its start, and no rotation reaches it; mount the whole volume instead";

/// How many volumes are written again at one time.
pub(super) const ROTATIONS: usize = 16;

/// What a look at a published volume has come to.
pub(crate) struct Looked {
    /// What it did to the volume.
    pub(crate) outcome: Outcome,
    /// When to look again, whatever is told until then.
    pub(crate) look_again: Option<Instant>,
}

impl Publisher {
    /// Looks at what is new for a published volume, in its class and in the cache, and writes it again
    /// where that is something else than it has. Where it is kept like another class from now on, `tidings` are
    /// those of its sources, also where the look then fails.
    ///
    /// # Errors
    /// The volume keeps what it has.
    pub(crate) async fn rotate(
        self: &Arc<Self>,
        volume_id: &str,
        tidings: &mut Option<Tidings>,
    ) -> Result<Looked, PublishError> {
        let started = Instant::now();
        let mut turn = self.registry.turn(volume_id).await;
        let provider = provider(turn.as_ref().and_then(|volume| volume.followed.as_ref()));
        let looked = self.look(&mut turn, tidings).await;
        self.metrics.rotated(provider, &looked, started.elapsed());
        self.reports.looked(turn.as_ref(), &looked);
        let synced = turn.as_ref().and_then(|volume| volume.synced.as_ref());
        let look_again = synced.map(|synced| synced.due);
        looked.map(|outcome| Looked {
            outcome,
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
        // Its ServiceAccount was made anew: what is asked for from now on is asked for by the new one. What the
        // store gave to the old one stays until the end of this look, and a little longer.
        let outlived = published.followed.take_if(|followed| {
            followed.spec.class_hash() == class.hash && followed.subscription.is_outlived()
        });
        if let (Some(_), Some(record)) = (&outlived, &mut published.record) {
            // It ends with the old one, so it is made anew at once.
            for held in record.objects.values_mut() {
                held.expires = held.expires.and(Some(0));
            }
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
        let published = turn.as_ref().ok_or(PublishError::Unpublished)?;
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
        let deadline = Instant::now() + STORE_DEADLINE;
        // In one step with the files: whoever sees the one sees the other.
        let syncing = self.sync(
            spec.class(),
            &published.request,
            files(&payload),
            stamp(&record, subscription.age()),
            published.synced.as_ref(),
            deadline,
        );
        let synced = in_time(turn, deadline, syncing).await?;
        // Only now: a store or an API server that hangs keeps nobody else from being written.
        let one_of_many = in_time(turn, deadline, self.rotations.acquire()).await?;
        let (target, next) = (published.request.target.clone(), record.clone());
        let outcome = self
            .on_node(move |volumes| volumes.rotate(&target, &payload, &next))
            .await;
        drop(one_of_many);
        let is_written = matches!(outcome, Ok(outcome) if !matches!(outcome, Outcome::TooSoon(_)));
        if is_written {
            told_written(spec, &secrets);
        }
        let published = turn.as_mut().ok_or(PublishError::Unpublished)?;
        published.synced = synced;
        if is_written {
            published.record = Some(record);
        }
        let outcome = outcome?;
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
}

/// Whether a volume holds these versions, as far as versions can tell.
pub(super) fn is_current(
    record: &Record,
    spec: &VolumeSpec,
    versions: &BTreeMap<String, Version>,
) -> bool {
    record.class == spec.class_hash()
        && record.objects.len() == versions.len()
        && versions.iter().all(|(object, version)| {
            let held = record.objects.get(object);
            held.is_some_and(|held| !held.version.is_empty() && held.version == version.as_str())
        })
}
