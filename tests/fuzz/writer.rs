//! Sequences of operations on one volume, against a model of what it has to hold.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use coffer::class::Mode;
use coffer::payload::{Limits, Payload};
use coffer::volume::{LAYOUT, Outcome, Record, State, TargetPath, Volumes};
use coffer::volume_path::VolumePath;
use coffer_provider::SecretBytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::mutation::try_cases;
use crate::node::{KUBELET, mounts_at, own_mounts, rules};

type Files = BTreeMap<&'static str, (Vec<u8>, u32)>;

#[derive(Clone, Debug)]
enum Step {
    Mount(Files),
    Rotate(Files),
    Sweep,
    /// A second goes by.
    Wait,
    /// The next process goes on.
    Restart,
    /// What a process that is killed in a rotation leaves.
    HalfAGeneration,
    HalfASwitch,
    Unmount,
}

/// Few names, so that they are often in each other's way from one set to the next.
const PATHS: &[&str] = &["a", "b", "c/d", "c/e", "c/f/g", "h/i/j/k", ".l", "..m"];
/// The same names as files and as folders.
const OTHERS: &[&str] = &["c", "h/i", "a/b", "b/c/d", ".l/m"];

fn files() -> impl Strategy<Value = Files> {
    let of = |paths: &'static [&'static str]| {
        let content = prop_oneof![
            4 => vec(any::<u8>(), 0..4),
            1 => vec(any::<u8>(), 4090..4100),
            1 => Just(vec![7; 9000]),
        ];
        let file = (content, select(vec![0o644, 0o400, 0o777, 0]));
        btree_map(select(paths), file, 1..5)
    };
    // `..m` is no path, and a set with it is another set without it.
    prop_oneof![2 => of(PATHS), 1 => of(OTHERS)].prop_map(|mut files| {
        files.remove("..m");
        files.entry("z").or_insert((Vec::new(), 0o644));
        files
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => files().prop_map(Step::Mount),
        6 => files().prop_map(Step::Rotate),
        2 => Just(Step::Sweep),
        3 => Just(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::HalfAGeneration),
        1 => Just(Step::HalfASwitch),
        1 => Just(Step::Unmount),
    ]
}

/// What the volume has to be.
#[derive(Default)]
struct Model {
    /// What it holds; `None` where there is no volume.
    files: Option<Files>,
    /// There is something that a sweep has to remove.
    leftovers: bool,
    /// Readers of what was there before had their second.
    rested: bool,
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn rule_w3_rule_w4_any_sequence_of_operations_leaves_what_the_model_says() {
    own_mounts();
    let mut number = 0;
    let number = std::cell::RefCell::new(&mut number);
    try_cases(400, &vec(step(), 1..14), |steps| {
        **number.borrow_mut() += 1;
        let pod = format!("pod-{}", number.borrow());
        let folder = Path::new(KUBELET).join(format!("pods/{pod}/volumes/kubernetes.io~csi/v"));
        fs::create_dir_all(&folder).unwrap();
        let mut volume = Volume::new(folder.join("mount"));
        let mut model = Model::default();
        for step in &steps {
            volume.take(step, &mut model);
            volume.compare(&model, step);
        }
        volume.volumes.unmount(&volume.target).unwrap();
        assert!(!volume.path.exists());
    });
}

struct Volume {
    volumes: Volumes,
    target: TargetPath,
    path: PathBuf,
}

impl Volume {
    fn new(path: PathBuf) -> Self {
        Self {
            volumes: probe(),
            target: rules().parse(path.to_str().unwrap()).unwrap(),
            path,
        }
    }

    fn take(&mut self, step: &Step, model: &mut Model) {
        if model.files.is_some() && model.leftovers && !model.rested {
            // The second that it waits is real time, which a busy machine may have taken already.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now = now.unwrap();
            self.set_switched(now.as_secs() as i64, now.subsec_nanos().into());
        }
        match step {
            Step::Mount(files) => {
                let done = self.volumes.mount(&self.target, &payload(files), &record());
                match &model.files {
                    Some(_) => drop(done.expect_err("a second mount on the first")),
                    None => {
                        assert_eq!(done.unwrap(), Outcome::Mounted);
                        *model = Model {
                            files: Some(files.clone()),
                            ..Model::default()
                        };
                    }
                }
            }
            Step::Rotate(files) => self.rotate(files, model),
            Step::Sweep => {
                let swept = self.volumes.sweep(&self.target);
                match (&model.files, model.leftovers, model.rested) {
                    (None, ..) => drop(swept.expect_err("nothing to sweep")),
                    (_, false, _) => assert_eq!(swept.unwrap(), Outcome::Unchanged),
                    (_, true, false) => assert!(matches!(swept.unwrap(), Outcome::TooSoon(_))),
                    (_, true, true) => {
                        assert_eq!(swept.unwrap(), Outcome::Rotated);
                        model.leftovers = false;
                    }
                }
            }
            Step::Wait => {
                model.rested = true;
                if model.files.is_some() {
                    // To the volume it is the same whether the clock moves on or the switch back.
                    let switched = fs::symlink_metadata(self.path.join("..data")).unwrap();
                    self.set_switched(switched.mtime() - 2, switched.mtime_nsec());
                }
            }
            // In a user namespace the next process would not know the volume.
            Step::Restart if self.volumes.adopts() => self.volumes = probe(),
            Step::Restart => {}
            Step::HalfAGeneration if model.files.is_some() => {
                let half = self.path.join("..2020_01_01_00_00_00.0/c");
                fs::create_dir_all(&half).unwrap();
                fs::write(half.join("half"), "half").unwrap();
                model.leftovers = true;
            }
            Step::HalfASwitch if model.files.is_some() => {
                let _ = symlink("..2020_01_01_00_00_00.0", self.path.join("..data_tmp"));
                model.leftovers = true;
            }
            Step::HalfAGeneration | Step::HalfASwitch => {}
            Step::Unmount => {
                self.volumes.unmount(&self.target).unwrap();
                *model = Model::default();
            }
        }
    }

    fn set_switched(&self, tv_sec: i64, tv_nsec: i64) {
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let link = self.path.join("..data");
        rustix::fs::utimensat(CWD, &link, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn rotate(&self, files: &Files, model: &mut Model) {
        let before = self.switched();
        let done = self
            .volumes
            .rotate(&self.target, &payload(files), &record());
        let Some(present) = &model.files else {
            return drop(done.expect_err("nothing to rotate"));
        };
        if present == files {
            assert_eq!(done.unwrap(), Outcome::Unchanged);
            return assert_eq!(self.switched(), before, "nothing was touched");
        }
        if model.leftovers && !model.rested {
            return assert!(matches!(done.unwrap(), Outcome::TooSoon(_)));
        }
        assert_eq!(done.unwrap(), Outcome::Rotated);
        *model = Model {
            files: Some(files.clone()),
            leftovers: true,
            rested: false,
        };
    }

    fn switched(&self) -> Option<(i64, i64, PathBuf)> {
        let link = self.path.join("..data");
        let found = fs::symlink_metadata(&link).ok()?;
        Some((
            found.mtime(),
            found.mtime_nsec(),
            fs::read_link(link).unwrap(),
        ))
    }

    fn compare(&self, model: &Model, step: &Step) {
        let Some(wanted) = &model.files else {
            assert_eq!(mounts_at(&self.path), 0, "{step:?}");
            return assert_eq!(self.volumes.state(&self.target).unwrap(), State::Absent);
        };
        assert_eq!(mounts_at(&self.path), 1, "{step:?}");
        let state = self.volumes.state(&self.target).unwrap();
        assert!(matches!(state, State::Complete(_)), "{step:?}: {state:?}");
        let found = crate::node::files_in(&self.path);
        let bytes: BTreeMap<_, _> = wanted
            .iter()
            .map(|(path, (bytes, _))| ((*path).to_owned(), bytes.clone()))
            .collect();
        assert_eq!(found, bytes, "{step:?}");
        for (path, (_, mode)) in wanted {
            let metadata = fs::metadata(self.path.join(path)).unwrap();
            assert_eq!(
                metadata.permissions().mode() & 0o7777,
                *mode,
                "{step:?}: {path}"
            );
        }
        let ours = fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let ours = ours
            .filter(|name| name.to_string_lossy().starts_with(".."))
            .count();
        if !model.leftovers {
            assert_eq!(ours, 2, "{step:?}: ..data and what it points to");
        }
    }
}

fn probe() -> Volumes {
    Volumes::probe(rules(), Limits::default()).unwrap()
}

fn payload(files: &Files) -> Payload {
    let files = files.iter().map(|(path, (bytes, mode))| {
        let mode = Mode::try_from(i64::from(*mode)).unwrap();
        (
            VolumePath::new(*path).unwrap(),
            SecretBytes::new(bytes.clone()),
            mode,
        )
    });
    Payload::new(files, None, &Limits::default()).unwrap()
}

fn record() -> Record {
    Record {
        layout: LAYOUT,
        immutable: false,
        class: "class".into(),
        objects: BTreeMap::new(),
    }
}
