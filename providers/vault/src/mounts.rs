//! What kind of engine a path belongs to: asked once for each mount, since the shape of an answer does
//! not tell (a KV v1 secret may have a key called `data`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::Object;
use crate::calls::Call;
use crate::headers::Headers;
use crate::http::{Connection, Reply};

/// A mount can be replaced by one of another kind: it is not believed for ever.
const BELIEVED: Duration = Duration::from_secs(3600);

/// The mount of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// As the path of the class begins, without a slash at its end.
    pub(crate) path: String,
    /// KV v2: values lie one level deeper and have numbered versions.
    pub(crate) versioned: bool,
    asked: Instant,
}

/// What a store said when it was asked for a mount.
pub(crate) enum Told {
    Mount(Mount),
    /// It does not tell whoever asked.
    No,
    /// It could not be asked.
    NotNow,
}

/// The mounts of a store that somebody has asked for, by namespace and the first step of their paths.
#[derive(Default)]
pub(crate) struct Mounts(Mutex<HashMap<(String, String), Arc<Place>>>);

#[derive(Default)]
struct Place {
    known: Mutex<Vec<Mount>>,
    /// When the store could not be asked last. Held while it is: readers of one mount are one question, and
    /// one failure.
    failed: tokio::sync::Mutex<Option<Instant>>,
}

impl Mounts {
    /// The mount that `path` lies in, as far as the caller may know it.
    pub(crate) async fn of(&self, connection: &Connection, headers: &Headers, path: &str) -> Told {
        let begun = Instant::now();
        let place = self.place(&headers.namespace, path);
        place
            .lock()
            .retain(|mount| mount.asked.elapsed() < BELIEVED);
        if let Some(mount) = place.mount(path) {
            return Told::Mount(mount);
        }
        let mut failed = place.failed.lock().await;
        if let Some(mount) = place.mount(path) {
            return Told::Mount(mount);
        }
        if failed.is_some_and(|at| at >= begun) {
            return Told::NotNow;
        }
        let reply = match connection.call(&Call::mount_of(path), headers).await {
            Ok(reply) if !reply.may_pass() => reply,
            _ => {
                *failed = Some(Instant::now());
                return Told::NotNow;
            }
        };
        match mount(path, &reply).filter(|_| reply.status.is_success()) {
            Some(mount) => {
                place.lock().push(mount.clone());
                Told::Mount(mount)
            }
            None => Told::No,
        }
    }

    /// The same without a question.
    pub(crate) fn known(&self, namespace: &str, path: &str) -> Option<Mount> {
        self.place(namespace, path).mount(path)
    }

    fn place(&self, namespace: &str, path: &str) -> Arc<Place> {
        let first = path.split('/').next().unwrap_or_default();
        let key = (namespace.to_owned(), first.to_owned());
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(key).or_default().clone()
    }
}

impl Place {
    fn mount(&self, path: &str) -> Option<Mount> {
        longest(&self.lock(), path).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mount>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer says of the mount of `path`.
fn mount(path: &str, reply: &Reply) -> Option<Mount> {
    let body = Object::parse(&reply.body)?;
    let data = body.object("data")?;
    let kind = data.text("type")?;
    let version = data
        .object("options")
        .and_then(|options| options.text("version"));
    Some(Mount {
        path: as_in(path, &data.text("path")?)?,
        versioned: *kind == "kv" && version.is_some_and(|version| *version == "2"),
        asked: Instant::now(),
    })
}

fn longest<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    let holds = |mount: &&Mount| {
        path.strip_prefix(&mount.path)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    mounts
        .iter()
        .filter(holds)
        .max_by_key(|mount| mount.path.len())
}

/// The start of `path` that ends with the store's name of the mount: a namespace may stand before it.
fn as_in(path: &str, mount: &str) -> Option<String> {
    let mount = mount.trim_matches('/');
    let ends = path.match_indices('/').map(|(slash, _)| &path[..slash]);
    let mut starts = ends.filter(|start| {
        let before = start.strip_suffix(mount);
        before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
    });
    starts.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_in_the_words_of_the_class() {
        for (path, mount, expected) in [
            ("secret/data/app", "secret/", Some("secret")),
            ("a/b/data/app", "a/b/", Some("a/b")),
            ("team/secret/data/app", "secret/", Some("team/secret")),
            ("team/secret/data/app", "team/secret/", Some("team/secret")),
            ("mysecret/data/app", "secret/", None),
            ("secret", "secret/", None),
        ] {
            assert_eq!(as_in(path, mount).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn the_longest_mount_wins() {
        let mount = |path: &str| Mount {
            path: path.to_owned(),
            versioned: false,
            asked: Instant::now(),
        };
        let mounts = [mount("a"), mount("a/b")];
        let of = |path| longest(&mounts, path).map(|mount| mount.path.as_str());
        assert_eq!(of("a/b/c"), Some("a/b"));
        assert_eq!(of("a/bc"), Some("a"));
        assert_eq!(of("ab/c"), None);
    }
}
