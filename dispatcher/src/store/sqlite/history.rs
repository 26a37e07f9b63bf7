//! What was: notifications, deliveries, their trails, dead letters, versions of definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::tally::Tally;
use super::{
    SqliteStore, asked, cursor, delivery_id, failed, json, millis, notification_id, priority,
    state, timestamp, trail,
};
use crate::id::{DeliveryId, NotificationId, order};
use crate::store::{
    DeadLetterFilter, DefinitionVersion, DeliveryRecord, HistoryError, HistoryStore,
    NotificationFilter, NotificationRecord, Page, Paging, Refusal, Replayed, State, StoreError,
    TrailEntry,
};

/// A statement that answers notifications as [`notification_record`] reads them.
macro_rules! select_notifications {
    ($($rest:tt)*) => {
        concat!(
            "SELECT n.seq, n.priority, n.resolved, n.held_recipients, n.held_allowed, n.cancelled_at,
                 n.conflicts, n.ended_at, n.accepted_at, typeof(r.request) = 'blob', CAST(r.request AS BLOB),
                 n.scheduled, n.queued, n.sending, n.retrying, n.suppressed, n.cancelled, n.expired,
                 n.failed, n.unknown, n.sent
             FROM notifications AS n CROSS JOIN requests AS r ON r.notification = n.seq ",
            $($rest)*
        )
    };
}

/// The same for a page of a list, newest first. `?1` namespace; `?2` and `?3` accepted from and before; `?4` and `?5`
/// before this time and number; `?6` sender, `?7` class, `?8` state, `?9` channel's number (each may be NULL);
/// `?10` metadata, as an array of pairs; `?11` limit; from `?12` on what `$which` says.
macro_rules! list_notifications {
    ($which:literal) => {
        select_notifications!(
            "WHERE n.namespace = ?1 AND n.accepted_at >= ?2 AND n.accepted_at < ?3
                 AND (n.accepted_at, n.seq) < (?4, ?5) AND ",
            $which,
            " AND (?6 IS NULL OR n.sender = ?6) AND (?7 IS NULL OR n.priority = ?7)
             AND CASE ?8 WHEN 0 THEN n.scheduled WHEN 1 THEN n.queued WHEN 2 THEN n.sending
                 WHEN 3 THEN n.retrying WHEN 4 THEN n.suppressed WHEN 5 THEN n.cancelled
                 WHEN 6 THEN n.expired WHEN 7 THEN n.failed WHEN 8 THEN n.unknown
                 WHEN 9 THEN n.sent ELSE 1 END > 0
             AND NOT EXISTS (SELECT 1 FROM json_each(?10) AS t WHERE NOT EXISTS (
                 SELECT 1 FROM json_each(n.metadata) AS m
                 WHERE m.key = (t.value ->> 0) AND m.value = (t.value ->> 1)))
             AND (?9 IS NULL OR EXISTS (
                 SELECT 1 FROM deliveries AS d
                 WHERE d.id > substr(n.id, 1, 4)
                     AND d.id < CAST(substr(n.id, 1, 4) || x'ffffffffffffffffff' AS BLOB)
                     AND d.notification = n.seq AND d.channel = ?9))
             ORDER BY n.accepted_at DESC, n.seq DESC LIMIT ?11"
        )
    };
}

const NOTIFICATION: &str = select_notifications!("WHERE n.id = ?1 AND n.namespace = ?2");
const NOTIFICATIONS: &str = list_notifications!("?12 IS NULL AND ?13 IS NULL AND ?14 IS NULL");
const NOTIFICATIONS_OF_TEMPLATE: &str =
    list_notifications!("n.template = ?12 AND ?13 IS NULL AND ?14 IS NULL");
/// `?12` template or NULL, `?13` the recipient's place in the order of members as four bytes, `?14` the recipient.
const NOTIFICATIONS_OF_RECIPIENT: &str = list_notifications!(
    "(?12 IS NULL OR n.template = ?12) AND +n.seq IN (
         SELECT d.notification FROM deliveries AS d
         WHERE d.recipient <> '' AND substr(d.id, 5, 4) = ?13 AND d.recipient = ?14)"
);

/// A statement that answers deliveries as `delivery_record` reads them; what follows begins after `deliveries AS d`.
macro_rules! select_deliveries {
    ($($rest:tt)*) => {
        concat!(
            "SELECT d.row, d.id, n.id, n.namespace, d.recipient, d.channel, d.endpoint, d.locale,
                 d.priority, d.state, d.reason, d.error, d.round, d.attempt, d.tried, d.provider,
                 d.provider_id, d.milliseconds, d.created_at, d.due_at, d.released_at, d.ended_at,
                 d.waiting, n.seq, n.accepted_at, n.sender FROM ",
            $($rest)*
        )
    };
}

const DELIVERY: &str = select_deliveries!(
    "deliveries AS d CROSS JOIN notifications AS n ON n.seq = d.notification AND n.namespace = ?2
     WHERE d.id = ?1"
);

/// `?3` and `?4`: between these ids; `?5` state or NULL.
const DELIVERIES: &str = select_deliveries!(
    "notifications AS n CROSS JOIN deliveries AS d
         ON d.id > ?3 AND d.id < ?4 AND d.notification = n.seq AND (?5 IS NULL OR d.state = ?5)
     WHERE n.id = ?1 AND n.namespace = ?2 ORDER BY d.id LIMIT ?6"
);

const DELIVERIES_OF_RECIPIENT: &str = select_deliveries!(
    "deliveries AS d CROSS JOIN notifications AS n ON n.seq = d.notification AND n.namespace = ?1
     WHERE d.recipient <> '' AND substr(d.id, 5, 4) = ?2 AND d.recipient = ?3 AND d.row < ?4
     ORDER BY d.row DESC LIMIT ?5"
);

/// Which dead letters are meant. `?1` namespace; `?2` and `?3` failed from and before; `?4` channel's number and `?5`
/// reason, each or NULL.
macro_rules! dead {
    () => {
        "CROSS JOIN notifications AS n ON n.seq = d.notification AND n.namespace = ?1
         WHERE d.dead = 1 AND d.ended_at >= ?2 AND d.ended_at < ?3
             AND (?4 IS NULL OR d.channel = ?4) AND (?5 IS NULL OR d.reason = ?5) "
    };
}

/// Those ids alone: `?6` is an array of them.
macro_rules! by_ids {
    () => {
        "json_each(?6) AS j CROSS JOIN deliveries AS d ON d.id = unhex(j.value) "
    };
}

/// After `?7` (when it failed) and `?8` (its row); `?9` limit.
const DEAD: &str = select_deliveries!(
    "deliveries AS d ",
    dead!(),
    "AND ?6 = '[]' AND (d.ended_at, d.row) < (?7, ?8) ORDER BY d.ended_at DESC, d.row DESC LIMIT ?9"
);
const DEAD_BY_ID: &str = select_deliveries!(
    by_ids!(),
    dead!(),
    "AND (d.ended_at, d.row) < (?7, ?8) ORDER BY d.ended_at DESC, d.row DESC LIMIT ?9"
);

/// Of a dead letter: nobody waits for what was called back, and of what was sensitive nothing is kept once it has ended.
macro_rules! cannot_be_replayed {
    () => {
        "(n.cancelled_at IS NOT NULL OR n.sensitive = 1 AND n.ended_at IS NOT NULL) "
    };
}

/// Rows and their notifications' numbers, oldest first; `?7` 1: only those that can be replayed; `?8` limit.
macro_rules! pick {
    ($($from:tt)*) => {
        concat!(
            "SELECT d.row, d.notification FROM ",
            $($from)*,
            dead!(),
            "AND NOT (?7 AND ",
            cannot_be_replayed!(),
            ") ORDER BY d.ended_at, d.row LIMIT ?8"
        )
    };
}
const PICK: &str = pick!("deliveries AS d ");
const PICK_BY_ID: &str = pick!(by_ids!());

/// Those that cannot be replayed, oldest first, and whether they were called back.
macro_rules! refused {
    ($($from:tt)*) => {
        concat!(
            "SELECT d.id, n.cancelled_at IS NOT NULL FROM ",
            $($from)*,
            dead!(),
            "AND ?6 IS NOT NULL AND ",
            cannot_be_replayed!(),
            "ORDER BY d.ended_at, d.row LIMIT 1000"
        )
    };
}
const REFUSED: &str = refused!("deliveries AS d ");
const REFUSED_BY_ID: &str = refused!(by_ids!());

/// Keeps in the trail what rows say themselves about the life that is over: when they were released and how they ended.
const KEEP_RELEASE: &str = "
    INSERT INTO trail (row, at, round, attempt, step, detail)
    SELECT d.row, d.released_at, d.round, 1, 'released', '{}'
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
    WHERE d.released_at IS NOT NULL ON CONFLICT DO NOTHING";
const KEEP_FAILURE: &str = "
    INSERT INTO trail (row, at, round, attempt, step, detail)
    SELECT d.row, d.ended_at, d.round, d.attempt, 'failed',
        json_object('reason', d.reason, 'error', d.error, 'provider', d.provider)
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
    WHERE d.ended_at IS NOT NULL ON CONFLICT DO NOTHING";

const REPLAY: &str = "
    UPDATE deliveries SET dead = 0, state = 1, waiting = 2, round = round + 1, attempt = 1, tried = 0,
        due_at = ?2, released_at = NULL, heard_at = NULL, ended_at = NULL, provider = NULL,
        provider_id = NULL, milliseconds = NULL, reason = NULL, error = NULL
    WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";

/// What is carried goes out as it is, but for what tells its new life from the old one. Which provider may have sent it
/// in the old one binds nobody: that it is sent again is somebody's will.
const REPLAY_CARRIED: &str = "
    UPDATE carried SET delivery = CAST(json_remove(json_set(CAST(delivery AS TEXT),
        '$.round', (SELECT d.round FROM deliveries AS d WHERE d.row = carried.row),
        '$.attempt', 1, '$.tried', 0, '$.ready_at', ?2), '$.provider') AS BLOB)
    WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";

const DISCARD: &str =
    "UPDATE deliveries SET dead = 0 WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";
const DISCARD_CARRIED: &str =
    "DELETE FROM carried WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";

/// Notes a step of rows; `?3` is its name.
const NOTE: &str = "
    INSERT INTO trail (row, at, round, attempt, step, detail)
    SELECT d.row, ?2, d.round, d.attempt, ?3, '{}'
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
    WHERE true ON CONFLICT DO NOTHING";

const TRAIL: &str = "SELECT at, round, attempt, step, detail FROM trail WHERE row = ?1 LIMIT 10000";
const NOTIFICATION_TRAIL: &str =
    "SELECT at, step, detail FROM notification_trail WHERE notification = ?1 LIMIT 10000";

const VERSIONS: &str = "
    SELECT hash, min(since) FROM definitions_in_force
    WHERE namespace = ?1 AND template = ?2 GROUP BY hash ORDER BY max(since) DESC LIMIT 1000";

const IN_FORCE: &str = "
    SELECT hash FROM definitions_in_force
    WHERE namespace = ?1 AND template = ?2 ORDER BY since DESC LIMIT 1";

/// A delivery's row: the record, and what the trail and cursors need of it.
pub(super) struct Found {
    pub record: DeliveryRecord,
    pub row: i64,
    pub attempt: u16,
    pub waiting: bool,
    pub milliseconds: Option<i64>,
    /// The notification's number.
    pub seq: i64,
    pub accepted_at: Timestamp,
    pub sender: String,
}

fn notification_record(row: &SqliteRow) -> Result<NotificationRecord, StoreError> {
    let number = |index: usize| row.try_get::<i64, _>(index).map_err(failed);
    let optional = |index: usize| row.try_get::<Option<i64>, _>(index).map_err(failed);
    let time = |index, place| {
        optional(index)?
            .map(|millis| timestamp(millis, place))
            .transpose()
    };
    let class = number(1)?;
    let request = asked::unpack(
        number(9)? != 0,
        row.try_get::<&[u8], _>(10).map_err(failed)?,
        class,
    )?;
    let mut counts = BTreeMap::new();
    for index in 0..10 {
        let count = number(11 + index)?;
        if count > 0 {
            counts.insert(state(index as i64)?, count as u64);
        }
    }
    Ok(NotificationRecord {
        request: Arc::new(request),
        priority: priority(class)?,
        resolved: number(2)? != 0,
        held: optional(3)?
            .zip(optional(4)?)
            .map(|(recipients, allowed)| (recipients as u64, allowed as u64)),
        cancelled_at: time(5, "notifications.cancelled_at")?,
        conflicts: number(6)? as u64,
        counts,
        ended_at: time(7, "notifications.ended_at")?,
    })
}

impl SqliteStore {
    fn delivery_record(&self, row: &SqliteRow) -> Result<Found, StoreError> {
        let number = |index: usize| row.try_get::<i64, _>(index).map_err(failed);
        let optional = |index: usize| row.try_get::<Option<i64>, _>(index).map_err(failed);
        let text = |index: usize| row.try_get::<&str, _>(index).map_err(failed);
        let perhaps = |index: usize| row.try_get::<Option<String>, _>(index).map_err(failed);
        let bytes = |index: usize| row.try_get::<&[u8], _>(index).map_err(failed);
        let time = |index, place| timestamp(number(index)?, place);
        let sometime = |index, place| {
            optional(index)?
                .map(|millis| timestamp(millis, place))
                .transpose()
        };
        let record = DeliveryRecord {
            id: delivery_id(bytes(1)?)?,
            notification: notification_id(bytes(2)?)?,
            namespace: Arc::from(text(3)?),
            recipient: Arc::from(text(4)?),
            channel: self.channel_name(number(5)?)?,
            endpoint: Arc::from(text(6)?),
            locale: Arc::from(text(7)?),
            priority: priority(number(8)?)?,
            state: state(number(9)?)?,
            reason: perhaps(10)?,
            error: perhaps(11)?,
            round: number(12)? as u16,
            attempts: number(14)? as u16,
            provider: perhaps(15)?,
            provider_id: perhaps(16)?,
            created_at: time(18, "deliveries.created_at")?,
            due_at: time(19, "deliveries.due_at")?,
            released_at: sometime(20, "deliveries.released_at")?,
            ended_at: sometime(21, "deliveries.ended_at")?,
        };
        Ok(Found {
            record,
            row: number(0)?,
            attempt: number(13)? as u16,
            milliseconds: optional(17)?,
            waiting: number(22)? != 0,
            seq: number(23)?,
            accepted_at: time(24, "notifications.accepted_at")?,
            sender: text(25)?.to_owned(),
        })
    }

    fn delivery_records(&self, rows: &[SqliteRow]) -> Result<Vec<Found>, HistoryError> {
        rows.iter()
            .map(|row| self.delivery_record(row).map_err(HistoryError::Store))
            .collect()
    }

    async fn found(&self, namespace: &str, id: &DeliveryId) -> Result<Option<Found>, StoreError> {
        sqlx::query(DELIVERY)
            .bind(id.as_bytes().as_slice())
            .bind(namespace)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?
            .map(|row| self.delivery_record(&row))
            .transpose()
    }

    /// What a filter of dead letters is to SQL; `None`: it means none, since there is no such channel.
    fn dead(&self, namespace: &str, filter: &DeadLetterFilter) -> Option<Dead> {
        let channel = match filter.channel.as_deref() {
            Some(name) => Some(self.known_channel(name)?),
            None => None,
        };
        Some(Dead {
            namespace: namespace.to_owned(),
            from: filter.from.map_or(i64::MIN, millis),
            until: filter.until.map_or(i64::MAX, millis),
            channel,
            reason: filter.reason.clone(),
            ids: json(&filter.ids),
            by_id: !filter.ids.is_empty(),
        })
    }
}

/// A filter of dead letters, as statements take it.
#[derive(Clone)]
struct Dead {
    namespace: String,
    from: i64,
    until: i64,
    channel: Option<i64>,
    reason: Option<String>,
    ids: String,
    by_id: bool,
}

/// The rows of dead letters, oldest first, as a statement's rows, with how many of them each notification has.
async fn pick(
    connection: &mut SqliteConnection,
    dead: Dead,
    only_wanted: bool,
    limit: usize,
) -> Result<(Vec<i64>, Vec<i64>), StoreError> {
    let picked: Vec<(i64, i64)> = sqlx::query_as(if dead.by_id { PICK_BY_ID } else { PICK })
        .bind(dead.namespace)
        .bind(dead.from)
        .bind(dead.until)
        .bind(dead.channel)
        .bind(dead.reason)
        .bind(dead.ids)
        .bind(only_wanted)
        .bind(limit as i64)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    Ok(picked.into_iter().unzip())
}

/// Which dead letters cannot be replayed, and why.
async fn refused(
    connection: &mut SqliteConnection,
    dead: Dead,
) -> Result<Vec<(DeliveryId, Refusal)>, StoreError> {
    let statement = if dead.by_id { REFUSED_BY_ID } else { REFUSED };
    let rows: Vec<(Vec<u8>, bool)> = sqlx::query_as(statement)
        .bind(dead.namespace)
        .bind(dead.from)
        .bind(dead.until)
        .bind(dead.channel)
        .bind(dead.reason)
        .bind(dead.ids)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    let refused = rows.into_iter().map(|(id, called_back)| {
        let refusal = if called_back {
            Refusal::CalledBack
        } else {
            Refusal::Blanked
        };
        Ok((delivery_id(&id)?, refusal))
    });
    refused.collect()
}

/// Does a statement to rows, given as JSON, at a time; the third parameter is a step's name.
async fn apply(
    connection: &mut SqliteConnection,
    statement: &'static str,
    rows: &str,
    now: i64,
    step: &str,
) -> Result<(), StoreError> {
    sqlx::query(statement)
        .bind(rows)
        .bind(now)
        .bind(step)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

/// A failed statement of a question.
fn unanswered(error: sqlx::Error) -> HistoryError {
    HistoryError::Store(failed(error))
}

#[async_trait]
impl HistoryStore for SqliteStore {
    async fn notification(
        &self,
        namespace: &str,
        id: &NotificationId,
    ) -> Result<Option<NotificationRecord>, StoreError> {
        sqlx::query(NOTIFICATION)
            .bind(id.as_bytes().as_slice())
            .bind(namespace)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?
            .map(|row| notification_record(&row))
            .transpose()
    }

    async fn notifications(
        &self,
        namespace: &str,
        filter: &NotificationFilter,
        paging: &Paging,
    ) -> Result<Page<NotificationRecord>, HistoryError> {
        let NotificationFilter {
            template,
            recipient,
            sender,
            channel,
            state,
            priority,
            metadata,
            from,
            until,
        } = filter;
        let (before, seq): (i64, i64) = cursor::after(paging)?.unwrap_or((i64::MAX, i64::MAX));
        let channel = match channel.as_deref().map(|name| self.known_channel(name)) {
            None => None,
            Some(Some(number)) => Some(number),
            Some(None) => {
                return Ok(Page {
                    items: Vec::new(),
                    next: None,
                });
            }
        };
        let statement = match (template, recipient) {
            (_, Some(_)) => NOTIFICATIONS_OF_RECIPIENT,
            (Some(_), None) => NOTIFICATIONS_OF_TEMPLATE,
            (None, None) => NOTIFICATIONS,
        };
        let rows = sqlx::query(statement)
            .bind(namespace)
            .bind(from.map_or(i64::MIN, millis))
            .bind(until.map_or(i64::MAX, millis))
            .bind(before)
            .bind(seq)
            .bind(sender)
            .bind(priority.map(|class| class.index() as i64))
            .bind(state.map(|state| state as i64))
            .bind(channel)
            .bind(json(metadata))
            .bind(cursor::rows(paging))
            .bind(template)
            .bind(
                recipient
                    .as_deref()
                    .map(|id| order(id).to_be_bytes().to_vec()),
            )
            .bind(recipient)
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            let record = notification_record(row).map_err(HistoryError::Store)?;
            let key: (i64, i64) = (
                row.try_get(8).map_err(unanswered)?,
                row.try_get(0).map_err(unanswered)?,
            );
            items.push((key, record));
        }
        let page = cursor::page(paging, items, |(key, _)| *key);
        Ok(Page {
            items: page.items.into_iter().map(|(_, record)| record).collect(),
            next: page.next,
        })
    }

    async fn deliveries(
        &self,
        namespace: &str,
        notification: &NotificationId,
        state: Option<State>,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        let prefix = &notification.as_bytes()[..4];
        let after: Option<DeliveryId> = cursor::after(paging)?;
        let after = after.map_or(prefix.to_vec(), |id| id.as_bytes().to_vec());
        // One byte more than an id has, so that it is greater than the greatest.
        let end = [prefix, &[0xff; 9]].concat();
        let rows = sqlx::query(DELIVERIES)
            .bind(notification.as_bytes().as_slice())
            .bind(namespace)
            .bind(after)
            .bind(end)
            .bind(state.map(|state| state as i64))
            .bind(cursor::rows(paging))
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows)?;
        Ok(records(cursor::page(paging, found, |last| last.record.id)))
    }

    async fn delivery(
        &self,
        namespace: &str,
        id: &DeliveryId,
    ) -> Result<Option<DeliveryRecord>, StoreError> {
        Ok(self.found(namespace, id).await?.map(|found| found.record))
    }

    async fn trail(
        &self,
        namespace: &str,
        id: &DeliveryId,
        paging: &Paging,
    ) -> Result<Page<TrailEntry>, HistoryError> {
        let skip: usize = cursor::after(paging)?.unwrap_or(0);
        let Some(found) = self
            .found(namespace, id)
            .await
            .map_err(HistoryError::Store)?
        else {
            return Ok(Page {
                items: Vec::new(),
                next: None,
            });
        };
        let own: Vec<trail::Line> = sqlx::query_as(TRAIL)
            .bind(found.row)
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let whole: Vec<(i64, String, String)> = sqlx::query_as(NOTIFICATION_TRAIL)
            .bind(found.seq)
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let entries = trail::compose(&found, own, whole).map_err(HistoryError::Store)?;
        // Entries have no key of their own (several may be of one moment), and new ones come at the end.
        let rest: Vec<TrailEntry> = entries.into_iter().skip(skip).collect();
        Ok(cursor::page(paging, rest, |_| skip + paging.limit))
    }

    async fn recipient_deliveries(
        &self,
        namespace: &str,
        recipient: &str,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        let before: i64 = cursor::after(paging)?.unwrap_or(i64::MAX);
        let rows = sqlx::query(DELIVERIES_OF_RECIPIENT)
            .bind(namespace)
            .bind(order(recipient).to_be_bytes().to_vec())
            .bind(recipient)
            .bind(before)
            .bind(cursor::rows(paging))
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows)?;
        Ok(records(cursor::page(paging, found, |last| last.row)))
    }

    async fn dead_letters(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        let (ended_at, row): (i64, i64) = cursor::after(paging)?.unwrap_or((i64::MAX, i64::MAX));
        let Some(dead) = self.dead(namespace, filter) else {
            return Ok(Page {
                items: Vec::new(),
                next: None,
            });
        };
        let rows = sqlx::query(if dead.by_id { DEAD_BY_ID } else { DEAD })
            .bind(dead.namespace)
            .bind(dead.from)
            .bind(dead.until)
            .bind(dead.channel)
            .bind(dead.reason)
            .bind(dead.ids)
            .bind(ended_at)
            .bind(row)
            .bind(cursor::rows(paging))
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows)?;
        Ok(records(cursor::page(paging, found, |last| {
            (last.record.ended_at.map(millis), last.row)
        })))
    }

    async fn replay(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<Replayed, StoreError> {
        let Some(dead) = self.dead(namespace, filter) else {
            return Ok(Replayed::default());
        };
        let now = millis(now);
        self.write(move |c| {
            Box::pin(async move {
                let refused = refused(c, dead.clone()).await?;
                let (rows, seqs) = pick(c, dead, true, limit).await?;
                let count = rows.len() as u64;
                if rows.is_empty() {
                    return Ok(Replayed { count, refused });
                }
                let mut tally = Tally::default();
                for seq in &seqs {
                    tally.moved(*seq, Some(State::Failed), State::Queued, 1, now);
                }
                let texts = json(&rows);
                for statement in [KEEP_RELEASE, KEEP_FAILURE, REPLAY, REPLAY_CARRIED, NOTE] {
                    apply(c, statement, &texts, now, "replayed").await?;
                }
                tally.apply(c).await?;
                Ok(Replayed { count, refused })
            })
        })
        .await
    }

    async fn discard(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let Some(dead) = self.dead(namespace, filter) else {
            return Ok(0);
        };
        let now = millis(now);
        self.write(move |c| {
            Box::pin(async move {
                let (rows, _) = pick(c, dead, false, limit).await?;
                if rows.is_empty() {
                    return Ok(0);
                }
                let texts = json(&rows);
                for statement in [DISCARD, DISCARD_CARRIED, NOTE] {
                    apply(c, statement, &texts, now, "discarded").await?;
                }
                Ok(rows.len() as u64)
            })
        })
        .await
    }

    async fn in_force(
        &self,
        namespace: &str,
        template: &str,
        hash: &str,
        definition: &Bytes,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // Said again at each start: what is in force already is not written again.
        let current: Option<String> = sqlx::query_scalar(IN_FORCE)
            .bind(namespace)
            .bind(template)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        if current.as_deref() == Some(hash) {
            return Ok(());
        }
        let [namespace, template, hash] = [namespace, template, hash].map(str::to_owned);
        let (definition, now) = (definition.clone(), millis(now));
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO definitions (hash, definition) VALUES (?1, ?2)
                     ON CONFLICT (hash) DO NOTHING",
                )
                .bind(&hash)
                .bind(definition.as_ref())
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                sqlx::query(
                    "INSERT INTO definitions_in_force (namespace, template, since, hash)
                     VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (namespace, template, since) DO UPDATE SET hash = excluded.hash",
                )
                .bind(namespace)
                .bind(template)
                .bind(now)
                .bind(hash)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    async fn versions(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Vec<DefinitionVersion>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(VERSIONS)
            .bind(namespace)
            .bind(template)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        rows.into_iter()
            .map(|(hash, since)| {
                Ok(DefinitionVersion {
                    hash,
                    since: timestamp(since, "definitions_in_force.since")?,
                })
            })
            .collect()
    }
}

/// A page of deliveries without what only the store needs.
fn records(page: Page<Found>) -> Page<DeliveryRecord> {
    Page {
        items: page.items.into_iter().map(|found| found.record).collect(),
        next: page.next,
    }
}

#[cfg(test)]
mod tests {
    use super::super::explain::reads_no_whole_table;
    use super::super::tests::open;
    use super::*;

    #[tokio::test]
    async fn no_question_reads_a_whole_table() {
        let opened = open().await;
        for statement in [
            NOTIFICATION,
            NOTIFICATIONS,
            NOTIFICATIONS_OF_TEMPLATE,
            NOTIFICATIONS_OF_RECIPIENT,
            DELIVERY,
            DELIVERIES,
            DELIVERIES_OF_RECIPIENT,
            DEAD,
            DEAD_BY_ID,
            PICK,
            PICK_BY_ID,
            REFUSED,
            REFUSED_BY_ID,
            KEEP_RELEASE,
            KEEP_FAILURE,
            REPLAY,
            REPLAY_CARRIED,
            DISCARD,
            DISCARD_CARRIED,
            NOTE,
            TRAIL,
            NOTIFICATION_TRAIL,
            VERSIONS,
            IN_FORCE,
        ] {
            reads_no_whole_table(&opened.store, statement, &[]).await;
        }
    }
}
