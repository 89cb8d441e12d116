//! A class as a plugin reads it: one call for everything that a volume holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coffer_proto::provider::csi_driver_provider_client::CsiDriverProviderClient;
use coffer_proto::provider::{ObjectVersion, VersionRequest};
use coffer_provider::{
    Audiences, Caller, ErrorKind, IdentifiedBy, ObjectRef, Parameters, ProviderError, Secret,
    SecretFile, Source, Version, clean_text,
};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::answer::{self, Answer};
use crate::{Plugin, Stage, request};

/// The protocol, by the name that both sides give it.
const PROTOCOL: &str = "v1alpha1";

/// How long a plugin may take to say what it is.
const VERSION: Duration = Duration::from_secs(5);

/// How long a plugin may take for a volume. Whoever waits may give up earlier.
const MOUNT: Duration = Duration::from_secs(60);

pub(crate) struct PluginSource {
    plugin: Arc<Plugin>,
    audiences: Audiences,
    parameters: Parameters,
    objects: [ObjectRef; 1],
    versions: Mutex<Versions>,
}

/// What the plugin calls what it gave.
#[derive(Default)]
struct Versions {
    /// The last answer, and its version as one.
    given: Option<(Version, Vec<ObjectVersion>)>,
    /// What the volume holds.
    written: Vec<ObjectVersion>,
}

/// A stage, and the right to have one.
struct Staged<'a> {
    stage: Box<dyn Stage>,
    _place: SemaphorePermit<'a>,
}

impl PluginSource {
    pub(crate) fn new(
        plugin: Arc<Plugin>,
        audiences: Audiences,
        parameters: Parameters,
        object: ObjectRef,
    ) -> Self {
        Self {
            plugin,
            audiences,
            parameters,
            objects: [object],
            versions: Mutex::default(),
        }
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, caller: &Caller) -> Result<Secret, ProviderError> {
        let mut client = client(&self.plugin).await?;
        let target_path = &caller.forwarded.target_path;
        let staged = self.stage(target_path).await?;
        // A stage is empty, so whoever writes there has to write everything.
        let (path, current) = match &staged {
            Some(staged) => (staged.stage.path(), Vec::new()),
            None => (target_path.as_str(), self.versions().written.clone()),
        };
        let mut request = Request::new(request::mount(&self.parameters, caller, path, current));
        request.set_timeout(MOUNT);
        let failed = |status| answer::failure(&status, caller, self.plugin.answer_bytes);
        let answered = client.mount(request).await.map_err(failed)?.into_inner();
        let Answer {
            mut files,
            versions,
        } = answer::judge(self.plugin.name, answered, self.plugin.files, caller)?;
        if files.is_empty() {
            files = self.written_by_the_plugin(staged).await?;
        }
        let secret = answer::secret(files, &versions)?;
        self.versions().given = Some((secret.version.clone(), versions));
        Ok(secret)
    }

    /// Where a plugin that writes by itself may write.
    async fn stage(&self, target_path: &str) -> Result<Option<Staged<'_>>, ProviderError> {
        let Some(legacy) = &self.plugin.legacy else {
            return Ok(None);
        };
        let place = legacy.places.acquire().await;
        let place = place.expect("it is never closed");
        let stage = legacy.staging.stage(target_path).await?;
        Ok(Some(Staged {
            stage,
            _place: place,
        }))
    }

    /// A plugin that gives no file says that it has written them by itself (G5).
    async fn written_by_the_plugin(
        &self,
        staged: Option<Staged<'_>>,
    ) -> Result<Vec<SecretFile>, ProviderError> {
        let name = self.plugin.name;
        let Some(staged) = staged else {
            return Err(ProviderError::new(
                ErrorKind::InvalidAnswer,
                format!(
                    "the plugin gave no files, so it writes them by itself: have it give them to the driver, or allow it with --legacy-plugin-writes={name}"
                ),
            ));
        };
        let files = staged.stage.take().await?;
        match files.is_empty() {
            false => Ok(files),
            true => Err(ProviderError::new(
                ErrorKind::InvalidAnswer,
                "the plugin neither gave nor wrote a file",
            )),
        }
    }
}

#[async_trait]
impl Source for PluginSource {
    fn identified_by(&self) -> &IdentifiedBy {
        &IdentifiedBy::Pod
    }

    fn forwards(&self) -> Option<&Audiences> {
        Some(&self.audiences)
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        match objects.len() {
            0 => Vec::new(),
            _ => vec![self.read(caller).await],
        }
    }

    fn holds(&self) -> Vec<(String, String)> {
        let versions = self.versions();
        let written = versions.written.iter();
        written
            .map(|object| (object.id.clone(), object.version.clone()))
            .collect()
    }

    fn written(&self, secrets: &[&Secret]) {
        let mut versions = self.versions();
        // Another volume's source may have been given this answer: then nobody here knows its versions.
        let known = versions
            .given
            .as_ref()
            .filter(|(version, _)| secrets.iter().any(|secret| secret.version == *version));
        versions.written = known.map(|(_, known)| known.clone()).unwrap_or_default();
    }
}

/// A connection to a plugin that speaks our protocol; each new socket is asked for that once (G8).
async fn client(plugin: &Plugin) -> Result<CsiDriverProviderClient<Channel>, ProviderError> {
    let (channel, socket) = plugin.folders.dial(plugin.name).await?;
    let mut client = CsiDriverProviderClient::new(channel)
        .max_decoding_message_size(plugin.answer_bytes)
        .max_encoding_message_size(usize::MAX);
    let spoken_with = || {
        let spoken_with = plugin.spoken_with.lock();
        spoken_with.unwrap_or_else(PoisonError::into_inner)
    };
    let before = *spoken_with();
    if before != Some(socket) {
        ask_version(&mut client).await?;
        *spoken_with() = Some(socket);
    }
    Ok(client)
}

/// Asks a plugin whether it is there.
pub(crate) async fn call_version(plugin: &Plugin) -> Result<(), ProviderError> {
    let (channel, _) = plugin.folders.dial(plugin.name).await?;
    ask_version(&mut CsiDriverProviderClient::new(channel)).await
}

async fn ask_version(client: &mut CsiDriverProviderClient<Channel>) -> Result<(), ProviderError> {
    let mut request = Request::new(VersionRequest {
        version: PROTOCOL.to_owned(),
    });
    request.set_timeout(VERSION);
    let said = match timeout(VERSION, client.version(request)).await {
        Ok(Ok(said)) => said.into_inner().version,
        // It was never needed for a mount.
        Ok(Err(status)) if status.code() == Code::Unimplemented => return Ok(()),
        Ok(Err(status)) => {
            return Err(ProviderError::new(
                ErrorKind::Unavailable,
                format!(
                    "the plugin does not say which protocol it speaks: {}",
                    status.code()
                ),
            ));
        }
        Err(_) => {
            return Err(ProviderError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "the plugin did not say within {} s which protocol it speaks",
                    VERSION.as_secs()
                ),
            ));
        }
    };
    match said.as_str() {
        PROTOCOL | "" => Ok(()),
        other => Err(ProviderError::new(
            ErrorKind::InvalidAnswer,
            format!(
                "the plugin speaks the protocol {}, not {PROTOCOL}",
                clean_text(other, 40)
            ),
        )),
    }
}
