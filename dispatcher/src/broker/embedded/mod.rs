//! The broker without a broker: a durable queue in one SQLite file.
//!
//! One task writes and commits for all that wait at once ([`worker`]); consumers and tails read the file through a few
//! connections of their own, from where they are, and only when there is something ([`queue`]). An idle broker does
//! nothing.
//!
//! Of [`Sharing::KeyShared`], the sharing is kept and not the keys: within one process any consumer is as good.

mod consumer;
mod queue;
mod schema;
mod tail;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use herald_crds::names::Topic;
use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::consumer::EmbeddedConsumer;
use self::queue::{Known, Queue, Row};
use self::tail::EmbeddedTail;
use self::worker::{Command, Worker};
use super::{Broker, BrokerError, Consumer, MessageId, Outgoing, Sharing, Tail};
use crate::metrics::Metrics;
use crate::sqlite::{self, Settings};

pub use crate::sqlite::OpenError;

/// Commands that wait for the writer; more callers wait for a place.
const COMMANDS: usize = 1024;

/// Connections that read.
const READERS: u32 = 3;

/// Most messages that are read at once.
const READ_ROWS: usize = 64;

/// Bytes of payloads after which one reading ends.
const READ_BYTES: usize = 2 * 1024 * 1024;

/// For how long no new requests are taken after the disk was found full.
const DISK_FULL: Duration = Duration::from_secs(1);

/// How an [`EmbeddedBroker`] works.
#[derive(Debug, Clone)]
pub struct Options {
    /// For how long messages of events topics are kept, once acknowledged. The horizon H: 15 minutes by default.
    pub retention: Duration,
    /// Bytes in use in the file beyond which no new requests are taken; everything else goes on. 4 GiB by default.
    pub max_bytes: u64,
    /// Whether a receipt waits for the disk. Off, a crash of the machine loses messages: for tests only.
    pub synchronous: bool,
    /// Where failures are counted; `None`: nowhere.
    pub metrics: Option<Arc<Metrics>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Duration::from_mins(15),
            max_bytes: 4 * 1024 * 1024 * 1024,
            synchronous: true,
            metrics: None,
        }
    }
}

/// A durable queue in one SQLite file, for one process. Cheap to clone.
///
/// Dropping the last clone, consumer, acknowledger and tail closes it in the background.
#[derive(Clone)]
pub struct EmbeddedBroker {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    readers: SqlitePool,
}

/// The topics, as many as are declared; none is ever forgotten.
struct Queues {
    by_topic: HashMap<Topic, Arc<Queue>>,
    /// The greatest number of a topic.
    last_number: i64,
}

/// What the writer knows too.
struct Shared {
    queues: Mutex<Queues>,
    fullness: Fullness,
    retention: Duration,
    metrics: Option<Arc<Metrics>>,
    /// Asked to finish what is queued and close; nothing is handed out any more.
    closing: CancellationToken,
    /// Asked to stop where it is.
    aborting: CancellationToken,
    /// The file is closed.
    closed: CancellationToken,
}

impl EmbeddedBroker {
    /// Opens the queue at `path`, or makes one. Fails while another process has it. Needs a tokio runtime.
    pub async fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let lock = sqlite::lock(path)?;
        let settings = Settings {
            synchronous: options.synchronous,
            ..Settings::default()
        };
        let mut connection = sqlite::open(path, settings).await?;
        sqlite::migrate(&mut connection, schema::STEPS).await?;
        let readers = Settings {
            cache_kib: 2 * 1024,
            ..settings
        };
        let readers = sqlite::readers(path, readers, READERS);
        Self::start(connection, readers, lock, options)
            .await
            .map_err(|source| OpenError::Read {
                path: PathBuf::from(path),
                source,
            })
    }

    async fn start(
        mut connection: SqliteConnection,
        readers: SqlitePool,
        lock: File,
        options: Options,
    ) -> Result<Self, sqlx::Error> {
        let last_id: i64 = sqlx::query_scalar(schema::LAST_ID)
            .fetch_one(&mut connection)
            .await?;
        let queues = known(&mut connection, last_id as u64).await?;
        let retained_any = queues.by_topic.values().any(|queue| queue.retained);
        let shared = Arc::new(Shared {
            queues: Mutex::new(queues),
            fullness: Fullness::new(options.max_bytes),
            retention: options.retention,
            metrics: options.metrics,
            closing: CancellationToken::new(),
            aborting: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let worker = Worker {
            shared: Arc::clone(&shared),
            connection,
            last_id: last_id as u64,
            unmeasured: 0,
            expire_at: retained_any.then(tokio::time::Instant::now),
        };
        let closed = shared.closed.clone().drop_guard();
        let for_worker = readers.clone();
        tokio::spawn(async move {
            worker.run(receiver, for_worker).await;
            drop(lock);
            drop(closed);
        });
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                commands,
                readers,
            }),
        })
    }

    /// Finishes what is queued, moves the write-ahead log into the file and closes it. Consumers and tails get
    /// [`BrokerError::Closed`].
    pub async fn close(&self) {
        self.inner.shared.closing.cancel();
        self.inner.shared.closed.cancelled().await;
    }

    /// Stops at once, as a crash would: nobody gets a receipt any more, and what has none may be lost. For tests.
    #[doc(hidden)]
    pub async fn abort(&self) {
        self.inner.shared.aborting.cancel();
        self.inner.shared.closed.cancelled().await;
    }
}

/// The topics as the file has them. `last_id`: the greatest id ever.
async fn known(connection: &mut SqliteConnection, last_id: u64) -> Result<Queues, sqlx::Error> {
    let rows: Vec<(i64, String, i64, i64, i64)> =
        sqlx::query_as(schema::TOPICS).fetch_all(connection).await?;
    let mut queues = Queues {
        by_topic: HashMap::with_capacity(rows.len()),
        last_number: 0,
    };
    for (number, name, position, last, due) in rows {
        queues.last_number = queues.last_number.max(number);
        let Ok(topic) = name.parse::<Topic>() else {
            tracing::warn!(
                name,
                "leaving alone a topic of a kind that this program does not know"
            );
            continue;
        };
        // Nothing is left of a topic that once had messages: its newest had no greater id than this.
        let last = if last == 0 { last_id } else { last as u64 };
        let known = Known {
            stored: true,
            last: Some(last),
            position: position as u64,
            delayed: due > 0,
        };
        let queue = Queue::new(topic.clone(), number, &known);
        queues.by_topic.insert(topic, Arc::new(queue));
    }
    Ok(queues)
}

impl Inner {
    fn queue(&self, topic: &Topic) -> Arc<Queue> {
        let mut queues = self
            .shared
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.by_topic.get(topic) {
            return Arc::clone(queue);
        }
        queues.last_number += 1;
        let queue = Queue::new(topic.clone(), queues.last_number, &Known::default());
        let queue = Arc::new(queue);
        queues.by_topic.insert(topic.clone(), Arc::clone(&queue));
        queue
    }

    fn receive_error(&self, queue: &Queue, error: &sqlx::Error) -> BrokerError {
        if self.shared.closing.is_cancelled() || matches!(error, sqlx::Error::PoolClosed) {
            return BrokerError::Closed;
        }
        self.shared.failed("receive");
        BrokerError::Receive {
            topic: queue.name.clone(),
            reason: error.to_string(),
        }
    }
}

impl Shared {
    fn failed(&self, operation: &'static str) {
        if let Some(metrics) = &self.metrics {
            metrics.broker_failed(operation);
        }
    }

    /// The topics whose acknowledged messages are kept.
    fn retained(&self) -> Vec<Arc<Queue>> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues
            .by_topic
            .values()
            .filter(|queue| queue.retained)
            .cloned()
            .collect()
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn publish(&self, topic: &Topic, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        let queue = self.inner.queue(topic);
        if queue.requests
            && let Some(reason) = self.inner.shared.fullness.refusal()
        {
            self.inner.shared.failed("publish");
            return Err(BrokerError::Full { reason });
        }
        if messages.is_empty() {
            return Ok(());
        }
        let messages = messages.into_iter().map(|message| Row {
            id: 0,
            // Events are read along by id, and never late.
            deliver_at: if queue.retained {
                0
            } else {
                message.deliver_at.map_or(0, due)
            },
            payload: message.payload,
        });
        let (receipt, answer) = oneshot::channel();
        let command = Command::Publish {
            messages: messages.collect(),
            queue,
            receipt,
        };
        self.inner
            .commands
            .send(command)
            .await
            .map_err(|_| BrokerError::Closed)?;
        answer.await.unwrap_or(Err(BrokerError::Closed))
    }

    async fn subscribe(
        &self,
        topic: &Topic,
        sharing: Sharing,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        if self.inner.shared.closing.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let queue = self.inner.queue(topic);
        let inner = Arc::clone(&self.inner);
        Ok(Box::new(EmbeddedConsumer::new(
            inner,
            queue,
            sharing,
            prefetch.max(1),
        )))
    }

    async fn tail(
        &self,
        topic: &Topic,
        after: Option<MessageId>,
    ) -> Result<Box<dyn Tail>, BrokerError> {
        if self.inner.shared.closing.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let after = after.map_or(0, |id| id.entry);
        let queue = self.inner.queue(topic);
        Ok(Box::new(EmbeddedTail::new(
            Arc::clone(&self.inner),
            queue,
            after,
        )))
    }

    /// Of a topic other than a channel's events, whose messages are all gone since before the start: some id that is
    /// not less.
    async fn last_message_id(&self, topic: &Topic) -> Result<Option<MessageId>, BrokerError> {
        Ok(self.inner.queue(topic).last().map(MessageId::of_entry))
    }
}

/// A due time in milliseconds, never earlier than asked for; positive, since 0 means at once.
fn due(at: Timestamp) -> i64 {
    let milliseconds = at.as_millisecond();
    let rounded_up =
        milliseconds + i64::from(at.as_nanosecond() > i128::from(milliseconds) * 1_000_000);
    rounded_up.max(1)
}

/// Reads messages until there are no more or they are many bytes. True: there may be more.
async fn read(
    rows: impl futures::Stream<Item = Result<SqliteRow, sqlx::Error>> + Unpin,
    limit: usize,
) -> Result<(Vec<Row>, bool), sqlx::Error> {
    let mut rows = rows;
    let mut read = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await? {
        let row = Row {
            id: row.try_get::<i64, _>(0)? as u64,
            deliver_at: row.try_get(1)?,
            payload: Bytes::from(row.try_get::<Vec<u8>, _>(2)?),
        };
        bytes += row.payload.len();
        read.push(row);
        if bytes >= READ_BYTES {
            return Ok((read, true));
        }
    }
    let more = read.len() >= limit;
    Ok((read, more))
}

/// Whether new requests are taken.
struct Fullness {
    max_bytes: u64,
    over: AtomicBool,
    /// When the disk was found full.
    disk_full: Mutex<Option<Instant>>,
}

impl Fullness {
    fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            over: AtomicBool::new(false),
            disk_full: Mutex::new(None),
        }
    }

    /// The file has so many bytes in use. Full at the bound, and no more once a sixteenth of it is free.
    fn measured(&self, bytes: u64) {
        let bound = if self.over() {
            self.max_bytes - self.max_bytes / 16
        } else {
            self.max_bytes
        };
        self.over.store(bytes > bound, Ordering::Relaxed);
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn disk_full(&self) {
        *self
            .disk_full
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Why no new requests are taken; `None`: they are.
    fn refusal(&self) -> Option<String> {
        if self.over() {
            return Some(format!("its file holds more than {} bytes", self.max_bytes));
        }
        let disk_full = *self
            .disk_full
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        disk_full
            .is_some_and(|at| at.elapsed() < DISK_FULL)
            .then(|| "its disk is full".to_owned())
    }
}
