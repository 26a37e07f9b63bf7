//! What every reconciler has.

use std::sync::Arc;

use herald_crds::Kind;
use jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use crate::backoff::Backoff;
use crate::channel::Plant;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::queue::{self, Queues};
use crate::watch::Stores;
use crate::written::Written;

/// What every reconciler has: where to read, where to write, and what to remember.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The operator's own namespace.
    pub namespace: String,
    /// What is declared and what was made, as the watches tell it.
    pub stores: Stores,
    /// What was written and is not in the stores yet.
    pub written: Arc<Written>,
    /// Where to ask for somebody to be looked at.
    pub queues: Queues,
    /// Where Events go.
    pub recorder: Recorder,
    /// How often what failed has failed.
    pub backoff: Backoff,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Resources of a kind that are looked at at once.
    pub concurrency: u16,
    /// What makes topics and pods; `None`: nothing is made, what moves is in a process that is not the operator's.
    pub plant: Option<Plant>,
    /// What the gateways know; `None`: nobody asks them.
    pub gateway: Option<Gateway>,
    /// The time.
    pub now: fn() -> Timestamp,
}

impl Context {
    /// A resource is gone: nothing is remembered of it.
    pub fn forget(&self, kind: Kind, namespace: &str, name: &str) {
        self.backoff.worked(&queue::name(kind, namespace, name));
        self.metrics.backing_off.set(self.backoff.len() as i64);
        self.written.forget_all(kind, namespace, name);
        if let (Kind::Channel, Some(plant)) = (kind, &self.plant) {
            plant.forget(&format!("{namespace}/{name}"));
        }
    }
}

/// Who tells Events: the operator, and which of several.
pub fn recorder(client: &Client, pod: &str) -> Recorder {
    let reporter = Reporter {
        controller: "herald-operator".to_owned(),
        instance: Some(pod.to_owned()),
    };
    Recorder::new(client.clone(), reporter)
}
