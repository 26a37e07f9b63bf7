//! Producers: many receipts in flight, in order, partitions by the key's hash.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use herald_crds::names::Topic;
use pulsar::{Producer, ProducerOptions, TokioExecutor, producer};
use tokio::time::Instant;

use super::client::Connection;
use super::error::{LastTrouble, Trouble};
use crate::broker::{BrokerError, Outgoing};

/// How often it is looked whether a topic has grown more partitions.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The producers of one role, made when they are first used.
pub(super) struct Producers {
    connection: Arc<Connection>,
    /// As many as there are topics, which the operator bounds.
    topics: Mutex<HashMap<Topic, Arc<Outlet>>>,
}

/// One topic.
#[derive(Default)]
struct Outlet {
    /// How many partitions it had when it was last looked; 0: it is not known yet.
    known: AtomicU64,
    slot: Arc<tokio::sync::Mutex<Slot>>,
}

/// The producers of one topic.
#[derive(Default)]
struct Slot {
    /// One for each partition, in order; none yet, or not after a failure.
    partitions: Vec<Producer<TokioExecutor>>,
    /// Which set of producers this is.
    generation: u64,
    /// Where the next message without a key goes.
    turn: u64,
    looked: Option<Instant>,
    trouble: LastTrouble,
}

impl Producers {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            topics: Mutex::default(),
        }
    }

    fn outlet(&self, topic: &Topic) -> Arc<Outlet> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outlet) = topics.get(topic) {
            return Arc::clone(outlet);
        }
        Arc::clone(topics.entry(topic.clone()).or_default())
    }

    /// The partition for a key; as long as the partitions are not known, each key has a place of its own.
    pub(super) fn place(&self, topic: &Topic, key: &str) -> u64 {
        match self.outlet(topic).known.load(Ordering::Relaxed) {
            0 => hash(key),
            known => hash(key) % known,
        }
    }

    /// Publishes, and returns with all receipts. Any number of calls at once.
    pub(super) async fn publish(
        &self,
        topic: &Topic,
        messages: Vec<Outgoing>,
    ) -> Result<(), BrokerError> {
        let outlet = self.outlet(topic);
        let slot = &outlet.slot;
        let failed = |trouble: Trouble| trouble.publishing(self.connection.settings(), topic);

        let mut turn = Arc::clone(slot).lock_owned().await;
        if turn.partitions.is_empty() {
            turn = self.open(topic, turn).await.map_err(failed)?;
            let known = turn.partitions.len() as u64;
            outlet.known.store(known, Ordering::Relaxed);
        } else if turn.looked.is_none_or(|at| at.elapsed() > LOOK_AGAIN) {
            turn.looked = Some(Instant::now());
            self.look_for_more(topic, Arc::clone(slot), turn.partitions.len());
        }
        let generation = turn.generation;
        let mut receipts = Vec::with_capacity(messages.len());
        for message in messages {
            let (partition, message) = turn.address(message);
            let Some(producer) = turn.partitions.get_mut(partition) else {
                return Err(failed(Trouble::other("the topic has no partition")));
            };
            match Box::pin(producer.send_non_blocking(message)).await {
                Ok(receipt) => receipts.push(receipt),
                Err(error) => {
                    turn.partitions.clear();
                    return Err(failed(Trouble::of(&error)));
                }
            }
        }
        drop(turn);

        for receipt in receipts {
            let trouble = match receipt.await {
                Ok(receipt) => match receipt.message_id {
                    // How a broker that deduplicates says that it has dropped a message as a repeat.
                    Some(id) if id.ledger_id == u64::MAX => {
                        Trouble::other("the broker dropped it as a repeat of another message")
                    }
                    _ => continue,
                },
                Err(error) => Trouble::of(&error),
            };
            // Whoever comes next gets new producers, and with them the broker's reason, if there is one.
            let mut turn = slot.lock().await;
            if turn.generation == generation {
                turn.partitions.clear();
            }
            return Err(failed(trouble));
        }
        Ok(())
    }

    /// Makes the topic's producers, under the lock and in a task that is not given up.
    async fn open(
        &self,
        topic: &Topic,
        mut turn: tokio::sync::OwnedMutexGuard<Slot>,
    ) -> Result<tokio::sync::OwnedMutexGuard<Slot>, Trouble> {
        let (connection, topic) = (Arc::clone(&self.connection), topic.clone());
        turn.trouble.recent()?;
        let opening = tokio::spawn(async move {
            let outcome = Self::producers(&connection, &topic).await;
            match outcome {
                Ok(producers) => {
                    turn.partitions = producers;
                    turn.generation += 1;
                    turn.looked = Some(Instant::now());
                    Ok(turn)
                }
                Err(trouble) => {
                    turn.trouble.note(&trouble);
                    Err(trouble)
                }
            }
        });
        opening
            .await
            .unwrap_or_else(|error| Err(Trouble::other(error.to_string())))
    }

    async fn producers(
        connection: &Connection,
        topic: &Topic,
    ) -> Result<Vec<Producer<TokioExecutor>>, Trouble> {
        let client = connection.client().await?;
        let mut producers = Vec::new();
        for partition in connection.partitions(&client, topic).await? {
            let producer = client
                .producer()
                .with_topic(partition)
                // A name used twice would be refused for ever, and one used again could lose messages.
                .with_name(format!("herald-{:016x}", rand::random::<u64>()))
                .with_options(ProducerOptions {
                    block_queue_if_full: true,
                    ..ProducerOptions::default()
                })
                .build();
            let producer = Box::pin(producer).await;
            producers.push(producer.map_err(|error| Trouble::of(&error))?);
        }
        Ok(producers)
    }

    /// Lets the producers go if the topic has more partitions by now: the next call makes new ones.
    fn look_for_more(&self, topic: &Topic, slot: Arc<tokio::sync::Mutex<Slot>>, known: usize) {
        let (connection, topic) = (Arc::clone(&self.connection), topic.clone());
        tokio::spawn(async move {
            if let Ok(count) = connection.count_partitions(&topic).await
                && count > known
            {
                tracing::info!(%topic, known, count, "the topic has more partitions");
                // Those that wait for receipts from them get these: only then is a producer gone.
                slot.lock().await.partitions.clear();
            }
        });
    }
}

impl Slot {
    /// The partition for a message, and the message as the client wants it.
    fn address(&mut self, message: Outgoing) -> (usize, producer::Message) {
        let Outgoing {
            payload,
            key,
            deliver_at,
        } = message;
        let partitions = self.partitions.len().max(1) as u64;
        let (partition, key) = if let Some(key) = key {
            (hash(&key) % partitions, key.to_string())
        } else {
            self.turn = self.turn.wrapping_add(1);
            // Without a key, all messages would go to one and the same consumer.
            (self.turn % partitions, format!("{:x}", self.turn))
        };
        let message = producer::Message {
            payload: payload.into(),
            partition_key: Some(key),
            // The next whole millisecond: never too early.
            deliver_at_time: deliver_at
                .map(|at| (at.as_nanosecond().div_euclid(1_000_000) + 1) as i64),
            ..producer::Message::default()
        };
        (partition as usize, message)
    }
}

/// FNV-1a, 64 bits: every gateway has to send a key to the same partition, whatever it is built with.
fn hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of FNV's authors.
    #[test]
    fn a_key_has_the_same_hash_everywhere() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
