//! Alerts and dashboard: queries that Prometheus takes, of metrics that the driver has.

use std::fs;
use std::time::Duration;

use coffer::error::PublishError;
use coffer::events::EventReason;
use coffer::publish::Done;
use coffer::telemetry::Metrics;
use coffer::volume::Outcome;
use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, VectorSelector};
use serde_json::Value;

use crate::helm::{NEW, Objects, checkout, list, template, text};

/// Every query of the chart, and where it is.
fn queries() -> Vec<(String, String)> {
    let file = |name: &str| fs::read_to_string(checkout("charts/coffer/files").join(name));
    let dashboard = file("dashboard.json").expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let alerts = file("alerts.yaml").expect("alerts");
    let alerts: Value = serde_saphyr::from_str(&alerts).expect("YAML");
    let panels = list(&dashboard["panels"]).iter().flat_map(|panel| {
        let title = text(&panel["title"]);
        let targets = list(&panel["targets"]).iter();
        targets.map(move |target| (title.to_owned(), text(&target["expr"]).to_owned()))
    });
    let rules = list(&alerts["groups"])
        .iter()
        .flat_map(|group| list(&group["rules"]));
    let rules = rules.map(|rule| {
        (
            text(&rule["alert"]).to_owned(),
            text(&rule["expr"]).to_owned(),
        )
    });
    panels.chain(rules).collect()
}

/// What Prometheus itself says of each scrape.
const UP: &str = "up";

/// A scrape in which everything was counted once.
fn scrape() -> String {
    let metrics = Metrics::default();
    let took = Duration::from_millis(1);
    let done = Done {
        outcome: Outcome::Mounted,
        provider: "file",
    };
    metrics.published(Ok(&done), took);
    metrics.published(Err(&PublishError::Busy), took);
    metrics.unpublished(&Ok(()));
    metrics.unpublished(&Err(PublishError::Busy));
    metrics.rotated("file", &Ok(Outcome::Rotated), took);
    metrics.rotated("file", &Err(PublishError::Busy), took);
    metrics.asked("file", "fetched");
    metrics.answered("file", took);
    metrics.plugin_up("azure", true);
    metrics
        .reports
        .event(EventReason::SecretNotSynced, "written");
    metrics.reports.status_written("written");
    metrics.reports.status_written("failed");
    metrics.reports.crd_is_whole("SecretProviderClass", true);
    metrics.text()
}

/// The metrics that it asks for, each with the label values that it wants.
fn metrics_of(expression: &Expr, asked: &mut Vec<(String, Vec<String>)>) {
    let mut of = |inner: &Expr| metrics_of(inner, asked);
    match expression {
        Expr::Aggregate(aggregate) => {
            of(&aggregate.expr);
            if let Some(parameter) = &aggregate.param {
                of(parameter);
            }
        }
        Expr::Unary(unary) => of(&unary.expr),
        Expr::Binary(binary) => {
            of(&binary.lhs);
            of(&binary.rhs);
        }
        Expr::Paren(paren) => of(&paren.expr),
        Expr::Subquery(subquery) => of(&subquery.expr),
        Expr::Call(call) => call.args.args.iter().for_each(|argument| of(argument)),
        Expr::VectorSelector(selector) => asked.push(metric(selector)),
        Expr::MatrixSelector(matrix) => asked.push(metric(&matrix.vs)),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

fn metric(selector: &VectorSelector) -> (String, Vec<String>) {
    let matchers = selector.matchers.matchers.iter();
    let equal = matchers.filter(|matcher| matcher.op == MatchOp::Equal);
    let labels = equal.map(|matcher| format!("{}=\"{}\"", matcher.name, matcher.value));
    let name = selector.name.clone().expect("a metric by its name");
    (name, labels.collect())
}

#[test]
fn every_query_can_be_parsed_and_asks_for_metrics_that_the_driver_has() {
    let scrape = scrape();
    let series: Vec<_> = scrape
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let queries = queries();
    assert!(queries.len() > 20, "{}", queries.len());
    for (place, query) in queries {
        // Grafana puts a time there.
        let query = query.replace("$__rate_interval", "5m");
        let parsed = parser::parse(&query);
        let parsed = parsed.unwrap_or_else(|problem| panic!("{place}: {query}: {problem}"));
        let mut asked = Vec::new();
        metrics_of(&parsed, &mut asked);
        assert!(!asked.is_empty(), "{place}");
        for (metric, labels) in asked.into_iter().filter(|(metric, _)| metric != UP) {
            let there = series.iter().any(|line| {
                line.split(['{', ' ']).next() == Some(&metric)
                    && labels.iter().all(|label| line.contains(label))
            });
            assert!(there, "{place}: there is no {metric} with {labels:?}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn the_dashboard_and_the_alerts_come_as_they_are_and_only_where_they_are_wanted() {
    let default = Objects::of("default", NEW, &[]);
    for kind in [
        "PodMonitor",
        "ServiceMonitor",
        "PrometheusRule",
        "ConfigMap",
    ] {
        assert!(default.all(kind).is_empty(), "{kind}");
    }
    let monitored = Objects::of("monitored", NEW, &[]);
    let dashboard = fs::read_to_string(checkout("charts/coffer/files/dashboard.json"));
    let given = &monitored.one("ConfigMap")["data"]["coffer.json"];
    assert_eq!(text(given).trim(), dashboard.expect("there").trim());
    let rule = monitored.one("PrometheusRule");
    let alerts = list(&rule["spec"]["groups"][0]["rules"]).len();
    assert_eq!(
        alerts,
        queries()
            .iter()
            .filter(|(place, _)| place.starts_with("Coffer"))
            .count()
    );
    for (kind, endpoints) in [
        ("PodMonitor", "podMetricsEndpoints"),
        ("ServiceMonitor", "endpoints"),
    ] {
        let monitor = monitored.one(kind);
        assert_eq!(monitor["spec"][endpoints][0]["port"], "metrics");
        let app = &monitored.one("DaemonSet")["spec"]["selector"]["matchLabels"];
        assert_eq!(&monitor["spec"]["selector"]["matchLabels"], app, "{kind}");
    }
}

/// An alert of the chart, as it is before helm.
fn alert(name: &str) -> Value {
    let alerts = fs::read_to_string(checkout("charts/coffer/files/alerts.yaml")).expect("alerts");
    let alerts: Value = serde_saphyr::from_str(&alerts).expect("YAML");
    let mut rules = list(&alerts["groups"][0]["rules"]).iter();
    let rule = rules.find(|rule| rule["alert"] == name);
    rule.unwrap_or_else(|| panic!("no {name}")).clone()
}

#[test]
fn what_the_api_server_does_not_take_is_told() {
    for (name, metric) in [
        (
            "CofferSecretsNotMade",
            r#"increase(coffer_events_total{reason="FailedToCreateSecret"}[1h])"#,
        ),
        (
            "CofferStatusesNotWritten",
            r#"rate(coffer_status_writes_total{outcome="failed"}[10m])"#,
        ),
    ] {
        let rule = alert(name);
        assert!(text(&rule["expr"]).contains(metric), "{rule}");
        let summary = text(&rule["annotations"]["summary"]);
        assert!(summary.contains("{{ $labels.node }}"), "{summary}");
    }
}

#[test]
fn secrets_that_cannot_be_read_are_those_of_new_pods_too() {
    let rule = alert("CofferSecretsNotRefreshed");
    let description = text(&rule["annotations"]["description"]);
    assert!(
        description.contains("for the first time wait"),
        "{description}"
    );
}

/// An alert that is there only when the end has come helps nobody.
#[test]
fn the_end_of_a_secret_that_cannot_be_read_is_told_before_it_comes() {
    let rule = alert("CofferSecretEndsSoon");
    let query = text(&rule["expr"]);
    let (ends, seconds) = query.rsplit_once("< ").expect("a limit");
    // Of what is renewed well, the end is always near.
    assert!(ends.contains("coffer_failing_expiry_seconds"), "{query}");
    let seconds: u64 = seconds.parse().expect("a number");
    let minutes = text(&rule["for"]).strip_suffix('m').expect("minutes");
    let minutes: u64 = minutes.parse().expect("a number");
    // Enough is left for somebody to come.
    assert!(minutes * 60 + 300 <= seconds, "{query}");
}

/// The operator calls what it scrapes by its own rules.
#[test]
#[ignore = "needs helm: cargo xtask test"]
fn a_node_without_a_driver_is_noticed_in_the_series_of_the_charts_own_monitors() {
    for set in ["monitored", "beside"] {
        let given = ["podMonitor", "serviceMonitor", "prometheusRule"];
        let given = given.map(|kind| format!("monitoring.{kind}.enabled=true"));
        let given: Vec<_> = given.iter().map(String::as_str).collect();
        let release = Objects::of(set, NEW, &given);
        let rules = list(&release.one("PrometheusRule")["spec"]["groups"][0]["rules"]);
        let rule = rules
            .iter()
            .find(|rule| rule["alert"] == "CofferAbsentOnNode");
        let name = |kind: &str| text(&release.one(kind)["metadata"]["name"]).to_owned();
        let (pods, service) = (name("PodMonitor"), name("Service"));
        assert_eq!(
            text(&rule.expect("an alert")["expr"]),
            format!("max by (node) (up{{job=~\"kube-system/{pods}|{service}\"}}) == 0"),
        );
        for rule in rules {
            let query = text(&rule["expr"]);
            assert!(parser::parse(query).is_ok(), "{query}");
        }
        for (kind, endpoints) in [
            ("PodMonitor", "podMetricsEndpoints"),
            ("ServiceMonitor", "endpoints"),
        ] {
            let endpoint = &release.one(kind)["spec"][endpoints][0];
            let relabelings = list(&endpoint["relabelings"]);
            assert!(relabelings.iter().any(|one| one["targetLabel"] == "node"));
            assert!(release.one(kind)["spec"]["jobLabel"].is_null(), "{kind}");
        }
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn what_reads_metrics_needs_metrics() {
    for kind in ["podMonitor", "serviceMonitor"] {
        let given = format!("monitoring.{kind}.enabled=true");
        let said = template("default", NEW, &[&given, "linux.metricsAddr="]);
        let said = said.expect_err("there is nothing to read");
        assert!(
            said.contains(&format!("monitoring.{kind}: there are no metrics")),
            "{said}"
        );
    }
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn nobody_reaches_the_driver_but_at_its_metrics() {
    let policy = |given: &[&str]| {
        Objects::of("default", NEW, given)
            .one("NetworkPolicy")
            .clone()
    };
    let open = policy(&[]);
    let app = Objects::of("default", NEW, &[]).one("DaemonSet")["spec"]["selector"].clone();
    assert_eq!(open["spec"]["podSelector"], app);
    assert_eq!(open["spec"]["policyTypes"], serde_json::json!(["Ingress"]));
    assert_eq!(
        open["spec"]["ingress"],
        serde_json::json!([{"ports": [{"port": 8095, "protocol": "TCP"}]}])
    );
    assert!(policy(&["linux.metricsAddr="])["spec"]["ingress"].is_null());
    let from = policy(&["networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus"]);
    assert_eq!(
        from["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["app"],
        "prometheus"
    );
    let fenced = policy(&[
        "networkPolicy.egress.enabled=true",
        "networkPolicy.egress.rules[0].ports[0].port=443",
    ]);
    assert_eq!(
        fenced["spec"]["policyTypes"],
        serde_json::json!(["Ingress", "Egress"])
    );
    assert_eq!(fenced["spec"]["egress"][0]["ports"][0]["port"], 443);
    let said = template("default", NEW, &["networkPolicy.egress.enabled=true"]);
    assert!(
        said.expect_err("nothing could be read")
            .contains("networkPolicy.egress.rules")
    );
    let off = Objects::of("default", NEW, &["networkPolicy.enabled=false"]);
    assert!(off.all("NetworkPolicy").is_empty());
}
