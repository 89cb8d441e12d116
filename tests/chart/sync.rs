//! What `syncSecret` adds: rights to Secrets, and the policies that fence them.

use serde_json::{Value, json};

use crate::helm::{NEW, Objects, list, text};

/// How the role's name ends: upstream's own, behind a prefix where both are installed.
pub(crate) const ROLE: &str = "secretprovidersyncing-role";

const ON: &str = "syncSecret.enabled=true";

fn rules() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ])
}

/// The role of that kind, and the binding that names it.
fn role<'a>(release: &'a Objects, kind: &str) -> Vec<&'a Value> {
    let roles = release.all(kind).into_iter();
    roles
        .filter(|role| text(&role["metadata"]["name"]).ends_with(ROLE))
        .collect()
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn rights_to_secrets_come_with_sync_alone() {
    let off = Objects::of("default", NEW, &[]);
    assert!(role(&off, "ClusterRole").is_empty() && role(&off, "Role").is_empty());
    assert!(off.all("ValidatingAdmissionPolicy").is_empty());
    assert_eq!(off.driver_env("COFFER_SYNC_SECRETS"), None);

    let on = Objects::of("default", NEW, &[ON]);
    let [everywhere] = role(&on, "ClusterRole")[..] else {
        panic!("one role");
    };
    assert_eq!(everywhere["rules"], rules());
    assert!(on.all("Role").is_empty());
    assert_eq!(on.driver_env("COFFER_SYNC_SECRETS"), Some("true"));
    assert_eq!(on.driver_env("COFFER_SYNC_BOOTSTRAP_TOKENS"), None);
    let bindings = on.all("ClusterRoleBinding");
    let bound = bindings
        .iter()
        .find(|binding| binding["roleRef"]["name"] == everywhere["metadata"]["name"]);
    let bound = bound.expect("a binding");
    assert_eq!(bound["subjects"][0]["name"], on.pod()["serviceAccountName"]);
    assert_eq!(bound["subjects"][0]["namespace"], "kube-system");

    let without = Objects::of("default", NEW, &[ON, "rbac.install=false"]);
    assert!(role(&without, "ClusterRole").is_empty());
    assert_eq!(without.all("ValidatingAdmissionPolicy").len(), 1);
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_names_are_upstreams_unless_both_are_installed() {
    let upstream = Objects::of("upstream", NEW, &[]);
    assert_eq!(role(&upstream, "ClusterRole")[0]["metadata"]["name"], ROLE);
    assert!(
        upstream
            .names("ClusterRoleBinding")
            .contains(&"secretprovidersyncing-rolebinding")
    );
    let beside = Objects::of("beside", NEW, &[ON]);
    let name = format!("coffer.example.com-{ROLE}");
    assert_eq!(role(&beside, "ClusterRole")[0]["metadata"]["name"], name);
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn rights_can_be_had_in_single_namespaces() {
    let some = Objects::of("default", NEW, &[ON, "syncSecret.namespaces={shop,bank}"]);
    assert!(role(&some, "ClusterRole").is_empty());
    let roles = role(&some, "Role");
    let namespaces: Vec<_> = roles
        .iter()
        .map(|role| text(&role["metadata"]["namespace"]))
        .collect();
    assert_eq!(namespaces, ["shop", "bank"]);
    for (role, binding) in roles.into_iter().zip(some.all("RoleBinding")) {
        assert_eq!(role["rules"], rules());
        assert_eq!(
            binding["metadata"]["namespace"],
            role["metadata"]["namespace"]
        );
        assert_eq!(binding["roleRef"]["kind"], "Role");
        assert_eq!(binding["subjects"][0]["namespace"], "kube-system");
    }
}

/// That the API server believes it, the end-to-end tests show.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn rule_k5_the_policy_is_about_the_driver_and_lets_it_delete_nothing() {
    let on = Objects::of("default", NEW, &[ON]);
    let policy = &on.one("ValidatingAdmissionPolicy")["spec"];
    assert_eq!(policy["failurePolicy"], "Fail");
    let account = text(&on.pod()["serviceAccountName"]);
    assert_eq!(
        policy["matchConditions"][0]["expression"],
        format!("request.userInfo.username == \"system:serviceaccount:kube-system:{account}\"")
    );
    let binding = &on.one("ValidatingAdmissionPolicyBinding")["spec"];
    assert_eq!(binding["validationActions"], json!(["Deny"]));
    assert_eq!(
        binding["policyName"],
        on.one("ValidatingAdmissionPolicy")["metadata"]["name"]
    );
    let rules = list(&policy["matchConstraints"]["resourceRules"]);
    assert_eq!(
        rules[0]["operations"],
        json!(["CREATE", "UPDATE", "DELETE"])
    );
    assert_eq!(
        policy["validations"][0]["expression"],
        "request.operation != \"DELETE\""
    );

    let types = |release: &Objects| {
        let policy = release.one("ValidatingAdmissionPolicy");
        text(&policy["spec"]["validations"][2]["expression"]).to_owned()
    };
    assert!(!types(&on).contains("bootstrap"));
    let tokens = Objects::of("default", NEW, &[ON, "syncSecret.bootstrapTokens=true"]);
    assert!(types(&tokens).contains("\"bootstrap.kubernetes.io/token\""));
    let said = tokens.driver_env("COFFER_SYNC_BOOTSTRAP_TOKENS");
    assert_eq!(said, Some("true"));
}
