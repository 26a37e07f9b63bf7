//! What Herald counts, in Prometheus' terms. Label values are bounded: channels are `namespace/name` of declared
//! resources, reasons are codes, nothing comes from a recipient or a message. A channel's gauges go with the channel, its
//! counters stay.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A namespace and a class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NamespaceClass {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Class.
    pub priority: &'static str,
}

/// A channel and a class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChannelClass {
    /// `namespace/name`.
    pub channel: String,
    /// Class.
    pub priority: &'static str,
}

/// A channel and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChannelReason {
    /// `namespace/name`.
    pub channel: String,
    /// A failure's code or a suppression's reason.
    pub reason: String,
}

/// A provider of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChannelProvider {
    /// `namespace/name`.
    pub channel: String,
    /// The provider's name.
    pub provider: String,
}

/// A part of the program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Operation {
    /// What was tried: a variant's name in snake case.
    pub operation: &'static str,
}

/// Classic buckets from 1 ms to 1 h.
#[derive(Debug, Clone, Copy)]
pub struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            60.0, 300.0, 900.0, 3600.0,
        ])
    }
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ty = $make:expr;)+) => {
        /// Everything Herald counts. Cheap to share; handles for hot paths are made once and kept.
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
                let mut registry = Registry::with_prefix("herald");
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
    /// Notifications accepted, by namespace and class.
    accepted: Family<NamespaceClass, Counter> = Family::default();
    /// Requests refused, by the problem's type.
    refused: Family<Operation, Counter> = Family::default();
    /// Delivery rows written to the waiting room, by namespace and class.
    planned: Family<NamespaceClass, Counter> = Family::default();
    /// Deliveries handed to the broker.
    fanned_out: Family<ChannelClass, Counter> = Family::default();
    /// Deliveries a provider took.
    sent: Family<ChannelClass, Counter> = Family::default();
    /// Attempts that did not succeed, by reason.
    failed_attempts: Family<ChannelReason, Counter> = Family::default();
    /// Attempts handed to a retry.
    retried: Family<ChannelClass, Counter> = Family::default();
    /// Deliveries that became dead letters, by reason.
    dead: Family<ChannelReason, Counter> = Family::default();
    /// Deliveries not sent for a reason that is nobody's fault.
    suppressed: Family<ChannelReason, Counter> = Family::default();
    /// Copies dropped since they were settled or in hand.
    repeats_dropped: Family<ChannelClass, Counter> = Family::default();
    /// Rows that are due and wait for the channel's pace.
    waiting: Family<ChannelClass, Gauge> = Family::default();
    /// Age of the oldest delivery that waits, in the waiting room or before the provider, in seconds.
    oldest_waiting_seconds: Family<ChannelClass, Gauge<f64, AtomicU64>> = Family::default();
    /// From ready to sent, in seconds.
    ready_to_sent_seconds: Family<ChannelClass, Histogram, Seconds> = Family::new_with_constructor(Seconds);
    /// How long a provider took for one attempt, in seconds.
    provider_seconds: Family<ChannelProvider, Histogram, Seconds> = Family::new_with_constructor(Seconds);
    /// Whether a provider is in use: 1 closed, 0.5 half-open, 0 open.
    provider_state: Family<ChannelProvider, Gauge<f64, AtomicU64>> = Family::default();
    /// Failures of the database, by operation.
    store_errors: Family<Operation, Counter> = Family::default();
    /// Failures of the broker, by operation.
    broker_errors: Family<Operation, Counter> = Family::default();
    /// Messages that cannot be read and are kept for somebody to look at, by the kind of their topic.
    unreadable_messages: Family<Operation, Counter> = Family::default();
    /// Rows found overdue by the sweep and released again.
    redriven: Counter = Counter::default();
    /// Rows that were released and of which nothing was heard in time.
    overdue: Gauge = Gauge::default();
    /// Schedules that fired.
    schedules_fired: Counter = Counter::default();
    /// Due times of schedules that were missed by more than their deadline.
    schedules_missed: Counter = Counter::default();
    /// By how many seconds this machine's clock is ahead of the time that is gone by; negative: behind.
    clock_skew_seconds: Gauge<f64, AtomicU64> = Gauge::default();
    /// By how many seconds the broker's clock is ahead of the time that is gone by; negative: behind.
    broker_clock_skew_seconds: Gauge<f64, AtomicU64> = Gauge::default();
    /// Problems in what is declared.
    declared_problems: Gauge = Gauge::default();
}

impl Metrics {
    /// Counts that the database failed to do something.
    pub fn store_failed(&self, operation: &'static str) {
        self.store_errors
            .get_or_create(&Operation { operation })
            .inc();
    }

    /// Counts that the broker failed to do something.
    pub fn broker_failed(&self, operation: &'static str) {
        self.broker_errors
            .get_or_create(&Operation { operation })
            .inc();
    }

    /// Counts a message that cannot be read, by the kind of its topic.
    pub fn found_unreadable(&self, kind: &'static str) {
        self.unreadable_messages
            .get_or_create(&Operation { operation: kind })
            .inc();
    }

    /// The `OpenMetrics` text of everything.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
