//! csi-sanity, the suite that Kubernetes has for CSI drivers, against the driver's own binary.

#![expect(
    clippy::disallowed_methods,
    reason = "a variable tells where csi-sanity is"
)]

mod driver;
mod shim;

use std::ffi::OsString;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use driver::{ATTRIBUTES, Driver};
use shim::Shim;

/// Every spec for a node service without staging and expansion, and for the identity services of driver and shim.
const SPECS: usize = 15;

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn csi_sanity_passes_in_any_order() {
    let folder = enter_mount_namespace();
    let driver = Driver::start(folder.path(), Some(&folder.path().join("sanity")));
    let suite = Suite::new(folder.path(), driver.socket());
    for seed in [(); 3].map(|()| random_seed()) {
        let run = suite.run(seed);
        let all = Summary {
            passed: SPECS,
            failed: 0,
        };
        assert_eq!(run.summary, all, "{}\n{}", run.output, driver.log());
        assert_eq!(
            mounts_below(folder.path()),
            Vec::<String>::new(),
            "seed {seed}"
        );
    }
    driver.stop();
}

/// Otherwise the test above might pass because nothing is ever published.
#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn csi_sanity_fails_where_no_target_path_is_taken() {
    let folder = enter_mount_namespace();
    let driver = Driver::start(folder.path(), None);
    let run = Suite::new(folder.path(), driver.socket()).run(random_seed());
    let two_specs_publish = Summary {
        passed: SPECS - 2,
        failed: 2,
    };
    assert_eq!(run.summary, two_specs_publish, "{}", run.output);
}

/// csi-sanity, its settings, and the shim beside the driver.
struct Suite {
    program: OsString,
    folder: PathBuf,
    driver: PathBuf,
    _shim: Shim,
}

struct Run {
    summary: Summary,
    output: String,
}

/// What the suite says about itself at its end.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    passed: usize,
    failed: usize,
}

impl Suite {
    fn new(folder: &Path, driver: &Path) -> Self {
        let folder = folder.join("sanity");
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("parameters.yaml"), ATTRIBUTES).expect("the parameters");
        Self {
            program: std::env::var_os("COFFER_CSI_SANITY")
                .expect("`cargo xtask test` builds csi-sanity and names it in COFFER_CSI_SANITY"),
            _shim: Shim::serve(&folder.join("shim.sock")),
            folder,
            driver: driver.to_owned(),
        }
    }

    fn run(&self, seed: u32) -> Run {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let output = Command::new(&self.program)
            .arg(format!("--csi.endpoint=unix://{}", self.driver.display()))
            .arg(format!(
                "--csi.controllerendpoint=unix://{}",
                file("shim.sock")
            ))
            .arg(format!("--csi.mountdir={}", file("mount")))
            .arg(format!("--csi.stagingdir={}", file("staging")))
            .arg(format!(
                "--csi.testvolumeparameters={}",
                file("parameters.yaml")
            ))
            // Coffer has neither service.
            .arg("--ginkgo.skip=Controller Server|GroupController")
            .args(["--ginkgo.randomize-all", "--ginkgo.no-color", "--ginkgo.v"])
            .arg(format!("--ginkgo.seed={seed}"))
            // Its `utils.Connect` waits for a connection to become ready, and for a minute in vain if it is
            // so already. On one thread nothing connects before it has begun to wait.
            .env("GOMAXPROCS", "1")
            .output()
            .expect("csi-sanity");
        let output = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        Run {
            summary: Summary::read(&output),
            output,
        }
    }
}

impl Summary {
    /// `SUCCESS! -- 15 Passed | 0 Failed | 0 Pending | 81 Skipped`
    fn read(output: &str) -> Self {
        let before = |word: &str| {
            let (text, _) = output.rsplit_once(word)?;
            text.rsplit(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        };
        let number =
            |word| before(word).unwrap_or_else(|| panic!("no number before {word:?} in\n{output}"));
        Self {
            passed: number(" Passed |"),
            failed: number(" Failed |"),
        }
    }
}

/// A folder, and a mount namespace for this thread and all that it starts: what is left in it goes with it.
fn enter_mount_namespace() -> TempDir {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("a private one");
    tempfile::tempdir().expect("a folder")
}

fn mounts_below(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("a path that is text");
    // Of this thread: the others of this process are in another mount namespace.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("the mounts");
    let below = mounts.lines().filter(|mount| mount.contains(folder));
    below.map(str::to_owned).collect()
}

fn random_seed() -> u32 {
    // The only random number that the standard library gives away.
    RandomState::new().hash_one(()) as u32
}
