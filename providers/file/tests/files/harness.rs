//! A root in a temporary folder. Fill it before `provider` starts to watch it, and nothing that was
//! done before is told.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::testing::caller;
use coffer_provider::{Changes, ErrorKind, Parameters, Provider, ProviderError, Secret, Source};
use coffer_provider_file::{FileProvider, Limits};
use futures_util::StreamExt;

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longer than what was told is held back to see whether there is more.
pub(crate) const SEVERAL_BURSTS: Duration = Duration::from_millis(400);

pub(crate) struct Root(tempfile::TempDir);

impl Root {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A root with `shop/db.json`, and with `other/db.json`, which is not the shop's to read.
    pub(crate) fn with_two_namespaces() -> Self {
        let root = Self::new();
        root.write("shop/db.json", b"the shop's");
        root.write("other/db.json", b"canary");
        root
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    pub(crate) fn write(&self, below: &str, content: &[u8]) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn link(&self, below: &str, target: impl AsRef<Path>) {
        symlink(target, self.path(below)).unwrap();
    }

    pub(crate) fn provider(&self) -> FileProvider {
        FileProvider::new(self.0.path(), Limits::default()).unwrap()
    }
}

pub(crate) fn source(provider: &FileProvider, objects: Option<&str>) -> Arc<dyn Source> {
    let objects = objects.map(|text| ("objects".to_owned(), text.to_owned()));
    provider.source(&Parameters::from_iter(objects)).unwrap()
}

/// All that `objects` names, or else the whole folder, for a pod of `namespace`.
pub(crate) async fn fetch(
    provider: &FileProvider,
    namespace: &str,
    objects: Option<&str>,
) -> Vec<Result<Secret, ProviderError>> {
    let source = source(provider, objects);
    source.fetch(&caller(namespace), source.objects()).await
}

pub(crate) async fn fetch_shop(
    provider: &FileProvider,
    path: &str,
) -> Result<Secret, ProviderError> {
    fetch(provider, "shop", Some(&format!("['{path}']")))
        .await
        .remove(0)
}

pub(crate) async fn fetch_whole_shop(provider: &FileProvider) -> Result<Secret, ProviderError> {
    fetch(provider, "shop", None).await.remove(0)
}

/// Names and contents, for comparison.
pub(crate) fn files(secret: &Secret) -> Vec<(&str, &[u8])> {
    let files = secret.files.iter();
    files
        .map(|file| (file.name.as_str(), file.bytes.expose()))
        .collect()
}

pub(crate) fn refusal(answer: Result<Secret, ProviderError>) -> (ErrorKind, String) {
    let error = answer.err().expect("it must be refused");
    (error.kind(), error.to_string())
}

pub(crate) fn changes(provider: &FileProvider, namespace: &str) -> Changes {
    source(provider, None).watch(&caller(namespace)).unwrap()
}

pub(crate) async fn told(changes: &mut Changes, what: &str) {
    let told = tokio::time::timeout(PATIENCE, changes.next()).await;
    assert_eq!(told.ok().flatten(), Some(()), "{what} was not told");
}

/// Ask once something that came later was told to somebody else: then this is told or never will be.
pub(crate) async fn not_told(changes: &mut Changes, what: &str) {
    let told = tokio::time::timeout(SEVERAL_BURSTS, changes.next()).await;
    assert!(told.is_err(), "{what} was told");
}
