//! The seam to the broker: what moves now.
//!
//! At least once, and no more is asked: a message may be repeated, reordered and delivered to two holders; what a
//! receipt was given for is never lost.

#[cfg(any(test, feature = "contract"))]
#[doc(hidden)]
pub mod contract;
pub mod embedded;
#[cfg(any(test, feature = "faults"))]
#[doc(hidden)]
pub mod faulty;
#[cfg(feature = "pulsar")]
pub mod pulsar;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use herald_crds::names::Topic;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::Told;

/// Where a message stands in its topic: later messages of one partition have greater ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u32)", into = "(u64, u64, u32)")]
pub struct MessageId {
    /// The section of the topic's history that it is in; 0 where history has no sections.
    pub ledger: u64,
    /// Its number there.
    pub entry: u64,
    /// The partition it is in, from 0.
    pub partition: u32,
}

impl MessageId {
    /// The id of a message of a topic whose history is a single sequence.
    pub const fn of_entry(entry: u64) -> Self {
        Self {
            ledger: 0,
            entry,
            partition: 0,
        }
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.ledger, self.entry, self.partition)
    }
}

impl From<(u64, u64, u32)> for MessageId {
    fn from((ledger, entry, partition): (u64, u64, u32)) -> Self {
        Self {
            ledger,
            entry,
            partition,
        }
    }
}

impl From<MessageId> for (u64, u64, u32) {
    fn from(id: MessageId) -> Self {
        (id.ledger, id.entry, id.partition)
    }
}

/// A message to be published.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Envelope and body.
    pub payload: Bytes,
    /// What decides the partition, and with `KeyShared` the consumer; `None`: any.
    pub key: Option<Arc<str>>,
    /// Not handed to consumers before this; `None`: at once.
    pub deliver_at: Option<Timestamp>,
}

impl Outgoing {
    /// A message for any consumer, at once.
    pub fn at_once(payload: Bytes) -> Self {
        Self {
            payload,
            key: None,
            deliver_at: None,
        }
    }
}

/// A message that a consumer holds until it acknowledges it.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Where it stands.
    pub id: MessageId,
    /// Envelope and body.
    pub payload: Bytes,
}

/// How the consumers of a subscription share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One consumer of each partition gets everything, the others stand by. Which one it is may change whenever one
    /// comes or goes: what it has not acknowledged by then comes again to the next.
    Failover,
    /// Messages go round; those with one key stay with one consumer as long as it lives.
    KeyShared,
}

/// What can go wrong with a broker. All of it passes: whoever gets one tries again, later.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No receipt: the message may or may not be there.
    #[error("the broker gave no receipt for a message to {topic}: {reason}")]
    Publish {
        /// Where to.
        topic: Topic,
        /// What the broker or its client said.
        reason: String,
    },
    /// The bound of what may be queued is reached; nothing was queued.
    #[error("the broker takes nothing more: {reason}")]
    Full {
        /// Which bound.
        reason: String,
    },
    /// A consumer, a tail or a question failed.
    #[error("the broker did not answer for {topic}: {reason}")]
    Receive {
        /// Of which topic.
        topic: Topic,
        /// What the broker or its client said.
        reason: String,
    },
    /// The topic is not there: not yet, or no longer. Nothing was published.
    #[error("the broker has no topic {topic}: {reason}")]
    Missing {
        /// Which topic.
        topic: Topic,
        /// What the broker or its client said.
        reason: String,
    },
    /// The broker is shutting down.
    #[error("the broker is closed")]
    Closed,
}

impl BrokerError {
    /// After so long whoever reads along begins again. A topic that is not there is not asked for as often: it has to be
    /// made first, and of one that is being deleted a broker would make another.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Missing { .. } => Duration::from_secs(1),
            _ => Duration::from_millis(250),
        }
    }
}

/// The broker.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Publishes messages and returns with their receipts: all of them are durable then, in this order.
    ///
    /// On an error some may be durable all the same. If the future is dropped the messages may still be published.
    async fn publish(&self, topic: &Topic, messages: Vec<Outgoing>) -> Result<(), BrokerError>;

    /// Where among a topic's partitions messages with this key go: what has the same place may share a message. `None`
    /// where a topic is a single sequence. Another answer once a topic has grown.
    fn place(&self, topic: &Topic, key: &str) -> Option<u64> {
        let _ = (topic, key);
        None
    }

    /// Consumes a topic's subscription. Messages that another consumer held and did not acknowledge come again once
    /// that consumer is dropped. `prefetch` bounds the messages received and unacknowledged; some more may be on their way.
    async fn subscribe(
        &self,
        topic: &Topic,
        sharing: Sharing,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Reads a topic's messages, without consuming them, from just after `after`; `None`: from the oldest kept.
    async fn tail(
        &self,
        topic: &Topic,
        after: Option<MessageId>,
    ) -> Result<Box<dyn Tail>, BrokerError>;

    /// The id of the newest message for which a receipt was given; `None` if there never was one.
    async fn last_message_id(&self, topic: &Topic) -> Result<Option<MessageId>, BrokerError>;

    /// What time it is where a topic is kept that may be consumed; `None`: on this very machine.
    async fn time(&self, topic: &Topic) -> Result<Option<Told>, BrokerError> {
        let _ = topic;
        Ok(None)
    }
}

/// One consumer of one topic. Dropping it gives back what it has not acknowledged.
#[async_trait]
pub trait Consumer: Send {
    /// The next message; waits for one. Cancel safe: a message that was not returned is not lost.
    async fn receive(&mut self) -> Result<Incoming, BrokerError>;

    /// What acknowledges this consumer's messages; outlives the consumer, then without effect.
    fn acknowledger(&self) -> Arc<dyn Acknowledger>;
}

/// Acknowledges messages: the last thing that happens to each.
#[async_trait]
pub trait Acknowledger: Send + Sync {
    /// Never to be delivered again. An acknowledgement may be lost in a crash; the message is then repeated.
    async fn acknowledge(&self, ids: &[MessageId]) -> Result<(), BrokerError>;
}

/// Reads along.
#[async_trait]
pub trait Tail: Send {
    /// The next message; waits for one. Skips nothing that is kept. Cancel safe.
    async fn next(&mut self) -> Result<Incoming, BrokerError>;
}
