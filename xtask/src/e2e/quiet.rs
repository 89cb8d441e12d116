//! Secrets that do not change cost the API server nothing, however many volumes have them.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::source;
use crate::cluster::{BUSYBOX, Cluster};

/// A hundred volumes together.
const PODS: usize = 4;
const VOLUMES: usize = 25;

/// How long the API server may take to finish with the namespaces of earlier stories.
const ALONE: Duration = Duration::from_secs(180);

const MEANWHILE: Duration = Duration::from_secs(120);

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let cluster = driver.cluster();
    let namespace = driver.namespace("quiet")?;
    driver.store(&namespace, "password", "first")?;
    // Looked at some twelve times in the two minutes.
    namespace.apply(
        r"
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: shop}
spec: {provider: file, refresh: {strategy: Cache, interval: 10s}}
",
    )?;
    for pod in 0..PODS {
        namespace.apply(&manifest(pod))?;
    }
    for pod in 0..PODS {
        namespace.wait_for_pod(&format!("web-{pod}"), SOON)?;
    }
    // And what earlier stories had, which the API server deletes in its own time, is gone.
    cluster.wait_until("each volume has its status, and alone", ALONE, || {
        let ending = r#"-o=jsonpath={.items[?(@.status.phase=="Terminating")].metadata.name}"#;
        let ending = cluster.kubectl(&["get", "namespaces", ending])?;
        let own = namespace.kubectl(&["get", "spcps", "--output=name"])?;
        let all = cluster.kubectl(&["get", "spcps", "--all-namespaces", "--output=name"])?;
        let counts = [own, all].map(|names| names.lines().count());
        Ok(ending.is_empty() && counts == [PODS * VOLUMES; 2])
    })?;

    let (writes, events) = (writes(cluster)?, our_events(cluster)?);
    ensure!(
        writes as usize >= PODS * VOLUMES,
        "the writes are counted: {writes}"
    );
    let republished = republishes(driver)?;
    thread::sleep(MEANWHILE);
    let republished = republishes(driver)? - republished;
    // Every 5 to 7.5 seconds; on a machine that is busy half of that is proof enough.
    let expected = PODS * VOLUMES * 8;
    ensure!(
        republished as usize > expected,
        "the kubelet republished {republished} times, and not {expected}"
    );
    let after = (self::writes(cluster)?, our_events(cluster)?);
    ensure!(
        after == (writes, events),
        "writes and events were {writes} and {events} and are {after:?}"
    );
    for pod in 0..PODS {
        namespace.delete_pod(&format!("web-{pod}"))?;
    }
    Ok(())
}

/// Requests to write a status object, by the API server's own count. Nobody but the driver writes them.
fn writes(cluster: &Cluster) -> Result<u64> {
    let scrape = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let writes = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && line.contains(r#"resource="secretproviderclasspodstatuses""#)
            && ["POST", "PUT", "PATCH", "APPLY", "DELETE"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    sum(scrape.lines().filter(writes))
}

/// Events of the driver, on whatever.
fn our_events(cluster: &Cluster) -> Result<usize> {
    let ours = "--field-selector=reportingComponent=secrets-store.csi.k8s.io";
    let names = cluster.kubectl(&["get", "events", "--all-namespaces", ours, "--output=name"])?;
    Ok(names.lines().count())
}

/// Publishes that found their volume complete, by the driver's own count.
fn republishes(driver: &Driver<'_>) -> Result<u64> {
    let scrape = driver.metrics()?;
    let unchanged = |line: &&str| {
        line.starts_with("node_publish_total{") && line.contains(r#"outcome="unchanged""#)
    };
    sum(scrape.lines().filter(unchanged))
}

fn sum<'a>(lines: impl Iterator<Item = &'a str>) -> Result<u64> {
    lines
        .map(|line| {
            let value = line.rsplit(' ').next().context("a value")?;
            Ok(value.parse::<f64>()? as u64)
        })
        .sum()
}

fn manifest(pod: usize) -> String {
    let mounts: String = (0..VOLUMES)
        .map(|n| format!("    - {{name: v{n}, mountPath: /v{n}, readOnly: true}}\n"))
        .collect();
    let source = source("shop");
    let volumes: String = (0..VOLUMES)
        .map(|n| format!("  - name: v{n}\n    {source}\n"))
        .collect();
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: web-{pod}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: {BUSYBOX}
    imagePullPolicy: Never
    volumeMounts:
{mounts}  volumes:
{volumes}"
    )
}
