//! Consuming: the messages of each class are taken in hand, as far as they are no repeats.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use herald_crds::names::Topic;
use herald_crds::{Priority, names};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::broker::{BrokerError, Consumer, Incoming, MessageId, Outgoing, Sharing};
use crate::clock;
use crate::deliver::outcomes::Finished;
use crate::deliver::queue::{Acknowledgement, Held, Hold};
use crate::message::{self, Bundle, DecodeError, Delivery, Garbage};

/// Messages of one class that a pod holds unacknowledged: some three seconds of work, of a delivery each, within this.
///
/// With fewer a client that lets the network collect what it says waits for some 40 ms each time it asks for more.
const PREFETCH: std::ops::RangeInclusive<f64> = 64.0..=1_000.0;

/// Bytes of messages after which no more are taken together.
const TOGETHER: usize = 2 * 1024 * 1024;

/// How much work of one class is held, as time at the channel's rate.
const HELD: Duration = Duration::from_secs(3);

/// Most deliveries of one class that are held.
const MOST_HELD: usize = 4_000;

impl Worker {
    /// Deliveries of one class to hold at the most: its part of three seconds of work where so many pods share the rate.
    /// What one holds no other can send.
    fn most_held(&self, pods: usize) -> usize {
        let rate = self.rate.per_second() / pods.max(1) as f64;
        if rate.is_finite() {
            ((rate * HELD.as_secs_f64()) as usize).clamp(16, MOST_HELD)
        } else {
            MOST_HELD
        }
    }

    /// Makes the room for what is held as large as it should be with so many pods; what is too much is taken away once it
    /// is free.
    pub(super) fn fit_room(&self, pods: usize) {
        let most = self.most_held(pods);
        for room in &self.room {
            let size = room.size.load(Ordering::Relaxed);
            let size = if size < most {
                room.places.add_permits(most - size);
                most
            } else {
                size - room.places.forget_permits(size - most)
            };
            room.size.store(size, Ordering::Relaxed);
        }
    }

    /// Messages of one class to hold at the most.
    fn prefetch(&self) -> usize {
        let work = self.rate.per_second() * HELD.as_secs_f64();
        work.clamp(*PREFETCH.start(), *PREFETCH.end()) as usize
    }

    /// Takes the messages of one class in hand until `stop`; answers the consumer, if there is one, to be dropped once
    /// what was begun has ended: its messages go to others then, who must not begin them before.
    pub(super) async fn take(
        &self,
        class: Priority,
        acknowledge: &mpsc::UnboundedSender<Acknowledgement>,
        finished: &mpsc::Sender<Finished>,
        stop: CancellationToken,
    ) -> Option<Box<dyn Consumer>> {
        // What a pod takes and may not send waits, where others could have sent it.
        stop.run_until_cancelled(self.rate.shared()).await?;
        loop {
            self.trying[class.index()].store(true, Ordering::Relaxed);
            let mut consumer = None;
            let consuming = self.consume(class, &mut consumer, acknowledge, finished);
            let pause = match stop.run_until_cancelled(consuming).await {
                None => return consumer,
                Some(Err(error)) => {
                    self.shared.metrics.broker_failed("receive");
                    tracing::warn!(%class, %error, "the consumer ended, beginning again");
                    error.pause()
                }
            };
            drop(consumer);
            // Another consumer may have these now.
            self.queues().discard(class);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await?;
        }
    }

    async fn consume(
        &self,
        class: Priority,
        consumer: &mut Option<Box<dyn Consumer>>,
        acknowledge: &mpsc::UnboundedSender<Acknowledgement>,
        finished: &mpsc::Sender<Finished>,
    ) -> Result<Infallible, BrokerError> {
        let topic = names::deliveries(&self.channel, class);
        let events = names::events(&self.channel);
        let prefetch = self.prefetch();
        let subscribed = self
            .broker
            .subscribe(&topic, Sharing::KeyShared, prefetch)
            .await?;
        let consumer = consumer.insert(subscribed);
        self.trying[class.index()].store(false, Ordering::Relaxed);
        let by = consumer.acknowledger();
        loop {
            let arrived = receive(&mut **consumer, prefetch).await?;
            if self.shared.guards.caught_up {
                // So a successor knows all that its predecessor published. One question for all that had arrived.
                let position = self.broker.last_message_id(&events).await?;
                self.ledger.caught_up(position).await;
            }
            for Incoming { id, payload } in arrived {
                let bundle = match message::decode::<Bundle>(&payload) {
                    Ok(bundle) => bundle,
                    Err(error) => {
                        self.put_aside(&topic, id, payload, &error).await?;
                        by.acknowledge(&[id]).await?;
                        continue;
                    }
                };
                drop(payload);
                let count = bundle.deliveries.len();
                let hold = Hold::new(id, count, Arc::clone(&by), acknowledge.clone());
                for delivery in bundle.deliveries {
                    let room = Arc::clone(&self.room[class.index()].places)
                        .acquire_owned()
                        .await
                        .ok();
                    let held = Held {
                        delivery,
                        topic: class,
                        hold: Arc::clone(&hold),
                        room,
                    };
                    self.arrive(held, finished).await;
                }
            }
        }
    }

    /// Takes one delivery in hand, unless it is a repeat.
    async fn arrive(&self, mut held: Held, finished: &mpsc::Sender<Finished>) {
        let Delivery {
            id,
            notification,
            round,
            attempt,
            ..
        } = held.delivery;
        if self.shared.guards.settled && self.ledger.is_settled(&id, round, attempt) {
            self.drop_repeat(&held);
            return;
        }
        if let Some(next) = self.not_to_be_sent(&held.delivery) {
            self.finish_unsent(held, next, finished).await;
            return;
        }
        let mut queues = self.queues();
        // Asked while nobody sorts: an order that comes after this finds it in the queue.
        let class = self.ledger.class(&notification).unwrap_or(held.topic);
        held.delivery.priority = class;
        let is_new = if self.shared.guards.in_hand {
            queues.push(held)
        } else {
            queues.push_unchecked(held);
            true
        };
        drop(queues);
        if is_new {
            self.work.notify_one();
        } else {
            self.counters[class.index()].repeats_dropped.inc();
        }
    }

    /// A message that cannot be read: a newer one goes to the longer relay, until somebody can; garbage is told, whole.
    async fn put_aside(
        &self,
        topic: &Topic,
        id: MessageId,
        payload: Bytes,
        error: &DecodeError,
    ) -> Result<(), BrokerError> {
        match error {
            DecodeError::Newer { .. } => {
                tracing::error!(%error, "a message of a newer format is parked in the relay");
                let [_, relay] = names::relays(&self.channel);
                let deliver_at = Some(clock::now() + self.shared.timing.relays[1]);
                self.broker
                    .publish(
                        &relay,
                        vec![Outgoing {
                            payload,
                            key: None,
                            deliver_at,
                        }],
                    )
                    .await
            }
            DecodeError::Garbage { .. } => {
                tracing::error!(%error, bytes = payload.len(), "a message that is none of ours is put aside");
                self.shared.metrics.found_unreadable("deliveries");
                let garbage = Garbage::new(topic, id, &payload, error);
                let events = names::events(&self.channel);
                self.broker.publish(&events, vec![garbage.told()]).await
            }
        }
    }
}

/// Waits for a message, and takes what else is there, up to `most`.
async fn receive(consumer: &mut dyn Consumer, most: usize) -> Result<Vec<Incoming>, BrokerError> {
    let first = consumer.receive().await?;
    let mut bytes = first.payload.len();
    let mut arrived = vec![first];
    while arrived.len() < most
        && bytes < TOGETHER
        && let Some(next) = consumer.receive().now_or_never()
    {
        let next = next?;
        bytes += next.payload.len();
        arrived.push(next);
    }
    Ok(arrived)
}
