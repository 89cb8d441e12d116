//! What becomes of values: settings, limits that fit, and the names that tools look for.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::environment::{config, provider};
use crate::helm::{NEW, OLD, Objects, helm, list, text};

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn tokens_are_taken_from_where_this_cluster_puts_them() {
    for (set, kubernetes, given, flag, field) in [
        ("tokens", OLD, "", "context", Value::Null),
        ("tokens", NEW, "", "secrets", json!(true)),
        ("tokens", "1.35.0", "", "secrets", json!(true)),
        ("tokens", "v1.35.2-gke.100", "", "secrets", json!(true)),
        ("tokens", NEW, "context", "context", json!(false)),
        ("tokens", NEW, "secrets", "secrets", json!(true)),
        // The kubelet brings none: whatever is in the volume context is the pod's author's own.
        ("default", OLD, "", "secrets", Value::Null),
        ("default", NEW, "", "secrets", Value::Null),
        ("default", OLD, "context", "secrets", Value::Null),
    ] {
        let release = Objects::of(set, kubernetes, &[&format!("tokenSource={given}")]);
        assert_eq!(
            release.driver_env("COFFER_TOKEN_SOURCE"),
            Some(flag),
            "{set} {kubernetes} {given}"
        );
        let driver = &release.one("CSIDriver")["spec"];
        assert_eq!(
            driver["serviceAccountTokenInSecrets"], field,
            "{set} {kubernetes} {given}"
        );
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_memory_limit_has_room_for_the_node_budget_twice() {
    for (given, limit) in [
        ("nodeBudget=64Mi", "192Mi"),
        ("nodeBudget=100Mi", "264Mi"),
        ("nodeBudget=1Gi", "2112Mi"),
        ("linux.driver.ownMemory=1Gi", "1152Mi"),
        ("linux.driver.resources=null", "192Mi"),
        ("linux.driver.resources.limits.cpu=1", "192Mi"),
        ("linux.driver.resources.limits.memory=192Mi", "192Mi"),
        ("linux.driver.resources.limits.memory=1.5Gi", "1.5Gi"),
        ("linux.driver.resources.limits.memory=300M", "300M"),
    ] {
        let release = Objects::of("default", NEW, &[given]);
        let resources = &release.container("secrets-store")["resources"];
        assert_eq!(resources["limits"]["memory"], limit, "{given}");
    }
    let bytes = Objects::of(
        "default",
        NEW,
        &["linux.driver.resources.limits.memory=209715200"],
    );
    assert_eq!(
        bytes.container("secrets-store")["resources"]["limits"]["memory"],
        209_715_200
    );
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn without_metrics_there_is_nothing_to_probe() {
    let release = Objects::of("default", NEW, &["linux.metricsAddr="]);
    let driver = release.container("secrets-store");
    for field in ["ports", "livenessProbe", "readinessProbe"] {
        assert!(driver[field].is_null(), "{field}");
    }
    assert!(config(&release).metrics.is_none());
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn tools_find_the_names_of_upstream() {
    let release = Objects::of("default", NEW, &[]);
    let template = &release.one("DaemonSet")["spec"]["template"];
    assert_eq!(
        template["metadata"]["labels"]["app"],
        "secrets-store-csi-driver"
    );
    let containers = list(&template["spec"]["containers"]).iter();
    let containers: Vec<_> = containers
        .map(|container| text(&container["name"]))
        .collect();
    assert_eq!(containers, ["secrets-store", "node-driver-registrar"]);
    assert_eq!(
        release.names("ClusterRole"),
        [
            "secretproviderclasses-admin-role",
            "secretproviderclasses-role",
            "secretproviderclasses-viewer-role",
            "secretproviderclasspodstatuses-viewer-role",
        ]
    );
    assert_eq!(
        release.names("ClusterRoleBinding"),
        ["secretproviderclasses-rolebinding"]
    );
    assert_eq!(
        release.names("ServiceAccount"),
        ["secrets-store-csi-driver"]
    );
    assert_eq!(release.names("CSIDriver"), ["secrets-store.csi.k8s.io"]);
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn beside_another_driver_no_name_is_taken_twice() {
    let (theirs, ours) = (
        Objects::of("default", NEW, &[]),
        Objects::of("beside", NEW, &[]),
    );
    for kind in [
        "ClusterRole",
        "ClusterRoleBinding",
        "ServiceAccount",
        "DaemonSet",
        "CSIDriver",
    ] {
        let taken = theirs.names(kind);
        assert!(
            ours.names(kind).iter().all(|name| !taken.contains(name)),
            "{kind}"
        );
    }
    let selects = |release: &Objects| release.one("DaemonSet")["spec"]["selector"].clone();
    assert_ne!(selects(&theirs), selects(&ours));
}

/// What helm says after an install.
fn notes_with(set: &str, given: &[&str]) -> String {
    let install = ["install", "csi-secrets-store", "--dry-run=client"];
    let given: Vec<_> = given.iter().flat_map(|value| ["--set", value]).collect();
    helm(&install, set, &given).expect("taken")
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn values_of_upstream_are_taken_and_the_notes_tell_which_change_nothing() {
    let notes = |set| notes_with(set, &[]);
    let notes_of_upstream = notes("upstream");
    let (_, unused) = notes_of_upstream
        .split_once("change nothing here:\n")
        .expect("a list");
    let unused: Vec<_> = unused.split_whitespace().collect();
    assert_eq!(
        unused,
        [
            "windows",
            "logVerbosity",
            "livenessProbe",
            "enableSecretRotation",
            "automountServiceAccountToken",
            "linux.livenessProbeImage",
            "linux.livenessProbe",
            "linux.crds.annotations",
            "rbac.pspEnabled",
        ]
    );
    assert!(notes_of_upstream.contains("limit of\n200Mi"));
    assert!(!notes("default").contains("change nothing"));
    assert!(notes("default").contains("may hold 64Mi together"));
    assert!(!notes("upstream").contains("Windows nodes"));
    let windows = notes_with("upstream", &["windows.enabled=true"]);
    assert!(windows.contains("Windows nodes get no driver"), "{windows}");
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_notes_say_which_stores_have_tokens() {
    let none = "The kubelet brings no tokens: classes of Vault, OpenBao and AWS cannot be read";
    let aws = "providers.aws.enabled=true";
    for (set, given, said) in [
        ("default", &[][..], none),
        ("default", &[aws], none),
        (
            "tokens",
            &[],
            "Classes of Vault and OpenBao can be used where",
        ),
        (
            "tokens",
            &[aws],
            "Classes of Vault, OpenBao and AWS can be used where",
        ),
    ] {
        let notes = notes_with(set, given);
        assert!(notes.contains(said), "{set} {given:?}: {notes}");
        assert_eq!(notes.contains("can be used"), set == "tokens", "{given:?}");
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn plugins_are_what_the_values_say() {
    let plugins = |set, given: &[&str]| config(&Objects::of(set, NEW, given)).plugins;
    let default = plugins("default", &[]);
    let folders = [
        "/etc/kubernetes/secrets-store-csi-providers",
        "/var/run/secrets-store-csi-providers",
    ];
    assert_eq!(default.settings().folders, folders.map(PathBuf::from));
    assert_eq!(default.settings().uids, [1000]);
    assert_eq!(default.settings().answer_bytes, 4 << 20);
    assert_eq!(default.health_check(), None);
    let upstream = plugins("upstream", &[]);
    assert_eq!(upstream.settings().answer_bytes, 8 << 20);
    assert_eq!(upstream.health_check(), Some(Duration::from_secs(60)));
    let given = [
        "linux.providersDir=/run/a",
        "linux.additionalProvidersDirs=null",
        "plugins.uids=null",
        "plugins.preferred={vault,aws}",
        "plugins.legacyWriters={aws}",
        "plugins.audiences.gcp={*.goog}",
    ];
    let settings = plugins("default", &given).settings();
    assert_eq!(settings.folders, [PathBuf::from("/run/a")]);
    assert!(settings.uids.is_empty());
    assert_eq!(settings.preferred, ["vault", "aws"]);
    assert_eq!(settings.legacy_writers, ["aws"]);
    assert_eq!(settings.audiences["gcp"], ["*.goog"]);
    let mounted = Objects::of("default", NEW, &given);
    let mounts = &mounted.container("secrets-store")["volumeMounts"];
    let paths: Vec<_> = list(mounts)
        .iter()
        .map(|mount| text(&mount["mountPath"]))
        .collect();
    assert!(paths.contains(&"/run/a"), "{paths:?}");
}

/// Beside another driver nothing may be installed that it has as well.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn providers_for_another_driver_are_all_that_is_installed() {
    let given = [
        "asProviders={vault,file}",
        "syncSecret.enabled=true",
        "linux.removeStartupTaint=true",
        "rotationPollInterval=60s",
        "linux.updateStrategy.rollingUpdate.maxUnavailable=3",
    ];
    let release = Objects::of("monitored", NEW, &given);
    assert_eq!(release.kinds(), ["DaemonSet", "ServiceAccount"]);
    let strategy = &release.one("DaemonSet")["spec"]["updateStrategy"];
    assert_eq!(strategy["rollingUpdate"]["maxUnavailable"], 3);
    let account = text(&release.one("ServiceAccount")["metadata"]["name"]).to_owned();
    assert_ne!(account, "secrets-store-csi-driver");
    let pod = &release.one("DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], account);
    for (container, name) in list(&pod["containers"]).iter().zip(["vault", "file"]) {
        let args = provider(container);
        assert_eq!(args.name, name);
        let socket = format!("/var/run/secrets-store-csi-providers/{name}.sock");
        assert_eq!(args.socket(), PathBuf::from(socket));
        assert_eq!(args.interval, Duration::from_secs(60));
        let rights = &container["securityContext"];
        assert_eq!(rights["privileged"], false);
        assert_eq!(rights["capabilities"], json!({"drop": ["ALL"]}));
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_key_of_the_cluster_is_for_the_driver_alone() {
    let release = Objects::of("default", NEW, &["clusterKey.value=canary"]);
    let secret = release.one("Secret");
    assert_eq!(secret["data"]["key"], "Y2FuYXJ5");
    let config = config(&release);
    let file = config.vault.cluster_key_file.expect("a file");
    let volumes = list(&release.pod()["volumes"]).iter();
    let volume = volumes
        .clone()
        .find(|volume| volume["name"] == "cluster-key");
    let volume = volume.expect("a volume with the key");
    assert_eq!(volume["secret"]["secretName"], secret["metadata"]["name"]);
    for container in list(&release.pod()["containers"]) {
        let mut mounts = list(&container["volumeMounts"]).iter();
        let mount = mounts.find(|mount| mount["name"] == "cluster-key");
        assert_eq!(mount.is_some(), container["name"] == "secrets-store");
        if let Some(mount) = mount {
            assert_eq!(file.parent(), Some(text(&mount["mountPath"]).as_ref()));
        }
    }
    // Another one each time where there is no cluster to look it up in, and none where none is wanted.
    let made = || Objects::of("default", NEW, &[]).one("Secret")["data"]["key"].clone();
    assert_ne!(made(), made());
    let without = Objects::of("default", NEW, &["clusterKey.create=false"]);
    assert!(without.all("Secret").is_empty());
    assert_eq!(without.driver_env("COFFER_CLUSTER_KEY_FILE"), None);
}
