//! Consuming: the messages of each class are taken in hand, as far as they are no repeats.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use herald_crds::names::Topic;
use herald_crds::{Priority, names};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::broker::{BrokerError, Incoming, MessageId, Outgoing, Sharing};
use crate::deliver::outcomes::Finished;
use crate::deliver::queue::{Acknowledgement, Held, Hold};
use crate::message::{self, Bundle, DecodeError, Delivery, Garbage};

/// Messages of one class that a pod holds unacknowledged.
const PREFETCH: usize = 64;

/// How much work of one class is held, as time at the channel's rate.
const HELD: Duration = Duration::from_secs(3);

/// Most deliveries of one class that are held.
const MOST_HELD: usize = 4_000;

impl Worker {
    /// Deliveries of one class to hold at the most.
    fn room(&self) -> usize {
        let rate = self.rate.per_second();
        if rate.is_finite() {
            ((rate * HELD.as_secs_f64()) as usize).clamp(16, MOST_HELD)
        } else {
            MOST_HELD
        }
    }

    /// Takes the messages of one class in hand until `stop`.
    pub(super) async fn take(
        &self,
        class: Priority,
        acknowledge: &mpsc::UnboundedSender<Acknowledgement>,
        finished: &mpsc::Sender<Finished>,
        stop: CancellationToken,
    ) {
        stop.run_until_cancelled(async {
            let room = Arc::new(Semaphore::new(self.room()));
            loop {
                if let Err(error) = self.consume(class, &room, acknowledge, finished).await {
                    self.shared.metrics.broker_failed("receive");
                    tracing::warn!(%class, %error, "the consumer ended, beginning again");
                }
                // Another consumer may have these now.
                self.queues().discard(class);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        })
        .await;
    }

    async fn consume(
        &self,
        class: Priority,
        room: &Arc<Semaphore>,
        acknowledge: &mpsc::UnboundedSender<Acknowledgement>,
        finished: &mpsc::Sender<Finished>,
    ) -> Result<(), BrokerError> {
        let topic = names::deliveries(&self.channel, class);
        let events = names::events(&self.channel);
        let mut consumer = self
            .broker
            .subscribe(&topic, Sharing::KeyShared, PREFETCH)
            .await?;
        let by = consumer.acknowledger();
        loop {
            let Incoming { id, payload } = consumer.receive().await?;
            let bundle = match message::decode::<Bundle>(&payload) {
                Ok(bundle) => bundle,
                Err(error) => {
                    self.put_aside(&topic, id, payload, &error).await?;
                    by.acknowledge(&[id]).await?;
                    continue;
                }
            };
            drop(payload);
            if self.shared.guards.caught_up {
                // So a successor knows all that its predecessor published.
                let position = self.broker.last_message_id(&events).await?;
                self.ledger.caught_up(position).await;
            }
            let hold = Hold::new(
                id,
                bundle.deliveries.len(),
                Arc::clone(&by),
                acknowledge.clone(),
            );
            for delivery in bundle.deliveries {
                let room = Arc::clone(room).acquire_owned().await.ok();
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
                let deliver_at = Some(Timestamp::now() + self.shared.timing.relays[1]);
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
