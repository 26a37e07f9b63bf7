//! What the waiting room needs of SQL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;

use super::StoreError;
use crate::id::{DeliveryId, NotificationId};
use crate::message::Delivery;

/// Whose turn it was, in the store's own numbers: releasing goes on after it. Namespaces take turns, and within each of
/// them its notifications do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// The namespace that came last.
    pub namespace: i64,
    /// The notification that came last in each namespace.
    pub notifications: BTreeMap<i64, i64>,
    /// How far the rows of notifications were taken that have more, for a store that would look for the rest among all
    /// that was there.
    pub places: Places,
}

/// How far the rows of notifications were taken, in the store's own numbers: for a while looking goes on from there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// By namespace and notification: due time and id of the last row.
    pub(super) rows: BTreeMap<(i64, i64), (i64, Vec<u8>)>,
    /// When the first of them was noted.
    pub(super) since: Option<Instant>,
}

/// A row of the waiting room that is due.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The store's own number of the row, as long as its chunk is held.
    pub row: i64,
    /// The delivery's id.
    pub id: DeliveryId,
    /// Its notification.
    pub notification: NotificationId,
    /// The recipient's id; empty for a bare address.
    pub recipient: Arc<str>,
    /// The address.
    pub endpoint: Arc<str>,
    /// The locale; empty: the template's default.
    pub locale: Arc<str>,
    /// When it became due.
    pub due: Timestamp,
    /// Round of the next release.
    pub round: u16,
    /// Attempt of the next release, from 1.
    pub attempt: u16,
    /// Attempts of this round that reached a provider.
    pub tried: u16,
    /// A delivery that came back whole and goes out as it is; `None`: to be rendered.
    pub delivery: Option<Box<Delivery>>,
}

/// A row that is not what Herald wrote: it stands in nobody's way once its chunk is [settled](Hold::settle).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The store's own number of the row.
    pub row: i64,
    /// What is wrong with it.
    pub reason: String,
}

/// Rows of one channel and class on their way out.
pub struct Chunk {
    /// The rows.
    pub rows: Vec<Waiting>,
    /// Those whose turn it was too and that cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// Whose turn it was.
    pub next: Turn,
    /// Keeps them for the one who took them.
    pub hold: Box<dyn Hold>,
}

/// Keeps the rows of a chunk for the one who took them, until it is settled. Dropped instead, or lost with the process or
/// its connection, it leaves them ready, as if they had never been taken.
#[async_trait]
pub trait Hold: Send {
    /// Says what became of the chunk's rows; those that have changed since it was taken are left alone, and those that are
    /// not named stay ready.
    ///
    /// `left`, given by `(row, round, attempt)`, are marked as released. `resting` have not been released and are put to
    /// rest: nothing looks at them until their template is [woken](WaitingStore::wake). `unreadable` end as failed
    /// (`unreadable`): dead letters without their deliveries, which a replay renders again.
    async fn settle(
        self: Box<Self>,
        left: &[(i64, u16, u16)],
        resting: &[i64],
        unreadable: &[Unreadable],
        now: Timestamp,
    ) -> Result<(), StoreError>;
}

/// How much waits, for `GET …/channels/{name}` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Rows that are due.
    pub due: u64,
    /// Due time of the oldest of them.
    pub oldest: Option<Timestamp>,
    /// Rows whose time has not come, or whose template is suspended.
    pub scheduled: u64,
}

/// What one gateway tells the others about the waiting room, so that nobody has to ask SQL whether something changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// There may be rows of this channel (`namespace/name`) that are due, of one class or (`None`) any.
    Ready(Arc<str>, Option<Priority>),
    /// There may be rows with a due time earlier than those known.
    Scheduled,
    /// Anything may have changed: somebody says so, or what was said may have been missed.
    Anything,
}

/// What the waiting room needs of SQL.
#[async_trait]
pub trait WaitingStore {
    /// Tells every other store of the same database.
    async fn tell(&self, news: &[News]) -> Result<(), StoreError>;

    /// Waits for what others [tell](Self::tell), not for what is told here. News may be lost with a connection or whoever
    /// tells them, so there is [`News::Anything`] once it listens (again), and from time to time. One caller at a time; if
    /// dropped, it loses nothing that the next call would not make up for. With a database of its own it waits for ever.
    async fn hear(&self) -> Result<Vec<News>, StoreError>;

    /// Makes rows whose time has come ready for release, at most `limit`; answers the channels and classes concerned.
    async fn ripen(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Arc<str>, Priority)>, StoreError>;

    /// The earliest due time of rows that are not yet ready; `None`: none waits.
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Every channel (`namespace/name`) that ever had a row, and whether one of its rows has not ended: waits or is out.
    async fn channels(&self) -> Result<Vec<(Arc<str>, bool)>, StoreError>;

    /// Makes this store the one that releases a channel, unless another one is; answers whether it is. Asked before each
    /// chunk: with its connection to the database a store loses what it leads.
    async fn lead(&self, channel: &str) -> Result<bool, StoreError>;

    /// Leaves a channel to whoever asks next.
    async fn resign(&self, channel: &str);

    /// The next chunk of one channel and class, at most `limit` rows: as many of each namespace, and within a namespace of
    /// each notification, as there are of them, beginning after `turn`; what has fewer leaves its room to the others. Of a
    /// notification those come first that are due for longest. Nobody else gets them as long as they are held; one who
    /// [leads](Self::lead) settles a chunk before taking the next.
    async fn chunk(
        &self,
        channel: &str,
        priority: Priority,
        turn: &Turn,
        limit: usize,
    ) -> Result<Chunk, StoreError>;

    /// Templates `(namespace, name)` of which something rests.
    async fn resting(&self) -> Result<Vec<(Arc<str>, Arc<str>)>, StoreError>;

    /// Makes what rests of a template ready again; answers the channels and classes concerned.
    async fn wake(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Vec<(Arc<str>, Priority)>, StoreError>;

    /// Takes a notification's rows that have not left out of the waiting room, as cancelled, and stops its resolving.
    /// Answers how many rows, and the channels of the rows that are already out.
    async fn cancel(
        &self,
        notification: &NotificationId,
        now: Timestamp,
    ) -> Result<Recalled, StoreError>;

    /// The same for everything of a template of a namespace that waits.
    async fn cancel_template(
        &self,
        namespace: &str,
        template: &str,
        now: Timestamp,
    ) -> Result<Recalled, StoreError>;

    /// Gives a notification's rows that have not left, and those still to be resolved, another class.
    async fn prioritize(
        &self,
        notification: &NotificationId,
        priority: Priority,
        now: Timestamp,
    ) -> Result<Recalled, StoreError>;

    /// Ends the rows that wait although their notification has expired: also those that nobody looks at, since their channel
    /// or template is suspended. Answers how many.
    async fn end_late(&self, now: Timestamp) -> Result<u64, StoreError>;

    /// Ends the rows that wait for a channel that is no more as failed (`channel-deleted`), at most `limit`; answers how many.
    /// What is out ends with an [event](super::RecordStore::record), which those who hold copies of it hear too.
    async fn end_channel(
        &self,
        channel: &str,
        now: Timestamp,
        limit: usize,
    ) -> Result<u64, StoreError>;

    /// How much of a channel waits, by class.
    async fn backlog(&self, channel: &str) -> Result<[Backlog; Priority::COUNT], StoreError>;

    /// Whether a channel has dead letters, whoever sent them.
    async fn has_dead_letters(&self, channel: &str) -> Result<bool, StoreError>;
}

/// What an order has reached in the waiting room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recalled {
    /// Rows that had not left.
    pub waiting: u64,
    /// Rows that are out and not yet ended.
    pub out: u64,
    /// `(channel, notification)` of those that are out, or were ready and may be leaving this moment.
    pub out_by_channel: Vec<(Arc<str>, NotificationId)>,
}
