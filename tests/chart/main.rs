//! What is checked in for the chart is what the code says.

#![expect(
    clippy::disallowed_methods,
    reason = "whoever runs the test says whether it writes"
)]

use std::fs;
use std::path::Path;

/// `COFFER_UPDATE=1 cargo test --test chart` writes the file anew.
fn matches_file(path: &str, generated: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("COFFER_UPDATE").is_some() {
        fs::write(&file, generated).expect("a file that can be written");
    }
    let checked_in = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        checked_in == generated,
        "{path} is not what the types say: COFFER_UPDATE=1 cargo test --test chart"
    );
}

#[test]
fn the_crds_are_those_of_the_types() {
    matches_file(
        "charts/coffer/files/crds.yaml",
        &coffer::kube::crd::definitions(),
    );
}
