//! What has to hold for a long time: readers while the driver is killed again and again, and while a
//! store is away. Short here; `cargo xtask soak` takes as long as one likes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use coffer::fake_kubelet::PodVolume;
use coffer_provider::ErrorKind;
use coffer_provider::testing::Answer;
use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::harness::{Node, device, eventually, mounts, replace, volume};
use crate::scripted::{Scripted, volume_of};

/// Set by `cargo xtask soak`.
const SECONDS: &str = "COFFER_SOAK_SECONDS";

/// The length of the long form, if it is one.
fn long_form() -> Option<Duration> {
    let seconds = std::env::var(SECONDS).ok()?;
    Some(Duration::from_secs(seconds.parse().expect("seconds")))
}

const VOLUMES: usize = 20;
const READERS: usize = 8;
/// How long a replaced generation stays: nothing is promised to a look that takes longer.
const GRACE: Duration = Duration::from_secs(1);
/// The files of a volume, and how often each says which version it is of.
const FILES: [(&str, usize); 4] = [
    ("token", 1),
    ("db/password", 50),
    ("db/key", 500),
    ("ca", 2000),
];

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_w1_rule_w2_readers_see_whole_versions_in_order_while_the_driver_is_killed_at_random()
{
    let length = long_form().unwrap_or(Duration::from_secs(60));
    let mut node = Node::start_with(&["--log-level=info"]).await;
    let source = node.folders.at("secrets/shop/set.json");
    replace(&source, &version(0));
    node.class("shop", &class()).await;
    let volumes: Vec<_> = (0..VOLUMES).map(|n| volume(&format!("p{n}"))).collect();
    for done in publish_all(&node, &volumes).join_all().await {
        done.unwrap();
    }
    let targets: Vec<_> = volumes.iter().map(|v| node.kubelet.target(v)).collect();
    let devices: Vec<_> = targets.iter().map(|target| device(target)).collect();
    let stage = Arc::new(Stage::default());
    let _end = End(stage.clone());
    let writer = stage.clone().write(source);
    let readers: Vec<_> = (0..READERS)
        .map(|reader| stage.clone().read(reader, targets.clone()))
        .collect();

    let mut chance = Chance::new();
    let (started, mut kills, mut minutes) = (Instant::now(), 0, 0);
    while started.elapsed() < length {
        if started.elapsed().as_secs() / 60 > minutes {
            minutes += 1;
            println!("{kills} kills in {minutes} min");
        }
        let rotates_on = kills % 4 == 0;
        if rotates_on {
            eventually_all_have(&targets, stage.begun.load(SeqCst)).await;
        }
        tokio::time::sleep(Duration::from_millis(chance.below(1200))).await;
        node.end(Signal::SIGKILL);
        kills += 1;
        node.run().await;
        let republishes = publish_all(&node, &volumes);
        if chance.below(3) == 0 && kills % 4 != 0 {
            // Killed once more, in the middle of them.
            tokio::time::sleep(Duration::from_millis(chance.below(30))).await;
            node.end(Signal::SIGKILL);
            kills += 1;
            republishes.join_all().await;
            node.run().await;
            for done in publish_all(&node, &volumes).join_all().await {
                done.unwrap();
            }
        } else {
            for done in republishes.join_all().await {
                done.unwrap();
            }
        }
        assert!(
            !readers.iter().any(JoinHandle::is_finished),
            "a reader has seen what it must not: see above"
        );
    }
    let last = stage.stop_writing(writer);
    eventually_all_have(&targets, last).await;
    stage.over.store(true, SeqCst);
    let looked = readers.into_iter().map(|reader| reader.join().unwrap());
    let looked = looked.reduce(|a, b| Looked {
        whole: a.whole + b.whole,
        slow: a.slow + b.slow,
        switches: a.switches + b.switches,
    });
    println!(
        "{kills} kills, {last} versions, {looked:?} in {:?}",
        started.elapsed()
    );
    let looked = looked.unwrap();
    assert!(looked.whole > 0 && looked.switches > READERS as u64);
    assert!(kills >= 4, "{kills} kills");

    assert_eq!(mounts().len(), VOLUMES, "no mount on top of another");
    let now: Vec<_> = targets.iter().map(|target| device(target)).collect();
    assert_eq!(now, devices, "and each is the first one");
    for target in &targets {
        eventually("one generation is left, and nothing half done", || {
            leftovers(target) == 1
        })
        .await;
    }
    for volume in &volumes {
        node.kubelet.unpublish(volume).await.unwrap();
    }
    assert!(mounts().is_empty());
}

fn publish_all(node: &Node, volumes: &[PodVolume]) -> JoinSet<Result<(), Status>> {
    let mut calls = JoinSet::new();
    for volume in volumes {
        let (kubelet, volume) = (node.kubelet.clone(), volume.clone());
        calls.spawn(async move { kubelet.publish(&volume).await });
    }
    calls
}

/// Waits until every volume has this version, or a later one.
async fn eventually_all_have(targets: &[PathBuf], version: u64) {
    for target in targets {
        eventually(
            &format!("version {version} in {}", target.display()),
            || read_by_path(target, 0).is_ok_and(|found| found >= version),
        )
        .await;
    }
}

/// What is in a volume besides its files: `..data` leads to one folder, and that is all.
fn leftovers(target: &Path) -> usize {
    let names = fs::read_dir(target)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    names
        .filter(|name| name.as_encoded_bytes().starts_with(b"..") && *name != *"..data")
        .count()
}

fn class() -> String {
    let items = FILES
        .iter()
        .enumerate()
        .map(|(file, (path, _))| format!("{{object: set.json, key: '{file}', path: {path}}}"));
    let items: Vec<_> = items.collect();
    format!(
        "provider: file\nparameters: {{objects: '[set.json]'}}\nitems: [{}]",
        items.join(", ")
    )
}

/// All files of a version, in one that changes at once.
fn version(number: u64) -> Vec<u8> {
    let files = (0..FILES.len()).map(|file| (file.to_string(), text(number, file).into()));
    let files: serde_json::Map<_, _> = files.collect();
    serde_json::Value::Object(files).to_string().into_bytes()
}

fn text(number: u64, file: usize) -> String {
    // Of another length each time, so that a file that is cut short cannot pass for another one.
    format!("{number}-{file};").repeat(FILES[file].1 + number as usize % 7)
}

/// The version that a file says it is of, once it is certain that it is that file of that version.
fn check(found: &str, file: usize) -> u64 {
    let number = found
        .split('-')
        .next()
        .and_then(|number| number.parse().ok());
    let number = number.unwrap_or_else(|| panic!("file {file} begins with {found:.20?}"));
    assert!(
        found == text(number, file),
        "file {file} of version {number} is not whole"
    );
    number
}

/// W2: opens one file by its path.
fn read_by_path(target: &Path, file: usize) -> io::Result<u64> {
    Ok(check(
        &fs::read_to_string(target.join(FILES[file].0))?,
        file,
    ))
}

/// W1: opens `..data` once and reads every file relative to it.
fn read_pinned(target: &Path) -> io::Result<u64> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let data = rustix::fs::open(target.join("..data"), folder, Mode::empty())?;
    let mut versions = [0; FILES.len()];
    for (file, (path, _)) in FILES.iter().enumerate() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut opened = File::from(rustix::fs::openat(&data, *path, flags, Mode::empty())?);
        let mut found = String::new();
        opened.read_to_string(&mut found)?;
        versions[file] = check(&found, file);
    }
    assert_eq!(
        versions,
        [versions[0]; FILES.len()],
        "two versions in one look"
    );
    Ok(versions[0])
}

/// What the writer and the readers share.
#[derive(Default)]
struct Stage {
    /// The newest version that there may be anywhere.
    begun: AtomicU64,
    written: AtomicBool,
    over: AtomicBool,
}

/// Ends the threads of a test, however it ends.
struct End(Arc<Stage>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.written.store(true, SeqCst);
        self.0.over.store(true, SeqCst);
    }
}

#[derive(Debug, Default)]
struct Looked {
    whole: u64,
    /// Looks that took longer than a generation stays: nothing is promised to them.
    slow: u64,
    /// Looks that found another version than the one before them.
    switches: u64,
}

impl Stage {
    fn write(self: Arc<Self>, source: PathBuf) -> JoinHandle<u64> {
        thread::spawn(move || {
            while !self.written.load(SeqCst) {
                let number = self.begun.fetch_add(1, SeqCst) + 1;
                replace(&source, &version(number));
                // A volume changes once a second at most: several versions come together.
                thread::sleep(Duration::from_millis(130));
            }
            self.begun.load(SeqCst)
        })
    }

    fn stop_writing(&self, writer: JoinHandle<u64>) -> u64 {
        self.written.store(true, SeqCst);
        writer.join().unwrap()
    }

    fn read(self: Arc<Self>, reader: usize, targets: Vec<PathBuf>) -> JoinHandle<Looked> {
        thread::spawn(move || {
            let mut looked = Looked::default();
            let mut seen = vec![0; targets.len()];
            for look in reader.. {
                if self.over.load(SeqCst) {
                    break;
                }
                let at = look % targets.len();
                let target = &targets[at];
                let started = Instant::now();
                let found = match reader % 2 {
                    0 => read_pinned(target),
                    _ => read_by_path(target, look / targets.len() % FILES.len()),
                };
                if started.elapsed() >= GRACE {
                    looked.slow += 1;
                    continue;
                }
                let found = found.unwrap_or_else(|error| panic!("{}: {error}", target.display()));
                let begun = self.begun.load(SeqCst);
                assert!(found <= begun, "{found} is not written yet");
                assert!(seen[at] <= found, "{found} after {}", seen[at]);
                looked.switches += u64::from(seen[at] != found);
                looked.whole += 1;
                seen[at] = found;
                // The driver needs a core now and then.
                thread::sleep(Duration::from_micros(300));
            }
            looked
        })
    }
}

/// Not the same in each run.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = now.unwrap().as_nanos() as u64;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        let next = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 = next;
        (next >> 33) % limit
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn readers_do_not_notice_a_store_that_is_away_and_all_is_fresh_soon_after() {
    const INTERVAL: Duration = Duration::from_secs(10);
    let (pods, outage) = match long_form() {
        Some(length) => (200, length),
        None => (20, Duration::from_secs(12)),
    };
    let node = Scripted::start_with_tokens().await;
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}\nrefresh: ";
    for (class, refresh) in [
        ("often", "{interval: 10s, strategy: Cache}"),
        ("patient", "{interval: 10s, strategy: Cache, maxStale: 1h}"),
    ] {
        node.class(class, &format!("{spec}{refresh}")).await;
    }
    let of_class = |class: &str, name: &str, account: &str| {
        let mut volume = volume_of(name, account);
        let class = ("secretProviderClass".into(), class.into());
        volume.attributes.extend([class]);
        volume
    };
    let often = |name: &str, account: &str| of_class("often", name, account);
    let volumes: Vec<_> = (0..pods)
        .map(|n| often(&format!("p{n}"), &format!("account-{n}")))
        .collect();
    for volume in &volumes {
        node.kubelet.publish(volume).await.unwrap();
    }
    let generations = || -> Vec<OsString> {
        let data = |volume| fs::read_link(node.kubelet.target(volume).join("..data"));
        let data = volumes.iter().map(|volume| data(volume).unwrap());
        data.map(PathBuf::into_os_string).collect()
    };
    let before = generations();

    for object in ["a", "b"] {
        let down = Answer::Error(ErrorKind::Unavailable, "connection refused".into());
        node.store.set(object, down);
    }
    let (down_since, asked) = (Instant::now(), node.store.fetches());
    let last = format!("account-{}", pods - 1);
    let soon = often("soon", &last);
    node.kubelet
        .publish(&soon)
        .await
        .expect("the answer is still good");
    assert_eq!(node.read(&soon, "a"), "one");
    node.kubelet.unpublish(&soon).await.unwrap();
    while down_since.elapsed() < outage {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for volume in &volumes {
            node.kubelet.publish(volume).await.unwrap();
        }
        assert_eq!(generations(), before);
    }
    for volume in &volumes {
        assert_eq!(
            (node.read(volume, "a"), node.read(volume, "b")),
            ("one".into(), "two".into())
        );
    }
    let asked = node.store.fetches() - asked;
    let seconds = down_since.elapsed().as_secs_f64();
    assert!(asked >= pods, "the store was asked meanwhile");
    assert!(
        asked as f64 <= 100.0 + 50.0 * seconds,
        "{asked} in {seconds} s: above the cap"
    );
    // A further pod of an identity whose answer has grown old, and one that was never there.
    for new in [often("new", "account-0"), often("newer", "account-new")] {
        let status = node.kubelet.publish(&new).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("connection refused"), "{status}");
    }
    assert_eq!(mounts().len(), pods);
    let patient = of_class("patient", "patient", "account-0");
    node.kubelet
        .publish(&patient)
        .await
        .expect("its class takes an older answer");
    assert_eq!(node.read(&patient, "a"), "one");

    node.store.set_value("a", "one more");
    node.store.set_value("b", "two more");
    let back_since = Instant::now();
    let fresh = |volume: &PodVolume| {
        node.read(volume, "a") == "one more" && node.read(volume, "b") == "two more"
    };
    // An interval and ten seconds are promised; the rest is for machines that are busy.
    while !volumes.iter().all(fresh) {
        let waited = back_since.elapsed();
        assert!(waited < INTERVAL + Duration::from_secs(40), "{waited:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "{pods} volumes, {outage:?} away: asked for {asked} objects meanwhile, all fresh after {:?}",
        back_since.elapsed()
    );
    node.kubelet
        .publish(&often("new", "account-0"))
        .await
        .unwrap();
}
