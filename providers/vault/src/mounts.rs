//! What kind of engine a path belongs to: asked once for each mount, since the shape of an answer does
//! not tell (a KV v1 secret may have a key called `data`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::answer::Object;
use crate::calls::Call;
use crate::headers::Headers;
use crate::http::Connection;

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

/// The mounts of a store that somebody has asked for, by namespace.
#[derive(Default)]
pub(crate) struct Mounts(tokio::sync::Mutex<HashMap<String, Vec<Mount>>>);

impl Mounts {
    /// The mount that `path` lies in, as far as the caller may know it.
    pub(crate) async fn of(
        &self,
        connection: &Connection,
        headers: &Headers,
        path: &str,
    ) -> Option<Mount> {
        // Held while the store is asked: two readers of one mount are one question.
        let mut known = self.0.lock().await;
        let mounts = known.entry(headers.namespace.clone()).or_default();
        mounts.retain(|mount| mount.asked.elapsed() < BELIEVED);
        if let Some(mount) = longest(mounts, path) {
            return Some(mount.clone());
        }
        let reply = connection.call(&Call::mount_of(path), headers).await.ok()?;
        if !reply.status.is_success() {
            return None;
        }
        let body = Object::parse(&reply.body)?;
        let data = body.object("data")?;
        let kind = data.text("type")?;
        let version = data
            .object("options")
            .and_then(|options| options.text("version"));
        let mount = Mount {
            path: as_in(path, &data.text("path")?)?,
            versioned: *kind == "kv" && version.is_some_and(|version| *version == "2"),
            asked: Instant::now(),
        };
        mounts.push(mount.clone());
        Some(mount)
    }

    /// The same without a question.
    pub(crate) async fn known(&self, namespace: &str, path: &str) -> Option<Mount> {
        let known = self.0.lock().await;
        longest(known.get(namespace)?, path).cloned()
    }
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
