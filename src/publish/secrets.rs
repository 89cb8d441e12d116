//! Where a volume's path meets the Secrets that its class wants of its files.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coffer_sync::Files;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::look::is_current;
use super::{PublishRequest, Publisher, STORE_DEADLINE};
use crate::cache::Look;
use crate::class::SecretProviderClass;
use crate::events::EventReason;
use crate::payload::Payload;
use crate::registry::Published;
use crate::sync::{CHECK, Stamp, Synced, SyncedVolume};
use crate::volume::Record;

impl Publisher {
    /// Makes the Secrets that a class wants of these files what they should be, where Secrets are made at
    /// all. They hold up nobody for long, and hinder nobody (K6).
    pub(super) async fn sync(
        &self,
        class: &Arc<SecretProviderClass>,
        request: &PublishRequest,
        files: Files,
        stamp: Stamp,
        before: Option<&Synced>,
        deadline: Instant,
    ) -> Option<Synced> {
        if class.secret_objects.is_empty() {
            return None;
        }
        let volume_id = &request.volume_id;
        let Some(sync) = &self.sync else {
            warn!(volume.id = %volume_id, class = %class.name, "the class has secretObjects, and this driver makes no Secrets: set syncSecret.enabled in its chart");
            return None;
        };
        let volume = SyncedVolume {
            class: class.clone(),
            pod: request.requester.pod.clone(),
            files,
            stamp,
        };
        let synced = sync.write(volume, before, deadline).await;
        let told = before.map_or(&[][..], |before| &before.problems);
        for problem in &synced.problems {
            match told.contains(problem) {
                false => warn!(volume.id = %volume_id, problem, "Secret not synced"),
                true => debug!(volume.id = %volume_id, problem, "Secret still not synced"),
            }
        }
        debug!(volume.id = %volume_id, problems = synced.problems.len(), "Secrets looked at");
        let events = self.reports.events();
        match synced.problems.is_empty() {
            true => events.over(volume_id, &[EventReason::SecretNotSynced]),
            false => {
                let (pod, note) = (&request.requester.pod, synced.problems.join("; "));
                events.tell(pod, volume_id, EventReason::SecretNotSynced, &note);
            }
        }
        if synced.problems.is_empty() && !told.is_empty() {
            info!(volume.id = %volume_id, "Secrets synced again");
        }
        Some(synced)
    }

    /// Looks whether the Secrets of a volume are still what its files say, from time to time and after the
    /// start of this process.
    pub(super) async fn sync_when_due(
        &self,
        published: &mut Published,
        class: &Arc<SecretProviderClass>,
    ) {
        let is_due = |synced: &Synced| synced.due <= Instant::now();
        let due = self.sync.is_some() && published.synced.as_ref().is_none_or(is_due);
        let record = published.record.as_ref();
        // Those of a class that has changed are made with the files.
        let record = record.filter(|record| record.class == class.hash);
        let Some(record) = record.filter(|_| due && !class.secret_objects.is_empty()) else {
            return;
        };
        let target = published.request.target.clone();
        let files = match self.on_node(move |volumes| volumes.files(&target)).await {
            Ok(files) => files,
            Err(error) => {
                debug!(volume.id = %published.request.volume_id, %error, "the files cannot be read for Secrets");
                if let Some(synced) = &mut published.synced {
                    synced.due = Instant::now() + CHECK;
                }
                return;
            }
        };
        // The age of what the volume holds: what the cache has may be newer, and not written yet.
        let held = published.followed.as_ref().filter(|followed| {
            matches!(followed.subscription.look(), Look::Versions(versions)
                if is_current(record, &followed.spec, &versions))
        });
        let age = held.and_then(|followed| followed.subscription.age());
        let (stamp, deadline) = (stamp(record, age), Instant::now() + STORE_DEADLINE);
        let before = published.synced.as_ref();
        published.synced = self
            .sync(class, &published.request, files, stamp, before, deadline)
            .await;
    }
}

/// The files of a payload, for Secrets.
pub(super) fn files(payload: &Payload) -> Files {
    let files = payload.files().iter();
    files
        .map(|(path, file)| (path.as_str().to_owned(), file.bytes.clone()))
        .collect()
}

/// Which versions there are, and as of when. What an earlier process has read is older than everything.
pub(super) fn stamp(record: &Record, age: Option<Duration>) -> Stamp {
    let read = age.and_then(|age| SystemTime::now().checked_sub(age));
    let objects = record.objects.iter();
    let versions = objects.map(|(object, held)| (object.clone(), held.version.clone()));
    Stamp::new(read.unwrap_or(SystemTime::UNIX_EPOCH), versions.collect())
}
