//! What can be asked about what was.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use herald_crds::Priority;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::id::{DeliveryId, NotificationId};
use crate::message::{Request, Suppression};

/// The state of a delivery, ordered: within a round a later one never gives way to an earlier one.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::EnumIter,
    strum::IntoStaticStr,
    strum::FromRepr,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[repr(u8)]
pub enum State {
    /// Waits for its time (`sendAt`, a spread, a retry of minutes).
    Scheduled = 0,
    /// Waits for the channel's pace.
    Queued = 1,
    /// Out: with the broker or a pod.
    Sending = 2,
    /// Tried, and to be tried again.
    Retrying = 3,
    /// Not sent, with a reason that is nobody's fault.
    Suppressed = 4,
    /// Called back.
    Cancelled = 5,
    /// Too late.
    Expired = 6,
    /// Refused for good or out of attempts: a dead letter.
    Failed = 7,
    /// Perhaps sent.
    Unknown = 8,
    /// Taken by the provider.
    Sent = 9,
}

impl State {
    /// Its rank in the fold: the four ways of ending without sending rank alike.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Scheduled | Self::Queued => 0,
            Self::Sending => 1,
            Self::Retrying => 2,
            Self::Suppressed | Self::Cancelled | Self::Expired | Self::Failed => 3,
            Self::Unknown => 4,
            Self::Sent => 5,
        }
    }

    /// Whether nothing more happens to it by itself.
    pub const fn ended(self) -> bool {
        self.rank() >= 3
    }
}

/// One page of a list: what is on it and where the next begins.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// What is on this page.
    pub items: Vec<T>,
    /// Opaque; give it to the same question to get the next page. `None`: this was the last.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Nothing, and nothing after it.
    pub const fn none() -> Self {
        Self {
            items: Vec::new(),
            next: None,
        }
    }

    /// The same page with each item in another form.
    pub fn map<U>(self, form: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(form).collect(),
            next: self.next,
        }
    }
}

/// Which notifications are asked for: everything given must match; newest first.
#[derive(Debug, Clone, Default)]
pub struct NotificationFilter {
    /// By template.
    pub template: Option<String>,
    /// By recipient id.
    pub recipient: Option<String>,
    /// By sender.
    pub sender: Option<String>,
    /// With a delivery over this channel (`namespace/name`).
    pub channel: Option<String>,
    /// With a delivery in this state.
    pub state: Option<State>,
    /// By class.
    pub priority: Option<Priority>,
    /// With this metadata.
    pub metadata: Vec<(String, String)>,
    /// Accepted at or after.
    pub from: Option<Timestamp>,
    /// Accepted before.
    pub until: Option<Timestamp>,
}

/// Where a page begins and how long it is.
#[derive(Debug, Clone)]
pub struct Paging {
    /// At most so many items, 1 to 1,000.
    pub limit: usize,
    /// What an earlier page answered as `next`; a text that is none is answered with [`BadCursor`](HistoryError).
    pub cursor: Option<String>,
}

/// What can go wrong with a question.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The cursor is not one of ours.
    #[error("the cursor is not one that this question answered")]
    BadCursor,
    /// The database.
    #[error(transparent)]
    Store(StoreError),
}

/// A notification as history knows it.
#[derive(Debug, Clone)]
pub struct NotificationRecord {
    /// What was asked; sensitive parameters are blanked once it has ended.
    pub request: Arc<Request>,
    /// The class it has now.
    pub priority: Priority,
    /// All recipients are resolved.
    pub resolved: bool,
    /// It is held: more recipients (first) than the template allows (second).
    pub held: Option<(u64, u64)>,
    /// It was cancelled at.
    pub cancelled_at: Option<Timestamp>,
    /// A different body came under the same key, so often.
    pub conflicts: u64,
    /// Deliveries by state.
    pub counts: BTreeMap<State, u64>,
    /// When the last delivery ended; `None`: not all have, or there was none.
    pub ended_at: Option<Timestamp>,
}

impl NotificationRecord {
    /// Whether nothing more happens to it by itself.
    pub fn ended(&self) -> bool {
        self.held.is_none()
            && (self.resolved || self.cancelled_at.is_some())
            && self
                .counts
                .iter()
                .all(|(state, n)| state.ended() || *n == 0)
    }
}

/// A delivery as history knows it.
#[derive(Debug, Clone)]
pub struct DeliveryRecord {
    /// Its id.
    pub id: DeliveryId,
    /// Its notification.
    pub notification: NotificationId,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its recipient; empty for a bare address.
    pub recipient: Arc<str>,
    /// Its channel, `namespace/name`; empty if none could be found.
    pub channel: Arc<str>,
    /// Its address.
    pub endpoint: Arc<str>,
    /// Its locale.
    pub locale: Arc<str>,
    /// Its class.
    pub priority: Priority,
    /// Its state.
    pub state: State,
    /// What the state is due to: the reason of a suppression or of the last failure; `None`: nothing to say.
    pub reason: Option<String>,
    /// What the provider said last when it did not send.
    pub error: Option<String>,
    /// Its round, from 0.
    pub round: u16,
    /// Attempts of this round that reached a provider.
    pub attempts: u16,
    /// The provider that sent it or tried it last.
    pub provider: Option<String>,
    /// What that provider calls it.
    pub provider_id: Option<String>,
    /// When its row was written.
    pub created_at: Timestamp,
    /// When it is or was due.
    pub due_at: Timestamp,
    /// When it last left the waiting room.
    pub released_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// One step of a delivery's audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailEntry {
    /// When.
    pub at: Timestamp,
    /// Which step: `accepted`, `planned`, `released`, `sent`, `retrying`, `returned`, `failed`, `unknown`, `expired`,
    /// `cancelled`, `suppressed`, `prioritized`, `redriven`, `replayed`, `discarded`.
    pub step: String,
    /// Of which round.
    pub round: u16,
    /// Of which attempt.
    pub attempt: u16,
    /// The step's particulars: a JSON object, without content.
    pub detail: serde_json::Value,
}

/// Which dead letters are meant: everything given must match.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Of this channel, `namespace/name`.
    pub channel: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
    /// Failed at or after.
    pub from: Option<Timestamp>,
    /// Failed before.
    pub until: Option<Timestamp>,
    /// These deliveries alone; empty: all.
    pub ids: Vec<DeliveryId>,
    /// Names of templates that go out to suppressed addresses, too; counts only in a replay.
    pub mandatory: Vec<String>,
}

/// What became of a wish to replay dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// So many go out again.
    pub count: u64,
    /// Those that were meant and cannot, oldest first, at most 1,000: they stay dead letters. If as many go out as were
    /// asked for, only those that failed before the last of them are sure to be here.
    pub refused: Vec<(DeliveryId, Refusal)>,
}

/// Why a dead letter cannot be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its notification was cancelled: nobody waits for it.
    CalledBack,
    /// Its notification has ended and had sensitive parameters, so that what it would say is stored nowhere.
    Blanked,
    /// Its address is on the suppression list, and its template is not mandatory.
    Suppressed(Suppression),
}

/// A definition that was in force.
#[derive(Debug, Clone)]
pub struct DefinitionVersion {
    /// Its hash.
    pub hash: String,
    /// When it first came into force.
    pub since: Timestamp,
}

/// What can be asked about what was.
#[async_trait]
pub trait HistoryStore {
    /// One notification of a namespace; `None`: unknown.
    async fn notification(
        &self,
        namespace: &str,
        id: &NotificationId,
    ) -> Result<Option<NotificationRecord>, StoreError>;

    /// Notifications, newest first.
    async fn notifications(
        &self,
        namespace: &str,
        filter: &NotificationFilter,
        paging: &Paging,
    ) -> Result<Page<NotificationRecord>, HistoryError>;

    /// The deliveries of a notification, optionally of one state.
    async fn deliveries(
        &self,
        namespace: &str,
        notification: &NotificationId,
        state: Option<State>,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError>;

    /// One delivery of a namespace; `None`: unknown.
    async fn delivery(
        &self,
        namespace: &str,
        id: &DeliveryId,
    ) -> Result<Option<DeliveryRecord>, StoreError>;

    /// The audit trail of a delivery, oldest first.
    async fn trail(
        &self,
        namespace: &str,
        id: &DeliveryId,
        paging: &Paging,
    ) -> Result<Page<TrailEntry>, HistoryError>;

    /// What one person got and did not get, newest first.
    async fn recipient_deliveries(
        &self,
        namespace: &str,
        recipient: &str,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError>;

    /// Dead letters, newest first.
    async fn dead_letters(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError>;

    /// Releases dead letters again, each with its next round, and says which it cannot. At most `limit` at a time, oldest
    /// first; those that it cannot release do not count.
    async fn replay(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<Replayed, StoreError>;

    /// Lets dead letters rest: they stay failed and are dead letters no more; answers how many.
    async fn discard(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Notes that a definition came into force.
    async fn in_force(
        &self,
        namespace: &str,
        template: &str,
        hash: &str,
        definition: &Bytes,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Every definition of a template that was in force, newest first, at most 1,000.
    async fn versions(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Vec<DefinitionVersion>, StoreError>;
}
