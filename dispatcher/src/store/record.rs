//! What recording needs of SQL.

use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;

use super::StoreError;
use crate::id::{DeliveryId, NotificationId};
use crate::message::Events;

/// A row that left the waiting room long ago and of which nothing was heard.
#[derive(Debug, Clone)]
pub struct Overdue {
    /// The delivery.
    pub id: DeliveryId,
    /// Its notification.
    pub notification: NotificationId,
    /// Its channel, `namespace/name`.
    pub channel: Arc<str>,
    /// Its class.
    pub priority: Priority,
    /// When it was released, or last heard of.
    pub since: Timestamp,
    /// Its round.
    pub round: u16,
    /// Its highest attempt.
    pub attempt: u16,
    /// Attempts of this round that reached a provider.
    pub tried: u16,
}

/// What recording needs of SQL.
#[async_trait]
pub trait RecordStore {
    /// Appends events of a channel (`namespace/name`) to the audit trail and folds them into the rows.
    ///
    /// Repeats, reorderings and interleavings give the same rows: an event counts only if its (round, rank of state,
    /// attempt) is beyond the row's. Messages that cannot be read are kept, each once, the newest thousand. An outcome of a delivery that has no row yet makes one once its `direct` is known.
    async fn record(&self, channel: &str, events: &[Events]) -> Result<(), StoreError>;

    /// Rows of a channel (`namespace/name`) that were released before `before`, of which nothing was heard since, and which
    /// have not ended; at most `limit`.
    async fn overdue(
        &self,
        channel: &str,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Overdue>, StoreError>;

    /// Puts overdue rows back into the waiting room with the same round and the highest attempt, and notes it in their trail.
    async fn redrive(&self, overdue: &[Overdue], now: Timestamp) -> Result<u64, StoreError>;

    /// Deletes what is older than the end of retention, at most `limit` notifications; answers how many.
    async fn expire(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError>;

    /// Rows that have not ended, by whether they wait or are out: what conservation is checked with.
    async fn unended(&self) -> Result<(u64, u64), StoreError>;
}
