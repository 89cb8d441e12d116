//! Alerts and dashboard: queries that Prometheus takes, of metrics that the driver has.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use coffer::error::PublishError;
use coffer::events::EventReason;
use coffer::publish::Done;
use coffer::telemetry::Metrics;
use coffer::volume::Outcome;
use promql_parser::parser::{self, Expr};
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

/// The names of a scrape in which everything was counted once.
fn names() -> BTreeSet<String> {
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
    metrics.reports.event(EventReason::Rotated, "written");
    metrics.reports.crd_is_whole("SecretProviderClass", true);
    let scrape = metrics.text();
    let series = scrape.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| line.split(['{', ' ']).next().expect("a name").to_owned())
        .collect()
}

fn metrics_of(expression: &Expr, names: &mut BTreeSet<String>) {
    let mut of = |inner: &Expr| metrics_of(inner, names);
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
        Expr::VectorSelector(selector) => {
            names.insert(selector.name.clone().expect("a metric by its name"));
        }
        Expr::MatrixSelector(matrix) => {
            names.insert(matrix.vs.name.clone().expect("a metric by its name"));
        }
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

#[test]
fn every_query_can_be_parsed_and_asks_for_metrics_that_the_driver_has() {
    let names = names();
    let queries = queries();
    assert!(queries.len() > 20, "{}", queries.len());
    for (place, query) in queries {
        // Grafana puts a time there.
        let query = query.replace("$__rate_interval", "5m");
        let parsed = parser::parse(&query);
        let parsed = parsed.unwrap_or_else(|problem| panic!("{place}: {query}: {problem}"));
        let mut asked = BTreeSet::new();
        metrics_of(&parsed, &mut asked);
        assert!(!asked.is_empty(), "{place}");
        for metric in asked {
            assert!(names.contains(&metric), "{place}: there is no {metric}");
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
