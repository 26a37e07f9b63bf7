//! Consumers: one for each partition, which end rather than go on after a break.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use herald_crds::names::{self, Topic};
use pulsar::consumer::InitialPosition;
use pulsar::proto::MessageIdData;
use pulsar::{ConsumerOptions, SubType, TokioExecutor};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{Client, Connection};
use super::error::Trouble;
use crate::broker::{Acknowledger, BrokerError, Consumer, Incoming, MessageId, Sharing};
use crate::clock;

/// Silence after which the broker is asked whether it still knows the consumer.
const SILENCE: Duration = Duration::from_secs(10);

/// Such silences, with something to consume all along, after which the broker is asked anew. What it is asked about tells
/// nothing of a broker that has forgotten to go on, and with Failover not even whose turn it is.
const SILENCES: u32 = 3;

/// How long a consumer that is dropped tries to get its acknowledgements through.
const FLUSH: Duration = Duration::from_secs(2);

/// Attempts at subscribing without a new connection in between.
const ATTEMPTS: usize = 3;

/// How often it is looked whether the topic has grown more partitions.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The client's consumer, of one partition.
type Raw = pulsar::Consumer<Vec<u8>, TokioExecutor>;

/// A consumer of all partitions of a topic.
pub(super) struct PulsarConsumer {
    topic: Topic,
    arrived: mpsc::Receiver<Arrived>,
    /// What ended it, which is heard before anything that has arrived: that belongs to others by then.
    troubles: mpsc::Receiver<BrokerError>,
    /// What came before it was due, the earliest first: the broker may be a second early. At most the prefetch.
    early: BinaryHeap<Reverse<Arrived>>,
    acknowledger: Arc<PulsarAcknowledger>,
    /// Ends the partitions' tasks, which then send the acknowledgements that are left.
    _stop: DropGuard,
}

/// A message, and when it may be handed on.
struct Arrived {
    due: Option<i64>,
    message: Incoming,
}

impl Arrived {
    fn is_due(&self) -> bool {
        self.due
            .is_none_or(|due| due <= clock::now().as_millisecond())
    }
}

impl Ord for Arrived {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.message.id).cmp(&(other.due, other.message.id))
    }
}

impl PartialOrd for Arrived {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Arrived {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Arrived {}

/// Subscribes to all partitions of a topic.
///
/// `prefetch` bounds what is handed out or ready to be. Up to twice as much waits in the client's own queues: it asks for
/// more before these are empty, whoever acknowledges what.
///
/// A small `prefetch` is slow: the client does not set `TCP_NODELAY`, so asking for more waits for some 40 ms behind an
/// acknowledgement, and `prefetch` messages have to last for twice that.
pub(super) async fn subscribe(
    connection: &Arc<Connection>,
    topic: &Topic,
    sharing: Sharing,
    prefetch: usize,
) -> Result<PulsarConsumer, BrokerError> {
    let (owned, name) = (Arc::clone(connection), topic.clone());
    // Given up halfway, it would block the client: see the module.
    let subscribing = tokio::spawn(async move {
        let client = owned.client().await?;
        let mut renewals = owned.renewals();
        let partitions = owned.partitions(&client, &name).await?;
        let share = prefetch.max(1).div_ceil(partitions.len());
        // With Failover the broker gives partition i to the consumer that is i-th by name, and so on in turn: only with
        // one name for all of them does everybody get the same share.
        let consumer_name = format!("herald-{:016x}", rand::random::<u64>());
        for _ in 0..ATTEMPTS {
            renewals.mark_unchanged();
            let mut consumers = Vec::with_capacity(partitions.len());
            for partition in &partitions {
                let place = Place {
                    client: client.clone(),
                    topic: name.clone(),
                    partition: partition.clone(),
                    consumer_name: consumer_name.clone(),
                    sharing,
                    share,
                };
                consumers.push((place.subscribe().await?, place));
            }
            if !renewals.has_changed().unwrap_or(true) {
                return Ok((consumers, share, renewals));
            }
        }
        Err(Trouble::other("the connection is renewed again and again"))
    });
    let outcome = match subscribing.await {
        Ok(outcome) => outcome,
        Err(error) => Err(Trouble::other(error.to_string())),
    };
    let failed = |trouble: Trouble| trouble.receiving(connection.settings(), topic);
    let (consumers, share, renewals) = outcome.map_err(failed)?;

    let stop = CancellationToken::new();
    // Room for all that the tasks may hand over, and one trouble each: they never wait for it.
    let (hand_over, arrived) = mpsc::channel(share * consumers.len());
    let (tell, troubles) = mpsc::channel(consumers.len() + 1);
    let mut partitions = Vec::with_capacity(consumers.len());
    let count = consumers.len();
    for (number, (consumer, place)) in consumers.into_iter().enumerate() {
        let (acknowledge, acknowledgements) = mpsc::unbounded_channel();
        partitions.push(acknowledge);
        let partition = Partition {
            number: number as u32,
            place,
            consumer,
            held: HashSet::with_capacity(share),
            connection: Arc::clone(connection),
            renewals: renewals.clone(),
            hand_over: hand_over.clone(),
            tell: tell.clone(),
            acknowledgements,
        };
        tokio::spawn(partition.run(stop.clone()));
    }
    tokio::spawn(look_for_more(
        Arc::clone(connection),
        topic.clone(),
        count,
        tell,
        stop.clone(),
    ));
    Ok(PulsarConsumer {
        topic: topic.clone(),
        arrived,
        troubles,
        early: BinaryHeap::new(),
        acknowledger: Arc::new(PulsarAcknowledger {
            partitions,
            stop: stop.clone(),
        }),
        _stop: stop.drop_guard(),
    })
}

/// One partition, and how it is consumed.
#[derive(Clone)]
struct Place {
    client: Client,
    topic: Topic,
    /// The partition's full name.
    partition: String,
    consumer_name: String,
    sharing: Sharing,
    /// Most messages that are handed over and not acknowledged.
    share: usize,
}

impl Place {
    /// Only to be awaited by what is not given up.
    async fn subscribe(&self) -> Result<Raw, Trouble> {
        let sub_type = match self.sharing {
            Sharing::Failover => SubType::Failover,
            Sharing::KeyShared => SubType::KeyShared,
        };
        // What the broker may send before it is told to go on, and the client's local queue. The latter is no smaller,
        // so that the client gets past all that is on its way to whatever is asked of it.
        let share = self.share as u32;
        let consumer = self
            .client
            .consumer()
            .with_topic(&self.partition)
            .with_subscription(names::subscription(&self.topic).unwrap_or("herald"))
            .with_subscription_type(sub_type)
            .with_consumer_name(&self.consumer_name)
            .with_batch_size(share)
            .with_options(
                ConsumerOptions::default()
                    .with_initial_position(InitialPosition::Earliest)
                    .with_receiver_queue_size(share),
            )
            .build();
        Box::pin(consumer)
            .await
            .map_err(|error| Trouble::of(&error))
    }
}

/// Ends the consumer once its topic has more partitions: nothing else would find them.
async fn look_for_more(
    connection: Arc<Connection>,
    topic: Topic,
    known: usize,
    tell: mpsc::Sender<BrokerError>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(async {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let (connection, name) = (Arc::clone(&connection), topic.clone());
            let looking = tokio::spawn(async move { connection.count_partitions(&name).await });
            if let Ok(Ok(count)) = looking.await
                && count > known
            {
                let _ = tell.try_send(BrokerError::Receive {
                    topic,
                    reason: format!("it has {count} partitions by now, and had {known}"),
                });
                return;
            }
        }
    })
    .await;
}

/// One partition's consumer, and what passes through it.
struct Partition {
    number: u32,
    place: Place,
    consumer: Raw,
    /// What is handed over and not acknowledged: at most its share.
    held: HashSet<(u64, u64)>,
    connection: Arc<Connection>,
    renewals: watch::Receiver<u64>,
    hand_over: mpsc::Sender<Arrived>,
    tell: mpsc::Sender<BrokerError>,
    acknowledgements: mpsc::UnboundedReceiver<MessageId>,
}

impl Partition {
    /// Passes messages and acknowledgements on until `stop`, or until something is wrong.
    async fn run(mut self, stop: CancellationToken) {
        let outcome = stop.run_until_cancelled(self.pass()).await;
        match outcome {
            Some(trouble) => {
                let error = trouble.receiving(self.connection.settings(), &self.place.topic);
                // If nobody listens any more, nobody needs to know.
                let _ = self.tell.try_send(error);
            }
            None => self.flush().await,
        }
    }

    async fn pass(&mut self) -> Trouble {
        let mut silent_since = Instant::now();
        let mut connected_since = None;
        let mut silences = 0;
        loop {
            let has_room = self.held.len() < self.place.share;
            tokio::select! {
                biased;
                id = self.acknowledgements.recv() => match id {
                    Some(id) => self.acknowledge(id).await,
                    None => return Trouble::other("its consumer is gone"),
                },
                _ = self.renewals.changed() => return Trouble::other("its connection was renewed"),
                message = self.consumer.next(), if has_room => {
                    match message {
                        Some(Ok(message)) => if let Err(trouble) = self.receive(message) {
                            return trouble;
                        },
                        Some(Err(error)) => return Trouble::of(&error),
                        None => return Trouble::other("the client gave it up"),
                    }
                    silent_since = Instant::now();
                    silences = 0;
                }
                () = tokio::time::sleep_until(silent_since + SILENCE), if has_room => {
                    let has_backlog = match self.look_whether_it_lives(&mut connected_since).await {
                        Ok(has_backlog) => has_backlog,
                        Err(trouble) => return trouble,
                    };
                    silences = if has_backlog { silences + 1 } else { 0 };
                    if silences >= SILENCES && self.held.is_empty() {
                        if let Err(trouble) = self.subscribe_again().await {
                            return trouble;
                        }
                        connected_since = None;
                        silences = 0;
                    }
                    silent_since = Instant::now();
                }
            }
        }
    }

    fn receive(&mut self, message: pulsar::consumer::Message<Vec<u8>>) -> Result<(), Trouble> {
        let MessageIdData {
            ledger_id,
            entry_id,
            ..
        } = *message.message_id();
        if !self.held.insert((ledger_id, entry_id)) {
            return Err(Trouble::other(
                "a message came that it holds already: its subscription was renewed",
            ));
        }
        let arrived = Arrived {
            due: message.metadata().deliver_at_time,
            message: Incoming {
                id: MessageId {
                    ledger: ledger_id,
                    entry: entry_id,
                    partition: self.number,
                },
                payload: Bytes::from(message.payload.data),
            },
        };
        self.hand_over
            .try_send(arrived)
            .map_err(|_| Trouble::other("its consumer is gone"))
    }

    async fn acknowledge(&mut self, id: MessageId) {
        let key = (id.ledger, id.entry);
        if !self.held.remove(&key) {
            return;
        }
        let id = MessageIdData {
            ledger_id: id.ledger,
            entry_id: id.entry,
            ..MessageIdData::default()
        };
        if let Err(error) = self.consumer.ack_with_id(&self.place.partition, id).await {
            // The stream ends, too, if the client has given up: it is found there.
            tracing::debug!(topic = %self.place.topic, %error, "an acknowledgement was not sent");
        }
    }

    /// After a `CloseConsumer` and a subscription that failed, the client waits for ever for what the broker will not send.
    /// Answers whether there is anything to consume, be it with others or not due yet.
    async fn look_whether_it_lives(
        &mut self,
        connected_since: &mut Option<String>,
    ) -> Result<bool, Trouble> {
        let patience = self.connection.settings().operation_timeout;
        let asking = Box::pin(self.consumer.get_stats());
        let stats = match tokio::time::timeout(patience, asking).await {
            Ok(Ok(mut stats)) => stats.pop(),
            Ok(Err(error)) => return Err(Trouble::of(&error)),
            Err(_) => return Err(Trouble::other("it does not answer any more")),
        };
        let Some(stats) = stats.filter(|stats| stats.error_code.is_none()) else {
            return Err(Trouble::other("the broker does not know it any more"));
        };
        if connected_since.is_some() && *connected_since != stats.connected_since {
            return Err(Trouble::other("its subscription was renewed"));
        }
        connected_since.clone_from(&stats.connected_since);
        let has_backlog = stats.msg_backlog() > 0;
        let is_starved = has_backlog
            && stats
                .available_permits
                .is_some_and(|permits| permits.cast_signed() <= 0)
            && self.held.is_empty();
        if is_starved {
            return Err(Trouble::other(
                "the broker waits for it, and it for the broker",
            ));
        }
        Ok(has_backlog)
    }

    /// Takes a new consumer for one that holds nothing, so there is nothing for anybody to let go of.
    async fn subscribe_again(&mut self) -> Result<(), Trouble> {
        tracing::debug!(topic = %self.place.topic, "silent for long: subscribing again");
        let place = self.place.clone();
        // Given up halfway, it would block the client: see the module.
        let subscribing = tokio::spawn(async move { place.subscribe().await });
        self.consumer = subscribing
            .await
            .unwrap_or_else(|error| Err(Trouble::other(error.to_string())))?;
        Ok(())
    }

    /// Sends what is acknowledged before the consumer closes, and gives back the rest.
    async fn flush(&mut self) {
        while let Ok(id) = self.acknowledgements.try_recv() {
            self.acknowledge(id).await;
        }
        let begin = Instant::now();
        while begin.elapsed() < FLUSH {
            // What the client holds stands before the acknowledgements.
            while let Some(Some(_)) = self.consumer.next().now_or_never() {}
            // An answer comes after all that was sent before the question.
            let asking = Box::pin(self.consumer.get_stats());
            let answer = tokio::time::timeout(FLUSH / 40, asking).await;
            if answer.is_ok() {
                return;
            }
        }
        tracing::debug!(topic = %self.place.topic, "the last acknowledgements may be lost");
    }
}

#[async_trait]
impl Consumer for PulsarConsumer {
    async fn receive(&mut self) -> Result<Incoming, BrokerError> {
        loop {
            let now = clock::now().as_millisecond();
            let is_early = !self.early.is_empty();
            let wait = match self.early.peek() {
                Some(Reverse(next)) => next.due.unwrap_or(now).saturating_sub(now).max(0),
                None => i64::MAX,
            };
            let arrived = tokio::select! {
                biased;
                trouble = self.troubles.recv() => return Err(self.end(trouble)),
                // A timer for each message would be felt: there is one only if there is something to wait for.
                () = tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())), if is_early => None,
                arrived = self.arrived.recv() => match arrived {
                    Some(arrived) => Some(arrived),
                    None => return Err(self.end(None)),
                },
            };
            match arrived.or_else(|| self.early.pop().map(|Reverse(next)| next)) {
                Some(next) if next.is_due() => return Ok(next.message),
                Some(next) => self.early.push(Reverse(next)),
                None => {}
            }
        }
    }

    fn acknowledger(&self) -> Arc<dyn Acknowledger> {
        Arc::clone(&self.acknowledger) as Arc<dyn Acknowledger>
    }
}

impl PulsarConsumer {
    /// Nothing comes from it any more.
    fn end(&mut self, trouble: Option<BrokerError>) -> BrokerError {
        self.arrived.close();
        while self.arrived.try_recv().is_ok() {}
        self.early.clear();
        trouble.unwrap_or_else(|| BrokerError::Receive {
            topic: self.topic.clone(),
            reason: "the consumer has ended".to_owned(),
        })
    }
}

struct PulsarAcknowledger {
    /// Each takes at most what its partition holds.
    partitions: Vec<mpsc::UnboundedSender<MessageId>>,
    /// Cancelled with the consumer: its messages belong to others then.
    stop: CancellationToken,
}

#[async_trait]
impl Acknowledger for PulsarAcknowledger {
    async fn acknowledge(&self, ids: &[MessageId]) -> Result<(), BrokerError> {
        if self.stop.is_cancelled() {
            return Ok(());
        }
        for id in ids {
            if let Some(partition) = self.partitions.get(id.partition as usize) {
                // Whatever ended the task gave the message back.
                let _ = partition.send(*id);
            }
        }
        Ok(())
    }
}
