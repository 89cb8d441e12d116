//! Values that cannot be are refused before anything is installed, by their names.

use crate::helm::{NEW, OLD, template};

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn a_value_that_cannot_be_is_named() {
    for (wrong, given, named) in [
        ("a slip of the pen", "nodeBugdet=1Gi", "'nodeBugdet'"),
        (
            "a slip inside linux",
            "linux.kubeletRoot=/k",
            "'kubeletRoot'",
        ),
        ("a slip inside an image", "linux.image.tga=x", "'tga'"),
        (
            "a provider that is not there",
            "providers.consul.enabled=true",
            "'consul'",
        ),
        ("no unit", "nodeBudget=64", "/nodeBudget"),
        ("not Mi or Gi", "nodeBudget=64MB", "/nodeBudget"),
        ("nothing", "nodeBudget=0Mi", "/nodeBudget"),
        ("nothing at all", "nodeBudget=null", "'nodeBudget'"),
        (
            "no memory",
            "linux.driver.ownMemory=lots",
            "/linux/driver/ownMemory",
        ),
        (
            "a limit below what can be needed",
            "linux.driver.resources.limits.memory=191Mi",
            "linux.driver.resources.limits.memory: 191Mi is less than 192Mi",
        ),
        (
            "a limit in another unit",
            "linux.driver.resources.limits.memory=200M",
            "linux.driver.resources.limits.memory: 200M is",
        ),
        (
            "a limit that is none",
            "linux.driver.resources.limits.memory=1Zi",
            "linux.driver.resources.limits.memory: 1Zi is",
        ),
        ("capitals", "driverName=Coffer", "/driverName"),
        ("a digit at the end", "driverName=coffer.v2", "/driverName"),
        (
            "a relative path",
            "linux.kubeletRootDir=var/lib",
            "/linux/kubeletRootDir",
        ),
        (
            "a slash at the end",
            "linux.kubeletRootDir=/var/lib/",
            "/linux/kubeletRootDir",
        ),
        (
            "the root itself",
            "providers.file.root=/",
            "/providers/file/root",
        ),
        (
            "where no probe comes",
            "linux.metricsAddr=127.0.0.1:8095",
            "/linux/metricsAddr",
        ),
        (
            "a port alone",
            "linux.metricsAddr=8095",
            "/linux/metricsAddr",
        ),
        (
            "two drivers on a node",
            "linux.updateStrategy.rollingUpdate.maxSurge=1",
            "/linux/updateStrategy/rollingUpdate/maxSurge",
        ),
        ("a level that is none", "logLevel=verbose", "/logLevel"),
        (
            "text instead of true",
            "logFormatJSON=json",
            "/logFormatJSON",
        ),
        (
            "a tag in the name",
            "linux.image.repository=registry.test/coffer:1",
            "/linux/image/repository",
        ),
        (
            "no digest",
            "linux.image.digest=sha256:1",
            "/linux/image/digest",
        ),
        (
            "no tag",
            "linux.registrarImage.tag=",
            "/linux/registrarImage/tag",
        ),
        (
            "no policy",
            "linux.image.pullPolicy=Sometimes",
            "/linux/image/pullPolicy",
        ),
        (
            "no audience",
            "tokenRequests[0].expirationSeconds=600",
            "/tokenRequests/0",
        ),
        (
            "too short a life",
            "tokenRequests[0].audience=a,tokenRequests[0].expirationSeconds=599",
            "/tokenRequests/0/expirationSeconds",
        ),
        (
            "an audience twice",
            "tokenRequests[0].audience=a,tokenRequests[1].audience=a,tokenRequests[1].expirationSeconds=700",
            r#"tokenRequests: the audience "a""#,
        ),
        ("a source that is none", "tokenSource=pod", "/tokenSource"),
        (
            "tokens for the API server",
            "tokenRequests[0].expirationSeconds=600,tokenRequests[0].audience=",
            "tokenRequests: an empty audience asks for tokens that are good at the API server",
        ),
        (
            "no time",
            "rotationPollInterval=soon",
            "/rotationPollInterval",
        ),
        (
            "a slip in a policy",
            "networkPolicy.enable=true",
            "'enable'",
        ),
        (
            "a slip in a monitor",
            "monitoring.podMonitor.label.a=b",
            "'label'",
        ),
    ] {
        let said = template("default", NEW, &[given]).expect_err(wrong);
        assert!(said.contains(named), "{wrong}: {said}");
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn tokens_are_not_expected_where_the_cluster_cannot_put_them() {
    let said =
        template("tokens", OLD, &["tokenSource=secrets"]).expect_err("1.34 has no such field");
    assert!(
        said.contains("tokenSource: Kubernetes v1.34.0 cannot"),
        "{said}"
    );
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn secrets_are_not_made_where_the_right_to_do_so_cannot_be_fenced() {
    let on = "syncSecret.enabled=true";
    let said = template("default", "1.29.9", &[on]).expect_err("1.29 has no such policies");
    assert!(
        said.contains(
            "syncSecret.enabled: the right to write Secrets can be fenced from Kubernetes 1.30"
        ),
        "{said}"
    );
    assert!(template("default", "1.30.0", &[on]).is_ok());
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn a_cluster_that_is_too_old_is_refused() {
    let said = template("default", "1.25.0", &[]).expect_err("too old");
    assert!(said.contains(">=1.26.0-0"), "{said}");
}
