//! SecretProviderClasses read from the files of a folder (`--classes DIR`), without an API server.
//!
//! Edits are picked up. A class that becomes wrong is told in the log and to whoever asks for it; a file
//! that is not YAML any more changes nothing until it is mended. Pods that have a volume keep it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coffer_provider::Changes;
use futures_util::stream;
use notify::{RecursiveMode, Watcher};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::class::{ClassError, ClassName, SecretProviderClass, read_documents};
use crate::error::PublishError;

/// An editor writes a file in several steps: they count as one when they come this close together.
const BURST: Duration = Duration::from_millis(100);

type Class = Result<Arc<SecretProviderClass>, ClassError>;
type ByName = BTreeMap<ClassName, Class>;

/// The classes of a folder. Clones are the same folder.
#[derive(Clone)]
pub struct Classes {
    known: Arc<watch::Sender<ByName>>,
    _watcher: Option<Arc<Mutex<notify::RecommendedWatcher>>>,
}

/// A folder of classes that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the classes in {}: {problem}", folder.display())]
pub struct ClassesError {
    folder: PathBuf,
    problem: String,
}

impl Classes {
    /// Reads the folder and follows it. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is no such folder or it cannot be watched. A class with a mistake is no error here.
    pub fn follow(folder: &Path) -> Result<Self, ClassesError> {
        let failed = |problem: String| ClassesError {
            folder: folder.to_owned(),
            problem,
        };
        let (events, mut changed) = tokio::sync::mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |_| {
            // A full channel already says what this would say.
            let _ = events.try_send(());
        })
        .map_err(|error| failed(error.to_string()))?;
        watcher
            .watch(folder, RecursiveMode::NonRecursive)
            .map_err(|error| failed(error.to_string()))?;
        let first = read_folder(folder, &ByName::new()).map_err(|e| failed(e.to_string()))?;
        let known = Arc::new(watch::Sender::new(first));
        let classes = Self {
            known: known.clone(),
            _watcher: Some(Arc::new(Mutex::new(watcher))),
        };
        let folder = folder.to_owned();
        tokio::spawn(async move {
            while changed.recv().await.is_some() {
                tokio::time::sleep(BURST).await;
                while changed.try_recv().is_ok() {}
                let before = known.borrow().clone();
                let folder_again = folder.clone();
                let read = tokio::task::spawn_blocking(move || read_folder(&folder_again, &before));
                match read.await {
                    Ok(Ok(now)) => {
                        known.send_if_modified(|known| replace(known, now));
                    }
                    Ok(Err(error)) => warn!(folder = %folder.display(), %error, "classes not read"),
                    Err(_) => return,
                }
            }
        });
        Ok(classes)
    }

    /// Classes that never change, for a dry run and for tests.
    #[must_use]
    pub fn fixed(classes: impl IntoIterator<Item = SecretProviderClass>) -> Self {
        let by_name = classes
            .into_iter()
            .map(|c| (c.name.clone(), Ok(Arc::new(c))));
        Self {
            known: Arc::new(watch::Sender::new(by_name.collect())),
            _watcher: None,
        }
    }

    /// Finds a class.
    ///
    /// # Errors
    /// [`PublishError::ClassNotFound`], or [`PublishError::InvalidClass`] with its mistake.
    pub fn find(&self, name: &ClassName) -> Result<Arc<SecretProviderClass>, PublishError> {
        match self.known.borrow().get(name) {
            None => Err(PublishError::ClassNotFound(name.clone())),
            Some(Ok(class)) => Ok(class.clone()),
            Some(Err(error)) => Err(PublishError::InvalidClass {
                name: name.clone(),
                error: error.clone(),
            }),
        }
    }

    /// An item for each time that the class may have changed.
    #[must_use]
    pub fn watch(&self, name: &ClassName) -> Changes {
        let known = self.known.subscribe();
        let hash = |known: &ByName, name: &ClassName| match known.get(name) {
            Some(Ok(class)) => Some(class.hash.clone()),
            _ => None,
        };
        let start = hash(&self.known.borrow(), name);
        let state = (known, name.clone(), start);
        Box::pin(stream::unfold(
            state,
            move |(mut known, name, mut last)| async move {
                loop {
                    known.changed().await.ok()?;
                    let now = hash(&known.borrow_and_update(), &name);
                    if now != last {
                        last = now;
                        return Some(((), (known, name, last)));
                    }
                }
            },
        ))
    }
}

/// Whether anything is different now.
fn replace(known: &mut ByName, now: ByName) -> bool {
    let hash = |class: &Class| {
        class
            .as_ref()
            .map(|class| class.hash.clone())
            .map_err(Clone::clone)
    };
    let same = known.len() == now.len()
        && known
            .iter()
            .zip(&now)
            .all(|((a, x), (b, y))| a == b && hash(x) == hash(y));
    *known = now;
    !same
}

/// Reads every `*.yaml`, `*.yml` and `*.json` of a folder, in the order of their names.
fn read_folder(folder: &Path, before: &ByName) -> std::io::Result<ByName> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    let mut classes = ByName::new();
    let mut all_read = true;
    for path in &files {
        let documents = std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| read_documents(&text).map_err(|error| error.to_string()));
        match documents {
            Ok(documents) => add(&mut classes, before, path, documents),
            Err(error) => {
                warn!(file = %path.display(), %error, "file of classes not read");
                all_read = false;
            }
        }
    }
    if !all_read {
        // Which classes the broken file had is not known: none is forgotten until it is mended.
        for (name, class) in before {
            classes.entry(name.clone()).or_insert_with(|| class.clone());
        }
    }
    Ok(classes)
}

fn add(classes: &mut ByName, before: &ByName, path: &Path, documents: Vec<crate::class::Document>) {
    for document in documents {
        let name = document.name;
        let class = document.class.map(Arc::new);
        let known = before.get(&name).and_then(|class| class.as_ref().ok());
        match &class {
            Err(error) => warn!(class = %name, file = %path.display(), %error, "class not usable"),
            Ok(class) if known.is_none_or(|known| known.hash != class.hash) => {
                info!(class = %name, file = %path.display(), "class read");
            }
            Ok(_) => {}
        }
        if classes.insert(name.clone(), class).is_some() {
            warn!(class = %name, file = %path.display(), "class defined twice: the last one counts");
        }
    }
}
