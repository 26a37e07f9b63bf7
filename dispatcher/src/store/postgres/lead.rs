//! Which gateway releases a channel: the one that has its advisory lock, in one session that holds all locks of a gateway.
//!
//! With its connection a gateway loses them all at once, whoever notices first. That another one may release before this
//! one knows harms nothing but the pace for a moment: rows that are held are held all the same.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _};
use tokio::sync::Mutex;

use super::failed;
use crate::store::StoreError;

/// So long a session is believed to be there without being asked.
const BELIEVED: Duration = Duration::from_secs(1);

/// The locks of this gateway.
pub(super) struct Leads {
    at: PgConnectOptions,
    /// How long a call waits for the database.
    patience: Duration,
    session: Mutex<Option<Session>>,
}

struct Session {
    connection: PgConnection,
    /// Channels whose lock it holds.
    channels: HashSet<String>,
    /// When it was last heard of.
    heard: Instant,
}

impl Leads {
    pub(super) fn new(at: PgConnectOptions, patience: Duration) -> Self {
        Self {
            at,
            patience,
            session: Mutex::new(None),
        }
    }

    /// See [`WaitingStore::lead`](crate::store::WaitingStore::lead).
    pub(super) async fn lead(&self, channel: &str) -> Result<bool, StoreError> {
        let mut guard = self.session.lock().await;
        // Taken out, so that a session whose call fails or is dropped is lost, and its locks with it.
        if let Some(session) = guard.take() {
            match self.within(session.lead(channel)).await {
                Ok((session, leads)) => {
                    *guard = Some(session);
                    return Ok(leads);
                }
                Err(error) => tracing::debug!(channel, %error, "the session that led is lost"),
            }
        }
        let session = Session {
            connection: self.within(self.at.connect()).await?,
            channels: HashSet::new(),
            heard: Instant::now(),
        };
        let (session, leads) = self.within(session.lead(channel)).await?;
        *guard = Some(session);
        Ok(leads)
    }

    /// See [`WaitingStore::resign`](crate::store::WaitingStore::resign).
    pub(super) async fn resign(&self, channel: &str) {
        let mut guard = self.session.lock().await;
        let Some(mut session) = guard.take() else {
            return;
        };
        if !session.channels.remove(channel) {
            *guard = Some(session);
            return;
        }
        let unlocked = sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))")
            .bind(channel)
            .execute(&mut session.connection);
        match self.within(unlocked).await {
            Ok(_) => *guard = Some(session),
            Err(error) => tracing::debug!(channel, %error, "the session that led is lost"),
        }
    }

    pub(super) async fn close(&self) {
        if let Some(session) = self.session.lock().await.take() {
            // Whoever closes is not interested in how it went.
            let _ = self.within(session.connection.close()).await;
        }
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.patience, call).await {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(StoreError::Unavailable {
                reason: "it does not answer".to_owned(),
            }),
        }
    }
}

impl Session {
    async fn lead(mut self, channel: &str) -> Result<(Self, bool), sqlx::Error> {
        if self.channels.contains(channel) {
            if self.heard.elapsed() > BELIEVED {
                self.connection.ping().await?;
                self.heard = Instant::now();
            }
            return Ok((self, true));
        }
        // Not within a transaction: the lock is the session's.
        let leads: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
                .bind(channel)
                .fetch_one(&mut self.connection)
                .await?;
        self.heard = Instant::now();
        if leads {
            self.channels.insert(channel.to_owned());
        }
        Ok((self, leads))
    }
}
