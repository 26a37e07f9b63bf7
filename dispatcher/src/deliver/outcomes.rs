//! Tells the events topic what became of deliveries, then acknowledges: the last thing that happens to a message.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::names::{self, Topic};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::queue::{Acknowledgement, Held, copy};
use super::retry::Next;
use super::worker::Worker;
use crate::broker::{BrokerError, MessageId, Outgoing};
use crate::message::{self, Bundle, Delivery, Event, Events, Step};

/// Most outcomes published together.
const BATCH: usize = 512;

/// A delivery of which it is known what follows.
pub(super) struct Finished {
    /// The delivery and its place in its message.
    pub held: Held,
    /// What follows.
    pub next: Next,
    /// When it ended.
    pub at: Timestamp,
    /// Its share of W, given back once the outcome has its receipt.
    pub _window: Option<OwnedSemaphorePermit>,
}

/// Publishes outcomes as they come, together with those that came meanwhile, until every sender is gone.
pub(super) async fn publish(worker: &Worker, mut finished: mpsc::Receiver<Finished>) {
    let events_topic = names::events(&worker.channel);
    let relay_topics = names::relays(&worker.channel);
    let mut batch = Vec::with_capacity(BATCH);
    let vitals = Arc::clone(&worker.shared.vitals);
    while finished.recv_many(&mut batch, BATCH).await > 0 {
        vitals.tell();
        for (index, topic) in relay_topics.iter().enumerate() {
            let retried = batch
                .iter_mut()
                .filter_map(|done| match &mut done.next.relay {
                    Some((relay, _)) if *relay == index => done.next.relay.take(),
                    _ => None,
                });
            let messages = relayed(retried.map(|(_, delivery)| *delivery).collect());
            insist(worker, topic, messages).await;
        }

        let mut outcomes = Vec::with_capacity(batch.len());
        for done in &mut batch {
            let step = std::mem::replace(&mut done.next.step, Step::Expired);
            if !step.ends() && done.next.tried > done.held.delivery.tried {
                worker.count_retry(done.held.delivery.priority);
            }
            outcomes.push(Event {
                delivery: done.held.delivery.id,
                notification: done.held.delivery.notification,
                at: done.at,
                round: done.held.delivery.round,
                attempt: done.held.delivery.attempt,
                tried: done.next.tried,
                priority: done.held.delivery.priority,
                step,
            });
        }
        let groups = group(outcomes, |event| weight(&event.step));
        let events: Vec<Events> = groups
            .into_iter()
            .map(|outcomes| Events {
                outcomes,
                ..Events::default()
            })
            .collect();
        insist(
            worker,
            &events_topic,
            events
                .iter()
                .map(|events| Outgoing::at_once(message::encode(events)))
                .collect(),
        )
        .await;

        for events in &events {
            worker.ledger.apply(events);
        }
        let mut copies = Vec::new();
        {
            let mut queues = worker.queues();
            for done in &batch {
                copies.append(&mut queues.release(&copy(&done.held.delivery)));
            }
        }
        for hold in copies {
            hold.settle();
        }
        for done in batch.drain(..) {
            done.held.hold.settle();
        }
        vitals.told();
    }
}

/// Acknowledges messages as they are settled, many at a time, until every sender is gone.
pub(super) async fn acknowledge(
    worker: &Worker,
    mut settled: mpsc::UnboundedReceiver<Acknowledgement>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while settled.recv_many(&mut batch, BATCH).await > 0 {
        while let Some((by, _)) = batch.first().map(|(by, id)| (Arc::clone(by), *id)) {
            let (same, rest): (Vec<_>, Vec<_>) = batch
                .drain(..)
                .partition(|(other, _)| Arc::ptr_eq(other, &by));
            let ids: Vec<MessageId> = same.into_iter().map(|(_, id)| id).collect();
            // Unacknowledged, they would fill the consumer's prefetch for as long as it lives.
            while let Err(error) = by.acknowledge(&ids).await {
                if matches!(error, BrokerError::Closed) {
                    return;
                }
                worker.shared.metrics.broker_failed("acknowledge");
                tracing::warn!(channel = &*worker.channel, %error, "acknowledgements were refused, trying again");
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            batch = rest;
        }
    }
}

/// Bundles of what goes to a relay.
fn relayed(deliveries: Vec<Delivery>) -> Vec<Outgoing> {
    let latest = deliveries.iter().map(|delivery| delivery.ready_at).max();
    group(deliveries, |delivery| delivery.content.len())
        .into_iter()
        .map(|deliveries| Outgoing {
            payload: message::encode(&Bundle { deliveries }),
            key: None,
            deliver_at: latest,
        })
        .collect()
}

/// Groups of at most so many as a bundle may have, and at most as heavy.
fn group<T>(items: Vec<T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut heavy = usize::MAX;
    for item in items {
        let weight = weight(&item) + 256;
        match groups.last_mut() {
            Some(group)
                if group.len() < Bundle::MAX_DELIVERIES && heavy + weight <= Bundle::MAX_BYTES =>
            {
                heavy += weight;
                group.push(item);
            }
            _ => {
                heavy = weight;
                groups.push(vec![item]);
            }
        }
    }
    groups
}

fn weight(step: &Step) -> usize {
    match step {
        Step::Returned { delivery, .. }
        | Step::Failed {
            delivery: Some(delivery),
            ..
        } => delivery.content.len(),
        _ => 0,
    }
}

/// Publishes until there is a receipt: without one nothing may be acknowledged.
async fn insist(worker: &Worker, topic: &Topic, messages: Vec<Outgoing>) {
    if messages.is_empty() {
        return;
    }
    let mut pause = Duration::from_millis(50);
    while let Err(error) = worker.broker.publish(topic, messages.clone()).await {
        worker.shared.vitals.tell();
        worker.shared.metrics.broker_failed("publish_outcomes");
        tracing::warn!(channel = &*worker.channel, %error, "outcomes have no receipt yet, trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}
