//! Target paths.

use std::path::{Component, Path};

use coffer::volume::TargetRules;

use crate::mutation::{damaged_text, shows_all, try_cases};

const WORDS: &[&str] = &[
    "/",
    "//",
    "..",
    "/../",
    "/./",
    ".",
    "\0",
    "\n",
    "\u{1b}[31m",
    "\u{202e}",
    "*",
    "$(reboot)",
    "~",
    " ",
    "/mount",
    "mount",
    "kubernetes.io~csi",
    "/volumes/",
    "/var/lib/kubelet/pods",
    "/conformance",
    "ü",
];

fn rules() -> TargetRules {
    TargetRules {
        pods: "/var/lib/kubelet/pods".into(),
        conformance_root: Some("/conformance/root".into()),
    }
}

#[test]
fn rule_t1_a_target_that_is_taken_means_itself_and_lies_where_it_says() {
    let rules = rules();
    try_cases(20_000, &damaged_text("targets", WORDS), |path| {
        let target = match rules.parse(&path) {
            Ok(target) => target,
            Err(error) => return assert!(shows_all(&error.to_string()), "{error:?}"),
        };
        assert_eq!(target.to_string(), path);
        assert!(shows_all(&path), "{path:?}");
        let normal = |component| matches!(component, Component::RootDir | Component::Normal(_));
        assert!(Path::new(&path).components().all(normal), "{path:?}");
        let names: Vec<_> = path.split('/').skip(1).collect();
        assert_eq!(
            names.len() + 1,
            Path::new(&path).components().count(),
            "{path:?}"
        );
        match target.pod_uid() {
            Some(uid) => assert_eq!(
                names,
                [
                    "var",
                    "lib",
                    "kubelet",
                    "pods",
                    uid,
                    "volumes",
                    "kubernetes.io~csi",
                    names[7],
                    "mount"
                ],
            ),
            None => assert!(path.starts_with("/conformance/root/"), "{path:?}"),
        }
    });
}

#[test]
fn rule_t1_every_seed_is_what_its_name_says() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/targets");
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let taken = rules().parse(text.trim_end_matches('\n')).is_ok();
        assert_eq!(taken, name.starts_with("good"), "{name}");
    }
}
