//! Hands plugins that write files by themselves the places that `volume/staging.rs` makes.

use std::sync::Arc;

use async_trait::async_trait;
use coffer_provider::{ErrorKind, ProviderError, SecretFile};
use coffer_provider_plugin::{Stage, Staging, format_of};
use tokio::task::spawn_blocking;

use crate::volume::{self, Volumes};

/// Beside the targets of these volumes.
pub(super) struct Beside(pub(super) Arc<Volumes>);

struct Place {
    path: String,
    stage: volume::Stage,
}

#[async_trait]
impl Staging for Beside {
    async fn stage(&self, target_path: &str) -> Result<Box<dyn Stage>, ProviderError> {
        let failed = |problem: String| ProviderError::new(ErrorKind::Unavailable, problem);
        let target = self.0.rules().parse(target_path);
        let target = target.map_err(|error| failed(format!("target_path {error}")))?;
        let volumes = self.0.clone();
        // Given up, it is made all the same, and goes at once.
        let stage = spawn_blocking(move || volumes.stage(&target)).await;
        let stage = stage.map_err(|_| failed("making room was cut short".into()))?;
        let stage = stage.map_err(|error| failed(error.to_string()))?;
        Ok(Box::new(Place {
            path: stage.path(),
            stage,
        }))
    }
}

#[async_trait]
impl Stage for Place {
    fn path(&self) -> &str {
        &self.path
    }

    async fn take(self: Box<Self>) -> Result<Vec<SecretFile>, ProviderError> {
        let taken = spawn_blocking(move || self.stage.take()).await;
        let cut = |_| ProviderError::new(ErrorKind::Unavailable, "reading was cut short");
        let files = taken.map_err(cut)??.into_iter();
        let file = |file: volume::WrittenFile| SecretFile {
            format: format_of(&file.path),
            name: file.path,
            bytes: file.bytes,
            mode: Some(file.mode),
        };
        Ok(files.map(file).collect())
    }
}
