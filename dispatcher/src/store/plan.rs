//! What planning and fan-out need of SQL.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use super::StoreError;
use crate::id::{DeliveryId, NotificationId};
use crate::message::{DefinitionHash, Request, Suppression};

/// Most recipients that the requests read together by [`PlanStore::unresolved`] name, but for the last of them: what
/// is kept in memory.
pub const MOST_NAMED: usize = 20_000;

/// What became of a notification that was to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// It is new.
    Inserted,
    /// It was there already, the same.
    Repeat,
    /// The id was there already with another body: recorded on the first, the second is dropped.
    Conflict,
}

/// How far the resolving of a notification has come: which source, and after which of its members.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// Index into the sources of the notification.
    pub source: u32,
    /// Members up to and including this one are done: for directory sources `(order, id)` (see [`crate::id::order`]),
    /// for lists the index as order and an empty id; `None`: none yet.
    pub after: Option<(u32, String)>,
}

/// A notification whose recipients are still to be resolved.
#[derive(Debug, Clone)]
pub struct Unresolved {
    /// What was asked.
    pub request: Arc<Request>,
    /// Where to go on.
    pub cursor: Cursor,
    /// Rows written so far, by which a spread goes on evenly.
    pub rows: u64,
    /// Recipients its sender confirmed since; like `confirm_recipients` of the request.
    pub confirmed: Option<u64>,
}

/// One delivery to be: a row of the waiting room.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Its id; a second row with the same id is dropped (a person in two groups).
    pub id: DeliveryId,
    /// The recipient's id; empty for a bare address.
    pub recipient: Arc<str>,
    /// The channel, `namespace/name`; empty if no channel could be found (then `suppressed` says why).
    pub channel: Arc<str>,
    /// The address.
    pub endpoint: Arc<str>,
    /// The recipient's locale; empty: the template's default.
    pub locale: Arc<str>,
    /// Not released before this.
    pub due: Timestamp,
    /// It ends here, for this reason.
    pub suppressed: Option<Suppression>,
}

/// One step of resolving a notification: what it writes, and how far the cursor goes with it.
#[derive(Debug, Clone)]
pub struct ResolveStep {
    /// The notification.
    pub notification: NotificationId,
    /// Where its cursor has to be, else the step is not taken.
    pub from: Cursor,
    /// Where its cursor is then; `None`: all its recipients are resolved.
    pub next: Option<Cursor>,
    /// The rows to be.
    pub rows: Vec<NewDelivery>,
}

/// Somebody in the directory, as resolving and rendering need them.
#[derive(Debug, Clone)]
pub struct Member {
    /// The recipient's id.
    pub id: Arc<str>,
    /// The recipient as it is now; `None`: not in the directory, or not to be read.
    pub recipient: Option<Arc<super::Recipient>>,
}

/// A set of people that SQL resolves.
#[derive(Debug, Clone)]
pub enum Directory<'a> {
    /// These recipients.
    Ids(&'a [Arc<str>]),
    /// The members of a managed group, by its name.
    Managed(&'a str),
    /// Everybody with all of these labels.
    Labels(&'a [(String, String)]),
}

/// What planning and fan-out need of SQL.
#[async_trait]
pub trait PlanStore {
    /// Writes definitions and notifications down; one answer for each notification, in order.
    ///
    /// Definitions come by hash, zstd-compressed; known ones are left alone. A new notification has the cursor at the start.
    async fn insert_notifications(
        &self,
        definitions: &[(DefinitionHash, Bytes)],
        notifications: &[Arc<Request>],
    ) -> Result<Vec<Planned>, StoreError>;

    /// Notifications whose moment of resolving (acceptance or `sendAt`) has come and whose recipients are not all
    /// resolved, nor cancelled or held; the most urgent class first, and within it those resolved the least so far. Fewer
    /// than `limit` if they name more than [`MOST_NAMED`] recipients together. What
    /// cannot be read is [refused](Self::refuse).
    async fn unresolved(&self, now: Timestamp, limit: usize)
    -> Result<Vec<Unresolved>, StoreError>;

    /// The earliest `sendAt` of a notification that waits to be resolved; `None`: none waits.
    async fn next_unresolved(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Writes the rows of steps of different notifications and moves their cursors, all in one transaction; one answer
    /// for each, in order.
    ///
    /// A step does nothing, and its answer is `false`, if the cursor is no longer where it was or the notification was
    /// cancelled or held. Rows of one call are written in order.
    async fn resolve(
        &self,
        steps: Vec<ResolveStep>,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError>;

    /// Ends the resolving of a notification that cannot be resolved: one delivery that has failed, to nobody and for this
    /// reason, stands for all that are missing.
    async fn refuse(
        &self,
        notification: &NotificationId,
        reason: &str,
        error: &str,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Holds a notification until its sender confirms it: `recipients` are more than the template allows.
    async fn hold(
        &self,
        notification: &NotificationId,
        recipients: u64,
        allowed: u64,
    ) -> Result<(), StoreError>;

    /// Puts off the resolving of a notification: nobody looks at it before `until`.
    async fn postpone(
        &self,
        notification: &NotificationId,
        until: Timestamp,
    ) -> Result<(), StoreError>;

    /// Lets a held notification go on, up to so many recipients; `false` if it is not held.
    async fn confirm(
        &self,
        notification: &NotificationId,
        recipients: u64,
    ) -> Result<bool, StoreError>;

    /// People of the directory as they were at `at`, in the order of `(order(id), id)`, after `after`. For
    /// [`Directory::Ids`] every id is answered, in the order given, with `None` for those that are not there.
    async fn members(
        &self,
        namespace: &str,
        directory: &Directory<'_>,
        at: Timestamp,
        after: Option<&(u32, String)>,
        limit: usize,
    ) -> Result<Vec<Member>, StoreError>;

    /// How many people that is.
    async fn count_members(
        &self,
        namespace: &str,
        directory: &Directory<'_>,
        at: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Which of these addresses `(medium, address)` are on the suppression list of the namespace, and why: one answer for
    /// each; `None`: it is not.
    async fn suppressed(
        &self,
        namespace: &str,
        addresses: &[(&str, &str)],
    ) -> Result<Vec<Option<Suppression>>, StoreError>;

    /// Which of these `(channel, address)` somebody of the directory has a row for in this notification of the namespace,
    /// whatever became of it: one answer for each.
    async fn reached(
        &self,
        namespace: &str,
        notification: &NotificationId,
        endpoints: &[(&str, &str)],
    ) -> Result<Vec<bool>, StoreError>;

    /// Claims business events: each `(key, delivery)` belongs to whoever claims it first, until `now` + `window_seconds`. Answers
    /// whether it belongs to this delivery; the owner always passes, however often it asks.
    async fn claim(
        &self,
        namespace: &str,
        template: &str,
        claims: &[(String, DeliveryId)],
        window_seconds: u32,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError>;

    /// A definition by its hash, zstd-compressed; `None` if it was never written down.
    async fn definition(&self, hash: &str) -> Result<Option<Bytes>, StoreError>;

    /// The requests of these notifications; those that are not there, or cannot be read, are left out.
    async fn requests(&self, ids: &[NotificationId]) -> Result<Vec<Arc<Request>>, StoreError>;
}
