//! Reads along, and what the last message is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use herald_crds::names::Topic;
use pulsar::proto::MessageIdData;
use pulsar::{ConsumerOptions, SubType, TokioExecutor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{Client, Connection};
use super::error::Trouble;
use crate::broker::{BrokerError, Incoming, MessageId, Tail};

/// Messages that a tail has ready.
const AHEAD: usize = 256;

/// Silence after which it is asked whether there is something to read.
const SILENCE: Duration = Duration::from_secs(10);

/// Messages after which the broker is told how far a tail has come.
const TELL: usize = 100;

/// How long a reader that is asked for the last message stays without being asked.
const IDLE: Duration = Duration::from_secs(60);

/// Questions that wait for their answer; more wait to be asked.
const QUESTIONS: usize = 1_024;

/// The client's consumer, of the one partition.
pub(super) type Raw = pulsar::Consumer<Vec<u8>, TokioExecutor>;

/// Before all messages, as the broker says it: ledger and entry −1.
const EARLIEST: (u64, u64) = (u64::MAX, u64::MAX);

/// After all messages.
pub(super) const LATEST: (u64, u64) = (i64::MAX as u64, i64::MAX as u64);

/// A reader of the only partition of a topic, beginning after `start`, with so many messages ahead.
async fn read(
    connection: Arc<Connection>,
    topic: Topic,
    start: (u64, u64),
    ahead: usize,
) -> Result<(Raw, watch::Receiver<u64>), Trouble> {
    // Given up halfway, it would block the client: see the module.
    let reading = tokio::spawn(async move {
        let client = connection.client().await?;
        let mut renewals = connection.renewals();
        let partitions = connection.partitions(&client, &topic).await?;
        let [partition] = &partitions[..] else {
            return Err(Trouble::other(
                "only a topic of one partition can be read along",
            ));
        };
        renewals.mark_unchanged();
        let reader = open(&client, partition, start, ahead).await?;
        Ok((reader, renewals))
    });
    reading
        .await
        .unwrap_or_else(|error| Err(Trouble::other(error.to_string())))
}

/// A reader of a partition by its full name. Only to be awaited by what is not given up.
pub(super) async fn open(
    client: &Client,
    partition: &str,
    start: (u64, u64),
    ahead: usize,
) -> Result<Raw, Trouble> {
    let (ledger_id, entry_id) = start;
    let ahead = ahead as u32;
    // The client's own reader would acknowledge each message.
    let opening = client
        .consumer()
        .with_topic(partition)
        .with_subscription(format!("tail-{:016x}", rand::random::<u64>()))
        .with_subscription_type(SubType::Exclusive)
        .with_consumer_name(format!("herald-{:016x}", rand::random::<u64>()))
        .with_batch_size(ahead)
        .with_options(
            ConsumerOptions::default()
                .durable(false)
                .with_receiver_queue_size(ahead)
                .starting_on_message(MessageIdData {
                    ledger_id,
                    entry_id,
                    ..MessageIdData::default()
                }),
        )
        .build();
    Box::pin(opening).await.map_err(|error| Trouble::of(&error))
}

/// What the broker says of the last message; `None`: there is none.
async fn last(reader: &mut Raw, patience: Duration) -> Result<Option<MessageId>, Trouble> {
    let asking = Box::pin(reader.get_last_message_id());
    let ids = match tokio::time::timeout(patience, asking).await {
        Ok(ids) => ids.map_err(|error| Trouble::of(&error))?,
        Err(_) => return Err(Trouble::other("it does not answer any more")),
    };
    let Some(id) = ids.first() else {
        return Err(Trouble::other("it has no partition"));
    };
    let exists = id.ledger_id != u64::MAX && id.entry_id != u64::MAX;
    Ok(exists.then_some(MessageId {
        ledger: id.ledger_id,
        entry: id.entry_id,
        partition: 0,
    }))
}

/// Reads a topic's messages from just after `after`. Ends with an error whenever its connection may have been renewed.
pub(super) async fn tail(
    connection: &Arc<Connection>,
    topic: &Topic,
    after: Option<MessageId>,
) -> Result<PulsarTail, BrokerError> {
    let start = after.map_or(EARLIEST, |id| (id.ledger, id.entry));
    let (reader, renewals) = read(Arc::clone(connection), topic.clone(), start, AHEAD)
        .await
        .map_err(|trouble| trouble.receiving(connection.settings(), topic))?;
    let stop = CancellationToken::new();
    let (hand_over, messages) = mpsc::channel(1);
    let reading = Reading {
        reader,
        renewals,
        seen: after,
        is_new: true,
        connection: Arc::clone(connection),
        topic: topic.clone(),
        hand_over,
    };
    tokio::spawn(reading.run(stop.clone()));
    Ok(PulsarTail {
        topic: topic.clone(),
        messages,
        _stop: stop.drop_guard(),
    })
}

pub(super) struct PulsarTail {
    topic: Topic,
    messages: mpsc::Receiver<Result<Incoming, BrokerError>>,
    _stop: DropGuard,
}

#[async_trait]
impl Tail for PulsarTail {
    async fn next(&mut self) -> Result<Incoming, BrokerError> {
        self.messages.recv().await.unwrap_or_else(|| {
            Err(BrokerError::Receive {
                topic: self.topic.clone(),
                reason: "the tail has ended".to_owned(),
            })
        })
    }
}

/// What keeps a tail supplied.
struct Reading {
    reader: Raw,
    renewals: watch::Receiver<u64>,
    /// The last message handed over.
    seen: Option<MessageId>,
    /// Whether nothing has come yet: the broker may begin with the message after which to begin.
    is_new: bool,
    connection: Arc<Connection>,
    topic: Topic,
    hand_over: mpsc::Sender<Result<Incoming, BrokerError>>,
}

impl Reading {
    async fn run(mut self, stop: CancellationToken) {
        if let Some(trouble) = stop.run_until_cancelled(self.pass()).await {
            let error = trouble.receiving(self.connection.settings(), &self.topic);
            stop.run_until_cancelled(self.hand_over.send(Err(error)))
                .await;
        }
    }

    async fn pass(&mut self) -> Trouble {
        let mut silent_since = Instant::now();
        let mut untold = 0;
        loop {
            let Ok(place) = self.hand_over.clone().reserve_owned().await else {
                return Trouble::other("nobody reads along any more");
            };
            let message = tokio::select! {
                biased;
                _ = self.renewals.changed() => return Trouble::other("its connection was renewed"),
                message = self.reader.next() => message,
                () = tokio::time::sleep_until(silent_since + SILENCE) => {
                    silent_since = Instant::now();
                    match last(&mut self.reader, self.connection.settings().operation_timeout).await {
                        // What came while it was asked is found here, and counts.
                        Ok(last) if last > self.seen => match self.reader.next().now_or_never() {
                            Some(message) => message,
                            None => return Trouble::other("there is something to read, and it does not come"),
                        },
                        Ok(_) => continue,
                        Err(trouble) => return trouble,
                    }
                }
            };
            silent_since = Instant::now();
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Trouble::of(&error),
                None => return Trouble::other("the client gave it up"),
            };
            let id = MessageId {
                ledger: message.message_id().ledger_id,
                entry: message.message_id().entry_id,
                partition: 0,
            };
            if Some(id) <= self.seen {
                if self.is_new {
                    continue;
                }
                return Trouble::other("it began again: its subscription was renewed");
            }
            self.is_new = false;
            self.seen = Some(id);
            untold += 1;
            if untold >= TELL {
                untold = 0;
                let id = message.message_id().clone();
                let name = message.topic.clone();
                // Without it the broker would only remember more.
                let _ = self.reader.cumulative_ack_with_id(&name, id).await;
            }
            let payload = Bytes::from(message.payload.data);
            place.send(Ok(Incoming { id, payload }));
        }
    }
}

type Answer = oneshot::Sender<Result<Option<MessageId>, BrokerError>>;

/// Answers what the last message of a topic is: one question to the broker at a time, for all that came before it.
pub(super) struct LastMessages {
    connection: Arc<Connection>,
    /// By topic, as long as there is somebody who answers.
    topics: Mutex<HashMap<Topic, Weak<mpsc::Sender<Answer>>>>,
}

impl LastMessages {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            topics: Mutex::default(),
        }
    }

    pub(super) async fn ask(&self, topic: &Topic) -> Result<Option<MessageId>, BrokerError> {
        let (answer, answered) = oneshot::channel();
        let questions = self.questions(topic);
        if questions.send(answer).await.is_err() {
            return Err(BrokerError::Closed);
        }
        answered.await.unwrap_or(Err(BrokerError::Closed))
    }

    fn questions(&self, topic: &Topic) -> Arc<mpsc::Sender<Answer>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(questions) = topics.get(topic).and_then(Weak::upgrade) {
            return questions;
        }
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let questions = Arc::new(questions);
        topics.retain(|_, questions| questions.strong_count() > 0);
        topics.insert(topic.clone(), Arc::downgrade(&questions));
        tokio::spawn(answer(
            Arc::clone(&self.connection),
            topic.clone(),
            asked,
            Arc::clone(&questions),
        ));
        questions
    }
}

/// Answers until nobody has asked for a while.
async fn answer(
    connection: Arc<Connection>,
    topic: Topic,
    mut asked: mpsc::Receiver<Answer>,
    questions: Arc<mpsc::Sender<Answer>>,
) {
    let mut questions = Some(questions);
    let mut reader: Option<Raw> = None;
    let mut waiting: Vec<Answer> = Vec::new();
    loop {
        let patience = if questions.is_some() {
            IDLE
        } else {
            Duration::MAX
        };
        match tokio::time::timeout(patience, asked.recv_many(&mut waiting, QUESTIONS)).await {
            // From now on others find nobody here; who has already found us is still answered.
            Err(_) => {
                questions = None;
                continue;
            }
            Ok(0) => return,
            Ok(_) => {}
        }
        let mut outcome = ask(&connection, &topic, &mut reader).await;
        if outcome.is_err() {
            // The first question on a connection that has broken meanwhile.
            outcome = ask(&connection, &topic, &mut reader).await;
        }
        match outcome {
            Ok(last) => {
                for answer in waiting.drain(..) {
                    // Who does not wait any more needs no answer.
                    let _ = answer.send(Ok(last));
                }
            }
            Err(trouble) => {
                for answer in waiting.drain(..) {
                    let error = trouble.clone().receiving(connection.settings(), &topic);
                    let _ = answer.send(Err(error));
                }
            }
        }
    }
}

async fn ask(
    connection: &Arc<Connection>,
    topic: &Topic,
    reader: &mut Option<Raw>,
) -> Result<Option<MessageId>, Trouble> {
    let mut raw = match reader.take() {
        Some(raw) => raw,
        None => {
            read(Arc::clone(connection), topic.clone(), LATEST, 1)
                .await?
                .0
        }
    };
    // It is there to be asked, not to read: but the client stops at a full queue, questions included.
    while let Some(Some(_)) = raw.next().now_or_never() {}
    let outcome = last(&mut raw, connection.settings().operation_timeout).await;
    if outcome.is_ok() {
        *reader = Some(raw);
    }
    outcome
}
