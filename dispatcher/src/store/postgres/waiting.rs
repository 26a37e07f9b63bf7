//! The waiting room: what is due, whose turn it is, what is called back.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;

use super::orders::{LATE, OPEN, Open, Order, SWEEP, note};
use super::{PostgresStore, by_keys, failed, json, millis, priority, state, timestamp};
use crate::id::NotificationId;
use crate::store::tally::Tally;
use crate::store::{Backlog, Chunk, News, Recalled, State, StoreError, Turn, WaitingStore};

#[async_trait]
impl WaitingStore for PostgresStore {
    async fn tell(&self, news: &[News]) -> Result<(), StoreError> {
        self.tell_others(news).await
    }

    async fn hear(&self) -> Result<Vec<News>, StoreError> {
        self.hear_others().await
    }

    async fn ripen(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Arc<str>, Priority)>, StoreError> {
        let now = millis(now);
        let since = self.open_since().await?;
        let mut tx = self.begin().await?;
        // Those that another gateway makes ready this moment are passed over: it tells its own.
        let ripe: Vec<(i32, Vec<u8>, i64, i16, i64, i16)> = sqlx::query_as(RIPE)
            .bind(now)
            .bind(limit as i64)
            .bind(since)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        if ripe.is_empty() {
            return Ok(Vec::new());
        }
        let mut tally = Tally::default();
        let mut concerned = HashSet::new();
        let (mut days, mut ids) = (Vec::new(), Vec::new());
        for (day, id, channel, class, seq, from) in ripe {
            if state(from.into())? == State::Scheduled {
                tally.moved(seq, Some(State::Scheduled), State::Queued, 1, now);
            }
            concerned.insert((channel, class));
            days.push(day);
            ids.push(id);
        }
        sqlx::query(RIPEN)
            .bind(days)
            .bind(ids)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        let mut named = Vec::with_capacity(concerned.len());
        for (channel, class) in concerned {
            named.push((self.channel_name(channel).await?, priority(class.into())?));
        }
        Ok(named)
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let since = self.open_since().await?;
        let due: Option<i64> = sqlx::query_scalar(NEXT_DUE)
            .bind(since)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        due.map(|due| timestamp(due, "deliveries.due_at"))
            .transpose()
    }

    async fn channels(&self) -> Result<Vec<(Arc<str>, bool)>, StoreError> {
        let since = self.open_since().await?;
        let channels: Vec<(String, bool)> = sqlx::query_as(CHANNELS)
            .bind(since)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        Ok(channels
            .into_iter()
            .map(|(name, unended)| (Arc::from(name), unended))
            .collect())
    }

    async fn lead(&self, channel: &str) -> Result<bool, StoreError> {
        self.leads.lead(channel).await
    }

    async fn resign(&self, channel: &str) {
        self.leads.resign(channel).await;
    }

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
                .fetch_all(&self.pool)
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
            let Some((last, ..)) = open.last() else {
                break;
            };
            after = *last;
            for (seq, day, _) in open {
                loop {
                    let woken: Vec<(i64, i16)> = sqlx::query_as(WAKE)
                        .bind(day)
                        .bind(seq)
                        .bind(SWEEP)
                        .fetch_all(&self.pool)
                        .await
                        .map_err(failed)?;
                    let is_last = (woken.len() as i64) < SWEEP;
                    concerned.extend(woken);
                    if is_last {
                        break;
                    }
                }
            }
        }
        // What was put to rest meanwhile keeps it: whoever does so holds the entry, and is seen by the next statement.
        let mut tx = self.begin().await?;
        for statement in [TO_WAKE, WOKEN] {
            sqlx::query(statement)
                .bind(namespace)
                .bind(template)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        let mut named = Vec::with_capacity(concerned.len());
        for (channel, class) in concerned {
            named.push((self.channel_name(channel).await?, priority(class.into())?));
        }
        Ok(named)
    }

    async fn cancel(
        &self,
        notification: &NotificationId,
        now: Timestamp,
    ) -> Result<Recalled, StoreError> {
        let open: Vec<Open> = sqlx::query_as(OPEN)
            .bind(notification.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        self.cancel_all(open, millis(now)).await
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
            let Some((last, ..)) = open.last() else {
                return Ok(recalled);
            };
            after = *last;
            let some = self.cancel_all(open, millis(now)).await?;
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
        let now = millis(now);
        let mut tx = self.begin().await?;
        let found: Option<Open> = sqlx::query_as(
            "UPDATE notifications SET priority = $2
             WHERE id = $1 AND ended_at IS NULL RETURNING seq, day, id",
        )
        .bind(notification.as_bytes().as_slice())
        .bind(priority.index() as i16)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some((seq, ..)) = &found else {
            return Ok(Recalled::default());
        };
        let detail = json(&serde_json::json!({ "priority": priority }));
        note(&mut tx, &[*seq], now, "prioritized", &detail).await?;
        tx.commit().await.map_err(failed)?;
        let found: Vec<Open> = found.into_iter().collect();
        self.sweep(&found, Order::Prioritize(priority), now).await
    }

    async fn end_late(&self, now: Timestamp) -> Result<u64, StoreError> {
        let now = millis(now);
        let mut ended = 0;
        let mut after = (i64::MIN, 0);
        loop {
            let late: Vec<(i64, i32, Vec<u8>, i64)> = sqlx::query_as(LATE)
                .bind(now)
                .bind(after.0)
                .bind(after.1)
                .bind(SWEEP)
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
            let Some((seq, .., expires_at)) = late.last() else {
                return Ok(ended);
            };
            after = (*expires_at, *seq);
            let of: Vec<Open> = late
                .into_iter()
                .map(|(seq, day, id, _)| (seq, day, id))
                .collect();
            ended += self.sweep(&of, Order::Expire, now).await?.waiting;
        }
    }

    async fn end_channel(
        &self,
        channel: &str,
        now: Timestamp,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let Some(channel) = self.known_channel(channel).await? else {
            return Ok(0);
        };
        let now = millis(now);
        let since = self.open_since().await?;
        let mut tx = self.begin().await?;
        let mut tally = Tally::default();
        let (mut days, mut ids) = (Vec::new(), Vec::new());
        for statement in OF_CHANNEL {
            let rows: Vec<(i32, Vec<u8>, i64, i16)> = sqlx::query_as(statement)
                .bind(channel)
                .bind((limit - ids.len()) as i64)
                .bind(since)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            for (day, id, seq, from) in rows {
                tally.moved(seq, Some(state(from.into())?), State::Failed, 1, now);
                days.push(day);
                ids.push(id);
            }
        }
        if ids.is_empty() {
            return Ok(0);
        }
        // Dead letters go on carrying their deliveries, unless those must not be kept.
        for statement in [END_OF_CHANNEL, DROP_SENSITIVE] {
            sqlx::query(statement)
                .bind(&days)
                .bind(&ids)
                .bind(now)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(ids.len() as u64)
    }

    async fn backlog(&self, channel: &str) -> Result<[Backlog; Priority::COUNT], StoreError> {
        let mut backlog = [Backlog::default(); Priority::COUNT];
        let Some(channel) = self.known_channel(channel).await? else {
            return Ok(backlog);
        };
        let since = self.open_since().await?;
        let due: Vec<(i16, i64, i64)> = sqlx::query_as(DUE)
            .bind(channel)
            .bind(since)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        for (class, count, oldest) in due {
            let of = &mut backlog[priority(class.into())?.index()];
            of.due = count as u64;
            of.oldest = Some(timestamp(oldest, "deliveries.due_at")?);
        }
        let scheduled: Vec<(i16, i64)> = sqlx::query_as(SCHEDULED)
            .bind(channel)
            .bind(since)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        for (class, count) in scheduled {
            backlog[priority(class.into())?.index()].scheduled += count as u64;
        }
        Ok(backlog)
    }

    async fn has_dead_letters(&self, channel: &str) -> Result<bool, StoreError> {
        let Some(channel) = self.known_channel(channel).await? else {
            return Ok(false);
        };
        sqlx::query_scalar(HAS_DEAD)
            .bind(channel)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)
    }
}

/// Wakes at most `$3` rows of a notification, given by day and number.
pub(super) const WAKE: &str =
    "UPDATE deliveries AS d SET waiting = 2 WHERE d.day = $1 AND d.id = ANY (ARRAY(
        SELECT w.id FROM deliveries AS w WHERE w.day = $1 AND w.waiting = 3 AND w.notification = $2
        LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING d.channel, d.priority";

pub(super) const TO_WAKE: &str =
    "SELECT 1 FROM resting WHERE namespace = $1 AND template = $2 FOR UPDATE";

pub(super) const WOKEN: &str =
    "DELETE FROM resting WHERE namespace = $1 AND template = $2 AND NOT EXISTS (
        SELECT 1 FROM notifications AS n CROSS JOIN LATERAL (
            SELECT 1 FROM deliveries AS w WHERE w.day = n.day AND w.waiting = 3 AND w.notification = n.seq LIMIT 1) AS d
        WHERE n.namespace = $1 AND n.template = $2 AND n.ended_at IS NULL)";

pub(super) const RIPEN: &str = by_keys!(
    "UPDATE deliveries AS d SET waiting = 2, state = CASE d.state WHEN 0 THEN 1 ELSE d.state END"
);

pub(super) const RIPE: &str = "SELECT d.day, d.id, d.channel, d.priority, d.notification, d.state
    FROM unnest(ARRAY[0, 1, 2, 3]::smallint[]) AS p(class) CROSS JOIN channels AS c CROSS JOIN LATERAL (
        SELECT w.* FROM deliveries AS w
        WHERE w.day >= $3 AND w.waiting = 1 AND w.channel = c.id AND w.priority = p.class AND w.due_at <= $1
        LIMIT $2 FOR UPDATE SKIP LOCKED) AS d
    LIMIT $2";

pub(super) const NEXT_DUE: &str = "SELECT min((SELECT min(d.due_at) FROM deliveries AS d
        WHERE d.day >= $1 AND d.waiting = 1 AND d.channel = c.id AND d.priority = p.class))
    FROM unnest(ARRAY[0, 1, 2, 3]::smallint[]) AS p(class) CROSS JOIN channels AS c";

/// Not with `EXISTS`, which may be answered by reading all that waits of all channels.
pub(super) const CHANNELS: &str = "SELECT c.name,
    coalesce(
        (SELECT true FROM deliveries AS d WHERE d.day >= $1 AND d.waiting = 2 AND d.channel = c.id LIMIT 1),
        (SELECT true FROM deliveries AS d WHERE d.day >= $1 AND d.waiting = 1 AND d.channel = c.id LIMIT 1),
        (SELECT true FROM deliveries AS d WHERE d.day >= $1 AND d.waiting >= 3 AND d.channel = c.id LIMIT 1),
        (SELECT true FROM deliveries AS d
         WHERE d.day >= $1 AND d.waiting = 0 AND d.ended_at IS NULL AND d.channel = c.id LIMIT 1), false)
    FROM channels AS c WHERE c.name <> ''";

macro_rules! of_channel {
    ($which:literal) => {
        concat!(
            "SELECT day, id, notification, state FROM deliveries WHERE day >= $3 AND channel = $1 AND ",
            $which,
            " LIMIT $2 FOR UPDATE SKIP LOCKED"
        )
    };
}

/// What waits for a channel: whatever others hold comes the next time.
pub(super) const OF_CHANNEL: [&str; 3] = [
    of_channel!("waiting = 2"),
    of_channel!("waiting = 1"),
    of_channel!("waiting >= 3"),
];

pub(super) const END_OF_CHANNEL: &str = by_keys!(
    "UPDATE deliveries AS d SET state = 7, waiting = 0, dead = true, ended_at = $3, reason = 'channel-deleted',
         error = NULL"
);

pub(super) const DROP_SENSITIVE: &str = "DELETE FROM carried AS c
    USING unnest($1::int[], $2::bytea[]) AS k(day, id)
    JOIN deliveries AS d ON d.day = k.day AND d.id = k.id JOIN notifications AS n ON n.seq = d.notification
    WHERE $3::bigint IS NOT NULL AND c.day = k.day AND c.id = k.id AND n.sensitive";

pub(super) const DUE: &str = "SELECT priority, count(*), min(due_at) FROM deliveries
    WHERE day >= $2 AND waiting = 2 AND channel = $1 GROUP BY priority";

/// In the order of channels, since the index of all dead letters looks as good where there are few.
pub(super) const HAS_DEAD: &str = "SELECT EXISTS (SELECT 1 FROM (
    SELECT channel FROM deliveries WHERE dead AND channel BETWEEN $1 AND $1 ORDER BY channel LIMIT 1) AS d)";

pub(super) const SCHEDULED: &str = "SELECT priority, count(*) FROM deliveries
    WHERE day >= $2 AND waiting = 1 AND channel = $1 GROUP BY priority
    UNION ALL SELECT priority, count(*) FROM deliveries
    WHERE day >= $2 AND waiting >= 3 AND channel = $1 GROUP BY priority";
