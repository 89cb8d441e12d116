//! What is counted about what the API server is told, and how it answers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::events::EventReason;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    reason: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Counters of Events and status objects, and the state of what the driver needs of the API server.
#[derive(Default)]
pub struct ReportMetrics {
    events: Family<EventLabels, Counter>,
    status_writes: Family<WriteLabels, Counter>,
    crds_outdated: Family<KindLabels, Gauge>,
    /// 1 while the API server cannot tell of changes of classes.
    pub classes_stale: Gauge,
}

impl ReportMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "coffer_events",
            "Events for pods: written, dropped where too many waited, failed where the API server did not take them",
            self.events.clone(),
        );
        registry.register(
            "coffer_status_writes",
            "Requests that write SecretProviderClassPodStatus objects, by how they ended",
            self.status_writes.clone(),
        );
        registry.register(
            "coffer_crd_outdated",
            "1 where the installed CRD does not know all fields, so that the API server takes them out",
            self.crds_outdated.clone(),
        );
        registry.register(
            "coffer_classes_stale",
            "1 while the API server cannot be watched, so that classes are what they were",
            self.classes_stale.clone(),
        );
    }

    /// Counts an Event, by what became of it.
    pub fn event(&self, reason: EventReason, outcome: &'static str) {
        let reason = reason.as_str();
        let labels = EventLabels { reason, outcome };
        self.events.get_or_create(&labels).inc();
    }

    /// Counts a request that writes a status object, by how it ended.
    pub fn status_written(&self, outcome: &'static str) {
        let labels = WriteLabels { outcome };
        self.status_writes.get_or_create(&labels).inc();
    }

    /// Takes down whether the installed CRD of a kind has all of our fields.
    pub fn crd_is_whole(&self, kind: &'static str, whole: bool) {
        let gauge = self.crds_outdated.get_or_create(&KindLabels { kind });
        gauge.set(i64::from(!whole));
    }
}
