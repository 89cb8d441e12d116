//! What the release may do: in the cluster, on the node, and each container of the pod.

use serde_json::{Value, json};

use crate::helm::{NEW, OLD, Objects, SETS, list, template, text};

/// Their driver makes Secrets, too: `sync.rs` has what that takes.
const SYNCING: [&str; 1] = ["upstream"];

fn releases() -> impl Iterator<Item = (&'static str, Objects)> {
    let both = SETS.into_iter().flat_map(|set| [(set, OLD), (set, NEW)]);
    both.map(|(set, kubernetes)| (set, Objects::of(set, kubernetes, &[])))
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_driver_reads_classes_and_reports_and_has_no_other_right_in_the_cluster() {
    for (set, release) in releases() {
        for kind in ["Role", "RoleBinding"] {
            assert!(release.all(kind).is_empty(), "{set}: {kind}");
        }
        if SYNCING.contains(&set) {
            continue;
        }
        let binding = release.one("ClusterRoleBinding");
        let [subject] = list(&binding["subjects"]) else {
            panic!("{set}: one subject");
        };
        let account = release.one("ServiceAccount");
        assert_eq!(subject["name"], account["metadata"]["name"], "{set}");
        assert_eq!(
            subject["name"],
            release.pod()["serviceAccountName"],
            "{set}"
        );
        let roles = release.all("ClusterRole");
        let bound = roles
            .iter()
            .find(|role| role["metadata"]["name"] == binding["roleRef"]["name"]);
        assert_eq!(
            bound.expect("the role that is bound")["rules"],
            json!([
                {
                    "apiGroups": ["secrets-store.csi.x-k8s.io"],
                    "resources": ["secretproviderclasses"],
                    "verbs": ["get", "list", "watch"],
                },
                {
                    "apiGroups": ["secrets-store.csi.x-k8s.io"],
                    "resources": ["secretproviderclasspodstatuses"],
                    "verbs": ["get", "create", "update", "delete"],
                },
                {
                    "apiGroups": ["events.k8s.io"],
                    "resources": ["events"],
                    "verbs": ["create"],
                },
            ]),
            "{set}"
        );
    }
}

/// Those who may write into a Namespace get no more than its classes from us.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn no_role_for_people_is_about_more_than_our_own_kinds() {
    for (set, release) in releases() {
        let bindings = release.all("ClusterRoleBinding").into_iter();
        let bound: Vec<_> = bindings
            .map(|binding| &binding["roleRef"]["name"])
            .collect();
        for rule in release
            .all("ClusterRole")
            .into_iter()
            .filter(|role| !bound.contains(&&role["metadata"]["name"]))
            .flat_map(|role| list(&role["rules"]))
        {
            assert_eq!(
                rule["apiGroups"],
                json!(["secrets-store.csi.x-k8s.io"]),
                "{set}"
            );
            let ours = ["secretproviderclasses", "secretproviderclasspodstatuses"];
            assert!(
                list(&rule["resources"])
                    .iter()
                    .all(|kind| ours.contains(&text(kind))),
                "{set}: {rule}"
            );
            assert!(!list(&rule["verbs"]).contains(&json!("*")), "{set}: {rule}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_pod_shares_no_namespace_with_the_node() {
    for (set, release) in releases() {
        for shared in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(release.pod()[shared].is_null(), "{set}: {shared}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_token_for_the_api_server_is_in_the_drivers_container_alone() {
    for (set, release) in releases() {
        assert_eq!(
            release.one("ServiceAccount")["automountServiceAccountToken"],
            false,
            "{set}"
        );
        assert_eq!(
            release.pod()["automountServiceAccountToken"],
            false,
            "{set}"
        );
        for container in containers(&release) {
            let driver = container["name"] == "secrets-store";
            assert_eq!(mounts(container).contains(&"api-token"), driver, "{set}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn every_container_but_the_driver_has_no_privileges() {
    for (set, release) in releases() {
        for container in containers(&release) {
            let rights = &container["securityContext"];
            assert_eq!(rights["readOnlyRootFilesystem"], true, "{set}");
            if container["name"] == "secrets-store" {
                assert_eq!(
                    rights["privileged"], true,
                    "{set}: mounts would not propagate"
                );
                continue;
            }
            assert_eq!(rights["privileged"], false, "{set}");
            assert_eq!(rights["allowPrivilegeEscalation"], false, "{set}");
            assert_eq!(rights["capabilities"], json!({"drop": ["ALL"]}), "{set}");
            assert_eq!(rights["seccompProfile"]["type"], "RuntimeDefault", "{set}");
            assert_eq!(mounts(container), ["socket", "registration"], "{set}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn of_the_node_the_pod_sees_the_kubelets_folders_and_the_files_it_was_given() {
    for (set, release) in releases() {
        let root = if set == "full" {
            "/data/kubelet"
        } else {
            "/var/lib/kubelet"
        };
        let folder = if set == "beside" {
            "coffer.example.com"
        } else {
            "csi-secrets-store"
        };
        let mut expected = vec![
            format!("{root}/plugins/{folder}"),
            format!("{root}/plugins_registry"),
            format!("{root}/pods"),
            "/etc/kubernetes/secrets-store-csi-providers".into(),
            "/var/run/secrets-store-csi-providers".into(),
        ];
        if set == "full" {
            expected.push("/srv/secrets".into());
        }
        let volumes = list(&release.pod()["volumes"]).iter();
        let on_node: Vec<_> = volumes
            .filter_map(|volume| volume["hostPath"]["path"].as_str())
            .collect();
        assert_eq!(on_node, expected, "{set}");

        for mount in list(&release.container("secrets-store")["volumeMounts"]) {
            let (read_only, propagation) = (&mount["readOnly"], &mount["mountPropagation"]);
            match text(&mount["name"]) {
                "pods" => {
                    assert_eq!(*propagation, "Bidirectional", "{set}");
                    assert_eq!(text(&mount["mountPath"]), format!("{root}/pods"), "{set}");
                }
                "files" => {
                    assert_eq!(
                        (read_only, text(propagation)),
                        (&json!(true), "HostToContainer"),
                        "{set}"
                    );
                }
                other => assert!(propagation.is_null(), "{set}: {other}"),
            }
        }
    }
}

fn containers(release: &Objects) -> &[Value] {
    assert!(release.pod()["initContainers"].is_null());
    list(&release.pod()["containers"])
}

fn mounts(container: &Value) -> Vec<&str> {
    let mounts = list(&container["volumeMounts"]).iter();
    mounts.map(|mount| text(&mount["name"])).collect()
}

/// Nobody can be given the right to one Node: a policy says which, and what of it.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_right_to_change_nodes_comes_fenced_and_only_where_it_is_wanted() {
    let wanted = ["linux.removeStartupTaint=true"];
    let release = Objects::of("default", NEW, &wanted);
    let role = release.all("ClusterRole").into_iter().find(|role| {
        let rules = list(&role["rules"]).iter();
        rules
            .clone()
            .any(|rule| rule["resources"] == json!(["nodes"]))
    });
    let role = role.expect("a role of its own");
    assert_eq!(role["rules"][0]["verbs"], json!(["get", "patch"]));
    let policy = release.one("ValidatingAdmissionPolicy");
    let account = text(&release.one("ServiceAccount")["metadata"]["name"]).to_owned();
    let condition = text(&policy["spec"]["matchConditions"][0]["expression"]);
    assert!(condition.ends_with(&format!(":{account}\"")), "{condition}");
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    assert_eq!(list(&policy["spec"]["validations"]).len(), 3);
    let binding = &release.one("ValidatingAdmissionPolicyBinding")["spec"];
    assert_eq!(binding["policyName"], policy["metadata"]["name"]);
    assert_eq!(binding["validationActions"], json!(["Deny"]));
    let said = release.driver_env("COFFER_REMOVE_STARTUP_TAINT");
    assert_eq!(said, Some("true"));

    let said = template("default", "1.31.0", &wanted).expect_err("it could not be fenced");
    assert!(
        said.contains("linux.removeStartupTaint: the right"),
        "{said}"
    );
    for (set, release) in releases().filter(|(set, _)| !SYNCING.contains(set)) {
        assert!(release.all("ValidatingAdmissionPolicy").is_empty(), "{set}");
    }
}
