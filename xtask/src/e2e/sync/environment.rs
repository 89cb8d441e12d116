//! Pods that take their environment and their pull secrets from Secrets that do not exist before the pod's
//! volume is mounted: each starts at once, and none with a wrong value.

use anyhow::{Context as _, Result, ensure};

use super::super::SOON;
use super::super::driver::Driver;
use super::{class, pod_spec, variable};
use crate::cluster::Namespace;

const PODS: usize = 20;

pub(in super::super) fn run(driver: &Driver<'_>) -> Result<()> {
    let namespace = driver.namespace("sync-environment")?;
    for at in 0..PODS {
        let value = format!("value-{at}");
        driver.store(&namespace, &format!("password-{at}"), &value)?;
        start(driver, &namespace, at)?;
        let pod = format!("reader-{at}");
        namespace.wait_for_pod(&pod, SOON)?;

        let environment = namespace.exec(&pod, &["env"])?;
        for variable in ["ONE", "ALL_user"] {
            let line = format!("{variable}={value}");
            ensure!(
                environment.lines().any(|has| has == line),
                "{pod} has no {line} in its environment:\n{environment}"
            );
        }
        let restarts = "-o=jsonpath={.status.containerStatuses[0].restartCount}";
        ensure!(namespace.kubectl(&["get", "pod", &pod, restarts])? == "0");
        let failed = events(&namespace, &pod, "Failed")?;
        ensure!(failed <= 1, "{pod} was tried {failed} times in vain");
        // The kubelet may know it a moment after the API server.
        let missed = events(&namespace, &pod, "FailedToRetrieveImagePullSecret")?;
        ensure!(
            missed <= 1,
            "{pod} had no pull secret in time, {missed} times"
        );
        namespace.delete_pod(&pod)?;
    }
    Ok(())
}

/// A class of its own for each pod: what an earlier one has left would help it.
fn start(driver: &Driver<'_>, namespace: &Namespace<'_>, at: usize) -> Result<()> {
    let (user, pull) = (format!("user-{at}"), format!("pull-{at}"));
    let object = format!("password-{at}");
    driver.store(namespace, "name", "bob")?;
    let secrets = format!(
        r#"[{{"secretName": "{user}", "type": "Opaque", "data": [{{"objectName": "{object}", "key": "user"}}]}},
    {{"secretName": "{pull}", "type": "kubernetes.io/dockerconfigjson", "registry": "registry.test:5000", "data": [
      {{"objectName": "name", "key": "username"}}, {{"objectName": "{object}", "key": "password"}}]}}]"#
    );
    namespace.apply(&class(&format!("shop-{at}"), &[&object, "name"], &secrets))?;
    let environment = format!(
        r#""env": [{}], "envFrom": [{{"prefix": "ALL_", "secretRef": {{"name": "{user}"}}}}],"#,
        variable("ONE", &user, "user")
    );
    let spec = pod_spec(&format!("shop-{at}"), &environment);
    let spec = spec.replacen(
        '{',
        &format!(r#"{{"imagePullSecrets": [{{"name": "{pull}"}}], "#),
        1,
    );
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: reader-{at}}}\nspec: {spec}\n"
    ))
}

/// How often the kubelet has told this of a pod.
fn events(namespace: &Namespace<'_>, pod: &str, reason: &str) -> Result<usize> {
    let of = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    let counts = namespace.kubectl(&["get", "events", &of, "-o=jsonpath={.items[*].count}"])?;
    counts
        .split_whitespace()
        .map(|count| count.parse::<usize>().with_context(|| counts.clone()))
        .sum()
}
