//! The waiting room: what is due, whose turn it is, what is called back.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;

use super::orders::{Order, SWEEP, note};
use super::{SqliteStore, failed, json, millis, notification_id, priority, state, timestamp};
use crate::id::NotificationId;
use crate::store::tally::Tally;
use crate::store::{Backlog, Chunk, News, Recalled, State, StoreError, Turn, WaitingStore};

#[async_trait]
impl WaitingStore for SqliteStore {
    async fn tell(&self, _news: &[News]) -> Result<(), StoreError> {
        // No other process has the file.
        Ok(())
    }

    async fn hear(&self) -> Result<Vec<News>, StoreError> {
        std::future::pending().await
    }

    async fn ripen(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Arc<str>, Priority)>, StoreError> {
        let now = millis(now);
        let ripe: Vec<i64> = sqlx::query_scalar(RIPE)
            .bind(now)
            .bind(limit as i64)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        if ripe.is_empty() {
            return Ok(Vec::new());
        }
        let ripe = json(&ripe);
        let concerned: Vec<(i64, i64)> = self
            .write(move |c| {
                Box::pin(async move {
                    let groups: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
                        "SELECT channel, priority, notification, state, count(*) FROM deliveries
                         WHERE row IN (SELECT value FROM json_each(?1)) AND waiting = 1
                         GROUP BY channel, priority, notification, state",
                    )
                    .bind(&ripe)
                    .fetch_all(&mut *c)
                    .await
                    .map_err(failed)?;
                    sqlx::query(
                        "UPDATE deliveries SET waiting = 2, state = CASE state WHEN 0 THEN 1 ELSE state END
                         WHERE row IN (SELECT value FROM json_each(?1)) AND waiting = 1",
                    )
                    .bind(ripe)
                    .execute(&mut *c)
                    .await
                    .map_err(failed)?;
                    let mut tally = Tally::default();
                    let mut concerned = Vec::new();
                    for (channel, priority, seq, from, n) in groups {
                        let from = state(from)?;
                        if from == State::Scheduled {
                            tally.moved(seq, Some(from), State::Queued, n, now);
                        }
                        if concerned.last() != Some(&(channel, priority)) {
                            concerned.push((channel, priority));
                        }
                    }
                    tally.apply(c).await?;
                    Ok(concerned)
                })
            })
            .await?;
        self.named(concerned)
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let due: Option<i64> = sqlx::query_scalar(NEXT_DUE)
            .fetch_one(&self.readers)
            .await
            .map_err(failed)?;
        due.map(|due| timestamp(due, "deliveries.due_at"))
            .transpose()
    }

    async fn channels(&self) -> Result<Vec<(Arc<str>, bool)>, StoreError> {
        let channels: Vec<(String, bool)> = sqlx::query_as(CHANNELS)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        Ok(channels
            .into_iter()
            .map(|(name, unended)| (Arc::from(name), unended))
            .collect())
    }

    async fn lead(&self, _channel: &str) -> Result<bool, StoreError> {
        // No other process has the file, and a process has one release of each channel.
        Ok(true)
    }

    async fn resign(&self, _channel: &str) {}

    async fn chunk(
        &self,
        channel: &str,
        priority: Priority,
        turn: &Turn,
        limit: usize,
    ) -> Result<Chunk, StoreError> {
        self.take_chunk(channel, priority, turn, limit).await
    }

    async fn resting(&self) -> Result<Vec<(Arc<str>, Arc<str>)>, StoreError> {
        let resting: Vec<(String, String)> =
            sqlx::query_as("SELECT namespace, template FROM resting")
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
        let named = |(namespace, template)| (Arc::from(namespace), Arc::from(template));
        Ok(resting.into_iter().map(named).collect())
    }

    async fn wake(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Vec<(Arc<str>, Priority)>, StoreError> {
        let mut concerned = BTreeSet::new();
        let mut after = 0;
        loop {
            let open = self.open_of_template(namespace, template, after).await?;
            let Some((last, _)) = open.last() else {
                break;
            };
            after = *last;
            let seqs = json(&open.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
            loop {
                let seqs = seqs.clone();
                let woken: Vec<(i64, i64)> = self
                    .write(move |c| {
                        Box::pin(async move {
                            sqlx::query_as(WAKE)
                                .bind(seqs)
                                .bind(SWEEP)
                                .fetch_all(c)
                                .await
                                .map_err(failed)
                        })
                    })
                    .await?;
                let is_last = (woken.len() as i64) < SWEEP;
                concerned.extend(woken);
                if is_last {
                    break;
                }
            }
        }
        // What was put to rest meanwhile keeps it.
        let (namespace, template) = (namespace.to_owned(), template.to_owned());
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "DELETE FROM resting WHERE namespace = ?1 AND template = ?2 AND NOT EXISTS (
                         SELECT 1 FROM deliveries AS d CROSS JOIN notifications AS n ON n.seq = d.notification
                         WHERE d.waiting = 3 AND n.namespace = ?1 AND n.template = ?2)",
                )
                .bind(namespace)
                .bind(template)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok::<_, StoreError>(())
            })
        })
        .await?;
        self.named(concerned.into_iter().collect())
    }

    async fn cancel(
        &self,
        notification: &NotificationId,
        now: Timestamp,
    ) -> Result<Recalled, StoreError> {
        let open: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT seq, id FROM notifications WHERE id = ?1 AND ended_at IS NULL")
                .bind(notification.as_bytes().as_slice())
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
        self.cancel_all(&open, millis(now)).await
    }

    async fn cancel_template(
        &self,
        namespace: &str,
        template: &str,
        now: Timestamp,
    ) -> Result<Recalled, StoreError> {
        let mut recalled = Recalled::default();
        let mut after = 0;
        loop {
            let open = self.open_of_template(namespace, template, after).await?;
            let Some((last, _)) = open.last() else {
                return Ok(recalled);
            };
            after = *last;
            let some = self.cancel_all(&open, millis(now)).await?;
            recalled.waiting += some.waiting;
            recalled.out += some.out;
            recalled.out_by_channel.extend(some.out_by_channel);
        }
    }

    async fn prioritize(
        &self,
        notification: &NotificationId,
        priority: Priority,
        now: Timestamp,
    ) -> Result<Recalled, StoreError> {
        let id = *notification;
        let now = millis(now);
        let found: Option<(i64,)> = self
            .write(move |c| {
                Box::pin(async move {
                    let found: Option<(i64,)> = sqlx::query_as(
                        "UPDATE notifications SET priority = ?2
                         WHERE id = ?1 AND ended_at IS NULL RETURNING seq",
                    )
                    .bind(id.as_bytes().as_slice())
                    .bind(priority.index() as i64)
                    .fetch_optional(&mut *c)
                    .await
                    .map_err(failed)?;
                    if let Some((seq,)) = found {
                        let detail = json(&serde_json::json!({ "priority": priority }));
                        note(c, &json(&[seq]), now, "prioritized", detail).await?;
                    }
                    Ok(found)
                })
            })
            .await?;
        match found {
            Some((seq,)) => {
                self.sweep(&[(seq, id)], Order::Prioritize(priority), now)
                    .await
            }
            None => Ok(Recalled::default()),
        }
    }

    async fn end_late(&self, now: Timestamp) -> Result<u64, StoreError> {
        let now = millis(now);
        let mut ended = 0;
        let mut after = (i64::MIN, 0);
        loop {
            let late: Vec<(i64, Vec<u8>, i64)> = sqlx::query_as(LATE)
                .bind(now)
                .bind(after.0)
                .bind(after.1)
                .bind(SWEEP)
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            let Some((seq, _, expires_at)) = late.last() else {
                return Ok(ended);
            };
            after = (*expires_at, *seq);
            let of: Vec<(i64, NotificationId)> = late
                .iter()
                .map(|(seq, id, _)| Ok((*seq, notification_id(id)?)))
                .collect::<Result<_, StoreError>>()?;
            ended += self.sweep(&of, Order::Expire, now).await?.waiting;
        }
    }

    async fn end_channel(
        &self,
        channel: &str,
        now: Timestamp,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let Some(channel) = self.known_channel(channel) else {
            return Ok(0);
        };
        let now = millis(now);
        let limit = limit as i64;
        self.write(move |c| {
            Box::pin(async move {
                let rows: Vec<(i64, i64, i64)> = sqlx::query_as(OF_CHANNEL)
                    .bind(channel)
                    .bind(limit)
                    .fetch_all(&mut *c)
                    .await
                    .map_err(failed)?;
                let mut tally = Tally::default();
                let mut numbers = Vec::with_capacity(rows.len());
                for (row, seq, from) in rows {
                    tally.moved(seq, Some(state(from)?), State::Failed, 1, now);
                    numbers.push(row);
                }
                if numbers.is_empty() {
                    return Ok(0);
                }
                sqlx::query(
                    "UPDATE deliveries SET state = 7, waiting = 0, dead = 1, ended_at = ?2,
                         reason = 'channel-deleted', error = NULL
                     WHERE row IN (SELECT value FROM json_each(?1))",
                )
                .bind(json(&numbers))
                .bind(now)
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                // Dead letters go on carrying their deliveries, unless those must not be kept.
                sqlx::query(
                    "DELETE FROM carried WHERE row IN (
                         SELECT d.row FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
                         CROSS JOIN notifications AS n ON n.seq = d.notification WHERE n.sensitive = 1)",
                )
                .bind(json(&numbers))
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                tally.apply(c).await?;
                Ok(numbers.len() as u64)
            })
        })
        .await
    }

    async fn backlog(&self, channel: &str) -> Result<[Backlog; Priority::COUNT], StoreError> {
        let mut backlog = [Backlog::default(); Priority::COUNT];
        let Some(channel) = self.known_channel(channel) else {
            return Ok(backlog);
        };
        let due: Vec<(i64, i64, i64)> = sqlx::query_as(
            "SELECT priority, count(*), min(due_at) FROM deliveries
             WHERE waiting = 2 AND channel = ?1 GROUP BY priority",
        )
        .bind(channel)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        for (class, count, oldest) in due {
            let of = &mut backlog[priority(class)?.index()];
            of.due = count as u64;
            of.oldest = Some(timestamp(oldest, "deliveries.due_at")?);
        }
        let scheduled: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT priority, count(*) FROM (
                 SELECT priority FROM deliveries WHERE waiting = 1 AND channel = ?1
                 UNION ALL SELECT priority FROM deliveries WHERE waiting = 3 AND channel = ?1)
             GROUP BY priority",
        )
        .bind(channel)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        for (class, count) in scheduled {
            backlog[priority(class)?.index()].scheduled = count as u64;
        }
        Ok(backlog)
    }

    async fn has_dead_letters(&self, channel: &str) -> Result<bool, StoreError> {
        let Some(channel) = self.known_channel(channel) else {
            return Ok(false);
        };
        sqlx::query_scalar(HAS_DEAD)
            .bind(channel)
            .fetch_one(&self.readers)
            .await
            .map_err(failed)
    }
}

pub(super) const HAS_DEAD: &str =
    "SELECT EXISTS (SELECT 1 FROM deliveries WHERE dead = 1 AND channel = ?1)";

/// Wakes at most `?2` rows of notifications (`?1`: their numbers).
pub(super) const WAKE: &str = "UPDATE deliveries SET waiting = 2 WHERE row IN (
        SELECT d.row FROM json_each(?1) AS j
        CROSS JOIN deliveries AS d ON d.waiting = 3 AND d.notification = j.value LIMIT ?2)
    RETURNING channel, priority";

pub(super) const RIPE: &str = "SELECT d.row FROM json_each('[0,1,2,3]') AS p CROSS JOIN channels AS c
    CROSS JOIN deliveries AS d ON d.waiting = 1 AND d.channel = c.id AND d.priority = p.value AND d.due_at <= ?1
    LIMIT ?2";

pub(super) const NEXT_DUE: &str = "SELECT min((SELECT min(d.due_at) FROM deliveries AS d
        WHERE d.waiting = 1 AND d.channel = c.id AND d.priority = p.value))
    FROM json_each('[0,1,2,3]') AS p CROSS JOIN channels AS c";

pub(super) const CHANNELS: &str = "SELECT c.name,
    EXISTS (SELECT 1 FROM deliveries AS d WHERE d.waiting = 2 AND d.channel = c.id)
        OR EXISTS (SELECT 1 FROM deliveries AS d WHERE d.waiting = 1 AND d.channel = c.id)
        OR EXISTS (SELECT 1 FROM deliveries AS d WHERE d.waiting = 3 AND d.channel = c.id)
        OR EXISTS (SELECT 1 FROM deliveries AS d WHERE d.waiting = 0 AND d.ended_at IS NULL AND d.channel = c.id)
    FROM channels AS c WHERE c.name <> ''";

/// Notifications that have expired and of which something may wait.
pub(super) const LATE: &str = "SELECT seq, id, expires_at FROM notifications
    WHERE ended_at IS NULL AND expires_at IS NOT NULL AND expires_at <= ?1 AND (expires_at, seq) > (?2, ?3)
        AND scheduled + queued + retrying > 0
    ORDER BY expires_at, seq LIMIT ?4";

pub(super) const OF_CHANNEL: &str = "SELECT row, notification, state FROM (
        SELECT row, notification, state FROM deliveries WHERE waiting = 2 AND channel = ?1
        UNION ALL SELECT row, notification, state FROM deliveries WHERE waiting = 1 AND channel = ?1
        UNION ALL SELECT row, notification, state FROM deliveries WHERE waiting = 3 AND channel = ?1)
    LIMIT ?2";
