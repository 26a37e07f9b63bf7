//! Events become rows: outcomes are folded, notifications that were fanned out without SQL are written down.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::fold::{self, Line};
use super::folded::{adopt, fold_outcomes, write_trail};
use super::notifications::{Beginning, NewNotification, insert, insert_definitions};
use super::orders::Range;
use super::{
    SqliteStore, delivery_id, failed, json, millis, notification_id, priority, state, timestamp,
};
use crate::id::{self, DeliveryId, NotificationId};
use crate::message::{DefinitionHash, Event, Events, Garbage};
use crate::store::tally::Tally;
use crate::store::{Overdue, RecordStore, State, StoreError};

/// Most deliveries of a notification that one transaction deletes.
const DELETED: i64 = 2_000;

/// Most rows of the smaller tables that one call of `expire` deletes of each.
const SWEPT: i64 = 10_000;

/// Most messages kept that cannot be read.
const MOST_GARBAGE: i64 = 1_000;

/// A notification that was fanned out without SQL, on its way into the tables.
struct Direct {
    notification: NewNotification,
    /// What its rows take from it: its namespace by `id::order`, its class, and when it was accepted.
    namespace: u32,
    priority: usize,
    at: i64,
    /// Delivery, number of the channel, endpoint, locale.
    deliveries: Vec<(DeliveryId, i64, Arc<str>, Arc<str>)>,
}

#[async_trait]
impl RecordStore for SqliteStore {
    async fn record(&self, channel: &str, events: &[Events]) -> Result<(), StoreError> {
        let mut definitions: HashMap<DefinitionHash, Bytes> = HashMap::new();
        let mut directs = Vec::new();
        for direct in events.iter().flat_map(|events| &events.direct) {
            let request = &direct.request;
            if !definitions.contains_key(&request.definition) {
                match STANDARD.decode(direct.definition.as_bytes()) {
                    Ok(definition) => {
                        definitions.insert(Arc::clone(&request.definition), definition.into());
                    }
                    Err(error) => tracing::warn!(
                        channel, notification = %request.id, %error,
                        "a definition cannot be read: what it said will not be shown"
                    ),
                }
            }
            let mut deliveries = Vec::with_capacity(direct.deliveries.len());
            for delivery in &direct.deliveries {
                deliveries.push((
                    delivery.id,
                    self.channel_number(&delivery.channel).await?,
                    Arc::clone(&delivery.endpoint),
                    Arc::clone(&delivery.locale),
                ));
            }
            directs.push(Direct {
                notification: NewNotification::new(request, Beginning::Resolved),
                namespace: id::order(&request.namespace),
                priority: request.priority.index(),
                at: millis(request.accepted_at),
                deliveries,
            });
        }
        let definitions: Vec<_> = definitions.into_iter().collect();
        // What the orders are about was changed in the rows before they were published: nothing is left to do for them.
        let outcomes: Vec<Event> = events
            .iter()
            .flat_map(|events| events.outcomes.iter().cloned())
            .collect();
        let garbage: Vec<Garbage> = events
            .iter()
            .flat_map(|events| events.garbage.iter().cloned())
            .collect();
        if directs.is_empty() && outcomes.is_empty() && garbage.is_empty() {
            return Ok(());
        }
        let orphaned = Arc::clone(&self.orphaned);
        self.write(move |c| {
            Box::pin(async move {
                keep_garbage(c, garbage).await?;
                let mut outcomes = outcomes;
                if !directs.is_empty() {
                    insert_definitions(c, &definitions).await?;
                    let new = insert_directs(c, directs).await?;
                    if orphaned.load(Ordering::Acquire) {
                        outcomes.extend(adopt(c, &json(&new)).await?);
                    }
                }
                fold_outcomes(c, &outcomes, &orphaned).await
            })
        })
        .await
    }

    async fn overdue(
        &self,
        channel: &str,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Overdue>, StoreError> {
        let Some(number) = self.known_channel(channel) else {
            return Ok(Vec::new());
        };
        let channel: Arc<str> = Arc::from(channel);
        let rows: Vec<(Vec<u8>, Vec<u8>, i64, i64, i64, i64, i64)> = sqlx::query_as(OVERDUE)
            .bind(number)
            .bind(millis(before))
            .bind(limit as i64)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        rows.into_iter()
            .map(|(id, notification, class, since, round, attempt, tried)| {
                Ok(Overdue {
                    id: delivery_id(&id)?,
                    notification: notification_id(&notification)?,
                    channel: Arc::clone(&channel),
                    priority: priority(class)?,
                    since: timestamp(since, "deliveries.heard_at")?,
                    round: round as u16,
                    attempt: attempt as u16,
                    tried: tried as u16,
                })
            })
            .collect()
    }

    async fn redrive(&self, overdue: &[Overdue], now: Timestamp) -> Result<u64, StoreError> {
        let wanted: Vec<_> = overdue
            .iter()
            .map(|overdue| (overdue.id, millis(overdue.since)))
            .collect();
        let now = millis(now);
        self.write(move |c| {
            Box::pin(async move {
                let found: Vec<(i64, i64, i64, i64, i64, i64, bool)> = sqlx::query_as(
                    "SELECT d.row, d.notification, d.state, d.round, d.attempt, d.tried,
                         n.cancelled_at IS NOT NULL
                     FROM json_each(?1) AS o CROSS JOIN deliveries AS d ON d.id = unhex(o.value ->> 0)
                     CROSS JOIN notifications AS n ON n.seq = d.notification
                     WHERE d.waiting = 0 AND d.ended_at IS NULL AND d.heard_at = (o.value ->> 1)",
                )
                .bind(json(&wanted))
                .fetch_all(&mut *c)
                .await
                .map_err(failed)?;
                let mut tally = Tally::default();
                let mut changes = Vec::with_capacity(found.len());
                let mut trail = Vec::with_capacity(found.len());
                let mut redriven = 0;
                for (row, seq, from, round, attempt, tried, called_back) in found {
                    let (to, waiting) = fold::redriven(called_back, tried);
                    tally.moved(seq, Some(state(from)?), to, 1, now);
                    changes.push((row, to as u8, waiting, called_back.then_some(now)));
                    if !called_back {
                        redriven += 1;
                        let (round, attempt) = (round as u16, attempt as u16);
                        trail.push(Line(row, now, round, attempt, "redriven", "{}".to_owned()));
                    }
                }
                if changes.is_empty() {
                    return Ok(0);
                }
                sqlx::query(
                    "UPDATE deliveries SET state = o.value ->> 1, waiting = o.value ->> 2,
                         ended_at = o.value ->> 3, due_at = max(due_at, ?2)
                     FROM json_each(?1) AS o WHERE row = (o.value ->> 0)",
                )
                .bind(json(&changes))
                .bind(now)
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                write_trail(c, &trail).await?;
                tally.apply(c).await?;
                Ok(redriven)
            })
        })
        .await
    }

    async fn expire(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        let before = millis(before);
        let ended: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT seq, id FROM notifications WHERE ended_at IS NOT NULL AND ended_at < ?1
             ORDER BY ended_at LIMIT ?2",
        )
        .bind(before)
        .bind(limit as i64)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let expired = ended.len() as u64;
        for (seq, id) in ended {
            let id = notification_id(&id)?;
            while self.delete_some(seq, &id).await? {}
        }
        self.write(move |c| {
            Box::pin(async move {
                for statement in OLD {
                    sqlx::query(statement)
                        .bind(before)
                        .bind(SWEPT)
                        .execute(&mut *c)
                        .await
                        .map_err(failed)?;
                }
                Ok(())
            })
        })
        .await?;
        Ok(expired)
    }

    async fn unended(&self) -> Result<(u64, u64), StoreError> {
        let (waiting, out): (i64, i64) = sqlx::query_as(UNENDED)
            .fetch_one(&self.readers)
            .await
            .map_err(failed)?;
        Ok((waiting as u64, out as u64))
    }
}

impl SqliteStore {
    /// What is kept of messages that cannot be read: the topic and the bytes.
    #[cfg(test)]
    pub(crate) async fn garbage(&self) -> Vec<(String, Vec<u8>)> {
        sqlx::query_as("SELECT topic, bytes FROM garbage ORDER BY rowid")
            .fetch_all(&self.readers)
            .await
            .unwrap()
    }

    /// Deletes some of a notification's deliveries, or, when there are none, itself; answers whether there may be more.
    async fn delete_some(&self, seq: i64, id: &NotificationId) -> Result<bool, StoreError> {
        let Range(after, upper) = Range::of(id);
        self.write(move |c| {
            Box::pin(async move {
                let rows: Vec<i64> = sqlx::query_scalar(
                    "SELECT row FROM deliveries WHERE id > unhex(?2) AND id < unhex(?3) AND notification = ?1 LIMIT ?4",
                )
                .bind(seq)
                .bind(after)
                .bind(upper)
                .bind(DELETED)
                .fetch_all(&mut *c)
                .await
                .map_err(failed)?;
                let more = rows.len() as i64 == DELETED;
                let rows = json(&rows);
                for statement in [
                    "DELETE FROM trail WHERE row IN (SELECT value FROM json_each(?1))",
                    "DELETE FROM carried WHERE row IN (SELECT value FROM json_each(?1))",
                    "DELETE FROM deliveries WHERE row IN (SELECT value FROM json_each(?1))",
                ] {
                    sqlx::query(statement)
                        .bind(&rows)
                        .execute(&mut *c)
                        .await
                        .map_err(failed)?;
                }
                if !more {
                    for statement in [
                        "DELETE FROM notification_trail WHERE notification = ?1",
                        "DELETE FROM requests WHERE notification = ?1",
                        "DELETE FROM notifications WHERE seq = ?1",
                    ] {
                        sqlx::query(statement)
                            .bind(seq)
                            .execute(&mut *c)
                            .await
                            .map_err(failed)?;
                    }
                }
                Ok(more)
            })
        })
        .await
    }
}

/// Writes notifications down with the deliveries that are out already; answers the ids of all of those.
async fn insert_directs(
    connection: &mut SqliteConnection,
    directs: Vec<Direct>,
) -> Result<Vec<DeliveryId>, StoreError> {
    let mut notifications = Vec::with_capacity(directs.len());
    let mut rows = Vec::with_capacity(directs.len());
    for direct in directs {
        notifications.push(direct.notification);
        let place = (direct.namespace, direct.priority);
        rows.push((place, direct.at, direct.deliveries));
    }
    let planned = insert(connection, notifications).await?;
    let mut ids = Vec::new();
    let mut values = Vec::new();
    for ((_, seq), ((namespace, class), at, deliveries)) in planned.iter().zip(rows) {
        for (id, channel, endpoint, locale) in deliveries {
            ids.push(id);
            values.push((id, *seq, channel, class, endpoint, locale, at, namespace));
        }
    }
    let written: Vec<(i64, i64)> = sqlx::query_as(
        "INSERT INTO deliveries (id, notification, channel, priority, state, waiting, recipient, endpoint,
             locale, created_at, due_at, released_at, heard_at, namespace)
         SELECT unhex(d.value ->> 0), d.value ->> 1, d.value ->> 2, d.value ->> 3, 2, 0, '', d.value ->> 4,
             d.value ->> 5, d.value ->> 6, d.value ->> 6, d.value ->> 6, d.value ->> 6, d.value ->> 7
         FROM json_each(?1) AS d WHERE true ON CONFLICT (id) DO NOTHING RETURNING notification, created_at",
    )
    .bind(json(&values))
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let mut tally = Tally::default();
    for (seq, at) in written {
        tally.moved(seq, None, State::Sending, 1, at);
    }
    tally.apply(connection).await?;
    Ok(ids)
}

/// Keeps messages that cannot be read, each once.
async fn keep_garbage(
    connection: &mut SqliteConnection,
    garbage: Vec<Garbage>,
) -> Result<(), StoreError> {
    if garbage.is_empty() {
        return Ok(());
    }
    for one in garbage {
        sqlx::query("INSERT INTO garbage VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING")
            .bind(one.topic)
            .bind(one.message.to_string())
            .bind(millis(one.at))
            .bind(one.reason)
            .bind(one.length as i64)
            // Written by Herald; should it be no base64 all the same, it is kept as it is.
            .bind(
                STANDARD
                    .decode(one.bytes.as_bytes())
                    .unwrap_or_else(|_| one.bytes.as_bytes().to_vec()),
            )
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    sqlx::query(
        "DELETE FROM garbage WHERE rowid IN (SELECT rowid FROM garbage ORDER BY rowid DESC LIMIT -1 OFFSET ?1)",
    )
    .bind(MOST_GARBAGE)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

pub(super) const OVERDUE: &str = "SELECT d.id, n.id, d.priority, d.heard_at,
        d.round, d.attempt, d.tried FROM deliveries AS d
    CROSS JOIN notifications AS n ON n.seq = d.notification
    WHERE d.channel = ?1 AND d.heard_at < ?2 AND d.waiting = 0 AND d.ended_at IS NULL
    LIMIT ?3";

pub(super) const UNENDED: &str = "SELECT (SELECT count(*) FROM deliveries WHERE waiting = 1)
        + (SELECT count(*) FROM deliveries WHERE waiting = 2)
        + (SELECT count(*) FROM deliveries WHERE waiting = 3),
    (SELECT count(*) FROM deliveries WHERE waiting = 0 AND ended_at IS NULL)";

/// What is deleted by age alone, at most `?2` of each at a time.
const OLD: [&str; 5] = [
    "DELETE FROM garbage WHERE rowid IN (SELECT rowid FROM garbage WHERE at < ?1 LIMIT ?2)",
    "DELETE FROM orphans WHERE rowid IN (SELECT rowid FROM orphans WHERE at < ?1 LIMIT ?2)",
    "DELETE FROM claims WHERE (namespace, template, key) IN (
         SELECT namespace, template, key FROM claims WHERE until < ?1 LIMIT ?2)",
    "DELETE FROM recipient_labels WHERE (namespace, key, value, ord, id, valid_from) IN (
         SELECT namespace, key, value, ord, id, valid_from FROM recipient_labels WHERE valid_to < ?1 LIMIT ?2)",
    "DELETE FROM members WHERE (group_id, ord, id, valid_from) IN (
         SELECT group_id, ord, id, valid_from FROM members WHERE valid_to < ?1 LIMIT ?2)",
];
