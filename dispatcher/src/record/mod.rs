//! Events become history; the sweep finds what was forgotten.

pub mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use herald_crds::names;
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::broker::{Broker, BrokerError, Incoming, MessageId, Sharing};
use crate::clock;
use crate::id::FullName;
use crate::message::{self, DecodeError, Event, Events, Garbage, Step};
use crate::metrics::{ChannelReason, Metrics};
use crate::store::{Store, SuppressedAddress};
use crate::waiting::Lanes;

/// Messages recorded in one transaction.
const BATCH: usize = 64;

/// Records one channel's events.
pub struct Recorder {
    /// The channel.
    pub channel: FullName,
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What was.
    pub store: Arc<dyn Store>,
    /// Who has rows that are due again.
    pub lanes: Arc<Lanes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Outcomes as they are recorded, for whoever listens.
    pub outcomes: broadcast::Sender<Arc<(FullName, Event)>>,
    /// How far recording has come; the sweep waits for it.
    pub position: watch::Sender<Option<MessageId>>,
    /// Whether there is nothing to record from: the topic is not there yet, or no longer.
    pub is_missing: Arc<AtomicBool>,
}

impl Recorder {
    /// Records until `stop`. With the database away, events wait where they are.
    pub async fn run(self, stop: CancellationToken) {
        let span = tracing::info_span!("record", channel = &*self.channel);
        let recording = async {
            loop {
                if let Err(error) = self.record().await {
                    self.metrics.broker_failed("receive_events");
                    tracing::warn!(channel = &*self.channel, %error, "recording was interrupted, beginning again");
                    let is_missing = matches!(error, BrokerError::Missing { .. });
                    self.is_missing.store(is_missing, Ordering::Relaxed);
                    tokio::time::sleep(error.pause()).await;
                }
            }
        };
        stop.run_until_cancelled(recording.instrument(span)).await;
    }

    async fn record(&self) -> Result<(), BrokerError> {
        let topic = names::events(&self.channel);
        let mut consumer = self
            .broker
            .subscribe(&topic, Sharing::Failover, BATCH * 2)
            .await?;
        self.is_missing.store(false, Ordering::Relaxed);
        let acknowledger = consumer.acknowledger();
        // The first message that only a newer program can read.
        let mut newer: Option<MessageId> = None;
        loop {
            let mut messages = vec![consumer.receive().await?];
            while messages.len() < BATCH
                && let Some(next) = consumer.receive().now_or_never()
            {
                messages.push(next?);
            }
            let mut events = Vec::with_capacity(messages.len());
            let mut ids = Vec::with_capacity(messages.len());
            for message in messages {
                if let Some(read) = self.read(&message) {
                    events.push(read);
                    ids.push(message.id);
                } else {
                    newer = Some(newer.map_or(message.id, |newer| newer.min(message.id)));
                }
            }
            if ids.is_empty() {
                continue;
            }
            self.insist(&events).await;
            self.tell(events).await;
            acknowledger.acknowledge(&ids).await?;
            // Beyond what waits nothing counts as recorded: the sweep would take what it tells of for lost.
            let recorded = ids
                .iter()
                .filter(|id| newer.is_none_or(|newer| **id < newer));
            if let Some(last) = recorded.max() {
                self.position.send_replace(Some(*last));
            }
        }
    }

    /// The events of a message; `None`: it is kept unacknowledged, until a program takes over that can read it. Whatever
    /// else comes is recorded meanwhile: the order does not matter. Should there be as many of these as are held at once,
    /// the rest waits too.
    fn read(&self, message: &Incoming) -> Option<Events> {
        match message::decode(&message.payload) {
            Ok(events) => Some(events),
            Err(error @ DecodeError::Newer { .. }) => {
                self.metrics.broker_failed("read_events");
                tracing::error!(channel = &*self.channel, %error, "an event waits for a program that can read it");
                None
            }
            Err(error @ DecodeError::Garbage { .. }) => {
                let bytes = message.payload.len();
                tracing::error!(channel = &*self.channel, %error, bytes, "an event cannot be read and is put aside");
                self.metrics.found_unreadable("events");
                let topic = names::events(&self.channel);
                Some(Events {
                    garbage: vec![Garbage::new(&topic, message.id, &message.payload, &error)],
                    ..Events::default()
                })
            }
        }
    }

    /// Writes until it is written: an event is acknowledged only then.
    async fn insist(&self, events: &[Events]) {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = self.store.record(&self.channel, events).await {
            self.metrics.store_failed("record");
            tracing::warn!(channel = &*self.channel, %error, "events cannot be recorded, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// What follows from what was recorded.
    async fn tell(&self, events: Vec<Events>) {
        let now = clock::now();
        for event in events.into_iter().flat_map(|events| events.outcomes) {
            match &event.step {
                Step::Returned { .. } => {
                    // When it is due, and in which class by now, is the store's to say: so everybody is told.
                    self.lanes.ready(&self.channel, None);
                    self.lanes.scheduled();
                }
                Step::Failed {
                    error,
                    delivery,
                    address_gone,
                } => {
                    self.count(&self.metrics.dead, &error.reason);
                    if *address_gone && let Some(delivery) = delivery {
                        self.suppress(
                            &delivery.namespace,
                            delivery.content.medium().as_str(),
                            &delivery.endpoint,
                            now,
                        )
                        .await;
                    }
                }
                Step::Suppressed { reason } => self.count(&self.metrics.suppressed, reason.into()),
                Step::Sent { .. }
                | Step::Retrying { .. }
                | Step::Unknown { .. }
                | Step::Expired
                | Step::Cancelled => {}
            }
            if self.outcomes.receiver_count() > 0 {
                // Nobody listens any more: fine.
                let _ = self
                    .outcomes
                    .send(Arc::new((Arc::clone(&self.channel), event)));
            }
        }
    }

    fn count(
        &self,
        family: &prometheus_client::metrics::family::Family<
            ChannelReason,
            prometheus_client::metrics::counter::Counter,
        >,
        reason: &str,
    ) {
        let labels = ChannelReason {
            channel: self.channel.to_string(),
            reason: reason.to_owned(),
        };
        family.get_or_create(&labels).inc();
    }

    /// An address that is gone gets nothing more. Not worth holding up history: it will be found gone again.
    async fn suppress(&self, namespace: &str, medium: &str, address: &str, since: Timestamp) {
        let suppressed = SuppressedAddress {
            medium: medium.to_owned(),
            address: address.to_owned(),
            reason: "address-gone".to_owned(),
            since,
        };
        if let Err(error) = self.store.suppress(namespace, &suppressed).await {
            self.metrics.store_failed("suppress");
            tracing::warn!(%error, "an address that is gone could not be suppressed");
        }
    }
}
