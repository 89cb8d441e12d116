//! What is checked in for the chart is what the code says, and what helm makes of it is what a node should run.

#![expect(
    clippy::disallowed_methods,
    reason = "whoever runs the test says whether it writes, and where helm is"
)]

#[cfg(feature = "aws")]
mod aws;
mod environment;
mod golden;
mod helm;
mod monitoring;
mod readme;
mod refused;
mod rights;
mod sync;
mod values;

#[test]
fn the_crds_are_those_of_the_types() {
    golden::matches_file(
        "charts/coffer/files/crds.yaml",
        &coffer::kube::crd::definitions(),
    );
}

#[test]
fn the_chart_has_the_version_of_the_driver() {
    let chart =
        std::fs::read_to_string(helm::checkout("charts/coffer/Chart.yaml")).expect("the chart");
    for key in ["version", "appVersion"] {
        let line = format!("\n{key}: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(chart.contains(&line), "Chart.yaml has no line{line}");
    }
}
