//! Readers in pods, while the contents change as fast as they may: every look sees one version, whole.
//!
//! A volume can be switched once a second, so one volume would see few looks fall on a switch. Here
//! there are as many volumes as keep one rotation running all the time, and all readers look at the
//! volume that is being switched just now.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use coffer::payload::Payload;
use coffer::volume::{Outcome, TargetPath};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::harness::{GRACE, Node, payload, record};

/// A second's worth of rotations; more than that only makes the readers wait for their turn.
const VOLUMES: usize = 400;
const LOOKS: u64 = 500_000;

/// The files of every version, and about how long they are.
const FILES: [(&str, usize); 4] = [
    ("token", 60),
    ("db/password", 1_000),
    ("db/tls/key", 5_000),
    ("bundle", 20_000),
];

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w1_half_a_million_looks_through_one_folder_see_one_whole_version_each() {
    looks_during_rotations(Watched::read_pinned);
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w2_half_a_million_looks_by_path_see_no_gap_no_mixture_and_no_way_back() {
    looks_during_rotations(Watched::read_one_by_path);
}

fn looks_during_rotations(read: fn(&Watched, &mut Reader) -> Result<u64, Errno>) {
    let node = Node::new();
    let mut stage = Stage::default();
    for number in 0..VOLUMES {
        let target = node.mounted(&format!("pod-{number}"), &version(0));
        stage.volumes.push(Watched::new(target));
    }
    let stage = &stage;
    let started = Instant::now();
    let swaps = thread::scope(|scope| {
        let rotator = scope.spawn(|| rotate_until_looked(&node, stage));
        let looked = scope.spawn(|| look(stage, read)).join();
        stage.looked.store(true, SeqCst);
        let swaps = rotator.join();
        println!("  {looked:?} in {:?}", started.elapsed());
        assert_eq!(looked.unwrap().whole, LOOKS);
        swaps.unwrap()
    });
    println!("  {LOOKS} looks during {swaps} swaps");
    assert!(
        swaps > VOLUMES,
        "each volume was switched more than once: {swaps}"
    );
}

/// What the rotator and the readers share.
#[derive(Default)]
struct Stage {
    volumes: Vec<Watched>,
    /// The volume that is being switched.
    current: AtomicUsize,
    /// The readers have seen enough.
    looked: AtomicBool,
}

struct Watched {
    target: TargetPath,
    data: CString,
    files: [CString; FILES.len()],
    /// The version that is there for certain, and the one that may be.
    settled: AtomicU64,
    begun: AtomicU64,
}

fn rotate_until_looked(node: &Node, stage: &Stage) -> usize {
    let mut swaps = 0;
    for number in 1.. {
        let next = version(number);
        for (current, volume) in stage.volumes.iter().enumerate() {
            stage.current.store(current, SeqCst);
            volume.begun.store(number, SeqCst);
            loop {
                if stage.looked.load(SeqCst) {
                    return swaps;
                }
                match node
                    .volumes
                    .rotate(&volume.target, &next, &record("next"))
                    .unwrap()
                {
                    Outcome::Rotated => break,
                    // There is no faster way: readers have their second.
                    Outcome::TooSoon(wait) => thread::sleep(wait),
                    other => panic!("{other:?}"),
                }
            }
            volume.settled.store(number, SeqCst);
            // As eager as anyone could be: what the readers are still in has to stay.
            node.volumes.sweep(&volume.target).unwrap();
            swaps += 1;
        }
    }
    swaps
}

#[derive(Debug, Default)]
struct Looked {
    whole: u64,
    /// Looks during which a switch was under way.
    crossed: u64,
    /// Looks that took longer than a replaced generation stays, on a machine that was busy with
    /// something else: nothing is promised to them, and they do not count.
    slow: u64,
}

fn look(stage: &Stage, read: fn(&Watched, &mut Reader) -> Result<u64, Errno>) -> Looked {
    let mut looked = Looked::default();
    let mut seen = vec![0; stage.volumes.len()];
    let mut reader = Reader::default();
    while looked.whole < LOOKS {
        let current = stage.current.load(SeqCst);
        let volume = &stage.volumes[current];
        let settled = volume.settled.load(SeqCst);
        let started = Instant::now();
        let found = read(volume, &mut reader);
        if started.elapsed() >= GRACE {
            looked.slow += 1;
            continue;
        }
        let found = found.unwrap_or_else(|errno| panic!("{}: {errno}", volume.target));
        let begun = volume.begun.load(SeqCst);
        assert!(
            settled <= found && found <= begun,
            "{found} is not in {settled}..={begun}"
        );
        assert!(seen[current] <= found, "{found} after {}", seen[current]);
        seen[current] = found;
        looked.whole += 1;
        looked.crossed += u64::from(settled != begun);
    }
    looked
}

impl Watched {
    fn new(target: TargetPath) -> Self {
        let below = |name: &str| CString::new(format!("{target}/{name}")).unwrap();
        Self {
            data: below("..data"),
            files: FILES.map(|(name, _)| below(name)),
            target,
            settled: AtomicU64::new(0),
            begun: AtomicU64::new(0),
        }
    }

    /// W1: opens `..data` once and reads every file relative to it.
    fn read_pinned(&self, reader: &mut Reader) -> Result<u64, Errno> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data = rustix::fs::open(self.data.as_c_str(), folder, Mode::empty())?;
        let mut versions = [0; FILES.len()];
        for (file, (name, _)) in FILES.iter().enumerate() {
            let opened = rustix::fs::openat(&data, *name, READ, Mode::empty())?;
            versions[file] = reader.read(&opened, file)?;
        }
        assert_eq!(
            versions,
            [versions[0]; FILES.len()],
            "two versions in one look"
        );
        Ok(versions[0])
    }

    /// W2: opens one file by its path, another one each time.
    fn read_one_by_path(&self, reader: &mut Reader) -> Result<u64, Errno> {
        let file = reader.next;
        reader.next = (file + 1) % FILES.len();
        let opened = rustix::fs::openat(CWD, self.files[file].as_c_str(), READ, Mode::empty())?;
        reader.read(&opened, file)
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

struct Reader {
    buffer: Vec<u8>,
    next: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            buffer: vec![0; 64 << 10],
            next: 0,
        }
    }
}

impl Reader {
    /// Reads a file to its end; gives the version that it says it is of, after checking that it is that
    /// file of that version and nothing else.
    fn read(&mut self, opened: &OwnedFd, file: usize) -> Result<u64, Errno> {
        let mut length = 0;
        loop {
            match rustix::io::read(opened, &mut self.buffer[length..])? {
                0 => break,
                read => length += read,
            }
        }
        let version = self.buffer[..8].try_into().map(u64::from_le_bytes).unwrap();
        assert_eq!(
            length,
            length_of(version, file),
            "file {file} of version {version}"
        );
        assert!(
            self.buffer[8..length] == *body(version, file),
            "file {file} of {version} is mixed"
        );
        Ok(version)
    }
}

/// The files of a version: each says which version it is of, and its bytes tell it from every other
/// file and version.
fn version(number: u64) -> Payload {
    payload(
        FILES
            .iter()
            .enumerate()
            .map(|(file, (name, _))| (*name, [&number.to_le_bytes(), body(number, file)].concat())),
    )
}

fn length_of(version: u64, file: usize) -> usize {
    FILES[file].1 + (version as usize * 37) % 50
}

fn body(version: u64, file: usize) -> &'static [u8] {
    let start = (version as usize * FILES.len() + file) * 13 % 40_000;
    &NOISE[start..start + length_of(version, file) - 8]
}

/// No part of it is like another.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(64 << 10).collect()
});
