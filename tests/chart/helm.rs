//! Renders the chart. Whoever runs the tests says where helm is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The oldest Kubernetes that tokens come in the volume context of, among those that are still looked after.
pub(crate) const OLD: &str = "1.34.0";
/// The Kubernetes of the end-to-end tests.
pub(crate) const NEW: &str = "1.36.0";

/// The value sets of `tests/chart/values`.
pub(crate) const SETS: [&str; 6] = [
    "default",
    "tokens",
    "full",
    "beside",
    "upstream",
    "monitored",
];

/// A path of the checkout.
pub(crate) fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A variable of `cargo xtask chart`.
pub(crate) fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: use cargo xtask chart"))
}

/// Runs helm on the chart as the release `csi-secrets-store`, as upstream's documentation calls it.
pub(crate) fn helm(command: &[&str], set: &str, more: &[&str]) -> Result<String, String> {
    let values = checkout(&format!("tests/chart/values/{set}.yaml"));
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(told("COFFER_HELM"))
        // Nothing of the person's own: no plugins, no cluster.
        .env_clear()
        .env("HOME", env!("CARGO_TARGET_TMPDIR"))
        .args(command)
        .arg(checkout("charts/coffer"))
        .args(["--namespace", "kube-system", "--values"])
        .arg(values)
        .args(more)
        .output()
        .expect("helm can be started");
    match status.success() {
        true => Ok(String::from_utf8(stdout).expect("text")),
        false => Err(String::from_utf8_lossy(&stderr).into_owned()),
    }
}

/// The manifests of a value set, with values given on top of it as `name=value`.
pub(crate) fn template(set: &str, kubernetes: &str, given: &[&str]) -> Result<String, String> {
    let mut more = vec!["--kube-version", kubernetes];
    more.extend(given.iter().flat_map(|value| ["--set", value]));
    helm(&["template", "csi-secrets-store"], set, &more)
}

/// The objects of a release.
pub(crate) struct Objects(Vec<Value>);

impl Objects {
    /// As [`template`].
    pub(crate) fn of(set: &str, kubernetes: &str, given: &[&str]) -> Self {
        let manifests = template(set, kubernetes, given).expect("values that the chart takes");
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let objects: Vec<Value> =
            serde_saphyr::from_multiple_with_options(&manifests, options).expect("YAML");
        Self(
            objects
                .into_iter()
                .filter(|object| !object.is_null())
                .collect(),
        )
    }

    /// All of one kind.
    pub(crate) fn all(&self, kind: &str) -> Vec<&Value> {
        self.0
            .iter()
            .filter(|object| object["kind"] == kind)
            .collect()
    }

    /// Every kind that there is.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        let kinds = self.0.iter().map(|object| text(&object["kind"]));
        BTreeSet::from_iter(kinds).into_iter().collect()
    }

    /// The only one of a kind.
    pub(crate) fn one(&self, kind: &str) -> &Value {
        let [one] = self.all(kind)[..] else {
            panic!("one {kind}, and not {:?}", self.names(kind));
        };
        one
    }

    /// The names of all of one kind, in order.
    pub(crate) fn names(&self, kind: &str) -> Vec<&str> {
        let mut names: Vec<_> = self
            .all(kind)
            .into_iter()
            .map(|object| text(&object["metadata"]["name"]))
            .collect();
        names.sort_unstable();
        names
    }

    /// What is in the pods of the DaemonSet.
    pub(crate) fn pod(&self) -> &Value {
        &self.one("DaemonSet")["spec"]["template"]["spec"]
    }

    /// A container of theirs.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let all = list(&self.pod()["containers"]);
        all.iter()
            .find(|container| container["name"] == name)
            .expect("a container of that name")
    }

    /// A variable of the driver's container.
    pub(crate) fn driver_env(&self, name: &str) -> Option<&str> {
        variable(self.container("secrets-store"), name)?["value"].as_str()
    }
}

/// A variable of a container, by its name.
pub(crate) fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    let mut env = list(&container["env"]).iter();
    env.find(|variable| variable["name"] == name)
}

/// A string.
pub(crate) fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a string, and not {value}"))
}

/// A list; empty, where there is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
