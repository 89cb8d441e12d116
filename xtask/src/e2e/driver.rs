//! The driver, installed as an administrator would: its image on the node, its chart by helm.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::SOON;
use super::volume::Volume;
use crate::cluster::{BUSYBOX, Cluster, Namespace, REGISTRAR};
use crate::{image, workspace};

/// The other tag of the image, for upgrades.
const NEXT: &str = "next";

/// Where the stores of the stories are on the node: the chart's default.
const FILES: &str = "/var/lib/coffer";

/// Where it is installed.
const NAMESPACE: &str = "kube-system";
const RELEASE: &str = "csi-secrets-store";
const APP: &str = "secrets-store-csi-driver";
const DAEMONSET: &str = "daemonset/csi-secrets-store-secrets-store-csi-driver";

/// For whom volumes may get tokens.
pub(super) const AUDIENCES: [&str; 2] = ["vault", "sts.amazonaws.com"];

/// Where OpenBao is, for the story that has one: loopback and plain http are allowed by that.
pub(super) const VAULT: &str = "http://127.0.53.1:8200";

/// Where the driver serves its metrics is told by this variable.
const METRICS: &str = "COFFER_METRICS_ADDR";

/// The kubelet waits longer after each end of a container: 10 seconds after the second.
const RESTART: Duration = Duration::from_secs(120);

/// The installed driver.
pub(super) struct Driver<'a> {
    cluster: &'a Cluster,
}

impl<'a> Driver<'a> {
    /// Installs the chart with the image of an archive, and waits until pods can have volumes.
    pub(super) fn install(cluster: &'a Cluster, image: &Path) -> Result<Self> {
        cluster.import_image(image)?;
        let driver = Self { cluster };
        driver.share_network()?;
        driver.helm(&["install"])?;
        driver.wait_until_ready()?;
        Ok(driver)
    }

    /// Has helm bring the chart with the values of the stories.
    fn helm(&self, command: &[&str]) -> Result<()> {
        let (registrar, registrar_tag) = REGISTRAR.rsplit_once(':').unwrap_or_default();
        let mut values = vec![
            format!("linux.registrarImage.repository={registrar}"),
            format!(
                "linux.kubeletRootDir={}",
                self.cluster.kubelet_root().display()
            ),
            "providers.file.enabled=true".to_owned(),
            "linux.env[0].name=COFFER_VAULT_ADDR".to_owned(),
            format!("linux.env[0].value={VAULT}"),
            // The node shares /etc with the machine, where nothing is to be left.
            "linux.additionalProvidersDirs=null".to_owned(),
            "syncSecret.enabled=true".to_owned(),
            // Everything that it could ever say: stories look for secrets in it.
            "logLevel=trace".to_owned(),
        ];
        for (at, audience) in AUDIENCES.iter().enumerate() {
            values.push(format!("tokenRequests[{at}].audience={audience}"));
        }
        let chart = workspace().join("charts/coffer").display().to_string();
        let tag = format!("linux.registrarImage.tag={registrar_tag}");
        let place = [RELEASE, &chart, "--namespace", NAMESPACE];
        let mut arguments = [command, &place, &["--set-string", &tag]].concat();
        for value in &values {
            arguments.extend(["--set", value]);
        }
        self.cluster.helm(&arguments)?;
        Ok(())
    }

    /// Takes the release and its CRDs away, and puts one of secrets-store-csi-driver in their place, whose driver does
    /// nothing.
    pub(super) fn replace_by_the_incumbent(&self) -> Result<()> {
        self.cluster
            .helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"])?;
        for kind in ["secretproviderclasses", "secretproviderclasspodstatuses"] {
            self.kubectl(&[
                "delete",
                "crd",
                &format!("{kind}.secrets-store.csi.x-k8s.io"),
            ])?;
        }
        let chart = workspace()
            .join("tests/e2e/incumbent")
            .display()
            .to_string();
        let place = [RELEASE, &chart, "--namespace", NAMESPACE];
        self.cluster.helm(
            &[
                &["install"],
                &place[..],
                &["--set", "rotationPollInterval=30s"],
            ]
            .concat(),
        )?;
        self.kubectl(&["rollout", "status", DAEMONSET, "--timeout=120s"])?;
        Ok(())
    }

    /// Has helm make the release of secrets-store-csi-driver one of Coffer, as the page about it says.
    pub(super) fn upgrade_the_incumbent(&self) -> Result<()> {
        self.helm(&["upgrade", "--take-ownership", "--reset-then-reuse-values"])?;
        self.wait_until_ready()
    }

    /// No pod of this cluster has a network of its own, and the driver has to reach the API server: its pods get the
    /// machine's, where they serve on the cluster's own address alone. The chart knows nothing of that, so what
    /// helm installs is what everybody gets.
    fn share_network(&self) -> Result<()> {
        let metrics = self.cluster.metrics_address();
        let policy = format!(
            r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: shared-network}}
spec:
  matchConstraints:
    resourceRules:
    - {{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}}
  matchConditions:
  - {{name: driver, expression: 'object.metadata.?labels["app"].orValue("") == "{APP}"'}}
  failurePolicy: Fail
  reinvocationPolicy: Never
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: |
        [JSONPatch{{op: "add", path: "/spec/hostNetwork", value: true}}] +
        object.spec.containers[0].?env.orValue([]).map(variable, variable.name).filter(name, name == "{METRICS}").map(name,
          JSONPatch{{op: "replace", value: "{metrics}", path: "/spec/containers/0/env/" +
            string(object.spec.containers[0].env.map(variable, variable.name).indexOf(name)) + "/value"}})
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: shared-network}}
spec: {{policyName: shared-network}}
"#
        );
        self.cluster.apply(&policy)?;
        let trial = format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: trial, namespace: default, labels: {{app: {APP}}}}}
spec:
  containers:
  - name: trial
    image: {BUSYBOX}
    env: [{{name: TZ, value: UTC}}, {{name: {METRICS}, value: ":8095"}}]
"#
        );
        self.cluster
            .wait_until("the API server follows the policy", SOON, || {
                let made = self.cluster.dry_run(&trial)?;
                Ok(made.contains("hostNetwork: true") && made.contains(&metrics))
            })
    }

    /// Builds the driver's image, known by the chart's tag and by the one to upgrade to.
    pub(super) fn build_image() -> Result<PathBuf> {
        let (archive, _) = image::build("dev", &[NEXT])?;
        Ok(archive)
    }

    /// Has helm take the driver to the image's other tag.
    pub(super) fn upgrade(&self) -> Result<()> {
        let chart = workspace().join("charts/coffer").display().to_string();
        let tag = format!("linux.image.tag={NEXT}");
        self.cluster.helm(&[
            "upgrade",
            RELEASE,
            &chart,
            "--namespace",
            NAMESPACE,
            "--reuse-values",
            "--set",
            &tag,
        ])?;
        self.wait_until_ready()
    }

    /// Has helm change one value of the release.
    pub(super) fn set(&self, value: &str) -> Result<()> {
        let before = self.process()?;
        self.helm(&["upgrade", "--reset-then-reuse-values", "--set", value])?;
        self.wait_until_restarted(&before)
    }

    /// Has helm take the driver back to where it was before the upgrade.
    pub(super) fn roll_back(&self) -> Result<()> {
        self.cluster
            .helm(&["rollback", RELEASE, "--namespace", NAMESPACE])?;
        self.wait_until_ready()
    }

    /// Waits until the newest driver is ready, and the kubelet knows it.
    pub(super) fn wait_until_ready(&self) -> Result<()> {
        self.kubectl(&["rollout", "status", DAEMONSET, "--timeout=120s"])?;
        let drivers = [
            "get",
            "csinode",
            &self.cluster.node_name(),
            "-o=jsonpath={.spec.drivers[*].name}",
        ];
        self.cluster
            .wait_until("the kubelet knows the driver", SOON, || {
                Ok(self.cluster.kubectl(&drivers)? == "secrets-store.csi.k8s.io")
            })
    }

    pub(super) fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Makes a namespace with an empty store.
    pub(super) fn namespace(&self, name: &str) -> Result<Namespace<'a>> {
        self.cluster
            .on_node(&["mkdir", "-p", &format!("{FILES}/{name}")])?;
        self.cluster.namespace(name)
    }

    /// Puts a secret into the store of a namespace, as whoever keeps secrets in files should: by a rename.
    pub(super) fn store(&self, namespace: &Namespace<'_>, secret: &str, value: &str) -> Result<()> {
        let folder = format!("{FILES}/{}", namespace.name());
        let script = r#"printf %s "$3" > "$1/.new" && mv "$1/.new" "$1/$2""#;
        self.cluster
            .on_node(&["sh", "-c", script, "sh", &folder, secret, value])?;
        Ok(())
    }

    /// A volume of a pod, as the node sees it.
    pub(super) fn volume(
        &self,
        namespace: &Namespace<'_>,
        pod: &str,
        name: &str,
    ) -> Result<Volume<'a>> {
        Volume::of(self.cluster, &pod_uid(namespace, pod)?, name)
    }

    /// Waits until the pod reads this value.
    pub(super) fn wait_for_value(
        &self,
        namespace: &Namespace<'_>,
        pod: &str,
        file: &str,
        value: &str,
    ) -> Result<()> {
        let what = format!("{pod} reads {value:?} from {file}");
        self.cluster.wait_until(&what, SOON, || {
            Ok(namespace.exec(pod, &["cat", file])? == value)
        })
    }

    /// The name of the driver's pod.
    pub(super) fn pod(&self) -> Result<String> {
        let names = self.kubectl(&[
            "get",
            "pods",
            &format!("--selector=app={APP}"),
            "-o=jsonpath={.items[*].metadata.name}",
        ])?;
        ensure!(
            !names.is_empty() && !names.contains(' '),
            "the driver's pods are {names:?}"
        );
        Ok(names)
    }

    /// One field of the status of the driver's container.
    pub(super) fn container_status(&self, field: &str) -> Result<String> {
        let path = format!(
            r#"-o=jsonpath={{.status.containerStatuses[?(@.name=="secrets-store")].{field}}}"#
        );
        self.kubectl(&["get", "pod", &self.pod()?, &path])
    }

    /// What the driver has logged since its container started.
    pub(super) fn log(&self) -> Result<String> {
        self.kubectl(&["logs", &self.pod()?, "--container=secrets-store"])
    }

    /// What a scrape of the driver gives.
    pub(super) fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.cluster.metrics_address())?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Waits until the driver has logged a line with all of these words.
    pub(super) fn wait_for_log(&self, words: &[&str]) -> Result<()> {
        self.wait_for_lines(words, 1)
    }

    /// Waits until the driver logs such a line once more.
    pub(super) fn wait_for_more_log(&self, words: &[&str]) -> Result<()> {
        let already = self.lines(words)?;
        self.wait_for_lines(words, already + 1)
    }

    fn wait_for_lines(&self, words: &[&str], lines: usize) -> Result<()> {
        let what = format!("the driver has logged {words:?} {lines} times");
        self.cluster
            .wait_until(&what, SOON, || Ok(self.lines(words)? >= lines))
    }

    fn lines(&self, words: &[&str]) -> Result<usize> {
        let log = self.log()?;
        let lines = log.lines();
        Ok(lines
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count())
    }

    /// The driver's process, by its number on the node.
    pub(super) fn process(&self) -> Result<String> {
        self.process_called("coffer")
    }

    /// The one process of that name, by its number on the node.
    pub(super) fn process_called(&self, name: &str) -> Result<String> {
        // The kernel keeps 15 bytes of a name.
        let script = r#"cd /proc && grep -lx -- "$1" [0-9]*/comm 2>/dev/null | cut -d/ -f1"#;
        let short = &name[..name.len().min(15)];
        let found = self
            .cluster
            .on_node(&["sh", "-c", script, "sh", short])
            .map(|found| found.trim().to_owned())?;
        ensure!(
            !found.is_empty() && !found.contains('\n'),
            "the processes called {name} are {found:?}"
        );
        Ok(found)
    }

    /// Sends a signal to the driver's process.
    pub(super) fn signal(&self, signal: &str) -> Result<()> {
        let kill = format!("kill -{signal} {}", self.process()?);
        self.cluster.on_node(&["sh", "-c", &kill])?;
        Ok(())
    }

    /// Waits until another process than this one serves as the driver, and the kubelet knows it.
    pub(super) fn wait_until_restarted(&self, before: &str) -> Result<()> {
        self.cluster
            .wait_until("the driver has started again", RESTART, || {
                Ok(self.process()? != before && self.container_status("ready")? == "true")
            })?;
        self.wait_until_ready()
    }

    /// Runs kubectl where the driver is installed.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["--namespace", NAMESPACE], arguments].concat())
    }
}

/// What the kubelet has told of failed mounts of the pod's volume `secrets`, each with how often. Of other volumes it
/// tells, too: that of its token has to wait for the namespace's ConfigMap, for one.
pub(super) fn failed_mounts(namespace: &Namespace<'_>, pod: &str) -> Result<String> {
    let of_pod = format!("--field-selector=involvedObject.name={pod},reason=FailedMount");
    let told = r#"-o=jsonpath={range .items[*]}{.count} {.message}{"\n"}{end}"#;
    let told = namespace.kubectl(&["get", "events", &of_pod, told])?;
    let of_ours = told
        .lines()
        .filter(|line| line.contains(r#"volume "secrets""#));
    Ok(of_ours.collect::<Vec<_>>().join("\n"))
}

fn pod_uid(namespace: &Namespace<'_>, pod: &str) -> Result<String> {
    namespace.kubectl(&["get", "pod", pod, "-o=jsonpath={.metadata.uid}"])
}
