//! The store on PostgreSQL, 15 or later: what several gateways share.
//!
//! Every writer takes its locks in one order, so that none waits for another in a circle: first deliveries, by id,
//! then the notifications whose counts change, by number. What comes in numbers goes through one statement, as arrays.
//!
//! Of a partitioned table, one partition is read where the day is known: by `LATERAL (… OFFSET 0)`, which PostgreSQL leaves
//! as it is, so that the day comes in from outside; a join it may turn into a look into every partition.
//!
//! - `schema.sql`: every table. `migrate`: how a database comes to it; `open`: once it is there. `days`: partitions.
//! - `lead`: which gateway releases a channel. `news`: what gateways tell each other. `tally`: counts, as they are written.
//! - `plan` (`rows`, `members`), `waiting` (`hold`, `orders`), `record` (`plain`, `folded`, `expire`), `history` (`dead`), `people` (`entries`): one
//!   file for each trait, and what it does with others' help.

mod days;
mod dead;
mod entries;
mod expire;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod faults;
mod folded;
mod history;
mod hold;
mod lead;
mod members;
mod migrate;
mod news;
mod open;
mod orders;
mod people;
mod plain;
mod plan;
mod record;
mod rows;
#[cfg(test)]
mod server;
mod tally;
#[cfg(test)]
mod tests;
mod waiting;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection as _, Postgres, Transaction};
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use super::columns::{
    Channels, corrupt, delivery_id, failed, json, millis, notification_id, priority, state,
    timestamp, unanswered,
};
use super::{StoreError, asked, cursor, fold, trail, turns};
use crate::clock;

/// How the database is reached.
#[derive(Clone)]
pub struct Options {
    /// `postgres://user:password@host:port/database?sslmode=…`. Not through a pooler that shares connections among
    /// transactions: locks of a session are held.
    pub url: String,
    /// A file with the certificates (PEM) of those who may have signed the server's; demands TLS and the right name.
    /// `None`: as `sslmode` says, with the system's.
    pub ca: Option<PathBuf>,
    /// Connections for short transactions, 2 or more.
    pub connections: u32,
    /// Connections that hold chunks until their receipts, 1 or more: so many channels release at the same time.
    pub releasing: u32,
    /// How long a chunk may be held without a word to the database: then others get it, whoever holds it.
    pub held: Duration,
    /// How long a call waits for a connection.
    pub patience: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
}

impl Options {
    /// The usual ones for a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca: None,
            connections: 12,
            releasing: 6,
            held: Duration::from_secs(30),
            patience: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
        }
    }
}

/// The store on PostgreSQL.
pub struct PostgresStore {
    /// For short transactions.
    pool: PgPool,
    /// Hold chunks: of their own, so that whoever holds one finds a connection for what it needs to settle it.
    releasing: PgPool,
    /// Which channels this gateway releases.
    leads: lead::Leads,
    /// What other gateways say.
    ear: news::Ear,
    /// Channels by number and by name, as far as they were needed.
    channels: RwLock<Channels>,
    /// Days that have partitions.
    days: days::Days,
    /// Brings a database that was away to the schema once it is there.
    _opening: Option<DropGuard>,
}

/// How long a statement waits for another's lock.
const LOCKED: &str = "10s";

impl PostgresStore {
    /// Connects, and brings the database to the schema. If the database is away that is done as soon as it is there, and
    /// until then every call gets [`StoreError::Unavailable`]. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`StoreError::Open`]: what no waiting cures, such as a wrong password or a schema that is too new.
    pub async fn open(options: Options) -> Result<Self, StoreError> {
        let mut at: PgConnectOptions = options.url.parse().map_err(|error: sqlx::Error| {
            // Not the address itself: it may hold a password.
            StoreError::Open {
                path: "postgres".to_owned(),
                reason: format!("its address is not one: {error}"),
            }
        })?;
        let place = format!(
            "postgres://{}:{}/{}",
            at.get_host(),
            at.get_port(),
            at.get_database().unwrap_or_default()
        );
        let cannot = |reason: String| StoreError::Open {
            path: place.clone(),
            reason,
        };
        if let Some(ca) = &options.ca {
            at = at.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(ca);
        }
        let statement_timeout = options.statement_timeout.as_millis().to_string();
        let held = options.held.as_millis().to_string();
        let at = at
            .application_name("herald")
            .options([
                ("statement_timeout", statement_timeout.as_str()),
                ("lock_timeout", LOCKED),
                ("idle_in_transaction_session_timeout", held.as_str()),
                // A gateway whose machine is gone leads nothing any more, though nobody closed its connections.
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "3"),
                ("tcp_user_timeout", "25s"),
                // Every statement is written for an index and a few rows, and joins in the order in which it is
                // written. A partition that was made today has no statistics yet, and would be taken for empty until it
                // is read whole a million times too often.
                ("join_collapse_limit", "1"),
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("enable_bitmapscan", "off"),
                ("enable_material", "off"),
                ("jit", "off"),
            ])
            .disable_statement_logging();
        let opening = open::open(&at, &place, options.patience).await;
        let open::Opened { is_ready, trying } =
            opening.map_err(|error| cannot(error.to_string()))?;
        let is_here = *is_ready.borrow();
        let connections = |most: u32| pool(&options, most, is_ready.clone());
        let store = Self {
            pool: connections(options.connections.max(2)).connect_lazy_with(at.clone()),
            releasing: connections(options.releasing.max(1)).connect_lazy_with(at.clone()),
            ear: news::Ear::new(at.clone(), options.patience),
            leads: lead::Leads::new(at, options.patience),
            channels: RwLock::default(),
            days: days::Days::default(),
            _opening: trying,
        };
        if is_here {
            store.read_channels().await?;
            store.make_days_ahead(clock::now()).await?;
        }
        Ok(store)
    }

    /// Closes all connections. Later calls get [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.leads.close().await;
        self.releasing.close().await;
        self.pool.close().await;
    }

    /// A short transaction.
    async fn begin(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        self.pool.begin().await.map_err(failed)
    }

    /// A failed write; if it was for want of a partition, which another gateway has dropped, the next one makes it.
    fn unwritten(&self, error: sqlx::Error) -> StoreError {
        const NO_PARTITION: &str = "23514";
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        if code.as_deref() == Some(NO_PARTITION) {
            self.days.forget();
        }
        failed(error)
    }

    async fn read_channels(&self) -> Result<(), StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT id, name FROM channels")
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        if let Ok(mut channels) = self.channels.write() {
            for (number, name) in rows {
                channels.add(number, Arc::from(name));
            }
        }
        Ok(())
    }

    /// The number of a channel (`namespace/name`), which it gets if it has none.
    async fn channel_number(&self, name: &str) -> Result<i64, StoreError> {
        if let Some(number) = self.known_channel(name).await? {
            return Ok(number);
        }
        let number: i64 = sqlx::query_scalar(
            "INSERT INTO channels (name) VALUES ($1)
             ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
        )
        .bind(name)
        .fetch_one(&self.pool)
        .await
        .map_err(failed)?;
        if let Ok(mut channels) = self.channels.write() {
            channels.add(number, Arc::from(name));
        }
        Ok(number)
    }

    /// The number of a channel; `None`: there never was a row of it.
    async fn known_channel(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let known = |channels: &RwLock<Channels>| {
            let channels = channels.read().ok()?;
            channels.number(name)
        };
        if let Some(number) = known(&self.channels) {
            return Ok(Some(number));
        }
        // Another gateway may have been the first to have a row of it.
        let number: Option<i64> = sqlx::query_scalar("SELECT id FROM channels WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        if let (Some(number), Ok(mut channels)) = (number, self.channels.write()) {
            channels.add(number, Arc::from(name));
        }
        Ok(number)
    }

    /// The name of a channel, from the number that a row holds.
    async fn channel_name(&self, number: i64) -> Result<Arc<str>, StoreError> {
        let known = || self.channels.read().ok()?.name(number);
        if let Some(name) = known() {
            return Ok(name);
        }
        self.read_channels().await?;
        known().ok_or_else(|| {
            corrupt(
                "deliveries.channel",
                &format!("there is no channel {number}"),
            )
        })
    }

    /// Since which day something has not ended: the partitions before it hold nothing that waits or is out.
    async fn open_since(&self) -> Result<i32, StoreError> {
        let since: Option<i32> = sqlx::query_scalar(OPEN_SINCE)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        Ok(since.unwrap_or(i32::MAX))
    }
}

const OPEN_SINCE: &str = "SELECT min(day) FROM notifications WHERE ended_at IS NULL";

fn pool(options: &Options, connections: u32, is_ready: watch::Receiver<bool>) -> PgPoolOptions {
    /// A connection that was idle for longer is asked whether it still is one.
    const DOUBTFUL: Duration = Duration::from_secs(1);
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(options.patience)
        .test_before_acquire(false)
        .after_connect(move |_, _| {
            let mut is_ready = is_ready.clone();
            Box::pin(async move {
                // Its caller waits no longer than its patience.
                let ready = is_ready.wait_for(|ready| *ready).await;
                ready.map(drop).map_err(|_| sqlx::Error::PoolClosed)
            })
        })
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for > DOUBTFUL {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
}

macro_rules! by_keys {
    ($change:literal $(, $rest:literal)?) => {
        concat!(
            $change,
            " FROM unnest($1::int[], $2::bytea[]) AS k(day, id) WHERE d.day = k.day AND d.id = k.id",
            $($rest)?
        )
    };
}
use by_keys;

/// A text as PostgreSQL can hold it: without NUL.
fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}
