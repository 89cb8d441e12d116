//! A provider plugin in another language, as a DaemonSet: a pod mounts what it gives, sees it change, and keeps it
//! while the plugin restarts.
//!
//! The plugin is the one of the tests, with the Python of the machine: its pod gets the machine's programs and
//! libraries to read.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::reader;
use crate::cluster::BUSYBOX;
use crate::cluster::command::output;
use crate::test::grpcio;
use crate::workspace;

/// The folders with the plugin's behaviour and with all sockets, on the node.
const CONTROL: &str = "/var/lib/coffer/plugin-control";
const SOCKETS: &str = "/var/run/secrets-store-csi-providers";

const PLUGIN: &str = "daemonset/mock";

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("plugin")?;
    driver.cluster().on_node(&["mkdir", "-p", CONTROL])?;
    let behave = |password: &str, version: &str| {
        let behaviour = format!(
            r#"{{"files": [["password", "{password}", 0]], "versions": [["password", "{version}"]]}}"#
        );
        let script = r#"printf %s "$2" > "$1/.new" && mv "$1/.new" "$1/behaviour.json""#;
        let script = ["sh", "-c", script, "sh", CONTROL, &behaviour];
        driver.cluster().on_node(&script)
    };
    behave("first", "1")?;

    // The pod comes before its plugin, and waits for it.
    namespace.apply(&class())?;
    namespace.apply(&reader("reader", "mock"))?;
    namespace.apply(&daemon_set()?)?;
    let ready = ["rollout", "status", PLUGIN, "--timeout=120s"];
    namespace.kubectl(&ready)?;
    namespace.wait_for_pod("reader", SOON)?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/password"])? == "first");
    let volume = driver.volume(&namespace, "reader", "secrets")?;
    let mount = volume.mount_id()?;

    behave("second", "2")?;
    driver.wait_for_value(&namespace, "reader", "/secrets/password", "second")?;
    ensure!(volume.mount_id()? == mount, "a rotation mounted it anew");
    let calls = || {
        driver
            .cluster()
            .on_node(&["cat", &format!("{CONTROL}/calls.jsonl")])
    };
    ensure!(
        calls()?.contains(r#""current": [["password", "1"]]"#),
        "the plugin was not told what the volume holds"
    );

    // While the plugin is away the pod keeps what it has; the next one on the same socket is asked.
    let delete = [
        "delete",
        "pod",
        "--selector=app=mock",
        "--wait",
        "--timeout=120s",
    ];
    namespace.kubectl(&delete)?;
    ensure!(namespace.exec("reader", &["cat", "/secrets/password"])? == "second");
    behave("third", "3")?;
    namespace.kubectl(&ready)?;
    driver.wait_for_value(&namespace, "reader", "/secrets/password", "third")?;
    ensure!(volume.mount_id()? == mount, "the restart mounted it anew");

    namespace.delete_pod("reader")?;
    volume.wait_until_gone()
}

fn class() -> String {
    r"
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: mock}
spec:
  provider: mock
  parameters: {objects: all}
  refresh: {interval: 10s}
"
    .to_owned()
}

fn daemon_set() -> Result<String> {
    let asked = "import sys; print(sys.executable); print(sys.base_prefix)";
    let python = output(Command::new("python3").args(["-c", asked]))?;
    let mut lines = python.lines();
    let (executable, prefix) = lines.next().zip(lines.next()).context("Python says both")?;
    let modules = grpcio()?;
    let script = workspace().join("providers/plugin/tests");
    let mut folders = vec![
        (SOCKETS, false),
        (CONTROL, false),
        (prefix, true),
        (path(&modules)?, true),
        (path(&script)?, true),
    ];
    // Where the machine's programs and libraries are; the first may hold Python as well.
    let system = ["/usr", "/lib", "/lib64"].into_iter();
    folders.extend(
        system
            .filter(|one| Path::new(one).exists())
            .map(|one| (one, true)),
    );
    folders.sort_unstable();
    folders.dedup();
    let (mut mounts, mut volumes) = (String::new(), String::new());
    for (at, (folder, read_only)) in folders.into_iter().enumerate() {
        mounts += &format!(
            "        - {{name: folder-{at}, mountPath: {folder}, readOnly: {read_only}}}\n"
        );
        volumes += &format!("      - {{name: folder-{at}, hostPath: {{path: {folder}}}}}\n");
    }
    Ok(format!(
        r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: mock}}
spec:
  selector: {{matchLabels: {{app: mock}}}}
  template:
    metadata: {{labels: {{app: mock}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{{operator: Exists}}]
      containers:
      - name: plugin
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [{executable}, {script}/plugin.py, --socket={SOCKETS}/mock.sock, --control={CONTROL}]
        env: [{{name: PYTHONPATH, value: {modules}}}]
        volumeMounts:
{mounts}      volumes:
{volumes}",
        script = script.display(),
        modules = modules.display(),
    ))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
