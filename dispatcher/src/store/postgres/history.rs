//! What was: notifications, deliveries, their trails, versions of definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::orders::range;
use super::rows::term;
use super::{
    PostgresStore, asked, cursor, delivery_id, failed, millis, notification_id, priority, state,
    timestamp, trail, unanswered,
};
use crate::id::{DeliveryId, NotificationId, order};
use crate::store::trail::Found;
use crate::store::{
    DeadLetterFilter, DefinitionVersion, DeliveryRecord, HistoryError, HistoryStore,
    NotificationFilter, NotificationRecord, Page, Paging, Replayed, State, StoreError, TrailEntry,
};

/// A statement that answers notifications as [`notification_record`] reads them.
macro_rules! select_notifications {
    ($from:literal, $($rest:tt)*) => {
        concat!(
            "SELECT n.seq, n.priority, n.resolved, n.held_recipients, n.held_allowed, n.cancelled_at,
                 n.conflicts, n.ended_at, n.accepted_at, r.packed, r.request,
                 n.scheduled, n.queued, n.sending, n.retrying, n.suppressed, n.cancelled, n.expired,
                 n.failed, n.unknown, n.sent
             FROM ",
            $from,
            " CROSS JOIN LATERAL (
                 SELECT w.* FROM requests AS w WHERE w.day = n.day AND w.notification = n.seq OFFSET 0) AS r ",
            $($rest)*
        )
    };
}

/// The same for a page of a list, newest first. `$1` namespace; `$2` and `$3` accepted from and before; `$4` and `$5`
/// before this time and number; `$6` sender, `$7` class, `$8` state, `$9` channel's number (each may be NULL);
/// `$10` metadata; `$11` limit; from `$12` on what `$which` says.
macro_rules! list_notifications {
    ($from:literal, $which:literal) => {
        select_notifications!(
            $from,
            "WHERE n.namespace = $1 AND n.accepted_at >= $2 AND n.accepted_at < $3
                 AND (n.accepted_at, n.seq) < ($4, $5) AND ",
            $which,
            " AND ($6::text IS NULL OR n.sender = $6) AND ($7::smallint IS NULL OR n.priority = $7)
             AND CASE $8::smallint WHEN 0 THEN n.scheduled WHEN 1 THEN n.queued WHEN 2 THEN n.sending
                 WHEN 3 THEN n.retrying WHEN 4 THEN n.suppressed WHEN 5 THEN n.cancelled
                 WHEN 6 THEN n.expired WHEN 7 THEN n.failed WHEN 8 THEN n.unknown
                 WHEN 9 THEN n.sent ELSE 1 END > 0
             AND n.metadata @> $10::text[]
             AND ($9::bigint IS NULL OR (
                 SELECT true FROM deliveries AS d
                 WHERE d.day = n.day AND d.id > substr(n.id, 1, 4)
                     AND d.id < substr(n.id, 1, 4) || '\\xffffffffffffffffff'::bytea
                     AND d.notification = n.seq AND d.channel = $9 LIMIT 1))
             ORDER BY n.accepted_at DESC, n.seq DESC LIMIT $11"
        )
    };
}

pub(super) const NOTIFICATION: &str =
    select_notifications!("notifications AS n", "WHERE n.id = $1 AND n.namespace = $2");
pub(super) const NOTIFICATIONS: &str = list_notifications!(
    "notifications AS n",
    "$12::text IS NULL AND $13::bytea IS NULL AND $14::text IS NULL"
);
pub(super) const NOTIFICATIONS_OF_TEMPLATE: &str = list_notifications!(
    "notifications AS n",
    "n.template = $12 AND $13::bytea IS NULL AND $14::text IS NULL"
);
/// `$12` template or NULL, `$13` the recipient's place in the order of members as four bytes, `$14` the recipient.
pub(super) const NOTIFICATIONS_OF_RECIPIENT: &str = list_notifications!(
    "(SELECT DISTINCT d.notification FROM deliveries AS d
      WHERE d.recipient <> '' AND substr(d.id, 5, 4) = $13 AND d.recipient = $14) AS w
     JOIN notifications AS n ON n.seq = w.notification",
    "($12::text IS NULL OR n.template = $12)"
);

/// A statement that answers deliveries as `delivery_record` reads them; what follows begins after `deliveries AS d`.
macro_rules! select_deliveries {
    ($($rest:tt)*) => {
        concat!(
            "SELECT d.day, d.id, n.id, n.namespace, d.recipient, d.channel, d.endpoint, d.locale,
                 d.priority, d.state, d.reason, d.error, d.round, d.attempt, d.tried, d.provider,
                 d.provider_id, d.milliseconds, d.created_at, d.due_at, d.released_at, d.ended_at,
                 d.waiting, n.seq, n.accepted_at, n.sender FROM ",
            $($rest)*
        )
    };
}

pub(super) use select_deliveries;

/// `$3` and `$4`: between which ids its notification is, since the id begins with four bytes of it.
pub(super) const DELIVERY: &str = select_deliveries!(
    "(SELECT m.* FROM notifications AS m WHERE m.id >= $3 AND m.id <= $4 OFFSET 0) AS n CROSS JOIN LATERAL (
         SELECT w.* FROM deliveries AS w WHERE w.day = n.day AND w.id = $1 AND w.notification = n.seq OFFSET 0) AS d
     WHERE n.namespace = $2"
);

/// `$3` and `$4`: between these ids; `$5` state or NULL.
pub(super) const DELIVERIES: &str = select_deliveries!(
    "notifications AS n CROSS JOIN LATERAL (
         SELECT w.* FROM deliveries AS w
         WHERE w.day = n.day AND w.id > $3 AND w.id < $4 AND w.notification = n.seq
             AND ($5::smallint IS NULL OR w.state = $5)
         ORDER BY w.id LIMIT $6) AS d
     WHERE n.id = $1 AND n.namespace = $2 ORDER BY d.id"
);

/// Before `$4` (when its row was written), `$5` (its notification's number) and `$6` (its id).
pub(super) const DELIVERIES_OF_RECIPIENT: &str = select_deliveries!(
    "deliveries AS d JOIN notifications AS n ON n.seq = d.notification AND n.namespace = $1
     WHERE d.recipient <> '' AND substr(d.id, 5, 4) = $2 AND d.recipient = $3 AND 
         (d.created_at, d.notification, d.id) < ($4, $5, $6)
     ORDER BY d.created_at DESC, d.notification DESC, d.id DESC LIMIT $7"
);

pub(super) const TRAIL: &str = "SELECT at, round::bigint, attempt::bigint, step, detail FROM trail WHERE day = $1 AND id = $2 LIMIT 10000";
pub(super) const NOTIFICATION_TRAIL: &str =
    "SELECT at, step, detail FROM notification_trail WHERE notification = $1 LIMIT 10000";

pub(super) const VERSIONS: &str = "
    SELECT hash, min(since) FROM definitions_in_force
    WHERE namespace = $1 AND template = $2 GROUP BY hash ORDER BY max(since) DESC LIMIT 1000";

pub(super) const IN_FORCE: &str = "
    SELECT hash FROM definitions_in_force
    WHERE namespace = $1 AND template = $2 ORDER BY since DESC LIMIT 1";

fn notification_record(row: &PgRow) -> Result<NotificationRecord, StoreError> {
    let long = |index: usize| row.try_get::<i64, _>(index).map_err(failed);
    let optional = |index: usize| row.try_get::<Option<i64>, _>(index).map_err(failed);
    let time = |index, place| {
        optional(index)?
            .map(|millis| timestamp(millis, place))
            .transpose()
    };
    let class = i64::from(row.try_get::<i16, _>(1).map_err(failed)?);
    let request = asked::unpack(
        row.try_get(9).map_err(failed)?,
        row.try_get::<&[u8], _>(10).map_err(failed)?,
        class,
    )?;
    let mut counts = BTreeMap::new();
    for index in 0..10 {
        let count = long(11 + index)?;
        if count > 0 {
            counts.insert(state(index as i64)?, count as u64);
        }
    }
    Ok(NotificationRecord {
        request: Arc::new(request),
        priority: priority(class)?,
        resolved: row.try_get(2).map_err(failed)?,
        held: optional(3)?
            .zip(optional(4)?)
            .map(|(recipients, allowed)| (recipients as u64, allowed as u64)),
        cancelled_at: time(5, "notifications.cancelled_at")?,
        conflicts: long(6)? as u64,
        counts,
        ended_at: time(7, "notifications.ended_at")?,
    })
}

impl PostgresStore {
    async fn delivery_record(&self, row: &PgRow) -> Result<Found, StoreError> {
        let small = |index: usize| row.try_get::<i16, _>(index).map_err(failed);
        let int = |index: usize| row.try_get::<i32, _>(index).map_err(failed);
        let long = |index: usize| row.try_get::<i64, _>(index).map_err(failed);
        let optional = |index: usize| row.try_get::<Option<i64>, _>(index).map_err(failed);
        let text = |index: usize| row.try_get::<&str, _>(index).map_err(failed);
        let perhaps = |index: usize| row.try_get::<Option<String>, _>(index).map_err(failed);
        let bytes = |index: usize| row.try_get::<&[u8], _>(index).map_err(failed);
        let time = |index, place| timestamp(long(index)?, place);
        let sometime = |index, place| {
            optional(index)?
                .map(|millis| timestamp(millis, place))
                .transpose()
        };
        let channel = self.channel_name(long(5)?).await?;
        let record = DeliveryRecord {
            id: delivery_id(bytes(1)?)?,
            notification: notification_id(bytes(2)?)?,
            namespace: Arc::from(text(3)?),
            recipient: Arc::from(text(4)?),
            channel,
            endpoint: Arc::from(text(6)?),
            locale: Arc::from(text(7)?),
            priority: priority(small(8)?.into())?,
            state: state(small(9)?.into())?,
            reason: perhaps(10)?,
            error: perhaps(11)?,
            round: int(12)? as u16,
            attempts: int(14)? as u16,
            provider: perhaps(15)?,
            provider_id: perhaps(16)?,
            created_at: time(18, "deliveries.created_at")?,
            due_at: time(19, "deliveries.due_at")?,
            released_at: sometime(20, "deliveries.released_at")?,
            ended_at: sometime(21, "deliveries.ended_at")?,
        };
        Ok(Found {
            record,
            row: int(0)?.into(),
            attempt: int(13)? as u16,
            milliseconds: optional(17)?,
            waiting: small(22)? != 0,
            seq: long(23)?,
            accepted_at: time(24, "notifications.accepted_at")?,
            sender: text(25)?.to_owned(),
        })
    }

    pub(super) async fn delivery_records(
        &self,
        rows: &[PgRow],
    ) -> Result<Vec<Found>, HistoryError> {
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let record = self.delivery_record(row).await;
            found.push(record.map_err(HistoryError::Store)?);
        }
        Ok(found)
    }

    async fn found(&self, namespace: &str, id: &DeliveryId) -> Result<Option<Found>, StoreError> {
        let prefix = &id.as_bytes()[..4];
        let row = sqlx::query(DELIVERY)
            .bind(id.as_bytes().as_slice())
            .bind(namespace)
            .bind([prefix, &[0; 12]].concat())
            .bind([prefix, &[0xff; 12]].concat())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        match row {
            Some(row) => self.delivery_record(&row).await.map(Some),
            None => Ok(None),
        }
    }
}

#[async_trait]
impl HistoryStore for PostgresStore {
    async fn notification(
        &self,
        namespace: &str,
        id: &NotificationId,
    ) -> Result<Option<NotificationRecord>, StoreError> {
        sqlx::query(NOTIFICATION)
            .bind(id.as_bytes().as_slice())
            .bind(namespace)
            .fetch_optional(&self.pool)
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
        let channel = match channel {
            None => None,
            Some(name) => {
                let number = self.known_channel(name).await;
                let number = number.map_err(HistoryError::Store)?;
                if number.is_none() {
                    return Ok(Page::none());
                }
                number
            }
        };
        let statement = match (template, recipient) {
            (_, Some(_)) => NOTIFICATIONS_OF_RECIPIENT,
            (Some(_), None) => NOTIFICATIONS_OF_TEMPLATE,
            (None, None) => NOTIFICATIONS,
        };
        let terms: Vec<String> = metadata
            .iter()
            .map(|(key, value)| term(key, value))
            .collect();
        let who = recipient
            .as_deref()
            .map(|id| order(id).to_be_bytes().to_vec());
        let rows = sqlx::query(statement)
            .bind(namespace)
            .bind(from.map_or(i64::MIN, millis))
            .bind(until.map_or(i64::MAX, millis))
            .bind(before)
            .bind(seq)
            .bind(sender)
            .bind(priority.map(|class| class.index() as i16))
            .bind(state.map(|state| state as i16))
            .bind(channel)
            .bind(terms)
            .bind(cursor::rows(paging))
            .bind(template)
            .bind(who)
            .bind(recipient)
            .fetch_all(&self.pool)
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
        Ok(page.map(|(_, record)| record))
    }

    async fn deliveries(
        &self,
        namespace: &str,
        notification: &NotificationId,
        state: Option<State>,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        let (first, end) = range(notification.as_bytes());
        let after: Option<DeliveryId> = cursor::after(paging)?;
        let after = after.map_or(first, |id| id.as_bytes().to_vec());
        let rows = sqlx::query(DELIVERIES)
            .bind(notification.as_bytes().as_slice())
            .bind(namespace)
            .bind(after)
            .bind(end)
            .bind(state.map(|state| state as i16))
            .bind(cursor::rows(paging))
            .fetch_all(&self.pool)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows).await?;
        let page = cursor::page(paging, found, |last| last.record.id);
        Ok(page.map(|found| found.record))
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
            return Ok(Page::none());
        };
        let own: Vec<trail::Line> = sqlx::query_as(TRAIL)
            .bind(found.row as i32)
            .bind(id.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await
            .map_err(unanswered)?;
        let whole: Vec<(i64, String, String)> = sqlx::query_as(NOTIFICATION_TRAIL)
            .bind(found.seq)
            .fetch_all(&self.pool)
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
        let after: Option<(i64, i64, DeliveryId)> = cursor::after(paging)?;
        let (before, seq, id) = after.map_or((i64::MAX, 0, Vec::new()), |(at, seq, id)| {
            (at, seq, id.as_bytes().to_vec())
        });
        let rows = sqlx::query(DELIVERIES_OF_RECIPIENT)
            .bind(namespace)
            .bind(order(recipient).to_be_bytes().to_vec())
            .bind(recipient)
            .bind(before)
            .bind(seq)
            .bind(id)
            .bind(cursor::rows(paging))
            .fetch_all(&self.pool)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows).await?;
        let page = cursor::page(paging, found, |last| {
            (millis(last.record.created_at), last.seq, last.record.id)
        });
        Ok(page.map(|found| found.record))
    }

    async fn dead_letters(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        self.page_of_dead(namespace, filter, paging).await
    }

    async fn replay(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<Replayed, StoreError> {
        self.replay_dead(namespace, filter, limit, now).await
    }

    async fn discard(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.discard_dead(namespace, filter, limit, now).await
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
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        if current.as_deref() == Some(hash) {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        let definitions = [(Arc::from(hash), definition.clone())];
        super::rows::insert_definitions(&mut tx, &definitions).await?;
        sqlx::query(
            "INSERT INTO definitions_in_force (namespace, template, since, hash)
             VALUES ($1, $2, $3, $4)
             ON CONFLICT (namespace, template, since) DO UPDATE SET hash = excluded.hash",
        )
        .bind(namespace)
        .bind(template)
        .bind(millis(now))
        .bind(hash)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn versions(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Vec<DefinitionVersion>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(VERSIONS)
            .bind(namespace)
            .bind(template)
            .fetch_all(&self.pool)
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
