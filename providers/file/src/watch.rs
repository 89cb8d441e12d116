//! Tells sources of changes: one inotify watch of the whole root, and a thread that sorts what it
//! says by Namespace. Whatever is lost is made up for by telling everybody to look.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use coffer_provider::Changes;
use futures_util::stream;
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{Config, Event, INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// How long the rest of a burst is waited for.
const BURST: Duration = Duration::from_millis(100);

/// How often everybody has to look for themselves where the kernel does not tell.
pub(crate) const LOOK_ANYWAY: Duration = Duration::from_secs(120);

/// Events that wait to be sorted; beyond that they count as lost.
const QUEUE: usize = 4096;

/// The watch of a root. Streams end when it is dropped.
pub(crate) struct Watch {
    subscriptions: Arc<Subscriptions>,
    queue: SyncSender<Message>,
}

enum Message {
    Told(notify::Result<Event>),
    Stop,
}

impl Watch {
    /// Watches `root` from now on, or else lets everybody look at every `look_anyway`.
    pub(crate) fn start(root: &Path, look_anyway: Duration) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE);
        let subscriptions = Arc::new(Subscriptions::default());
        let mut follower = Follower {
            root: root.to_owned(),
            watched: PathBuf::new(),
            watcher: None,
            look_anyway,
            lost: Arc::new(AtomicBool::new(false)),
            queue: queue.clone(),
            subscriptions: Arc::downgrade(&subscriptions),
        };
        follower.follow_or_warn();
        thread::Builder::new()
            .name("file-watch".to_owned())
            .spawn(move || follower.run(&messages))?;
        Ok(Self {
            subscriptions,
            queue,
        })
    }

    /// One item for each burst of changes below the folder of `namespace`.
    pub(crate) fn changes(&self, namespace: &str) -> Changes {
        let changes = self.subscriptions.subscribe(namespace);
        Box::pin(stream::unfold(changes, |mut changes| async {
            changes.changed().await.ok()?;
            tokio::time::sleep(BURST).await;
            changes.mark_unchanged();
            Some(((), changes))
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A full queue wakes the thread as well, which then finds that nobody subscribes any more.
        let _ = self.queue.try_send(Message::Stop);
    }
}

/// The thread's side: owns the watcher, and replaces it when it can no longer be believed.
struct Follower {
    root: PathBuf,
    /// The root without links in its path, as events spell it.
    watched: PathBuf,
    watcher: Option<INotifyWatcher>,
    look_anyway: Duration,
    lost: Arc<AtomicBool>,
    queue: SyncSender<Message>,
    subscriptions: Weak<Subscriptions>,
}

impl Follower {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = messages.recv_timeout(self.look_anyway);
            let Some(subscriptions) = self.subscriptions.upgrade() else {
                return;
            };
            let believed = match message {
                Ok(Message::Told(Ok(event))) => {
                    !event.need_rescan() && self.sort(&event, &subscriptions)
                }
                Ok(Message::Told(Err(error))) => {
                    debug!(%error, "the folder of the file provider is watched anew");
                    false
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if self.watcher.is_none() {
                        self.look_anyway(&subscriptions);
                    }
                    continue;
                }
            };
            if !believed || self.lost.load(Ordering::Relaxed) {
                self.start_over(&subscriptions);
            }
        }
    }

    /// Tells those whom an event concerns; false if the watch is no longer one of the root.
    fn sort(&mut self, event: &Event, subscriptions: &Subscriptions) -> bool {
        let may_be_a_new_folder = matches!(
            event.kind,
            EventKind::Create(CreateKind::Folder) | EventKind::Modify(ModifyKind::Name(_))
        );
        // A new folder is watched only after we are told of it. Whoever looks before that could
        // miss what comes next in it; the watcher does its work in order, so once it has answered
        // to anything, the folder is watched.
        if may_be_a_new_folder && let Some(watcher) = &mut self.watcher {
            let _ = watcher.configure(Config::default());
        }
        let goes = matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From))
        );
        for path in &event.paths {
            let below = path.strip_prefix(&self.watched).unwrap_or(Path::new(""));
            match below.components().next() {
                Some(first) => subscriptions.tell(&self.watched, first.as_os_str()),
                None if goes => return false,
                None => subscriptions.tell_everybody(),
            }
        }
        true
    }

    /// Makes a new watch, since the old one may lack folders.
    fn start_over(&mut self, subscriptions: &Subscriptions) {
        // A flood that made us lose events must not make us walk the tree without a pause.
        thread::sleep(BURST);
        self.lost.store(false, Ordering::Relaxed);
        self.follow_or_warn();
        subscriptions.tell_everybody();
    }

    fn look_anyway(&mut self, subscriptions: &Subscriptions) {
        if self.follow().is_ok() {
            info!("the folder of the file provider is watched again");
        }
        subscriptions.tell_everybody();
    }

    fn follow_or_warn(&mut self) {
        if let Err(error) = self.follow() {
            warn!(
                %error,
                "changes below the folder of the file provider cannot be watched: every file is \
                 looked at each {} s instead",
                self.look_anyway.as_secs()
            );
        }
    }

    fn follow(&mut self) -> notify::Result<()> {
        self.watcher = None;
        self.watched = self.root.canonicalize()?;
        let (queue, lost) = (self.queue.clone(), self.lost.clone());
        let told = move |event: notify::Result<Event>| {
            if event.as_ref().is_ok_and(is_only_a_look) {
                return;
            }
            if queue.try_send(Message::Told(event)).is_err() {
                lost.store(true, Ordering::Relaxed);
            }
        };
        // Links stay below the root, so all that they lead to is watched by its own name. To
        // follow them would give one folder two names, of which inotify knows the last only.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = INotifyWatcher::new(told, config)?;
        watcher.watch(&self.watched, RecursiveMode::Recursive)?;
        self.watcher = Some(watcher);
        Ok(())
    }
}

/// Whether nothing changed: our own reads open files too, and must not make us read again.
fn is_only_a_look(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
        _ => false,
    }
}

/// Who wants to know, by Namespace.
#[derive(Default)]
struct Subscriptions(Mutex<BTreeMap<String, Subscription>>);

struct Subscription {
    changes: watch::Sender<()>,
    /// Whether the administrator made a link for this Namespace: then its files go by other names.
    is_link: Option<bool>,
}

impl Subscriptions {
    fn subscribe(&self, namespace: &str) -> watch::Receiver<()> {
        let mut all = self.lock();
        all.retain(|_, subscription| subscription.changes.receiver_count() > 0);
        let subscription = all
            .entry(namespace.to_owned())
            .or_insert_with(|| Subscription {
                changes: watch::Sender::new(()),
                is_link: None,
            });
        subscription.changes.subscribe()
    }

    /// Something changed at or below `root/first`: a folder of a Namespace, or one that links lead to,
    /// such as `..data`.
    fn tell(&self, root: &Path, first: &OsStr) {
        let is_other = |namespace: &str| first != OsStr::new(namespace);
        let unknown = |(namespace, subscription): (&String, &Subscription)| {
            let unknown = is_other(namespace) && subscription.is_link.is_none();
            unknown.then(|| namespace.clone())
        };
        let unknown: Vec<_> = self.lock().iter().filter_map(unknown).collect();
        // Without the lock, which every publish takes: the folder may hang.
        let links = unknown.into_iter().map(|namespace| {
            let is_link = root.join(&namespace).is_symlink();
            (namespace, is_link)
        });
        let links: BTreeMap<_, _> = links.collect();
        for (namespace, subscription) in self.lock().iter_mut() {
            let told = match is_other(namespace) {
                true => {
                    let found = links.get(namespace).copied();
                    subscription.is_link = subscription.is_link.or(found);
                    // Whoever came in between looks once more.
                    subscription.is_link.unwrap_or(true)
                }
                false => {
                    subscription.is_link = None;
                    true
                }
            };
            if told {
                subscription.changes.send_replace(());
            }
        }
    }

    fn tell_everybody(&self) {
        for subscription in self.lock().values_mut() {
            subscription.is_link = None;
            subscription.changes.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Subscription>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]

    use std::fs;

    use futures_util::StreamExt;
    use notify::event::Flag;

    use super::*;

    async fn told(changes: &mut Changes) {
        let told = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
        assert_eq!(told, Ok(Some(())));
    }

    #[tokio::test]
    async fn after_a_loss_everybody_looks_and_the_watch_goes_on() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("shop")).unwrap();
        let watch = Watch::start(root.path(), LOOK_ANYWAY).unwrap();
        let mut everybody = ["shop", "other"].map(|namespace| watch.changes(namespace));
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        for loss in [
            Ok(overflow),
            Err(notify::Error::generic("too many watches")),
        ] {
            watch.queue.send(Message::Told(loss)).unwrap();
            for changes in &mut everybody {
                told(changes).await;
            }
        }
        fs::write(root.path().join("shop/a"), "").unwrap();
        told(&mut everybody[0]).await;
    }

    #[tokio::test]
    async fn without_a_watch_everybody_looks_from_time_to_time_until_there_is_one_again() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("root");
        fs::create_dir(&root).unwrap();
        let watch = Watch::start(&root, BURST).unwrap();
        let mut shop = watch.changes("shop");
        fs::remove_dir(&root).unwrap();
        for _ in 0..3 {
            told(&mut shop).await;
        }
        fs::create_dir_all(root.join("shop")).unwrap();
        while tokio::time::timeout(4 * BURST, shop.next()).await.is_ok() {}
        fs::write(root.join("shop/a"), "").unwrap();
        told(&mut shop).await;
    }

    #[test]
    fn nobody_is_remembered_who_stopped_listening() {
        let subscriptions = Subscriptions::default();
        let first = subscriptions.subscribe("shop");
        let second = subscriptions.subscribe("shop");
        drop(first);
        let other = subscriptions.subscribe("other");
        assert_eq!(subscriptions.lock().len(), 2);
        drop((second, other));
        let _third = subscriptions.subscribe("third");
        assert!(subscriptions.lock().keys().eq(["third"]));
    }
}
