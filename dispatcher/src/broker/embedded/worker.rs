//! The one task that writes: everything that waits goes into one transaction and is answered once it is committed.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::queue::{Queue, Row};
use super::schema;
use crate::broker::BrokerError;
use crate::clock;
use crate::sqlite;

/// Most commands in one transaction.
const BATCH: usize = 512;

/// Bytes of payloads in one transaction, beyond which no further command joins it.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Bytes written after which the file is measured again.
const MEASURE_BYTES: usize = 1024 * 1024;

/// Messages that one step of the expiry looks at, so that nobody waits long for it.
const EXPIRE_ROWS: i64 = 100;

/// What the broker asks of the writer.
pub(super) enum Command {
    /// `messages` have no ids yet.
    Publish {
        queue: Arc<Queue>,
        messages: Vec<Row>,
        receipt: Receipt,
    },
    /// What [`Queue::leaving`] returned.
    Acknowledge {
        queue: Arc<Queue>,
        ids: Vec<u64>,
        receipt: Receipt,
    },
}

type Receipt = oneshot::Sender<Result<(), BrokerError>>;

impl Command {
    fn bytes(&self) -> usize {
        match self {
            Self::Publish { messages, .. } => messages.iter().map(|m| m.payload.len()).sum(),
            Self::Acknowledge { .. } => 0,
        }
    }

    fn is_publish(&self) -> bool {
        matches!(self, Self::Publish { .. })
    }

    fn is_request(&self) -> bool {
        matches!(self, Self::Publish { queue, .. } if queue.requests)
    }
}

pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub connection: SqliteConnection,
    /// The greatest id given to a message.
    pub last_id: u64,
    /// Payload bytes written since the file was measured.
    pub unmeasured: usize,
    /// When expired messages are looked for next; `None`: there are none until a retained topic moves.
    pub expire_at: Option<Instant>,
}

impl Worker {
    /// Works until it is told to close or abort, or nobody can send commands any more; then closes the file.
    pub(super) async fn run(mut self, commands: mpsc::Receiver<Command>, readers: SqlitePool) {
        let shared = Arc::clone(&self.shared);
        let finished = shared
            .aborting
            .run_until_cancelled(self.work(commands))
            .await;
        shared.closing.cancel();
        readers.close().await;
        if finished.is_some()
            && let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
                .execute(&mut self.connection)
                .await
        {
            tracing::warn!(%error, "the broker's write-ahead log stays for the next start");
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the broker's file did not close cleanly");
        }
    }

    async fn work(&mut self, mut commands: mpsc::Receiver<Command>) {
        let shared = Arc::clone(&self.shared);
        let mut taken = Vec::new();
        self.measure().await;
        loop {
            let expire_at = self.expire_at;
            let expiry = async {
                match expire_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shared.closing.cancelled(), if !commands.is_closed() => commands.close(),
                count = commands.recv_many(&mut taken, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.write(&mut taken).await;
                }
                () = expiry => {}
            }
            if self.expire_at.is_some_and(|at| at <= Instant::now()) {
                self.expire().await;
            }
        }
    }

    /// Writes commands in transactions of bounded size and answers them.
    async fn write(&mut self, taken: &mut Vec<Command>) {
        let mut batch = Vec::with_capacity(taken.len());
        let mut bytes = 0;
        for command in taken.drain(..) {
            if bytes > BATCH_BYTES {
                self.commit(std::mem::take(&mut batch)).await;
                bytes = 0;
            }
            bytes += command.bytes();
            batch.push(command);
        }
        self.commit(batch).await;
    }

    async fn commit(&mut self, mut batch: Vec<Command>) {
        for command in &mut batch {
            if let Command::Publish { messages, .. } = command {
                for message in messages {
                    self.last_id += 1;
                    message.id = self.last_id;
                }
            }
        }
        match self.transact(&batch).await {
            Ok(()) => self.done(batch),
            Err(error) if sqlite::is_full(&error) => self.commit_when_full(batch, &error).await,
            Err(error) => self.failed(batch, &error),
        }
        if self.unmeasured >= MEASURE_BYTES || self.shared.fullness.over() {
            self.measure().await;
        }
    }

    /// New requests go first when there is no room, other messages next: what was accepted is to be worked off, and
    /// acknowledgements make room.
    async fn commit_when_full(&mut self, batch: Vec<Command>, error: &sqlx::Error) {
        tracing::warn!(%error, "the broker's disk is full");
        self.shared.fullness.disk_full();
        let (requests, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(Command::is_request);
        if !requests.is_empty() {
            self.failed(requests, error);
            match self.transact(&rest).await {
                Ok(()) => return self.done(rest),
                Err(error) if sqlite::is_full(&error) => {}
                Err(error) => return self.failed(rest, &error),
            }
        }
        let (publishes, acknowledgements): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(Command::is_publish);
        self.failed(publishes, error);
        match self.transact(&acknowledgements).await {
            Ok(()) => self.done(acknowledgements),
            Err(error) => self.failed(acknowledgements, &error),
        }
    }

    /// All of a batch in one transaction. Nothing of it is in the file if this fails.
    async fn transact(&mut self, batch: &[Command]) -> Result<(), sqlx::Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let outcome = self.execute(batch).await;
        if outcome.is_err() {
            sqlite::rollback(&mut self.connection).await;
        }
        outcome
    }

    async fn execute(&mut self, batch: &[Command]) -> Result<(), sqlx::Error> {
        let connection = &mut self.connection;
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut *connection)
            .await?;
        let mut rows: Vec<(&Row, i64)> = Vec::new();
        let mut deleted: Vec<u64> = Vec::new();
        let mut moved: Vec<&Queue> = Vec::new();
        for command in batch {
            match command {
                Command::Publish {
                    queue, messages, ..
                } => {
                    if !queue.stored() {
                        sqlx::query(schema::ADD_TOPIC)
                            .bind(queue.number)
                            .bind(queue.name.as_str())
                            .execute(&mut *connection)
                            .await?;
                    }
                    rows.extend(messages.iter().map(|message| (message, queue.number)));
                }
                Command::Acknowledge { queue, ids, .. } if !queue.retained => {
                    deleted.extend_from_slice(ids);
                }
                Command::Acknowledge { queue, .. } => {
                    if !moved.iter().any(|other| other.number == queue.number) {
                        moved.push(queue);
                    }
                }
            }
        }
        self.unmeasured += insert(connection, &rows).await?;
        if !deleted.is_empty() {
            sqlx::query(schema::DELETE)
                .bind(json_array(&deleted))
                .execute(&mut *connection)
                .await?;
        }
        let mut positions = Vec::with_capacity(moved.len());
        for queue in moved {
            if let Some(position) = queue.advance() {
                sqlx::query(schema::MOVE)
                    .bind(queue.number)
                    .bind(position as i64)
                    .execute(&mut *connection)
                    .await?;
                positions.push((queue, position));
            }
        }
        sqlx::query("COMMIT").execute(&mut *connection).await?;
        for (queue, position) in positions {
            queue.advanced(position);
        }
        Ok(())
    }

    fn done(&mut self, batch: Vec<Command>) {
        for command in batch {
            let (queue, receipt) = match command {
                Command::Publish {
                    queue,
                    messages,
                    receipt,
                } => {
                    queue.published(&messages);
                    (queue, receipt)
                }
                Command::Acknowledge {
                    queue,
                    ids,
                    receipt,
                } => {
                    queue.settled(&ids, true);
                    (queue, receipt)
                }
            };
            if queue.retained && self.expire_at.is_none() {
                self.expire_at = Some(Instant::now() + self.expiry_interval());
            }
            // Whoever asked may have gone away: then nobody wants the receipt.
            let _ = receipt.send(Ok(()));
        }
    }

    fn failed(&self, batch: Vec<Command>, error: &sqlx::Error) {
        let full = sqlite::is_full(error);
        for command in batch {
            let (receipt, error) = match command {
                Command::Publish { queue, receipt, .. } if full && queue.requests => {
                    self.shared.failed("publish");
                    (
                        receipt,
                        BrokerError::Full {
                            reason: error.to_string(),
                        },
                    )
                }
                Command::Publish { queue, receipt, .. } => {
                    self.shared.failed("publish");
                    let topic = queue.name.clone();
                    (
                        receipt,
                        BrokerError::Publish {
                            topic,
                            reason: error.to_string(),
                        },
                    )
                }
                Command::Acknowledge {
                    queue,
                    ids,
                    receipt,
                } => {
                    self.shared.failed("acknowledge");
                    queue.settled(&ids, false);
                    let topic = queue.name.clone();
                    (
                        receipt,
                        BrokerError::Receive {
                            topic,
                            reason: error.to_string(),
                        },
                    )
                }
            };
            let _ = receipt.send(Err(error));
        }
    }

    /// Compares the bytes in use with the bound.
    async fn measure(&mut self) {
        self.unmeasured = 0;
        match sqlx::query_scalar::<_, i64>(schema::USED)
            .fetch_one(&mut self.connection)
            .await
        {
            Ok(used) => self.shared.fullness.measured(used as u64),
            Err(error) => tracing::warn!(%error, "cannot measure the broker's file"),
        }
    }

    /// Deletes some of what retained topics need no longer, and decides when to look again.
    async fn expire(&mut self) {
        let before = clock::now().as_millisecond() - self.shared.retention.as_millis() as i64;
        let mut more = false;
        let mut kept = false;
        for queue in self.shared.retained() {
            match self.expire_topic(&queue, before).await {
                Ok(Expired {
                    full_step,
                    any_left,
                }) => {
                    more |= full_step;
                    kept |= any_left;
                }
                Err(error) => {
                    self.shared.failed("expire");
                    tracing::warn!(%error, topic = %queue.name, "cannot delete expired messages");
                    kept = true;
                }
            }
        }
        self.expire_at = if more {
            Some(Instant::now())
        } else {
            kept.then(|| Instant::now() + self.expiry_interval())
        };
    }

    async fn expire_topic(&mut self, queue: &Queue, before: i64) -> Result<Expired, sqlx::Error> {
        let end = queue.expirable() as i64;
        let deleted = sqlx::query(schema::EXPIRE)
            .bind(queue.number)
            .bind(end)
            .bind(before)
            .bind(EXPIRE_ROWS)
            .execute(&mut self.connection)
            .await?
            .rows_affected();
        let any_left = sqlx::query_scalar(schema::ANY)
            .bind(queue.number)
            .bind(end)
            .fetch_one(&mut self.connection)
            .await?;
        let full_step = deleted >= EXPIRE_ROWS as u64;
        Ok(Expired {
            full_step,
            any_left,
        })
    }

    /// Often enough that little more than the retention is kept, and seldom enough for an idle machine.
    fn expiry_interval(&self) -> Duration {
        (self.shared.retention / 8).clamp(Duration::from_millis(10), Duration::from_secs(30))
    }
}

struct Expired {
    /// There may be more to delete at once.
    full_step: bool,
    /// Something will expire later.
    any_left: bool,
}

/// Inserts messages, and returns how many bytes they have.
async fn insert(
    connection: &mut SqliteConnection,
    mut rows: &[(&Row, i64)],
) -> Result<usize, sqlx::Error> {
    let now = clock::now().as_millisecond();
    let mut bytes = 0;
    for (count, statement) in schema::INSERTS.iter() {
        while let Some((chunk, rest)) = rows.split_at_checked(*count) {
            let mut query = sqlx::query(statement.as_str());
            for (row, topic) in chunk {
                bytes += row.payload.len();
                query = query
                    .bind(row.id as i64)
                    .bind(topic)
                    .bind(row.deliver_at)
                    .bind(now)
                    .bind(row.payload.as_ref());
            }
            query.execute(&mut *connection).await?;
            rows = rest;
        }
    }
    Ok(bytes)
}

fn json_array(ids: &[u64]) -> String {
    let mut text = String::with_capacity(ids.len() * 8 + 2);
    let mut separator = '[';
    for id in ids {
        text.push(separator);
        text.push_str(&id.to_string());
        separator = ',';
    }
    text.push(']');
    text
}
