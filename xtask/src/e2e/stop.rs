//! SIGTERM ends the driver in time and in order, with 250 volumes mounted and one that waits for its class; the next
//! one is ready at once and finds all of them (R9).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::SOON;
use super::driver::Driver;
use super::manifests::{class, reader, source};
use super::volume::mounts;
use crate::cluster::BUSYBOX;

const PODS: usize = 25;
const VOLUMES: usize = 10;

/// The rule promises ten seconds and one; the rest is for a busy machine.
const ENDS: Duration = Duration::from_secs(25);
const SERVES: Duration = Duration::from_secs(30);

pub(super) fn run(driver: &Driver<'_>) -> Result<()> {
    let cluster = driver.cluster();
    let namespace = driver.namespace("stop")?;
    driver.store(&namespace, "password", "first")?;
    namespace.apply(&class("shop", &["password"]))?;
    namespace.apply(&pods())?;
    namespace.kubectl(&["rollout", "status", "deployment/many", "--timeout=300s"])?;
    let table = || -> Result<Vec<String>> {
        let mounts = mounts(cluster, "self")?.into_iter();
        let mut all: Vec<_> = mounts
            .map(|mount| format!("{} {}", mount.id, mount.at))
            .collect();
        all.sort();
        Ok(all)
    };
    cluster.wait_until("only this story's volumes are there", SOON, || {
        Ok(table()?.len() == PODS * VOLUMES)
    })?;
    // What it is told to stop in the middle of.
    namespace.apply(&reader("waiting", "not-there"))?;
    let waiting = driver.volume(&namespace, "waiting", "secrets")?;
    driver.wait_for_log(&[&waiting.id, "volume asked for"])?;
    let (before, mounted) = (driver.process()?, table()?);

    let told = Instant::now();
    driver.signal("TERM")?;
    cluster.wait_until("the driver has ended", SOON, || {
        Ok(driver.process().map_or(true, |now| now != before))
    })?;
    ensure!(told.elapsed() <= ENDS, "it took {:?}", told.elapsed());
    ensure!(table()? == mounted, "mounts have changed with its end");

    let took = next_serves_after(driver, &before)?;
    ensure!(took <= SERVES, "it served {took:?} after its start");
    driver.wait_until_restarted(&before)?;
    let exit = driver.container_status("lastState.terminated.exitCode")?;
    ensure!(exit == "0", "it ended with {exit}");
    driver.wait_for_log(&["driver started", &format!("volumes={}", PODS * VOLUMES)])?;
    ensure!(table()? == mounted, "mounts have changed with its start");

    driver.store(&namespace, "password", "second")?;
    let all_have_it =
        r#"cat "$0"/pods/*/volumes/kubernetes.io~csi/*/mount/password | grep -o second | wc -l"#;
    let root = cluster.kubelet_root().display().to_string();
    cluster.wait_until("every volume is rotated by the next one", SOON, || {
        let rotated = cluster.on_node(&["sh", "-c", all_have_it, &root])?;
        Ok(rotated.trim() == (PODS * VOLUMES).to_string())
    })?;
    ensure!(table()? == mounted, "mounts have changed with a rotation");

    namespace.kubectl(&["delete", "deployment/many", "pod/waiting", "--wait=false"])?;
    cluster.wait_until("all of them are gone", Duration::from_secs(180), || {
        Ok(table()?.is_empty())
    })
}

/// How long the next driver takes from the moment that its process is there until it serves.
fn next_serves_after(driver: &Driver<'_>, before: &str) -> Result<Duration> {
    let cluster = driver.cluster();
    cluster.wait_until("the next driver has started", SOON, || {
        Ok(driver.process()? != before)
    })?;
    let started = Instant::now();
    cluster.wait_until("it serves", SOON, || {
        Ok(cluster.ask_driver("/readyz")? == "ok\n")
    })?;
    Ok(started.elapsed())
}

fn pods() -> String {
    let mut mounts = String::new();
    let mut volumes = String::new();
    for at in 0..VOLUMES {
        mounts += &format!(
            "        - {{name: secrets-{at}, mountPath: /secrets/{at}, readOnly: true}}\n"
        );
        volumes += &format!("      - name: secrets-{at}\n        {}\n", source("shop"));
    }
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: {PODS}
  progressDeadlineSeconds: 300
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      containers:
      - name: reader
        image: {BUSYBOX}
        imagePullPolicy: Never
        volumeMounts:
{mounts}
      volumes:
{volumes}
"
    )
}
