//! The store in one SQLite file.
//!
//! One connection writes, and commits for all that wait at once; a few others read what is committed. A statement costs
//! ten to twenty microseconds before it does anything, so whatever comes in numbers goes through one statement.
//!
//! - `schema.sql`: every table, with what its columns mean.
//! - `tally`: how many deliveries of a notification are in which state, as it is written.
//! - `plan`, `waiting` (`hold`, `orders`), `record` (`folded`), `history` (`dead`), `people` (`entries`): one file for each
//!   trait, and what it does with others' help.

mod dead;
mod entries;
#[cfg(test)]
mod explain;
mod folded;
mod history;
mod hold;
mod members;
mod notifications;
mod orders;
mod people;
mod plan;
mod record;
mod tally;
#[cfg(test)]
mod tests;
mod waiting;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use futures::future::BoxFuture;
use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::columns::{
    Channels, corrupt, delivery_id, failed, json, millis, notification_id, priority, state,
    timestamp, unanswered,
};
use super::{StoreError, asked, cursor, fold, trail, turns};
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
    /// Since when it knows what was sent, if what was before is lost: no schedule is due from an earlier time on. `None`:
    /// since ever.
    pub since: Option<Timestamp>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            synchronous: true,
            readers: 3,
            cache_kib: 24 * 1024,
            max_bytes: None,
            since: None,
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
    /// See [`Options::since`].
    since: Option<Timestamp>,
    /// Keeps other processes out.
    _lock: File,
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
            since: options.since,
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
            channels.add(number, name);
        }
        Ok(number)
    }

    /// The number of a channel; `None`: there never was a row of it.
    fn known_channel(&self, name: &str) -> Option<i64> {
        self.channels.read().ok()?.number(name)
    }

    /// The name of a channel, from the number that a row holds.
    fn channel_name(&self, number: i64) -> Result<Arc<str>, StoreError> {
        self.channels
            .read()
            .ok()
            .and_then(|channels| channels.name(number))
            .ok_or_else(|| {
                corrupt(
                    "deliveries.channel",
                    &format!("there is no channel {number}"),
                )
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
        channels.add(number, Arc::from(name));
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
