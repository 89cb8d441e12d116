//! SecretProviderClasses in the files of a folder (`--classes DIR`), without an API server.
//!
//! Edits are picked up. A class that becomes wrong is told in the log and to whoever asks for it; a file
//! that is not YAML any more changes nothing until it is mended. Pods that have a volume keep it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tracing::{info, warn};

use crate::class::{self, Document, read_documents};
use crate::classes::{ByName, Classes};

/// An editor writes a file in several steps: they count as one when they come this close together.
const BURST: Duration = Duration::from_millis(100);

/// A folder of classes that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the classes in {}: {problem}", folder.display())]
pub struct FolderError {
    folder: PathBuf,
    problem: String,
}

/// Reads the folder and follows it. Needs a tokio runtime.
///
/// # Errors
/// When there is no such folder or it cannot be watched. A class with a mistake is no error here.
pub fn follow(folder: &Path) -> Result<Classes, FolderError> {
    let failed = |problem: String| FolderError {
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
    let (classes, feed) = Classes::new();
    let first = read_folder(folder, &ByName::new()).map_err(|error| failed(error.to_string()))?;
    feed.replace(first);
    let folder = folder.to_owned();
    tokio::spawn(async move {
        let _watcher = watcher;
        while changed.recv().await.is_some() {
            tokio::time::sleep(BURST).await;
            while changed.try_recv().is_ok() {}
            let (again, before) = (folder.clone(), feed.known());
            let read = tokio::task::spawn_blocking(move || read_folder(&again, &before)).await;
            match read {
                Ok(Ok(now)) => feed.replace(now),
                Ok(Err(error)) => warn!(folder = %folder.display(), %error, "classes not read"),
                Err(_) => return,
            }
        }
    });
    Ok(classes)
}

/// The annotations of a ServiceAccount by its manifest, which can lie beside the classes; read anew each
/// time. `None` where there is no such manifest.
///
/// # Errors
/// When the folder or one of its files cannot be read.
pub fn service_account_annotations(
    folder: &Path,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, FolderError> {
    let failed = |problem: String| FolderError {
        folder: folder.to_owned(),
        problem,
    };
    for path in files(folder).map_err(|error| failed(error.to_string()))? {
        let found = std::fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                let found = class::service_account_annotations(&text, namespace, name);
                found.map_err(|error| error.to_string())
            })
            .map_err(|problem| failed(format!("{}: {problem}", path.display())))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Every `*.yaml`, `*.yml` and `*.json` of a folder, in the order of their names.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_folder(folder: &Path, before: &ByName) -> std::io::Result<ByName> {
    let mut classes = ByName::new();
    let mut all_read = true;
    for path in &files(folder)? {
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

fn add(classes: &mut ByName, before: &ByName, path: &Path, documents: Vec<Document>) {
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
