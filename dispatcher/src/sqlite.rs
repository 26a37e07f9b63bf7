//! What everything embedded shares about SQLite: how a file is opened, brought to its schema, kept to one process, and
//! written to by one connection that commits for many callers at once.

use std::fs::{File, OpenOptions, TryLockError};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Jobs that wait for the writer; more callers wait for a place.
const QUEUE: usize = 1024;

/// Most jobs in one transaction, so that the first of them does not wait for ever.
const BATCH: usize = 256;

/// Pages of the write-ahead log (4 KiB each) at which a commit also moves them into the file.
const CHECKPOINT_PAGES: &str = "4000";

/// Bytes to which the write-ahead log's file is cut when it starts over.
const LOG_BYTES: &str = "33554432";

/// How often a lock is tried before its file counts as in use, and how long after another.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Whether a commit waits for the disk. Off, a crash of the machine (not of the process) loses commits: for tests.
    pub synchronous: bool,
    /// Page cache of each connection, in KiB.
    pub cache_kib: u32,
    /// Rows that a connection reads ahead of who takes them: each time it is too few, two threads wait for each other.
    pub rows_ahead: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            synchronous: true,
            cache_kib: 8 * 1024,
            rows_ahead: 16,
        }
    }
}

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The lock's file.
        path: PathBuf,
    },
    /// The lock's file cannot be created or locked.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite does not open it.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The database's file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// A step towards the schema failed; the steps before it hold.
    #[error("cannot bring the schema to version {version}: {source}")]
    Migrate {
        /// Of the step.
        version: usize,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// What the file holds could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The database's file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// A later program has written it.
    #[error("its schema has version {found}, this program knows {known}: use a newer program")]
    Newer {
        /// In the file.
        found: usize,
        /// Of this program.
        known: usize,
    },
}

/// Makes this process the only one that uses the database at `path`, as long as the returned file is open.
pub(crate) fn lock(path: &Path) -> Result<File, OpenError> {
    let mut path = path.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(source) => return Err(OpenError::Lock { path, source }),
    };
    // A program that another thread is just starting has this process's files until it begins, a lock given up included.
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(OpenError::Lock { path, source }),
        }
    }
    Err(OpenError::InUse { path })
}

/// Opens the connection that writes; makes the file if there is none.
pub(crate) async fn open(path: &Path, settings: Settings) -> Result<SqliteConnection, OpenError> {
    options(path, settings)
        .create_if_missing(true)
        .connect()
        .await
        .map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source,
        })
}

/// Connections that only read, opened when they are first needed and kept. The file must exist by then.
pub(crate) fn readers(path: &Path, settings: Settings, connections: u32) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_lazy_with(options(path, settings).read_only(true))
}

fn options(path: &Path, settings: Settings) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(if settings.synchronous {
            SqliteSynchronous::Full
        } else {
            SqliteSynchronous::Off
        })
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(false)
        .pragma("temp_store", "memory")
        .pragma("cache_size", format!("-{}", settings.cache_kib))
        .pragma("journal_size_limit", LOG_BYTES)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .row_buffer_size(settings.rows_ahead)
        .disable_statement_logging()
}

/// Brings a database to the schema that `steps` lead to. Step `n` (from 1) is run once, in a transaction of its own;
/// `user_version` says how far the file has come. A released step is never changed.
pub(crate) async fn migrate(
    connection: &mut SqliteConnection,
    steps: &[&'static str],
) -> Result<(), OpenError> {
    let found: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut *connection)
        .await
        .map_err(|source| OpenError::Migrate { version: 0, source })?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > steps.len() {
        return Err(OpenError::Newer {
            found,
            known: steps.len(),
        });
    }
    for (index, step) in steps.iter().enumerate().skip(found) {
        let version = index + 1;
        let script = format!("BEGIN IMMEDIATE; {step}; PRAGMA user_version = {version}; COMMIT");
        if let Err(source) = sqlx::raw_sql(AssertSqlSafe(script))
            .execute(&mut *connection)
            .await
        {
            rollback(connection).await;
            return Err(OpenError::Migrate { version, source });
        }
    }
    Ok(())
}

/// Whether an error says that the disk, or the bound of pages, is full.
pub(crate) fn is_full(error: &sqlx::Error) -> bool {
    const FULL: i32 = 13;
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<i32>().ok())
        .is_some_and(|code| code & 0xff == FULL)
}

/// Ends a transaction that must not be committed. That there may be none any more (SQLite ends it itself on some
/// errors) is no failure.
pub(crate) async fn rollback(connection: &mut SqliteConnection) {
    if let Err(error) = sqlx::query("ROLLBACK").execute(connection).await {
        tracing::debug!(%error, "nothing to roll back");
    }
}

/// Why what a job did is not in the database, though the job itself may have succeeded.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WriteError {
    /// No transaction could be begun.
    #[error("cannot begin a transaction: {0}")]
    Begin(Arc<sqlx::Error>),
    /// The transaction could not be kept whole around this job or a neighbour that failed.
    #[error("the transaction was lost: {0}")]
    Savepoint(Arc<sqlx::Error>),
    /// The commit failed.
    #[error("cannot commit: {0}")]
    Commit(Arc<sqlx::Error>),
    /// The writer is closed, was aborted, or the job panicked.
    #[error("the database is closed")]
    Closed,
}

#[cfg(test)]
impl WriteError {
    /// Whether the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Begin(error) | Self::Savepoint(error) | Self::Commit(error) => is_full(error),
            Self::Closed => false,
        }
    }
}

/// Owns the connection that writes and commits for all that wait at once: while one commit is on its way to the disk,
/// the jobs for the next gather.
///
/// Dropping the last clone does what [`Writer::close`] does, without waiting for it.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    /// Asked to finish what is queued and close.
    closing: CancellationToken,
    /// Asked to stop where it is.
    aborting: CancellationToken,
    /// The connection is closed.
    closed: CancellationToken,
}

impl Writer {
    /// Starts the writer. Needs a tokio runtime.
    pub(crate) fn spawn(connection: SqliteConnection) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Self {
            jobs,
            closing: CancellationToken::new(),
            aborting: CancellationToken::new(),
            closed: CancellationToken::new(),
        };
        let (closing, aborting) = (writer.closing.clone(), writer.aborting.clone());
        let closed = writer.closed.clone().drop_guard();
        tokio::spawn(async move {
            let mut connection = connection;
            aborting
                .run_until_cancelled(work(&mut connection, queue, &closing))
                .await;
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "the database did not close cleanly");
            }
            drop(closed);
        });
        writer
    }

    /// Does `operation` in a transaction, shared with other callers' jobs, and returns once it is committed.
    ///
    /// An operation that fails is undone alone. It must not begin, commit or roll back anything itself, and must not
    /// wait for anything but the connection. Waits for a place in the queue. If the future is dropped the operation is
    /// done or not.
    pub(crate) async fn run<T, E, F>(&self, operation: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<WriteError> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let job = Box::new(Pending {
            operation: Some(operation),
            outcome: None,
            caller,
        });
        if self.jobs.send(job).await.is_err() {
            return Err(E::from(WriteError::Closed));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(E::from(WriteError::Closed)))
    }

    /// Finishes what is queued, moves the log into the file and closes it. Later jobs get [`WriteError::Closed`].
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        self.closed.cancelled().await;
    }

    /// Stops where it is, as a crash would: what is not committed is lost, nobody is answered with success any more.
    /// Returns when the connection is closed.
    #[cfg(test)]
    pub(crate) async fn abort(&self) {
        self.aborting.cancel();
        self.closed.cancelled().await;
    }
}

/// One caller's operation, whatever its types.
trait Job: Send {
    /// Does it; false: it failed and is to be undone.
    fn run<'c>(&'c mut self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, bool>;

    /// Answers the caller with the operation's own outcome, or with why it did not last.
    fn answer(self: Box<Self>, error: Option<&WriteError>);
}

struct Pending<F, T, E> {
    /// `None` once it was called.
    operation: Option<F>,
    /// `None` until it has ended; for ever if it panicked.
    outcome: Option<Result<T, E>>,
    caller: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Pending<F, T, E>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send,
    T: Send,
    E: From<WriteError> + Send,
{
    fn run<'c>(&'c mut self, connection: &'c mut SqliteConnection) -> BoxFuture<'c, bool> {
        Box::pin(async move {
            let Some(operation) = self.operation.take() else {
                return false;
            };
            let attempt = AssertUnwindSafe(async { operation(connection).await }).catch_unwind();
            if let Ok(outcome) = attempt.await {
                self.outcome = Some(outcome);
            }
            matches!(self.outcome, Some(Ok(_)))
        })
    }

    fn answer(self: Box<Self>, error: Option<&WriteError>) {
        let answer = match (self.outcome, error) {
            (Some(Ok(value)), None) => Ok(value),
            (Some(Err(own)), _) => Err(own),
            (_, Some(error)) => Err(E::from(error.clone())),
            (None, None) => return,
        };
        // The caller may have gone away: then nobody wants the answer.
        let _ = self.caller.send(answer);
    }
}

async fn work(
    connection: &mut SqliteConnection,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    closing: &CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled(), if !queue.is_closed() => queue.close(),
            taken = queue.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    break;
                }
                commit(connection, &mut batch).await;
            }
        }
    }
    if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(connection)
        .await
    {
        tracing::warn!(%error, "the write-ahead log stays for the next start");
    }
}

/// Does a batch's jobs in one transaction and answers them. `batch` is empty afterwards.
async fn commit(connection: &mut SqliteConnection, batch: &mut Vec<Box<dyn Job>>) {
    let error = transact(connection, batch).await.err();
    if error.is_some() {
        rollback(connection).await;
    }
    for job in batch.drain(..) {
        job.answer(error.as_ref());
    }
}

async fn transact(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Job>],
) -> Result<(), WriteError> {
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut *connection)
        .await
        .map_err(|error| WriteError::Begin(Arc::new(error)))?;
    if let [only] = batch {
        if !only.run(connection).await {
            rollback(connection).await;
            return Ok(());
        }
    } else {
        for job in batch {
            savepoint(connection, job.as_mut())
                .await
                .map_err(|error| WriteError::Savepoint(Arc::new(error)))?;
        }
    }
    sqlx::query("COMMIT")
        .execute(connection)
        .await
        .map_err(|error| WriteError::Commit(Arc::new(error)))?;
    Ok(())
}

/// Does one job, and undoes it alone if it fails. An error means that the whole transaction is lost: SQLite ends it
/// itself when the disk is full, and then there is no savepoint any more to go back to.
async fn savepoint(
    connection: &mut SqliteConnection,
    job: &mut dyn Job,
) -> Result<(), sqlx::Error> {
    sqlx::query("SAVEPOINT job")
        .execute(&mut *connection)
        .await?;
    if !job.run(connection).await {
        sqlx::query("ROLLBACK TO job")
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("RELEASE job").execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
