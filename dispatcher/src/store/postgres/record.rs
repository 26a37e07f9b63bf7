//! Events become rows: outcomes are folded, notifications that were fanned out without SQL are written down.
//!
//! Rows are locked in the order of their keys, folded by the one rule for all databases, and written back as a whole.
//! An outcome that comes before its row is kept, and whoever writes the row looks for it once the row can be seen; so does
//! whoever kept it, since the row may have come in between.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;

use super::fold::{self, Line};
use super::folded::{Changes, fold_outcomes, lock, write_trail};
use super::rows::{Beginning, Of, Rows, insert, insert_definitions};
use super::{
    PostgresStore, clean, corrupt, days, delivery_id, failed, millis, notification_id, plain,
    priority, timestamp,
};
use crate::id::{self, DeliveryId};
use crate::message::{DefinitionHash, Direct, Event, Events, Garbage};
use crate::store::tally::Tally;
use crate::store::{Overdue, RecordStore, StoreError};

/// Most messages kept that cannot be read.
const MOST_GARBAGE: i64 = 1_000;

/// Orphans that are adopted in one transaction.
const ADOPTED: i64 = 1_000;

#[async_trait]
impl RecordStore for PostgresStore {
    async fn record(&self, channel: &str, events: &[Events]) -> Result<(), StoreError> {
        let garbage: Vec<&Garbage> = events.iter().flat_map(|events| &events.garbage).collect();
        self.keep_garbage(&garbage).await?;
        let directs: Vec<&Direct> = events.iter().flat_map(|events| &events.direct).collect();
        if !directs.is_empty() {
            self.record_directs(channel, &directs).await?;
        }
        // What the orders are about was changed in the rows before they were published: nothing is left to do for them.
        let outcomes = events.iter().flat_map(|events| &events.outcomes);
        let plain::Divided {
            sent,
            retrying,
            mut others,
        } = plain::divide(outcomes);
        // Not within one transaction: each would lock rows in the order of their ids, beginning again.
        others.extend(self.record_plain(sent).await?);
        others.extend(self.record_plain(retrying).await?);
        if !others.is_empty() {
            let mut tx = self.begin().await?;
            let orphans = fold_outcomes(&mut tx, &others).await?;
            tx.commit().await.map_err(failed)?;
            self.adopt(orphans).await?;
        }
        Ok(())
    }

    async fn overdue(
        &self,
        channel: &str,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Overdue>, StoreError> {
        let Some(number) = self.known_channel(channel).await? else {
            return Ok(Vec::new());
        };
        let channel: Arc<str> = Arc::from(channel);
        let since = self.open_since().await?;
        let rows: Vec<(Vec<u8>, Vec<u8>, i16, i64, i32, i32, i32)> = sqlx::query_as(OVERDUE)
            .bind(number)
            .bind(millis(before))
            .bind(limit as i64)
            .bind(since)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        rows.into_iter()
            .map(|(id, notification, class, since, round, attempt, tried)| {
                Ok(Overdue {
                    id: delivery_id(&id)?,
                    notification: notification_id(&notification)?,
                    channel: Arc::clone(&channel),
                    priority: priority(class.into())?,
                    since: timestamp(since, "deliveries.heard_at")?,
                    round: round as u16,
                    attempt: attempt as u16,
                    tried: tried as u16,
                })
            })
            .collect()
    }

    async fn redrive(&self, overdue: &[Overdue], now: Timestamp) -> Result<u64, StoreError> {
        let now = millis(now);
        let mut tx = self.begin().await?;
        let ids = overdue.iter().map(|one| (one.id, one.notification));
        let rows = lock(&mut tx, ids).await?;
        let heard: HashMap<DeliveryId, i64> = overdue
            .iter()
            .map(|one| (one.id, millis(one.since)))
            .collect();
        let mut tally = Tally::default();
        let mut changes = Changes::default();
        let mut trail = Vec::new();
        let mut redriven = 0;
        for (place, (day, id, row)) in rows.iter().enumerate() {
            let is_out = row.waiting == 0 && row.ended_at.is_none();
            if !is_out || heard.get(id) != Some(&row.heard_at) {
                continue;
            }
            let (to, waiting) = fold::redriven(row.called_back, row.tried.into());
            tally.moved(row.seq, Some(row.state), to, 1, now);
            let mut row = row.clone();
            row.state = to;
            row.waiting = waiting;
            row.ended_at = row.called_back.then_some(now);
            row.due_at = row.due_at.max(now);
            if !row.called_back {
                redriven += 1;
                let (round, attempt) = (row.round, row.attempt);
                let detail = "{}".to_owned();
                trail.push(Line(place as i64, now, round, attempt, "redriven", detail));
            }
            changes.add(*day, *id, &row);
        }
        changes.write(&mut tx).await?;
        write_trail(&mut tx, &rows, &trail).await?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(redriven)
    }

    async fn expire(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.adopt_all().await?;
        self.delete_expired(before, limit).await
    }

    async fn unended(&self) -> Result<(u64, u64), StoreError> {
        let since = self.open_since().await?;
        let (waiting, out): (i64, i64) = sqlx::query_as(UNENDED)
            .bind(since)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        Ok((waiting as u64, out as u64))
    }
}

impl PostgresStore {
    /// Writes notifications down with the deliveries that are out already.
    async fn record_directs(&self, channel: &str, directs: &[&Direct]) -> Result<(), StoreError> {
        let mut definitions: HashMap<DefinitionHash, Bytes> = HashMap::new();
        let mut channels = HashMap::new();
        for direct in directs {
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
            for delivery in &direct.deliveries {
                if !channels.contains_key(&delivery.channel) {
                    let number = self.channel_number(&delivery.channel).await?;
                    channels.insert(Arc::clone(&delivery.channel), number);
                }
            }
        }
        let accepted = directs.iter().map(|direct| direct.request.accepted_at);
        self.ensure_days(accepted.map(|at| days::day(millis(at))))
            .await?;
        let definitions: Vec<_> = definitions.into_iter().collect();
        let requests: Vec<_> = directs.iter().map(|direct| &direct.request).collect();
        let mut tx = self.begin().await?;
        insert_definitions(&mut tx, &definitions).await?;
        let written = insert(&mut tx, self, &requests, Beginning::Resolved).await?;
        let mut rows = Rows::default();
        for (direct, written) in directs.iter().zip(&written) {
            let request = &direct.request;
            let of = Of {
                seq: written.seq,
                day: written.day,
                namespace: i64::from(id::order(&request.namespace)),
                priority: request.priority.index() as i16,
            };
            let at = millis(request.accepted_at);
            for delivery in &direct.deliveries {
                let number = channels[&delivery.channel];
                let (endpoint, locale) = (&delivery.endpoint, &delivery.locale);
                rows.direct(&delivery.id, of, number, endpoint, locale, at);
            }
        }
        let mut tally = Tally::default();
        rows.write(&mut tx, self, 0, &mut tally).await?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        let ids = directs.iter().flat_map(|direct| &direct.deliveries);
        self.adopt(ids.map(|delivery| delivery.id)).await
    }

    /// Keeps messages that cannot be read, each once.
    async fn keep_garbage(&self, garbage: &[&Garbage]) -> Result<(), StoreError> {
        if garbage.is_empty() {
            return Ok(());
        }
        for one in garbage {
            // Written by Herald; should it be no base64 all the same, it is kept as it is.
            let bytes = STANDARD
                .decode(one.bytes.as_bytes())
                .unwrap_or_else(|_| one.bytes.as_bytes().to_vec());
            sqlx::query(
                "INSERT INTO garbage (topic, message, at, reason, length, bytes)
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            )
            .bind(&*one.topic)
            .bind(one.message.to_string())
            .bind(millis(one.at))
            .bind(clean(&one.reason))
            .bind(one.length as i64)
            .bind(bytes)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        }
        sqlx::query(
            "DELETE FROM garbage WHERE number IN (SELECT number FROM garbage ORDER BY number DESC OFFSET $1)",
        )
        .bind(MOST_GARBAGE)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    /// Folds the outcomes that waited for these deliveries to have rows, if they have them now.
    pub(super) async fn adopt(
        &self,
        ids: impl IntoIterator<Item = DeliveryId>,
    ) -> Result<(), StoreError> {
        let ids: Vec<Vec<u8>> = ids.into_iter().map(|id| id.as_bytes().to_vec()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let waiting: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(ORPHANED)
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        if waiting.is_empty() {
            return Ok(());
        }
        let mut of = Vec::with_capacity(waiting.len());
        for (id, notification) in &waiting {
            of.push((delivery_id(id)?, notification_id(notification)?));
        }
        let waiting: Vec<Vec<u8>> = waiting.into_iter().map(|(id, _)| id).collect();
        let mut tx = self.begin().await?;
        // The rows first, as whoever keeps orphans does.
        lock(&mut tx, of).await?;
        let events: Vec<Vec<u8>> = sqlx::query_scalar(ADOPT)
            .bind(waiting)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut outcomes = Vec::with_capacity(events.len());
        for text in &events {
            let event: Event =
                serde_json::from_slice(text).map_err(|error| corrupt("orphans.event", &error))?;
            outcomes.push(event);
        }
        let outcomes: Vec<&Event> = outcomes.iter().collect();
        fold_outcomes(&mut tx, &outcomes).await?;
        tx.commit().await.map_err(failed)
    }

    /// The same for whatever was left by a gateway that ended between writing a row and looking for its outcomes.
    async fn adopt_all(&self) -> Result<(), StoreError> {
        let ids: Vec<Vec<u8>> = sqlx::query_scalar(ORPHANED_WITH_ROW)
            .bind(ADOPTED)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let ids: Vec<DeliveryId> = ids
            .iter()
            .map(|id| delivery_id(id))
            .collect::<Result<_, _>>()?;
        self.adopt(ids).await
    }
}

pub(super) const ORPHANED: &str = "SELECT DISTINCT o.delivery, o.notification FROM unnest($1::bytea[]) AS k(id)
    JOIN orphans AS o ON o.delivery = k.id
    JOIN notifications AS n ON n.id = o.notification
    CROSS JOIN LATERAL (SELECT 1 FROM deliveries AS w WHERE w.day = n.day AND w.id = o.delivery OFFSET 0) AS d";

pub(super) const ADOPT: &str =
    "DELETE FROM orphans WHERE delivery = ANY($1::bytea[]) RETURNING event";

/// Orphans are few: they are gone as soon as their rows are there, and at the end of retention.
pub(super) const ORPHANED_WITH_ROW: &str = "SELECT DISTINCT o.delivery FROM orphans AS o
    JOIN notifications AS n ON n.id = o.notification
    CROSS JOIN LATERAL (SELECT 1 FROM deliveries AS w WHERE w.day = n.day AND w.id = o.delivery OFFSET 0) AS d
    LIMIT $1";

pub(super) const OVERDUE: &str = "SELECT d.id, n.id, d.priority, d.heard_at, d.round, d.attempt, d.tried
    FROM deliveries AS d
    JOIN notifications AS n ON n.seq = d.notification
    WHERE d.day >= $4 AND d.channel = $1 AND d.heard_at < $2 AND d.waiting = 0 AND d.ended_at IS NULL
    LIMIT $3";

pub(super) const UNENDED: &str = "SELECT
    (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 1)
        + (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 2)
        + (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 3),
    (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 0 AND ended_at IS NULL)";
