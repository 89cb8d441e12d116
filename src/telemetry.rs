//! Logs and metrics: their format, their names, and what must not get into them.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::error::PublishError;
use crate::publish::Done;
use crate::report_metrics::ReportMetrics;
use crate::volume::Outcome;

/// Starts logging to standard output.
///
/// `level` is for our own crates. Every other crate is capped here, and no environment variable can
/// raise it: h2 prints header frames at trace level, and headers carry tokens.
pub fn start_logging(format: LogFormat, level: Level) {
    let filter = targets(level);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
            registry.with(layer).init();
        }
        LogFormat::Text => {
            let layer = tracing_subscriber::fmt::layer().with_ansi(false);
            registry.with(layer).init();
        }
    }
}

fn targets(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets([
            ("h2", LevelFilter::ERROR),
            ("hyper", LevelFilter::ERROR),
            ("tonic", LevelFilter::ERROR),
            // What it says about each request that failed, our own watch says once.
            ("kube_client", LevelFilter::OFF),
        ])
        .with_target("coffer", level)
        .with_target("coffer_provider", level)
        .with_target("coffer_provider_aws", level)
        .with_target("coffer_provider_file", level)
        .with_target("coffer_provider_plugin", level)
        .with_target("coffer_provider_vault", level)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OsLabels {
    os_type: &'static str,
}

const OS: OsLabels = OsLabels { os_type: LINUX };

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PublishLabels {
    provider: String,
    os_type: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PublishErrorLabels {
    provider: String,
    error_type: &'static str,
    os_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnpublishErrorLabels {
    error_type: &'static str,
    os_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RotationErrorLabels {
    provider: &'static str,
    error_type: &'static str,
    os_type: &'static str,
    rotated: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RotationLabels {
    provider: &'static str,
    os_type: &'static str,
    rotated: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    provider: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    provider: &'static str,
}

/// What is counted. Names that secrets-store-csi-driver has are the same here; labels are closed lists:
/// providers, reasons, outcomes.
pub struct Metrics {
    registry: Registry,
    publishes: Family<PublishLabels, Counter>,
    publish_errors: Family<PublishErrorLabels, Counter>,
    publish_seconds: Histogram,
    unpublishes: Family<OsLabels, Counter>,
    unpublish_errors: Family<UnpublishErrorLabels, Counter>,
    rotations: Family<RotationLabels, Counter>,
    rotation_errors: Family<RotationErrorLabels, Counter>,
    rotation_seconds: Family<OsLabels, Histogram, fn() -> Histogram>,
    /// Volumes that are published on the node.
    pub volumes: Gauge,
    /// Rotations that a container does not see, since it mounts a file of the volume by subPath.
    pub past_subpaths: Counter,
    panics: Counter,
    /// What is set aside for them, of the node's budget.
    pub volume_bytes: Gauge,
    /// The node's budget.
    pub node_budget: Gauge,
    store_requests: Family<StoreLabels, Counter>,
    store_seconds: Family<ProviderLabels, Histogram, fn() -> Histogram>,
    /// Of what the API server is told.
    pub reports: ReportMetrics,
    plugins_up: Family<PluginLabels, Gauge>,
    /// Objects that were answered from memory.
    pub cache_hits: Counter,
    /// Objects in memory.
    pub cache_entries: Gauge,
    /// Bytes of their values.
    pub cache_bytes: Gauge,
    /// Of these, how many could not be read when they were last looked at.
    pub cache_failing: Gauge,
    /// Seconds since the least recent look at an object that a volume uses.
    pub oldest_look: Gauge,
    /// Seconds until the next object ends; -1 where none does.
    pub next_expiry: Gauge,
    /// The same, of what could not be looked at when that was last tried.
    pub failing_expiry: Gauge,
}

const LINUX: &str = "linux";

/// From a publish that is answered from memory to a store that takes its time.
fn seconds() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            publishes: Family::default(),
            publish_errors: Family::default(),
            publish_seconds: seconds(),
            unpublishes: Family::default(),
            unpublish_errors: Family::default(),
            rotations: Family::default(),
            rotation_errors: Family::default(),
            rotation_seconds: Family::new_with_constructor(seconds),
            volumes: Gauge::default(),
            past_subpaths: Counter::default(),
            panics: Counter::default(),
            volume_bytes: Gauge::default(),
            node_budget: Gauge::default(),
            store_requests: Family::default(),
            store_seconds: Family::new_with_constructor(seconds),
            reports: ReportMetrics::default(),
            plugins_up: Family::default(),
            cache_hits: Counter::default(),
            cache_entries: Gauge::default(),
            cache_bytes: Gauge::default(),
            cache_failing: Gauge::default(),
            oldest_look: Gauge::default(),
            next_expiry: Gauge::default(),
            failing_expiry: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "node_publish",
            "Publishes that succeeded, by what they did to the volume",
            self.publishes.clone(),
        );
        registry.register(
            "node_publish_error",
            "Publishes that failed, by reason",
            self.publish_errors.clone(),
        );
        registry.register(
            "node_publish_duration_seconds",
            "How long publishes took",
            self.publish_seconds.clone(),
        );
        registry.register(
            "node_unpublish",
            "Unpublishes that succeeded",
            self.unpublishes.clone(),
        );
        registry.register(
            "node_unpublish_error",
            "Unpublishes that failed, by reason",
            self.unpublish_errors.clone(),
        );
        registry.register(
            "rotation_reconcile",
            "Looks at the stores of a published volume that succeeded",
            self.rotations.clone(),
        );
        registry.register(
            "rotation_reconcile_error",
            "Looks at the stores of a published volume that failed",
            self.rotation_errors.clone(),
        );
        registry.register(
            "rotation_reconcile_duration_sec",
            "How long looks at the stores of a published volume took",
            self.rotation_seconds.clone(),
        );
        registry.register(
            "coffer_volumes",
            "Volumes that are published on the node",
            self.volumes.clone(),
        );
        registry.register(
            "coffer_rotations_past_subpath",
            "Rotations that a container does not see, since it mounts a file of the volume by subPath",
            self.past_subpaths.clone(),
        );
        registry.register(
            "coffer_panics",
            "Times that the driver failed inside: please report what its log says",
            self.panics.clone(),
        );
        registry.register(
            "coffer_store_requests",
            "Objects that stores were asked for, by how it ended",
            self.store_requests.clone(),
        );
        registry.register(
            "coffer_store_request_duration_seconds",
            "How long stores took for one question about one or more objects",
            self.store_seconds.clone(),
        );
        self.reports.register(registry);
        registry.register(
            "coffer_plugin_up",
            "Whether a provider plugin said at its last health check what it is",
            self.plugins_up.clone(),
        );
        registry.register(
            "coffer_cache_hits",
            "Objects that were answered from memory",
            self.cache_hits.clone(),
        );
        for (name, help, gauge) in [
            (
                "coffer_volume_bytes",
                "Bytes that the volumes of the node take, each with room for its next generation",
                &self.volume_bytes,
            ),
            (
                "coffer_node_budget_bytes",
                "Bytes that they may take together",
                &self.node_budget,
            ),
            (
                "coffer_cache_entries",
                "Objects in memory",
                &self.cache_entries,
            ),
            (
                "coffer_cache_bytes",
                "Bytes of the values in memory",
                &self.cache_bytes,
            ),
            (
                "coffer_cache_failing",
                "Objects that could not be read when they were last looked at",
                &self.cache_failing,
            ),
            (
                "coffer_oldest_look_seconds",
                "Time since the least recent successful look at an object in use",
                &self.oldest_look,
            ),
            (
                "coffer_next_expiry_seconds",
                "Time until the next object ends, -1 where none does",
                &self.next_expiry,
            ),
            (
                "coffer_failing_expiry_seconds",
                "Time until the next object ends that could not be looked at, -1 where none does",
                &self.failing_expiry,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
    }

    /// From now on counts the panics of this process, on whichever thread. What was done before about a
    /// panic is still done.
    pub fn count_panics(&self) {
        let panics = self.panics.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            panics.inc();
            before(panic);
        }));
    }

    /// Counts an object that a store was asked for.
    pub fn asked(&self, provider: &'static str, outcome: &'static str) {
        let labels = StoreLabels { provider, outcome };
        self.store_requests.get_or_create(&labels).inc();
    }

    /// Takes down how long a store took for one question.
    pub fn answered(&self, provider: &'static str, took: Duration) {
        let labels = ProviderLabels { provider };
        let seconds = self.store_seconds.get_or_create(&labels);
        seconds.observe(took.as_secs_f64());
    }

    /// Says whether a plugin is there; gives what was said before.
    pub fn plugin_up(&self, provider: &'static str, up: bool) -> bool {
        let gauge = self.plugins_up.get_or_create(&PluginLabels { provider });
        gauge.set(i64::from(up)) == 1
    }

    /// Says no more of a plugin that no volume is read from.
    pub fn plugin_unused(&self, provider: &'static str) {
        self.plugins_up.remove(&PluginLabels { provider });
    }

    /// Counts a publish or a republish.
    pub fn published(&self, done: Result<&Done, &PublishError>, took: Duration) {
        self.publish_seconds.observe(took.as_secs_f64());
        match done {
            Ok(done) => {
                let labels = PublishLabels {
                    provider: done.provider.to_owned(),
                    os_type: LINUX,
                    outcome: done.outcome.as_str(),
                };
                self.publishes.get_or_create(&labels).inc();
            }
            Err(error) => {
                let labels = PublishErrorLabels {
                    provider: error.provider().to_owned(),
                    error_type: error.reason().as_str(),
                    os_type: LINUX,
                };
                self.publish_errors.get_or_create(&labels).inc();
            }
        }
    }

    /// Counts an unpublish.
    pub fn unpublished(&self, done: &Result<(), PublishError>) {
        match done {
            Ok(()) => {
                self.unpublishes.get_or_create(&OS).inc();
            }
            Err(error) => {
                let labels = UnpublishErrorLabels {
                    error_type: error.reason().as_str(),
                    os_type: LINUX,
                };
                self.unpublish_errors.get_or_create(&labels).inc();
            }
        }
    }

    /// Counts a look at what is new for a published volume.
    pub fn rotated(
        &self,
        provider: &'static str,
        looked: &Result<Outcome, PublishError>,
        took: Duration,
    ) {
        let seconds = self.rotation_seconds.get_or_create(&OS);
        seconds.observe(took.as_secs_f64());
        match looked {
            Ok(outcome) => {
                let labels = RotationLabels {
                    provider,
                    os_type: LINUX,
                    rotated: if *outcome == Outcome::Rotated {
                        "true"
                    } else {
                        "false"
                    },
                };
                self.rotations.get_or_create(&labels).inc();
            }
            Err(error) => {
                let labels = RotationErrorLabels {
                    provider,
                    error_type: error.reason().as_str(),
                    os_type: LINUX,
                    rotated: "false",
                };
                self.rotation_errors.get_or_create(&labels).inc();
            }
        }
    }

    /// Everything, as a scrape wants it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_o2_the_levels_of_other_crates_are_capped() {
        let targets = targets(Level::TRACE);
        for ours in [
            "coffer",
            "coffer::publish",
            "coffer_provider_aws",
            "coffer_provider_file::watch",
        ] {
            assert!(targets.would_enable(ours, &Level::TRACE), "{ours}");
        }
        for theirs in [
            "h2::codec",
            "hyper::proto",
            "tonic::transport",
            "rustls",
            "notify",
            "tower",
        ] {
            assert!(!targets.would_enable(theirs, &Level::INFO), "{theirs}");
        }
        assert!(!targets.would_enable("h2::codec", &Level::WARN));
    }

    /// Case C16 of the suite of secrets-store-csi-driver, and what its users have in their dashboards.
    #[test]
    fn bats_c16_a_scrape_has_upstreams_names_and_labels() {
        let metrics = Metrics::default();
        let took = Duration::from_millis(3);
        let done = Done {
            outcome: Outcome::Mounted,
            provider: "vault",
        };
        metrics.published(Ok(&done), took);
        metrics.published(Err(&PublishError::NoClass), took);
        let full = PublishError::QueueFull {
            provider: "aws".into(),
        };
        metrics.published(Err(&full), took);
        metrics.unpublished(&Ok(()));
        metrics.unpublished(&Err(PublishError::NoClass));
        metrics.rotated("vault", &Ok(Outcome::Rotated), took);
        metrics.rotated("vault", &Err(PublishError::NothingToMount), took);
        let text = metrics.text();
        for line in [
            "node_publish_total{provider=\"vault\",os_type=\"linux\",outcome=\"mounted\"} 1",
            "node_publish_error_total{provider=\"\",error_type=\"InvalidRequest\",os_type=\"linux\"} 1",
            "node_publish_error_total{provider=\"aws\",error_type=\"QueueFull\",os_type=\"linux\"} 1",
            "node_unpublish_total{os_type=\"linux\"} 1",
            "node_unpublish_error_total{error_type=\"InvalidRequest\",os_type=\"linux\"} 1",
            "rotation_reconcile_total{provider=\"vault\",os_type=\"linux\",rotated=\"true\"} 1",
            "rotation_reconcile_error_total{provider=\"vault\",error_type=\"SecretNotFound\",os_type=\"linux\",rotated=\"false\"} 1",
            "rotation_reconcile_duration_sec_count{os_type=\"linux\"} 2",
            "coffer_volumes 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
