//! What the operator counts, in Prometheus' terms. Label values are bounded: kinds, and reasons that are names of
//! errors; no names of resources, no texts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// One of the four kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKind {
    /// Its name.
    pub kind: &'static str,
}

/// A kind and why something of it failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindReason {
    /// The kind's name.
    pub kind: &'static str,
    /// The error's name, as in conditions and Events.
    pub reason: &'static str,
}

/// What was done to objects of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Write {
    /// The kind's name, such as Deployment.
    pub kind: String,
    /// apply, delete, status, finalizer, event or lease.
    pub action: &'static str,
}

/// What was followed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Watched {
    /// The kind's name, such as Deployment.
    pub kind: String,
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfReason {
    /// The error's name.
    pub reason: &'static str,
}

/// Classic buckets from 1 ms to a minute.
#[derive(Debug, Clone, Copy)]
pub struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
        ])
    }
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ty = $make:expr;)+) => {
        /// Everything that is counted. Cheap to share.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $doc])+ pub $name: $kind,)+
        }

        impl Metrics {
            /// What is registered, also what nothing was counted of yet: names without prefix and suffix, and types.
            pub const REGISTERED: &[(&str, &str)] = &[$((stringify!($name), stringify!($kind)),)+];
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("herald_operator");
                $(
                    let $name: $kind = $make;
                    registry.register(stringify!($name), concat!($($doc),+).trim().trim_end_matches('.'), $name.clone());
                )+
                Self { registry, $($name,)+ }
            }
        }
    };
}

metrics! {
    /// Resources looked at, by kind.
    reconciled: Family<OfKind, Counter> = Family::default();
    /// Of these, those that failed and are tried again, by kind and reason.
    failed: Family<KindReason, Counter> = Family::default();
    /// How long looking at one took, in seconds.
    reconcile_seconds: Family<OfKind, Histogram, Seconds> = Family::new_with_constructor(Seconds);
    /// Resources that wait to be tried again after a failure.
    backing_off: Gauge = Gauge::default();
    /// Writes to Kubernetes, by kind of object and what was done.
    writes: Family<Write, Counter> = Family::default();
    /// Writes to Pulsar.
    pulsar_writes: Counter = Counter::default();
    /// Watches that ended with an error and began anew, by kind of object.
    watch_errors: Family<Watched, Counter> = Family::default();
    /// Questions to the gateways that were not answered, by reason: Refuse is one that says no to the operator.
    gateway_errors: Family<OfReason, Counter> = Family::default();
    /// Changes of the number of a Channel's pods.
    scaled: Counter = Counter::default();
    /// Whether this operator is the one that may work now.
    leader: Gauge = Gauge::default();
}

impl Metrics {
    /// Counts a write to Kubernetes.
    pub fn wrote(&self, kind: &str, action: &'static str) {
        let kind = kind.to_owned();
        self.writes.get_or_create(&Write { kind, action }).inc();
    }

    /// Everything, as text that Prometheus reads.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.wrote("Deployment", "apply");
        let text = metrics.encode().unwrap();
        let line = r#"herald_operator_writes_total{kind="Deployment",action="apply"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
