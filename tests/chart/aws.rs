//! What the chart gives the provider aws, and what it does not give without it.

use serde_json::{Value, json};

use crate::environment::{config, provider};
use crate::helm::{NEW, Objects, list};

const ON: &str = "providers.aws.enabled=true";

fn rules(values: &[&str]) -> Value {
    let release = Objects::of("default", NEW, values);
    let binding = release.one("ClusterRoleBinding");
    let roles = release.all("ClusterRole").into_iter();
    let mut bound = roles.filter(|role| role["metadata"]["name"] == binding["roleRef"]["name"]);
    bound.next().expect("the role that is bound")["rules"].clone()
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_right_to_serviceaccounts_and_nodes_comes_with_aws_alone() {
    let without = rules(&[]);
    let without = list(&without).len();
    let core = |resource: &str, verbs: &[&str]| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
    assert_eq!(
        list(&rules(&[ON]))[without..],
        [
            core("serviceaccounts", &["get", "list", "watch"]),
            core("nodes", &["get"]),
        ]
    );
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn aws_for_another_driver_has_these_rights_and_no_other() {
    let release = Objects::of("default", NEW, &["asProviders={vault,aws}"]);
    let role = release.one("ClusterRole");
    assert_eq!(list(&role["rules"]).len(), 2);
    let binding = release.one("ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    for container in list(&release.pod()["containers"]) {
        let mounts = list(&container["volumeMounts"]).iter();
        let token = mounts.clone().any(|mount| mount["name"] == "api-token");
        assert_eq!(token, container["name"] == "aws", "{container}");
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn every_value_of_aws_is_a_flag_of_the_driver() {
    let values = [
        ON,
        "providers.aws.region=us-gov-west-1",
        "providers.aws.useFipsEndpoint=true",
        "providers.aws.audiences={aws.example,other}",
        "providers.aws.endpoints.secretsmanager=https://sm.{region}.example",
        "providers.aws.endpoints.ssm=https://ssm.example",
        "providers.aws.endpoints.sts=https://sts.example",
        "providers.aws.podIdentity.ipv4=http://127.0.0.1:8080",
        "providers.aws.podIdentity.ipv6=http://[::1]:8080",
        "providers.aws.caFile=/etc/coffer/ca/aws.pem",
    ];
    // A brace begins a list for helm.
    let escaped = values.map(|value| value.replace("{region}", r"\{region\}"));
    let escaped: Vec<_> = escaped.iter().map(String::as_str).collect();
    let aws = config(&Objects::of("default", NEW, &escaped)).aws;
    assert_eq!(aws.aws_region.as_deref(), Some("us-gov-west-1"));
    assert!(aws.aws_fips);
    assert_eq!(aws.aws_audience, ["aws.example", "other"]);
    let secrets = aws.aws_endpoint_secretsmanager.as_deref();
    assert_eq!(secrets, Some("https://sm.{region}.example"));
    assert_eq!(aws.aws_endpoint_ssm.as_deref(), Some("https://ssm.example"));
    assert_eq!(aws.aws_endpoint_sts.as_deref(), Some("https://sts.example"));
    let agent = aws.aws_pod_identity_ipv4.as_deref();
    assert_eq!(agent, Some("http://127.0.0.1:8080"));
    let agent = aws.aws_pod_identity_ipv6.as_deref();
    assert_eq!(agent, Some("http://[::1]:8080"));
    let ca = aws.ca_file.expect("given");
    assert_eq!(ca.to_str(), Some("/etc/coffer/ca/aws.pem"));

    let without = config(&Objects::of("default", NEW, &escaped[1..])).aws;
    assert!(without.aws_region.is_none() && !without.aws_fips);

    // For another driver it need not be on.
    let mut for_another = vec!["asProviders={vault,aws}"];
    for_another.extend(&escaped[1..]);
    let release = Objects::of("default", NEW, &for_another);
    assert_eq!(
        provider(release.container("aws")).aws.aws_audience,
        aws.aws_audience
    );
    let vault = provider(release.container("vault")).aws;
    assert!(vault.aws_region.is_none() && vault.aws_audience.is_empty());
}
