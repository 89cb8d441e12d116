//! The file provider: secrets that lie in files on the node, below a folder of the administrator's
//! with one sub-folder for each Namespace.
//!
//! A pod reads the sub-folder of its Namespace and nothing else. Links may lead anywhere within it,
//! mounts nowhere. Whoever replaces a file by renaming another over it, or a whole set of them by
//! swapping a `..data` link as the kubelet does, is read whole; a file that is written in place is
//! read once it has rested for a moment.
//!
//! The way of a read: `parameters.rs` checks the class, `read.rs` reads between two equal looks, `tree.rs` is
//! what the kernel is asked, `error.rs` what its refusals mean. `watch.rs` tells of changes.

mod error;
mod parameters;
mod read;
mod tree;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coffer_provider::{
    Caller, Changes, ErrorKind, IdentifiedBy, ObjectRef, Parameters, Provider, ProviderError,
    Secret, Source, Version,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::read::Store;
use crate::watch::{LOOK_ANYWAY, Watch};

/// Reads at one time. One that never ends, as on a network file system that is away, keeps its thread, and the
/// process has few of them: mounts and unmounts of every provider need some too.
const READS: usize = 4;

/// How long a read waits for its turn; those before it take half a second where somebody is writing.
const TURN: Duration = Duration::from_secs(5);

/// What one read may bring back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: usize,
    /// Files of one folder, and objects of one class.
    pub files: usize,
    /// Levels of a folder: 1 is only the files that lie directly in it.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            files: 256,
            depth: 32,
        }
    }
}

/// Secrets in files below one folder of the node. Made once: it holds an inotify watch and a thread.
pub struct FileProvider {
    store: Arc<Store>,
    turns: Arc<Semaphore>,
    watch: Arc<Watch>,
}

impl FileProvider {
    /// Serves what lies below `root` from now on.
    ///
    /// # Errors
    /// If `root` is not the absolute path of a folder, naming it; or if no thread can be had. A watch
    /// that cannot be had is a warning: everybody then looks every two minutes.
    pub fn new(root: &Path, limits: Limits) -> io::Result<Self> {
        let wrong = |kind, problem: &str| {
            let root = root.display();
            io::Error::new(
                kind,
                format!("the folder of the file provider, {root}, {problem}"),
            )
        };
        if !root.is_absolute() {
            return Err(wrong(
                io::ErrorKind::InvalidInput,
                "must be an absolute path",
            ));
        }
        let metadata = root
            .metadata()
            .map_err(|error| wrong(error.kind(), &format!("cannot be used: {error}")))?;
        if !metadata.is_dir() {
            return Err(wrong(io::ErrorKind::NotADirectory, "is not a folder"));
        }
        Ok(Self {
            store: Arc::new(Store {
                root: root.to_owned(),
                limits,
            }),
            turns: Arc::new(Semaphore::new(READS)),
            watch: Arc::new(Watch::start(root, LOOK_ANYWAY)?),
        })
    }
}

impl Provider for FileProvider {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        Ok(Arc::new(FileSource {
            objects: parameters::objects(parameters, self.store.limits.files)?,
            store: self.store.clone(),
            turns: self.turns.clone(),
            watch: self.watch.clone(),
        }))
    }
}

struct FileSource {
    objects: Vec<ObjectRef>,
    store: Arc<Store>,
    turns: Arc<Semaphore>,
    watch: Arc<Watch>,
}

#[async_trait]
impl Source for FileSource {
    fn identified_by(&self) -> &IdentifiedBy {
        &IdentifiedBy::Namespace
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        let read = match folder_of(caller) {
            Some(namespace) => self.off_the_runtime(namespace, objects, Store::read).await,
            None => Err(ProviderError::new(
                ErrorKind::PermissionDenied,
                "the pod's Namespace is not the name of one",
            )),
        };
        read.unwrap_or_else(|error| vec![Err(error); objects.len()])
    }

    async fn versions(&self, caller: &Caller, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        let unknown = || vec![None; objects.len()];
        let Some(namespace) = folder_of(caller) else {
            return unknown();
        };
        let versions = self.off_the_runtime(namespace, objects, Store::versions);
        versions.await.unwrap_or_else(|_| unknown())
    }

    fn watch(&self, caller: &Caller) -> Option<Changes> {
        Some(self.watch.changes(folder_of(caller)?))
    }
}

impl FileSource {
    /// Runs what blocks on a thread that may block. Whoever stops waiting leaves it to finish, and its turn is over
    /// only then.
    async fn off_the_runtime<T: Send + 'static>(
        &self,
        namespace: &str,
        objects: &[ObjectRef],
        work: fn(&Store, &str, &[ObjectRef]) -> T,
    ) -> Result<T, ProviderError> {
        let turn = timeout(TURN, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(ProviderError::new(
                ErrorKind::Unavailable,
                "the folder of the file provider does not answer: earlier reads of it have not ended",
            ));
        };
        let store = self.store.clone();
        let (namespace, objects) = (namespace.to_owned(), objects.to_vec());
        let work = move || {
            let _turn = turn;
            work(&store, &namespace, &objects)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| ProviderError::new(ErrorKind::Unavailable, "reading was cut short"))
    }
}

/// The folder that belongs to a pod: the name of its Namespace, if that is one (a DNS label).
fn folder_of(caller: &Caller) -> Option<&str> {
    let namespace = caller.pod.namespace.as_str();
    let is_label = (1..=63).contains(&namespace.len())
        && !namespace.starts_with('-')
        && !namespace.ends_with('-')
        && namespace
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    is_label.then_some(namespace)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]

    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use coffer_provider::testing::caller;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    static STUCK: AtomicUsize = AtomicUsize::new(0);

    /// Opens a FIFO that nobody writes to.
    fn gets_stuck(store: &Store, _: &str, _: &[ObjectRef]) {
        STUCK.fetch_add(1, Ordering::Relaxed);
        let _ = File::open(store.root.join("fifo"));
    }

    /// Lets all go who wait for a FIFO.
    struct Writer(PathBuf);

    impl Drop for Writer {
        fn drop(&mut self) {
            let _ = File::options().read(true).write(true).open(&self.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_never_end_take_four_threads_and_later_ones_fail_until_one_ends() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("shop")).unwrap();
        fs::write(root.path().join("shop/a"), "good").unwrap();
        let fifo = root.path().join("fifo");
        let user = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &fifo, FileType::Fifo, user, 0).unwrap();
        let writer = Writer(fifo);
        let provider = FileProvider::new(root.path(), Limits::default()).unwrap();
        let source = |objects: &str| FileSource {
            objects: vec![ObjectRef {
                name: objects.to_owned(),
                request: objects.to_owned(),
            }],
            store: provider.store.clone(),
            turns: provider.turns.clone(),
            watch: provider.watch.clone(),
        };
        for _ in 0..3 * READS {
            let source = source("a");
            tokio::spawn(async move {
                let read = source.off_the_runtime("shop", &[], gets_stuck);
                // As the driver gives a store up that does not answer.
                let _ = timeout(Duration::from_millis(100), read).await;
            });
        }
        while STUCK.load(Ordering::Relaxed) < READS {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_millis(200)).await;

        let good = source("a");
        let shop = caller("shop");
        let read = good.fetch(&shop, good.objects());
        let wait = async {
            tokio::task::yield_now().await;
            tokio::time::advance(TURN).await;
        };
        let (mut answers, ()) = tokio::join!(read, wait);
        let error = answers.remove(0).err().expect("there is no turn for it");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let why = "earlier reads of it have not ended";
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(STUCK.load(Ordering::Relaxed), READS);

        drop(writer);
        while provider.turns.available_permits() < READS {
            tokio::task::yield_now().await;
        }
        let answer = good.fetch(&shop, good.objects()).await.remove(0);
        assert!(answer.is_ok(), "as soon as the folder answers");
    }
}
