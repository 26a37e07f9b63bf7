//! The store in one SQLite file.
//!
//! One connection writes, and commits for all that wait at once; a few others read what is committed. A statement costs
//! ten to twenty microseconds before it does anything, so whatever comes in numbers goes through one statement.
//!
//! - `schema.sql`: every table, with what its columns mean.
//! - `tally`: how many deliveries of a notification are in which state, and what happens when the last has ended.
//! - `asked`: what was asked, as it is kept. `cursor`: where a page begins.
//! - `turns`: how a chunk is divided, pure. `fold`: how an event changes a row, pure. `trail`: how a trail is told, pure.
//! - `plan`, `waiting`, `record`, `history`, `people`: one file for each trait.

mod asked;
mod cursor;
mod dead;
#[cfg(test)]
mod explain;
mod fold;
mod history;
mod members;
mod notifications;
mod people;
mod plan;
mod record;
mod tally;
#[cfg(test)]
mod tests;
mod trail;
mod turns;
mod waiting;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use futures::future::BoxFuture;
use herald_crds::Priority;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::{State, StoreError};
use crate::id::{DeliveryId, NotificationId};
use crate::sqlite::{self, WriteError, Writer};

/// A whole chunk or step of small rows.
const ROWS_AHEAD: usize = 512;

/// The schema, step by step; a released step is never changed.
const STEPS: &[&str] = &[include_str!("schema.sql")];

/// How the store's file is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether a commit waits for the disk. Off, a crash of the machine (not of the process) loses commits: for tests.
    pub synchronous: bool,
    /// Connections that read, 1 or more.
    pub readers: u32,
    /// Page cache of all connections together, in KiB: half of it is the writer's.
    pub cache_kib: u32,
    /// Most bytes of the file; what would make it larger is [`StoreError::Unavailable`]. `None`: as large as the disk.
    pub max_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            synchronous: true,
            readers: 3,
            cache_kib: 24 * 1024,
            max_bytes: None,
        }
    }
}

/// The store in one SQLite file.
pub struct SqliteStore {
    /// Commits for all that wait at once.
    writer: Writer,
    /// Read what is committed.
    readers: SqlitePool,
    /// Channels by number and by name: few, and never renumbered.
    channels: RwLock<Channels>,
    /// False: the suppression list is known to be empty. Whoever writes to the list sets it first.
    suppressing: AtomicBool,
    /// False: no outcome waits for its row.
    orphaned: Arc<AtomicBool>,
    /// Keeps other processes out.
    _lock: File,
}

#[derive(Debug, Default)]
struct Channels {
    names: HashMap<i64, Arc<str>>,
    numbers: HashMap<Arc<str>, i64>,
}

impl SqliteStore {
    /// Opens the file at `path`, makes it if there is none, and brings it to the newest schema. Needs a tokio runtime.
    ///
    /// Only one store at a time can have a file open; a second one gets [`StoreError::Open`], in this process or another.
    pub async fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let cannot = |reason: String| StoreError::Open {
            path: path.display().to_string(),
            reason,
        };
        let lock = sqlite::lock(path).map_err(|error| cannot(error.to_string()))?;
        let settings = sqlite::Settings {
            synchronous: options.synchronous,
            cache_kib: options.cache_kib / 2,
            rows_ahead: ROWS_AHEAD,
        };
        let mut connection = sqlite::open(path, settings)
            .await
            .map_err(|error| cannot(error.to_string()))?;
        // What is blanked or deleted should not linger in the file where overwriting it costs no further write.
        sqlx::query("PRAGMA secure_delete = FAST")
            .execute(&mut connection)
            .await
            .map_err(|error| cannot(error.to_string()))?;
        sqlite::migrate(&mut connection, STEPS)
            .await
            .map_err(|error| cannot(error.to_string()))?;
        if let Some(bytes) = options.max_bytes {
            let pages = format!("PRAGMA max_page_count = {}", bytes / PAGE_BYTES);
            sqlx::query(sqlx::AssertSqlSafe(pages))
                .execute(&mut connection)
                .await
                .map_err(|error| cannot(error.to_string()))?;
        }
        let channels = channels(&mut connection).await?;
        let (suppressing, orphaned): (bool, bool) = sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM suppressions), EXISTS (SELECT 1 FROM orphans)",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
        let readers = options.readers.max(1);
        let settings = sqlite::Settings {
            cache_kib: options.cache_kib / 2 / readers,
            ..settings
        };
        Ok(Self {
            writer: Writer::spawn(connection),
            readers: sqlite::readers(path, settings, readers),
            channels: RwLock::new(channels),
            suppressing: AtomicBool::new(suppressing),
            orphaned: Arc::new(AtomicBool::new(orphaned)),
            _lock: lock,
        })
    }

    /// Finishes what is being written and closes the file. Later calls get [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Does `operation` in a transaction that it shares with others, and returns once it is committed.
    async fn write<T, F>(&self, operation: F) -> Result<T, StoreError>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
        T: Send + 'static,
    {
        self.writer.run(operation).await
    }

    /// The number of a channel (`namespace/name`), which it gets if it has none.
    async fn channel_number(&self, name: &str) -> Result<i64, StoreError> {
        if let Some(number) = self.known_channel(name) {
            return Ok(number);
        }
        let name: Arc<str> = Arc::from(name);
        let new = Arc::clone(&name);
        let number: i64 = self
            .write(move |c| {
                Box::pin(async move {
                    // Updating nothing makes RETURNING answer for a channel that another job has just written.
                    sqlx::query_scalar(
                        "INSERT INTO channels (name) VALUES (?1)
                         ON CONFLICT (name) DO UPDATE SET name = name RETURNING id",
                    )
                    .bind(new)
                    .fetch_one(c)
                    .await
                    .map_err(failed)
                })
            })
            .await?;
        if let Ok(mut channels) = self.channels.write() {
            channels.names.insert(number, Arc::clone(&name));
            channels.numbers.insert(name, number);
        }
        Ok(number)
    }

    /// The number of a channel; `None`: there never was a row of it.
    fn known_channel(&self, name: &str) -> Option<i64> {
        self.channels.read().ok()?.numbers.get(name).copied()
    }

    /// The name of a channel, from the number that a row holds.
    fn channel_name(&self, number: i64) -> Result<Arc<str>, StoreError> {
        self.channels
            .read()
            .ok()
            .and_then(|channels| channels.names.get(&number).cloned())
            .ok_or_else(|| StoreError::Corrupt {
                place: "deliveries.channel",
                reason: format!("there is no channel {number}"),
            })
    }
}

/// SQLite's default, which the file is made with.
const PAGE_BYTES: u64 = 4096;

async fn channels(connection: &mut SqliteConnection) -> Result<Channels, StoreError> {
    let rows: Vec<(i64, String)> = sqlx::query_as("SELECT id, name FROM channels")
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    let mut channels = Channels::default();
    for (number, name) in rows {
        let name: Arc<str> = Arc::from(name);
        channels.names.insert(number, Arc::clone(&name));
        channels.numbers.insert(name, number);
    }
    Ok(channels)
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        Self::Unavailable {
            reason: error.to_string(),
        }
    }
}

/// What a failed statement means to a caller: what cannot be read is corrupt, everything else passes.
fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::ColumnDecode { index, source } => StoreError::Corrupt {
            place: "a column",
            reason: format!("{index}: {source}"),
        },
        sqlx::Error::Decode(source) => StoreError::Corrupt {
            place: "a value",
            reason: source.to_string(),
        },
        other => StoreError::Unavailable {
            reason: other.to_string(),
        },
    }
}

/// A state from a table.
fn state(number: i64) -> Result<State, StoreError> {
    u8::try_from(number)
        .ok()
        .and_then(State::from_repr)
        .ok_or_else(|| corrupt("deliveries.state", &number))
}

/// A notification's id from a table.
fn notification_id(bytes: &[u8]) -> Result<NotificationId, StoreError> {
    NotificationId::from_slice(bytes)
        .ok_or_else(|| corrupt("notifications.id", &"not 16 bytes long"))
}

/// A delivery's id from a table.
fn delivery_id(bytes: &[u8]) -> Result<DeliveryId, StoreError> {
    DeliveryId::from_slice(bytes).ok_or_else(|| corrupt("deliveries.id", &"not 12 bytes long"))
}

/// A class from a table.
fn priority(number: i64) -> Result<Priority, StoreError> {
    usize::try_from(number)
        .ok()
        .and_then(|index| Priority::ALL.get(index).copied())
        .ok_or_else(|| corrupt("priority", &number))
}

/// A time as the tables hold it.
fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// A time from a table; `place` is its table and column.
fn timestamp(millis: i64, place: &'static str) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(|error| corrupt(place, &error))
}

/// Something in a table is not what Herald wrote there.
fn corrupt(place: &'static str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        place,
        reason: error.to_string(),
    }
}

/// Rows as the JSON array that a statement takes apart with `json_each`.
///
/// # Panics
/// Never: what is given has string keys only, so that it always has a JSON form.
fn json<T: Serialize + ?Sized>(rows: &T) -> String {
    match serde_json::to_string(rows) {
        Ok(text) => text,
        Err(error) => unreachable!("rows without a JSON form: {error}"),
    }
}
