//! Group commit: requests of one class that arrive while the broker is busy share a message.
//!
//! Where a topic has partitions, repeats of a request have to meet in the gateway that has the partition: so requests are
//! grouped by their ids, and each group goes to the partition of its key. Groups with the same partition share a message.

use std::collections::BTreeMap;
use std::sync::Arc;

use herald_crds::Priority;
use herald_crds::names::{self, Path, Topic};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::Accepted;
use super::repeats::Ticket;
use crate::broker::{Broker, BrokerError, Outgoing};
use crate::message::{self, DefinitionHash};
use crate::metrics::Metrics;

/// Most bytes of one message, unless a single request has more.
const MOST_BYTES: usize = 512 * 1024;

/// Most requests of one message.
const MOST_REQUESTS: usize = 1000;

/// Messages of one class and path that wait for their receipts at a time.
const IN_FLIGHT: usize = 4;

/// Requests of one class and path that may wait to be published.
const QUEUED: usize = 8192;

/// KiB of requests, all classes together, that may be held.
const HELD_KIB: usize = 64 * 1024;

/// The groups of ids: most partitions of a topic that are all made use of.
const KEYS: [&str; 16] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
];

/// One accepted request on its way to the broker.
pub(super) struct Item {
    /// The request as it travels.
    pub(super) request: Box<RawValue>,
    /// The definitions that it needs, by hash.
    pub(super) definitions: Vec<(DefinitionHash, Arc<str>)>,
    /// What its sender is told once there is a receipt.
    pub(super) accepted: Accepted,
    /// Held if it came with a key.
    pub(super) ticket: Option<Ticket>,
}

/// Why a request was not queued, or not certainly.
#[derive(Debug, Clone)]
pub(super) enum NotPublished {
    /// Nothing was queued.
    Full {
        /// Which bound was reached.
        reason: String,
    },
    /// No receipt came.
    NoReceipt,
}

struct Queued {
    item: Item,
    receipt: oneshot::Sender<Result<(), NotPublished>>,
    _held: OwnedSemaphorePermit,
}

/// What arrives is published at once while fewer than [`IN_FLIGHT`] receipts are awaited, and collected otherwise.
#[derive(Debug)]
pub(super) struct Batches {
    queues: [[mpsc::Sender<Queued>; Priority::COUNT]; 2],
    held: Arc<Semaphore>,
}

impl Batches {
    /// Starts a task for each path and class; they end when this is dropped and all is published.
    pub(super) fn new(broker: &Arc<dyn Broker>, metrics: &Arc<Metrics>) -> Self {
        let queue = |path, priority| {
            let (sender, receiver) = mpsc::channel(QUEUED);
            let publisher = Publisher {
                broker: Arc::clone(broker),
                metrics: Arc::clone(metrics),
                topic: names::requests(path, priority),
            };
            tokio::spawn(collect(receiver, Arc::new(publisher)));
            sender
        };
        let paths = [Path::Direct, Path::Stored];
        Self {
            queues: paths.map(|path| Priority::ALL.map(|priority| queue(path, priority))),
            held: Arc::new(Semaphore::new(HELD_KIB)),
        }
    }

    /// Publishes a request and waits for its receipt. If the future is dropped, it is published all the same.
    pub(super) async fn publish(&self, path: Path, item: Item) -> Result<(), NotPublished> {
        let kib = item.request.get().len().div_ceil(1024).clamp(1, HELD_KIB) as u32;
        let full = |reason: &str| NotPublished::Full {
            reason: reason.to_owned(),
        };
        let held = Arc::clone(&self.held)
            .try_acquire_many_owned(kib)
            .map_err(|_| full("too many bytes wait for the broker"))?;
        let (receipt, received) = oneshot::channel();
        let queue = match path {
            Path::Direct => &self.queues[0],
            Path::Stored => &self.queues[1],
        };
        queue[item.accepted.priority.index()]
            .try_send(Queued {
                item,
                receipt,
                _held: held,
            })
            .map_err(|_| full("too many requests wait for the broker"))?;
        received.await.unwrap_or(Err(NotPublished::NoReceipt))
    }
}

/// Forms messages of what is queued, as long as there is a sender.
async fn collect(mut queue: mpsc::Receiver<Queued>, publisher: Arc<Publisher>) {
    let receipts = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(queued) => queued,
            None => match queue.recv().await {
                Some(queued) => queued,
                None => return,
            },
        };
        // While this waits for a receipt, the queue fills: that is what makes the batch.
        let Ok(permit) = Arc::clone(&receipts).acquire_owned().await else {
            return;
        };
        let mut batch = Batch::default();
        batch.push(first);
        while let Ok(queued) = queue.try_recv() {
            if !batch.fits(&queued.item) {
                left_over = Some(queued);
                break;
            }
            batch.push(queued);
        }
        let publisher = Arc::clone(&publisher);
        tokio::spawn(async move {
            publisher.publish(batch).await;
            drop(permit);
        });
    }
}

/// Requests that share a message.
#[derive(Default)]
struct Batch {
    definitions: BTreeMap<DefinitionHash, Arc<str>>,
    queued: Vec<Queued>,
    bytes: usize,
}

impl Batch {
    fn fits(&self, item: &Item) -> bool {
        self.queued.len() < MOST_REQUESTS && self.bytes + self.cost(item) <= MOST_BYTES
    }

    /// Bytes that the message grows by: definitions that it has already are free.
    fn cost(&self, item: &Item) -> usize {
        let new = item
            .definitions
            .iter()
            .filter(|(hash, _)| !self.definitions.contains_key(hash));
        item.request.get().len()
            + new
                .map(|(hash, packed)| hash.len() + packed.len())
                .sum::<usize>()
    }

    fn push(&mut self, queued: Queued) {
        self.bytes += self.cost(&queued.item);
        let definitions = queued.item.definitions.iter().cloned();
        self.definitions.extend(definitions);
        self.queued.push(queued);
    }

    /// The messages that it makes: one for each place, which `place` gives for a group's key.
    fn messages(&self, place: impl Fn(&str) -> Option<u64>) -> Vec<Outgoing> {
        let mut grouped: BTreeMap<Option<u64>, (&str, Outbound<'_>)> = BTreeMap::new();
        for Queued { item, .. } in &self.queued {
            // The last byte of a hash, or of a random number: as good as any other.
            let byte = item.accepted.id.as_bytes().last().copied();
            let key = KEYS[usize::from(byte.unwrap_or_default()) % KEYS.len()];
            let (_, outbound) = grouped
                .entry(place(key))
                .or_insert_with(|| (key, Outbound::default()));
            let definitions = item.definitions.iter();
            outbound
                .definitions
                .extend(definitions.map(|(hash, packed)| (hash, packed)));
            outbound.requests.push(&*item.request);
        }
        let messages = grouped.iter().map(|(place, (key, outbound))| Outgoing {
            payload: message::encode(outbound),
            key: place.map(|_| Arc::from(*key)),
            deliver_at: None,
        });
        messages.collect()
    }
}

/// [`message::Requests`], of requests that are JSON already.
#[derive(Default, Serialize)]
struct Outbound<'a> {
    definitions: BTreeMap<&'a DefinitionHash, &'a Arc<str>>,
    requests: Vec<&'a RawValue>,
}

struct Publisher {
    broker: Arc<dyn Broker>,
    metrics: Arc<Metrics>,
    topic: Topic,
}

impl Publisher {
    async fn publish(&self, batch: Batch) {
        let messages = batch.messages(|key| self.broker.place(&self.topic, key));
        let answer = match self.broker.publish(&self.topic, messages).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.metrics.broker_failed("publish_requests");
                tracing::warn!(%error, requests = batch.queued.len(), "requests were not accepted");
                Err(match error {
                    BrokerError::Full { reason } => NotPublished::Full { reason },
                    _ => NotPublished::NoReceipt,
                })
            }
        };
        for Queued { item, receipt, .. } in batch.queued {
            if answer.is_ok()
                && let Some(ticket) = item.ticket
            {
                ticket.accepted(item.accepted);
            }
            // Nobody waits any more if the sender went away.
            let _ = receipt.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use jiff::Timestamp;
    use tokio::sync::Notify;

    use super::*;
    use crate::broker::{Consumer, MessageId, Sharing, Tail};
    use crate::id::NotificationId;

    /// Holds every message until it is let go.
    #[derive(Default)]
    struct Slow {
        published: Mutex<Vec<serde_json::Value>>,
        arrived: Notify,
        go: Notify,
    }

    #[async_trait]
    impl Broker for Slow {
        async fn publish(&self, _: &Topic, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
            for message in messages {
                let requests = message::decode(&message.payload).unwrap();
                self.published.lock().unwrap().push(requests);
            }
            self.arrived.notify_one();
            self.go.notified().await;
            Ok(())
        }
        async fn subscribe(
            &self,
            _: &Topic,
            _: Sharing,
            _: usize,
        ) -> Result<Box<dyn Consumer>, BrokerError> {
            Err(BrokerError::Closed)
        }
        async fn tail(
            &self,
            _: &Topic,
            _: Option<MessageId>,
        ) -> Result<Box<dyn Tail>, BrokerError> {
            Err(BrokerError::Closed)
        }
        async fn last_message_id(&self, _: &Topic) -> Result<Option<MessageId>, BrokerError> {
            Ok(None)
        }
    }

    fn item(bytes: usize) -> Item {
        let text = format!("\"{}\"", "x".repeat(bytes));
        Item {
            request: RawValue::from_string(text).unwrap(),
            definitions: vec![("sha256:1".into(), "packed".into())],
            accepted: Accepted {
                id: NotificationId::random(),
                accepted_at: Timestamp::UNIX_EPOCH,
                priority: Priority::Normal,
                replayed: false,
            },
            ticket: None,
        }
    }

    #[tokio::test]
    async fn what_arrives_while_receipts_are_awaited_shares_a_message_with_each_definition_once() {
        let slow = Arc::new(Slow::default());
        let broker: Arc<dyn Broker> = slow.clone();
        let batches = Arc::new(Batches::new(&broker, &Arc::default()));
        let send = |bytes| {
            let batches = Arc::clone(&batches);
            tokio::spawn(async move { batches.publish(Path::Stored, item(bytes)).await })
        };
        let mut tasks = Vec::new();
        for _ in 0..IN_FLIGHT {
            tasks.push(send(10));
            slow.arrived.notified().await;
        }
        // Each went out alone, at once. What comes now waits, and goes out together.
        tasks.extend((0..100).map(|_| send(10)));
        while batches.queues[1][Priority::Normal.index()].capacity() > QUEUED - 99 {
            tokio::task::yield_now().await;
        }
        slow.go.notify_one();
        slow.arrived.notified().await;
        for _ in 0..IN_FLIGHT {
            slow.go.notify_one();
            tokio::task::yield_now().await;
        }
        for task in tasks {
            slow.go.notify_one();
            task.await.unwrap().unwrap();
        }
        let published = slow.published.lock().unwrap();
        assert_eq!(published.len(), IN_FLIGHT + 1);
        assert_eq!(
            published[IN_FLIGHT]["requests"].as_array().unwrap().len(),
            100
        );
        assert_eq!(
            published[IN_FLIGHT]["definitions"]
                .as_object()
                .unwrap()
                .len(),
            1
        );
    }

    #[tokio::test]
    async fn repeats_of_a_request_have_the_same_key_and_each_message_its_definitions() {
        let semaphore = Arc::new(Semaphore::new(1000));
        let mut batch = Batch::default();
        let mut ids = Vec::new();
        for number in 0..200 {
            let (receipt, _received) = oneshot::channel();
            let id = NotificationId::from_key("shop", "orders", &format!("{}", number % 100));
            let mut item = item(10);
            item.request = RawValue::from_string(format!("\"{id}\"")).unwrap();
            item.accepted.id = id;
            ids.push(id.to_string());
            let held = Arc::clone(&semaphore).try_acquire_owned().unwrap();
            batch.push(Queued {
                item,
                receipt,
                _held: held,
            });
        }
        let place = |key: &str| key.parse::<u64>().ok().map(|key| key % 4);
        let mut places: BTreeMap<String, Option<u64>> = BTreeMap::new();
        let mut seen = Vec::new();
        let messages = batch.messages(place);
        assert_eq!(messages.len(), 4);
        for message in messages {
            let place = place(&message.key.unwrap());
            let body: serde_json::Value = message::decode(&message.payload).unwrap();
            assert_eq!(body["definitions"].as_object().unwrap().len(), 1);
            for request in body["requests"].as_array().unwrap() {
                let id = request.as_str().unwrap().to_owned();
                let before = places.insert(id.clone(), place);
                assert!(before.is_none_or(|before| before == place), "{id}");
                seen.push(id);
            }
        }
        ids.sort();
        seen.sort();
        assert_eq!(seen, ids);
        let [single] = &batch.messages(|_| None)[..] else {
            panic!("one sequence needs one message");
        };
        assert_eq!(single.key, None);
    }

    #[tokio::test]
    async fn a_message_holds_at_most_512_kib_unless_one_request_has_more() {
        let batch = Batch::default();
        assert!(batch.fits(&item(MOST_BYTES - 100)));
        let (receipt, _received) = oneshot::channel();
        let semaphore = Arc::new(Semaphore::new(1));
        let mut batch = Batch::default();
        batch.push(Queued {
            item: item(MOST_BYTES - 100),
            receipt,
            _held: semaphore.try_acquire_owned().unwrap(),
        });
        assert!(batch.fits(&item(10)));
        assert!(!batch.fits(&item(100)));
    }

    #[tokio::test]
    async fn more_than_may_be_held_is_refused_at_once() {
        let slow = Arc::new(Slow::default());
        let broker: Arc<dyn Broker> = slow.clone();
        let batches = Arc::new(Batches::new(&broker, &Arc::default()));
        let half = HELD_KIB * 1024 / 2 - 1024;
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let batches = Arc::clone(&batches);
                tokio::spawn(async move { batches.publish(Path::Direct, item(half)).await })
            })
            .collect();
        for _ in 0..2 {
            slow.arrived.notified().await;
        }
        let refused = batches.publish(Path::Direct, item(4096)).await;
        assert!(matches!(refused, Err(NotPublished::Full { .. })));
        for task in waiting {
            slow.go.notify_one();
            task.await.unwrap().unwrap();
        }
    }
}
