//! {Cause of failure} × {moment} × {retry}: whatever goes wrong, whenever, and however the kubelet goes on,
//! it never hears OK about a volume that is not complete, and once the cause is gone all is well.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coffer::cache::SecretCache;
use coffer::catalog::Catalog;
use coffer::classes::{Classes, Feed};
use coffer::identity::Requester;
use coffer::payload::Limits;
use coffer::publish::{PublishRequest, Publisher, STORE_DEADLINE};
use coffer::telemetry::Metrics;
use coffer::tokens::Tokens;
use coffer::volume::Volumes;
use coffer_provider::ErrorKind;
use coffer_provider::testing::{Answer, ScriptedProvider};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::mutation::try_cases;
use crate::node::{KUBELET, files_in, own_mounts, pod, put_class, rules};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cause {
    None,
    /// The store refuses the object that is read last.
    Store(ErrorKind),
    Hangs,
    Slow,
    EscapingName,
    NameTwice,
    FileAndFolder,
    BadMode,
    TooLarge,
    TooMany,
    NothingAtAll,
    ClassGone,
    ClassBroken,
    NoProvider,
    ParentGone,
    ParentIsALink,
    TargetIsAFile,
    TargetIsFull,
    ForeignMount,
    Impatient,
    GivenUp,
    Unpublished,
}

const CAUSES: &[Cause] = &[
    Cause::None,
    Cause::Store(ErrorKind::InvalidParameters),
    Cause::Store(ErrorKind::NotFound),
    Cause::Store(ErrorKind::PermissionDenied),
    Cause::Store(ErrorKind::Unauthenticated),
    Cause::Store(ErrorKind::TooLarge),
    Cause::Store(ErrorKind::Unavailable),
    Cause::Store(ErrorKind::DeadlineExceeded),
    Cause::Store(ErrorKind::InvalidAnswer),
    Cause::Hangs,
    Cause::Slow,
    Cause::EscapingName,
    Cause::NameTwice,
    Cause::FileAndFolder,
    Cause::BadMode,
    Cause::TooLarge,
    Cause::TooMany,
    Cause::NothingAtAll,
    Cause::ClassGone,
    Cause::ClassBroken,
    Cause::NoProvider,
    Cause::ParentGone,
    Cause::ParentIsALink,
    Cause::TargetIsAFile,
    Cause::TargetIsFull,
    Cause::ForeignMount,
    Cause::Impatient,
    Cause::GivenUp,
    Cause::Unpublished,
];

/// When it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// Before anything was there.
    First,
    /// The volume is complete.
    Republish,
    /// The volume is complete, and there is something new for it.
    Rotation,
    /// The volume was complete, and somebody has unmounted it.
    Taken,
    /// The volume is complete, and the driver is another process.
    Restart,
    /// The folder of the volume is there, the volume is not, and the driver is another process.
    Reboot,
}

const MOMENTS: &[Moment] = &[
    Moment::First,
    Moment::Republish,
    Moment::Rotation,
    Moment::Taken,
    Moment::Restart,
    Moment::Reboot,
];

/// How the kubelet goes on, with the cause still there.
#[derive(Clone, Copy, Debug)]
enum Retry {
    Not,
    Again,
    Three,
    AtOnce,
    AfterUnpublish,
    AfterRestart,
    WithUnpublish,
}

const RETRIES: &[Retry] = &[
    Retry::Not,
    Retry::Again,
    Retry::Three,
    Retry::AtOnce,
    Retry::AfterUnpublish,
    Retry::AfterRestart,
    Retry::WithUnpublish,
];

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn whatever_fails_and_whenever_an_incomplete_volume_is_never_ok() {
    own_mounts();
    let case = (
        select(CAUSES),
        select(MOMENTS),
        select(RETRIES),
        any::<bool>(),
    );
    let told = std::cell::RefCell::new(BTreeMap::<String, usize>::new());
    let number = std::cell::Cell::new(0);
    try_cases(2_000, &case, |(cause, moment, retry, stays)| {
        number.set(number.get() + 1);
        // The clock of the driver stands still but where all wait for it: a store that hangs costs no time.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let mut node = runtime.block_on(async { Node::new(number.get()) });
        runtime.block_on(node.go_through(cause, moment, retry, stays));
        for reason in &node.told {
            *told.borrow_mut().entry(reason.clone()).or_default() += 1;
        }
    });
    let told = told.into_inner();
    println!("  {told:?}");
    assert!(told.len() > 12, "failures of many kinds were met: {told:?}");
}

struct Node {
    publisher: Arc<Publisher>,
    store: ScriptedProvider,
    classes: Classes,
    feed: Feed,
    id: String,
    folder: PathBuf,
    target: PathBuf,
    version: u32,
    /// What the kubelet heard.
    told: Vec<String>,
}

impl Node {
    fn new(number: u32) -> Self {
        let uid = format!("uid-of-{number}");
        let folder = Path::new(KUBELET)
            .join("pods")
            .join(uid)
            .join("volumes/kubernetes.io~csi/secrets");
        fs::create_dir_all(&folder).unwrap();
        let store = ScriptedProvider::default();
        let (classes, feed) = Classes::new();
        let node = Self {
            publisher: publisher(&store, &classes),
            store,
            classes,
            feed,
            id: format!("csi-{number}"),
            target: folder.join("mount"),
            folder,
            version: 1,
            told: Vec::new(),
        };
        node.mend();
        node
    }

    async fn go_through(&mut self, cause: Cause, moment: Moment, retry: Retry, stays: bool) {
        if moment != Moment::First {
            self.publish(Cause::None)
                .await
                .expect("nothing is wrong yet");
        }
        match moment {
            Moment::First | Moment::Republish | Moment::Rotation => {}
            Moment::Taken => umount2(&self.target, MntFlags::MNT_DETACH).unwrap(),
            Moment::Restart => self.restart(),
            Moment::Reboot => {
                umount2(&self.target, MntFlags::MNT_DETACH).unwrap();
                self.restart();
            }
        }
        let undo = self.cause(cause);
        if moment == Moment::Rotation {
            // Whatever comes from the store now, or does not, has time to arrive.
            self.version += 1;
            // Of a store that gives nothing, one object would be a whole set.
            if cause != Cause::NothingAtAll {
                self.write("a");
            }
            sleep(Duration::from_millis(500)).await;
            self.look(false, cause);
        }
        let _ = self.publish(cause).await;
        match retry {
            Retry::Not => {}
            Retry::Again => drop(self.publish(cause).await),
            Retry::Three => {
                for _ in 0..3 {
                    let _ = self.publish(cause).await;
                }
            }
            Retry::AtOnce => {
                let deadline = Instant::now() + STORE_DEADLINE;
                let publish =
                    || tokio::spawn(self.publisher.clone().publish(self.request(), deadline));
                let all = [publish(), publish(), publish(), publish()];
                let mut any = false;
                for one in all {
                    any |= one.await.unwrap().is_ok();
                }
                self.look(any, cause);
            }
            Retry::AfterUnpublish => {
                let gone = self.unpublish().await;
                if gone.is_ok() {
                    assert_eq!(self.mounts(), 0, "{cause:?}: unpublished");
                }
                let _ = fs::create_dir_all(&self.folder);
                let _ = self.publish(cause).await;
            }
            Retry::AfterRestart => {
                self.restart();
                let _ = self.publish(cause).await;
            }
            Retry::WithUnpublish => {
                let deadline = Instant::now() + STORE_DEADLINE;
                let publish =
                    tokio::spawn(self.publisher.clone().publish(self.request(), deadline));
                tokio::task::yield_now().await;
                let gone = self.unpublish().await;
                let _ = publish.await.unwrap();
                if gone.is_ok() && !self.foreign() {
                    assert_eq!(self.mounts(), 0, "{cause:?}: it came after all");
                }
            }
        }
        if stays {
            self.look(false, cause);
        }
        undo(self);
        self.mend();
        let mut done = self.publish(Cause::None).await;
        // A key that has failed for a running volume too is left in peace for a while, as is its store. The
        // kubelet comes back.
        for _ in 0..5 {
            if done.is_err() {
                sleep(Duration::from_secs(60)).await;
                done = self.publish(Cause::None).await;
            }
        }
        assert!(
            done.is_ok(),
            "{cause:?} {moment:?} {retry:?}: it is not well again: {done:?}"
        );
        self.unpublish().await.expect("nothing is wrong any more");
        assert_eq!(self.mounts(), 0);
        assert!(!self.target.exists());
    }

    /// Everything is as it should be.
    fn mend(&self) {
        let spec = json!({"provider": "scripted", "parameters": {"objects": "a,b,c"}});
        put_class(&self.feed, "shop", spec);
        for object in ["a", "b", "c"] {
            self.write(object);
        }
    }

    fn write(&self, object: &str) {
        self.store.set(
            object,
            Answer::Value(format!("{object} {}", self.version).into()),
        );
    }

    /// Brings a cause about. What comes back takes it away where that is more than mending.
    fn cause(&self, cause: Cause) -> fn(&Self) {
        let nothing: fn(&Self) = |_| {};
        let answer = |answer| {
            self.store.set("c", answer);
            nothing
        };
        let file = |name: &str, mode| (name.to_owned(), b"x".to_vec(), mode);
        match cause {
            Cause::None | Cause::Impatient | Cause::GivenUp | Cause::Unpublished => nothing,
            Cause::Store(kind) => answer(Answer::Error(kind, "no".into())),
            Cause::Hangs => answer(Answer::Hang),
            Cause::Slow => {
                self.store.set_latency(Duration::from_secs(90));
                |node| node.store.set_latency(Duration::ZERO)
            }
            Cause::EscapingName => answer(Answer::Files(vec![file("../x", None)])),
            Cause::NameTwice => answer(Answer::Files(vec![file("a", None)])),
            Cause::FileAndFolder => answer(Answer::Files(vec![file("a/x", None)])),
            Cause::BadMode => answer(Answer::Files(vec![file("c", Some(0o4755))])),
            Cause::TooLarge => answer(Answer::Value(vec![0; (4 << 20) + 1])),
            Cause::TooMany => {
                let files = (0..300).map(|number| file(&number.to_string(), None));
                answer(Answer::Files(files.collect()))
            }
            Cause::NothingAtAll => {
                for object in ["a", "b", "c"] {
                    self.store.set(object, Answer::Files(Vec::new()));
                }
                nothing
            }
            Cause::ClassGone => {
                self.feed.replace(BTreeMap::new());
                nothing
            }
            Cause::ClassBroken => {
                put_class(&self.feed, "shop", json!({"provider": 7}));
                nothing
            }
            Cause::NoProvider => {
                put_class(&self.feed, "shop", json!({"provider": "nobody"}));
                nothing
            }
            // Where a volume is mounted, what is below it cannot be seen and cannot fail.
            _ if self.mounts() > 0 => nothing,
            Cause::ParentGone => {
                fs::remove_dir_all(&self.folder).unwrap();
                |node| fs::create_dir_all(&node.folder).unwrap()
            }
            Cause::ParentIsALink => {
                fs::remove_dir_all(&self.folder).unwrap();
                symlink("/tmp", &self.folder).unwrap();
                |node| {
                    if node.folder.is_symlink() {
                        fs::remove_file(&node.folder).unwrap();
                        fs::create_dir_all(&node.folder).unwrap();
                    }
                }
            }
            Cause::TargetIsAFile => {
                let _ = fs::remove_dir(&self.target);
                fs::write(&self.target, "keep me").unwrap();
                |node| fs::remove_file(&node.target).unwrap()
            }
            Cause::TargetIsFull => {
                fs::create_dir_all(&self.target).unwrap();
                fs::write(self.target.join("file"), "keep me").unwrap();
                |node| fs::remove_dir_all(&node.target).unwrap()
            }
            // In a user namespace a volume is known by its device number, and when it was taken away a
            // foreign mount can have that.
            Cause::ForeignMount if !self.publisher.volumes().adopts() => nothing,
            Cause::ForeignMount => {
                fs::create_dir_all(&self.target).unwrap();
                let none = None::<&str>;
                mount(
                    Some("someone"),
                    &self.target,
                    Some("tmpfs"),
                    MsFlags::empty(),
                    none,
                )
                .unwrap();
                // An unpublish takes it away too: the target is the kubelet's and ours.
                |node| {
                    let _ = umount2(&node.target, MntFlags::MNT_DETACH);
                }
            }
        }
    }

    async fn publish(&mut self, cause: Cause) -> Result<(), String> {
        let patience = match cause {
            Cause::Impatient => Duration::ZERO,
            _ => STORE_DEADLINE,
        };
        let publish = self
            .publisher
            .clone()
            .publish(self.request(), Instant::now() + patience);
        let publish = tokio::spawn(publish);
        if cause == Cause::GivenUp {
            // The caller is gone, the operation goes on.
            tokio::task::yield_now().await;
        }
        if cause == Cause::Unpublished {
            tokio::task::yield_now().await;
            let _ = self.unpublish().await;
        }
        let done = publish.await.unwrap();
        // Of two that were there at once, the last one counts.
        if cause != Cause::Unpublished {
            self.look(done.is_ok(), cause);
        }
        let told = done
            .as_ref()
            .map_or_else(|error| error.reason().as_str(), |_| "Ok");
        self.told.push(told.to_owned());
        done.map(drop).map_err(|error| error.to_string())
    }

    async fn unpublish(&self) -> Result<(), String> {
        let target = rules().parse(self.target.to_str().unwrap()).unwrap();
        let unpublished = self
            .publisher
            .clone()
            .unpublish(self.id.clone(), target)
            .await;
        unpublished.map_err(|error| error.to_string())
    }

    /// The one thing that has to hold at any time.
    fn look(&self, ok: bool, cause: Cause) {
        if self.foreign() {
            return assert!(!ok, "{cause:?}: OK, and it is somebody else's");
        }
        let mounts = self.mounts();
        assert!(mounts <= 1, "{cause:?}: {mounts} mounts");
        assert!(mounts == 1 || !ok, "{cause:?}: OK, and nothing is mounted");
        if mounts == 0 {
            return;
        }
        let files = files_in(&self.target);
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "c"], "{cause:?}: incomplete");
        for (name, content) in &files {
            let content = String::from_utf8_lossy(content);
            let (first, version) = content.split_once(' ').unwrap();
            assert_eq!(first, name, "{cause:?}");
            assert!(
                version.parse::<u32>().unwrap() <= self.version,
                "{cause:?}: {content}"
            );
        }
    }

    fn mounts(&self) -> usize {
        crate::node::mounts_at(&self.target)
    }

    fn foreign(&self) -> bool {
        let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let at = self.target.to_str().unwrap();
        table
            .lines()
            .any(|line| line.starts_with("someone ") && line.split(' ').nth(1) == Some(at))
    }

    /// The next process of the driver: nothing is known, what is mounted stays.
    fn restart(&mut self) {
        // In a user namespace the next process would not know the volume.
        if !self.publisher.volumes().adopts() {
            return;
        }
        self.publisher = publisher(&self.store, &self.classes);
    }

    fn request(&self) -> PublishRequest {
        PublishRequest {
            volume_id: self.id.clone(),
            target: rules().parse(self.target.to_str().unwrap()).unwrap(),
            requester: Arc::new(Requester {
                pod: pod("pod"),
                tokens: Ok(Tokens::default()),
                secrets: BTreeMap::new(),
                target_path: String::new(),
            }),
            attributes: BTreeMap::new(),
            class: Some("shop".into()),
            fs_group: None,
        }
    }
}

fn publisher(store: &ScriptedProvider, classes: &Classes) -> Arc<Publisher> {
    let metrics = Arc::new(Metrics::default());
    let cache = SecretCache::new(Default::default(), metrics.clone());
    let looking = cache.clone();
    tokio::spawn(async move { looking.run(Default::default()).await });
    let volumes = Arc::new(Volumes::probe(rules(), Limits::default()).unwrap());
    let catalog = Catalog::default().with("scripted", Arc::new(store.clone()));
    Publisher::new(
        classes.clone(),
        catalog,
        cache,
        volumes,
        metrics,
        Default::default(),
        None,
    )
}
