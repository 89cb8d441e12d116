//! The SecretProviderClasses that are known now, wherever they come from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::Changes;
use futures_util::stream;
use tokio::sync::watch;

use crate::class::{ClassError, ClassName, SecretProviderClass};
use crate::error::PublishError;

/// How long a class that is not there is waited for: who applies a class and its pod at once sends
/// them in no order that could be relied on.
const PATIENCE: Duration = Duration::from_secs(2);

/// A class, or what is wrong with it.
pub type Class = Result<Arc<SecretProviderClass>, ClassError>;

/// Classes by their names.
pub type ByName = BTreeMap<ClassName, Class>;

/// What is known. Clones know the same.
#[derive(Clone)]
pub struct Classes(watch::Receiver<Known>);

/// The end that whoever reads classes writes to.
pub struct Feed(watch::Sender<Known>);

#[derive(Default)]
struct Known {
    /// Whether everything was read once: before, that a class is missing means nothing.
    whole: bool,
    /// Whether there may be changes that nobody can tell of now.
    stale: bool,
    classes: ByName,
}

impl Feed {
    /// From now on these are all the classes that there are.
    pub fn replace(&self, classes: ByName) {
        self.0.send_modify(|known| {
            known.whole = true;
            known.classes = classes;
        });
    }

    /// One class is new, or has changed.
    pub fn put(&self, name: ClassName, class: Class) {
        self.0
            .send_modify(|known| drop(known.classes.insert(name, class)));
    }

    /// One class is gone.
    pub fn remove(&self, name: &ClassName) {
        self.0.send_modify(|known| drop(known.classes.remove(name)));
    }

    /// From now on, or no longer, changes may be missed. That alone is no change.
    pub fn is_stale(&self, stale: bool) {
        self.0.send_if_modified(|known| {
            known.stale = stale;
            false
        });
    }

    /// What is known now.
    #[must_use]
    pub fn known(&self) -> ByName {
        self.0.borrow().classes.clone()
    }
}

impl Classes {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> (Self, Feed) {
        let (feed, known) = watch::channel(Known::default());
        (Self(known), Feed(feed))
    }

    /// Whether everything was read once.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.0.borrow().whole
    }

    /// Whether changes may have been missed since they were read: they are what they were when the API server
    /// was last there.
    #[must_use]
    pub fn are_stale(&self) -> bool {
        self.0.borrow().stale
    }

    /// Finds a class.
    ///
    /// # Errors
    /// [`PublishError::ClassNotFound`], [`PublishError::InvalidClass`] with its mistake, or
    /// [`PublishError::ClassesUnknown`] as long as they have never been read.
    pub fn find(&self, name: &ClassName) -> Result<Arc<SecretProviderClass>, PublishError> {
        let known = self.0.borrow();
        match known.classes.get(name) {
            None if known.whole => Err(PublishError::ClassNotFound(name.clone())),
            None => Err(PublishError::ClassesUnknown),
            Some(Ok(class)) => Ok(class.clone()),
            Some(Err(error)) => Err(PublishError::InvalidClass {
                name: name.clone(),
                error: error.clone(),
            }),
        }
    }

    /// Finds a class, and waits a moment for one that is not there.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub async fn find_soon(
        &self,
        name: &ClassName,
    ) -> Result<Arc<SecretProviderClass>, PublishError> {
        let mut known = self.0.clone();
        let appears = known.wait_for(|known| known.classes.contains_key(name));
        let _ = tokio::time::timeout(PATIENCE, appears).await;
        self.find(name)
    }

    /// An item for each time that the class has changed, or its annotation for a refresh, since it was `seen`;
    /// without that, from now on.
    #[must_use]
    pub fn watch(&self, name: &ClassName, seen: Option<&SecretProviderClass>) -> Changes {
        let mut known = self.0.clone();
        let last = match seen {
            Some(class) => {
                known.mark_changed();
                Some(Ok(hash_of(class)))
            }
            None => hash(&known.borrow_and_update(), name),
        };
        let state = (known, name.clone(), last);
        Box::pin(stream::unfold(
            state,
            async |(mut known, name, mut last)| {
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

type Hash = Result<(String, Option<String>), ClassError>;

fn hash(known: &Known, name: &ClassName) -> Option<Hash> {
    let class = known.classes.get(name)?.as_ref();
    Some(class.map(|class| hash_of(class)).map_err(Clone::clone))
}

fn hash_of(class: &SecretProviderClass) -> (String, Option<String>) {
    (class.hash.clone(), class.refresh_mark.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};

    fn class(name: &str, provider: &str) -> (ClassName, Class) {
        let name = ClassName {
            namespace: "shop".into(),
            name: name.into(),
        };
        let spec = serde_json::json!({"provider": provider});
        let class = SecretProviderClass::new(name.clone(), spec).map(Arc::new);
        (name, class)
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_that_comes_with_its_pod_is_waited_for() {
        let (classes, feed) = Classes::new();
        let (name, shop) = class("shop", "file");
        let start = tokio::time::Instant::now();
        let unknown = classes.find_soon(&name).await.map(|_| ());
        assert!(
            matches!(unknown, Err(PublishError::ClassesUnknown)),
            "nothing was read yet"
        );
        feed.replace(ByName::new());
        let missing = classes.find_soon(&name).await.map(|_| ());
        assert!(matches!(missing, Err(PublishError::ClassNotFound(_))));
        assert_eq!(start.elapsed(), 2 * PATIENCE);

        let (found, ()) = tokio::join!(classes.find_soon(&name), async {
            tokio::time::sleep(PATIENCE / 2).await;
            feed.put(name.clone(), shop);
        });
        assert!(found.is_ok());
        assert!(start.elapsed() < 3 * PATIENCE, "as soon as it is there");
    }

    #[tokio::test]
    async fn only_changes_of_the_class_itself_are_told() {
        let (classes, feed) = Classes::new();
        let (name, shop) = class("shop", "file");
        feed.put(name.clone(), shop.clone());
        let mut changes = classes.watch(&name, None);
        for (other, class) in [class("other", "file"), (name.clone(), shop)] {
            feed.put(other, class);
            assert!(changes.next().now_or_never().is_none());
        }
        feed.put(name.clone(), class("shop", "vault").1);
        assert_eq!(changes.next().await, Some(()));
        feed.remove(&name);
        assert_eq!(changes.next().await, Some(()));
    }
}
