//! Whole manifests, as they were looked at by somebody. `cargo xtask chart --update` writes them anew.

use std::fs;
use std::process::Command;

use crate::helm::{NEW, OLD, SETS, checkout, helm, template, told};

/// Value sets, and the Kubernetes that they are rendered for.
const GOLDEN: [(&str, &str); 6] = [
    ("default", NEW),
    ("tokens", OLD),
    ("tokens", NEW),
    ("full", NEW),
    ("beside", NEW),
    ("providers", NEW),
];

fn file(set: &str, kubernetes: &str) -> String {
    let minor = kubernetes.trim_end_matches(".0");
    format!("tests/chart/golden/{set}-{minor}.yaml")
}

/// The CRDs have a file of their own, so they are left out of these.
fn rendered(set: &str, kubernetes: &str) -> String {
    template(
        set,
        kubernetes,
        &["crds.install=false", "clusterKey.value=golden"],
    )
    .expect("values that the chart takes")
}

/// `COFFER_UPDATE=1` writes the file anew.
pub(crate) fn matches_file(path: &str, generated: &str) {
    let file = checkout(path);
    if std::env::var_os("COFFER_UPDATE").is_some() {
        fs::write(&file, generated).expect("a file that can be written");
    }
    let checked_in = fs::read_to_string(&file).unwrap_or_default();
    if checked_in != generated {
        let (mut was, mut is) = (checked_in.lines(), generated.lines());
        let line = 1 + was
            .by_ref()
            .zip(is.by_ref())
            .take_while(|(was, is)| was == is)
            .count();
        panic!(
            "{path} is another from line {line} on, which is now {:?}. If that is right: COFFER_UPDATE=1 cargo test --test chart, \
             or cargo xtask chart --update",
            generated.lines().nth(line - 1).unwrap_or_default()
        );
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn manifests_are_those_that_are_checked_in() {
    for (set, kubernetes) in GOLDEN {
        matches_file(&file(set, kubernetes), &rendered(set, kubernetes));
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_crds_come_with_the_chart_unless_they_are_not_wanted() {
    let crds = fs::read_to_string(checkout("charts/coffer/files/crds.yaml")).expect("the CRDs");
    let manifests = template("default", NEW, &[]).expect("good");
    // helm takes them apart and sorts them by name.
    for crd in crds.split("---\n") {
        assert!(manifests.contains(crd.trim()));
    }
    for without in ["crds.install=false", "linux.crds.enabled=false"] {
        let manifests = template("default", NEW, &[without]).expect("good");
        assert!(!manifests.contains("CustomResourceDefinition"), "{without}");
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn helm_finds_nothing_to_complain_about() {
    for set in SETS {
        if let Err(complaint) = helm(&["lint", "--strict"], set, &[]) {
            panic!("{set}: {complaint}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn manifests_have_the_fields_that_kubernetes_has_and_no_others() {
    let crds = checkout("charts/coffer/files/crds.yaml");
    // Of the Kubernetes that they are for, and of the newest that is known.
    for (version, kubernetes) in [("1.34", OLD), ("1.36", NEW), ("1.37", NEW)] {
        let mut validate = Command::new("python3");
        validate
            .env("PYTHONPATH", told("COFFER_KUBERNETES_VALIDATE"))
            .args([
                "-B",
                "-m",
                "kubernetes_validate",
                "--strict",
                "--quiet",
                "-k",
                version,
            ])
            .arg(&crds);
        for (set, _) in GOLDEN.iter().filter(|(_, of)| *of == kubernetes) {
            validate.arg(checkout(&file(set, kubernetes)));
        }
        let output = validate.output().expect("Python can be started");
        let said = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success(),
            "{version}: {}",
            String::from_utf8_lossy(&said)
        );
    }
}
