//! The waiting room: what is due, whose turn it is, what is called back.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;

use super::turns::{self, Head};
use super::{
    SqliteStore, delivery_id, failed, json, millis, notification_id, priority, state, timestamp,
};
use crate::id::NotificationId;
use crate::sqlite::Writer;
use crate::store::tally::Tally;
use crate::store::{
    Backlog, Chunk, Hold, News, Recalled, State, StoreError, Turn, Unreadable, Waiting,
    WaitingStore,
};

/// Most rows that one transaction changes when a whole notification is cancelled or given another class.
const SWEEP: i64 = 2_000;

/// Which of a notification's rows a sweep is about, and what it does to them.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// Those that wait become cancelled.
    Cancel,
    /// Those that wait become expired.
    Expire,
    /// Those that have not ended get this class.
    Prioritize(Priority),
}

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
        let hold = Box::new(Held(self.writer.clone()));
        let Some(channel) = self.known_channel(channel) else {
            return Ok(Chunk {
                rows: Vec::new(),
                unreadable: Vec::new(),
                next: turn.clone(),
                hold,
            });
        };
        let class = priority.index() as i64;
        let mut heads = self.heads(channel, class, turn, limit).await?;
        let mut rows: Vec<(usize, ChunkRow)> = Vec::with_capacity(limit);
        while rows.len() < limit && heads.iter().any(|head| head.open) {
            for ((taken, share), of) in turns::alike(&mut heads, limit - rows.len()) {
                let asked: Vec<_> = of
                    .iter()
                    .map(|index| (index, heads[*index].namespace, heads[*index].notification))
                    .collect();
                let found: Vec<ChunkRow> = sqlx::query_as(CHUNK)
                    .bind(channel)
                    .bind(class)
                    .bind(json(&asked))
                    .bind(share as i64)
                    .bind(taken as i64)
                    .fetch_all(&self.readers)
                    .await
                    .map_err(failed)?;
                for row in found {
                    let index = row.0 as usize;
                    heads[index].taken += 1;
                    heads[index].open = heads[index].taken == taken + share;
                    rows.push((index, row));
                }
            }
        }
        // In turn; those of one notification by due time.
        rows.sort_unstable_by_key(|(index, row)| (*index, row.7, row.1));
        let mut chunk = Chunk {
            rows: Vec::with_capacity(rows.len()),
            unreadable: Vec::new(),
            next: turns::after(turn, &heads),
            hold,
        };
        for (_, row) in rows {
            let number = row.1;
            match row_that_waits(row) {
                Ok(waiting) => chunk.rows.push(waiting),
                Err(error) => chunk.unreadable.push(Unreadable {
                    row: number,
                    reason: error.to_string(),
                }),
            }
        }
        Ok(chunk)
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
}

impl SqliteStore {
    /// The notifications that have rows of a channel and class to release, in turn: one of each namespace, then the next
    /// of each; at most `limit`.
    async fn heads(
        &self,
        channel: i64,
        class: i64,
        turn: &Turn,
        limit: usize,
    ) -> Result<Vec<Head>, StoreError> {
        let last = turn.notifications.iter();
        let last: BTreeMap<_, _> = last
            .map(|(space, seq)| (format!("n{space}"), seq))
            .collect();
        let heads: Vec<(i64, i64)> = sqlx::query_as(HEADS)
            .bind(channel)
            .bind(class)
            .bind(turn.namespace)
            .bind(json(&last))
            .bind(limit as i64)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        let heads = heads.into_iter().map(|(namespace, notification)| Head {
            namespace,
            notification,
            taken: 0,
            open: true,
        });
        Ok(heads.collect())
    }

    /// Numbers and ids of some notifications of a template that have not ended, after the one numbered `after`.
    async fn open_of_template(
        &self,
        namespace: &str,
        template: &str,
        after: i64,
    ) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        sqlx::query_as(OPEN_OF_TEMPLATE)
            .bind(namespace.to_owned())
            .bind(template.to_owned())
            .bind(after)
            .bind(SWEEP)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)
    }

    fn named(&self, numbers: Vec<(i64, i64)>) -> Result<Vec<(Arc<str>, Priority)>, StoreError> {
        numbers
            .into_iter()
            .map(|(channel, class)| Ok((self.channel_name(channel)?, priority(class)?)))
            .collect()
    }

    /// Cancels notifications, given by number and id: first that they are resolved no further, then what waits of them.
    async fn cancel_all(
        &self,
        notifications: &[(i64, Vec<u8>)],
        now: i64,
    ) -> Result<Recalled, StoreError> {
        if notifications.is_empty() {
            return Ok(Recalled::default());
        }
        let of: Vec<(i64, NotificationId)> = notifications
            .iter()
            .map(|(seq, id)| Ok((*seq, notification_id(id)?)))
            .collect::<Result<_, StoreError>>()?;
        let seqs: Vec<i64> = of.iter().map(|(seq, _)| *seq).collect();
        let numbers = json(&seqs);
        self.write(move |c| {
            Box::pin(async move {
                note(c, &numbers, now, "cancelled", "{}".to_owned()).await?;
                sqlx::query(
                    "UPDATE notifications SET cancelled_at = coalesce(cancelled_at, ?2), pending = 0,
                         held_recipients = NULL, held_allowed = NULL
                     WHERE seq IN (SELECT value FROM json_each(?1))",
                )
                .bind(numbers)
                .bind(now)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await?;
        let recalled = self.sweep(&of, Order::Cancel, now).await?;
        // Those that have no rows, or only ended ones, end with this.
        self.write(move |c| {
            Box::pin(async move {
                let mut tally = Tally::default();
                for seq in seqs {
                    tally.settled(seq, now);
                }
                tally.apply(c).await
            })
        })
        .await?;
        Ok(recalled)
    }

    /// Carries an order out on the rows of notifications (number and id), some rows at a time, so that no other writer
    /// waits for a million.
    ///
    /// Rows that a reader finds are looked at again by the writer. Whoever is interrupted repeats the order.
    async fn sweep(
        &self,
        notifications: &[(i64, NotificationId)],
        order: Order,
        now: i64,
    ) -> Result<Recalled, StoreError> {
        let mut ranges: Vec<(i64, Range)> = notifications
            .iter()
            .map(|(seq, id)| (*seq, Range::of(id)))
            .collect();
        let mut recalled = Recalled::default();
        let mut out: HashSet<(usize, i64)> = HashSet::new();
        let mut first = 0;
        loop {
            let found: Vec<(i64, i64, Vec<u8>, i64, i64)> = sqlx::query_as(OF_NOTIFICATIONS)
                .bind(json(&ranges[first..]))
                .bind(SWEEP)
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            let Some((place, _, id, _, _)) = found.last() else {
                break;
            };
            let next = first + *place as usize;
            ranges[next].1.0 = hex(id);
            let mut rows = Vec::with_capacity(found.len());
            for (place, row, _, waiting, channel) in found {
                let waits = waiting > 0;
                if waits || matches!(order, Order::Prioritize(_)) {
                    rows.push(row);
                }
                if waits {
                    recalled.waiting += 1;
                    // Ready, so perhaps just being released: whoever has it is told too.
                    if waiting == 2 {
                        out.insert((first + place as usize, channel));
                    }
                } else {
                    recalled.out += 1;
                    out.insert((first + place as usize, channel));
                }
            }
            first = next;
            if !rows.is_empty() {
                self.carry_out(order, rows, now).await?;
            }
        }
        for (place, channel) in out {
            recalled
                .out_by_channel
                .push((self.channel_name(channel)?, notifications[place].1));
        }
        Ok(recalled)
    }

    async fn carry_out(&self, order: Order, rows: Vec<i64>, now: i64) -> Result<(), StoreError> {
        let rows = json(&rows);
        self.write(move |c| {
            Box::pin(async move {
                match order {
                    Order::Prioritize(priority) => {
                        sqlx::query(
                            "UPDATE deliveries SET priority = ?2
                             WHERE row IN (SELECT value FROM json_each(?1)) AND ended_at IS NULL",
                        )
                        .bind(rows)
                        .bind(priority.index() as i64)
                        .execute(c)
                        .await
                        .map_err(failed)?;
                    }
                    Order::Cancel | Order::Expire => {
                        let to = match order {
                            Order::Expire => State::Expired,
                            _ => State::Cancelled,
                        };
                        let groups: Vec<(i64, i64, i64)> = sqlx::query_as(
                            "SELECT notification, state, count(*) FROM deliveries
                             WHERE row IN (SELECT value FROM json_each(?1)) AND waiting > 0
                             GROUP BY notification, state",
                        )
                        .bind(&rows)
                        .fetch_all(&mut *c)
                        .await
                        .map_err(failed)?;
                        let mut tally = Tally::default();
                        for (seq, from, n) in groups {
                            tally.moved(seq, Some(state(from)?), to, n, now);
                        }
                        for statement in [
                            "DELETE FROM carried WHERE row IN (
                                 SELECT row FROM deliveries
                                 WHERE row IN (SELECT value FROM json_each(?1)) AND waiting > 0)",
                            "UPDATE deliveries SET state = ?3, waiting = 0, ended_at = ?2
                             WHERE row IN (SELECT value FROM json_each(?1)) AND waiting > 0",
                        ] {
                            sqlx::query(statement)
                                .bind(&rows)
                                .bind(now)
                                .bind(to as i64)
                                .execute(&mut *c)
                                .await
                                .map_err(failed)?;
                        }
                        tally.apply(c).await?;
                    }
                }
                Ok(())
            })
        })
        .await
    }
}

/// There is nothing to hold: nobody else takes rows of this file.
struct Held(Writer);

#[async_trait]
impl Hold for Held {
    async fn settle(
        self: Box<Self>,
        left: &[(i64, u16, u16)],
        resting: &[i64],
        unreadable: &[Unreadable],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let unreadable: Vec<_> = unreadable
            .iter()
            .map(|one| (one.row, &one.reason))
            .collect();
        let any = [
            !left.is_empty(),
            !resting.is_empty(),
            !unreadable.is_empty(),
        ];
        let [left, resting, unreadable] = [json(left), json(resting), json(&unreadable)];
        let now = millis(now);
        self.0
            .run(move |c| {
                Box::pin(async move {
                    let [any_left, any_resting, any_unreadable] = any;
                    let mut tally = Tally::default();
                    if any_left {
                        for (seq, from, n) in grouped(c, RELEASED_GROUPS, &left).await? {
                            if from == State::Queued {
                                tally.moved(seq, Some(from), State::Sending, n, now);
                            }
                        }
                        change(c, RELEASED, &left, now).await?;
                    }
                    if any_resting {
                        for statement in [RESTING, REST] {
                            change(c, statement, &resting, now).await?;
                        }
                    }
                    if any_unreadable {
                        for (seq, from, n) in grouped(c, UNREADABLE_GROUPS, &unreadable).await? {
                            tally.moved(seq, Some(from), State::Failed, n, now);
                        }
                        for statement in [NOT_CARRIED, UNREADABLE] {
                            change(c, statement, &unreadable, now).await?;
                        }
                    }
                    tally.apply(c).await
                })
            })
            .await
    }
}

/// How many of the rows given each notification has in which state.
async fn grouped(
    connection: &mut sqlx::SqliteConnection,
    statement: &'static str,
    rows: &str,
) -> Result<Vec<(i64, State, i64)>, StoreError> {
    let groups: Vec<(i64, i64, i64)> = sqlx::query_as(statement)
        .bind(rows)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    groups
        .into_iter()
        .map(|(seq, from, n)| Ok((seq, state(from)?, n)))
        .collect()
}

/// Changes rows that are given as JSON.
async fn change(
    connection: &mut sqlx::SqliteConnection,
    statement: &'static str,
    rows: &str,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(statement)
        .bind(rows)
        .bind(now)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Notes in the trail of notifications (a JSON array of their numbers) what happened to them as a whole. What was
/// cancelled already is not cancelled again.
async fn note(
    connection: &mut sqlx::SqliteConnection,
    seqs: &str,
    at: i64,
    step: &'static str,
    detail: String,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO notification_trail (notification, at, step, detail)
         SELECT seq, ?2, ?3, ?4 FROM notifications
         WHERE seq IN (SELECT value FROM json_each(?1)) AND NOT (?3 = 'cancelled' AND cancelled_at IS NOT NULL)
         ON CONFLICT DO NOTHING",
    )
    .bind(seqs)
    .bind(at)
    .bind(step)
    .bind(detail)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Between which ids, in hexadecimal, a notification's deliveries are: greater than the first, less than the second.
#[derive(Debug, serde::Serialize)]
pub(super) struct Range(pub String, pub String);

impl Range {
    pub(super) fn of(id: &NotificationId) -> Self {
        let start = hex(&id.as_bytes()[..4]);
        // One byte more than an id has, so that it is greater than the greatest.
        let end = format!("{start}{}", "ff".repeat(9));
        Self(start, end)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Index of the head, row, id, notification's id, recipient, endpoint, locale, due, round, attempt, tried, the delivery
/// carried.
type ChunkRow = (
    i64,
    i64,
    Vec<u8>,
    Vec<u8>,
    String,
    String,
    String,
    i64,
    i64,
    i64,
    i64,
    Option<Vec<u8>>,
);

fn row_that_waits(row: ChunkRow) -> Result<Waiting, StoreError> {
    let (
        _,
        row,
        id,
        notification,
        recipient,
        endpoint,
        locale,
        due,
        round,
        attempt,
        tried,
        carried,
    ) = row;
    Ok(Waiting {
        row,
        id: delivery_id(&id)?,
        notification: notification_id(&notification)?,
        recipient: Arc::from(recipient),
        endpoint: Arc::from(endpoint),
        locale: Arc::from(locale),
        due: timestamp(due, "deliveries.due_at")?,
        round: round as u16,
        attempt: attempt as u16,
        tried: tried as u16,
        delivery: carried
            .map(|text| serde_json::from_slice(&text).map(Box::new))
            .transpose()
            .map_err(|error| super::corrupt("carried.delivery", &error))?,
    })
}

macro_rules! first {
    ($column:literal, $of:literal) => {
        concat!(
            "(SELECT ",
            $column,
            " FROM deliveries WHERE waiting = 2 AND channel = ?1 AND priority = ?2 ",
            $of,
            " ORDER BY ",
            $column,
            " LIMIT 1)"
        )
    };
}

/// Goes from one namespace to the next that has rows, and in each from one notification to the next, by the index alone.
/// After the last comes the first again; whoever comes again is dropped, which ends it. What is found first is looked
/// from first, so that namespaces take turns. `?3`: the last namespace, `?4`: the last notification of each.
pub(super) const HEADS: &str = concat!(
    "WITH RECURSIVE spaces (space) AS (
        SELECT coalesce(",
    first!("namespace", "AND namespace > ?3"),
    ", ",
    first!("namespace", ""),
    ") UNION SELECT coalesce(",
    first!("namespace", "AND namespace > space"),
    ", ",
    first!("namespace", ""),
    ") FROM spaces WHERE space IS NOT NULL LIMIT ?5),
    heads (space, seq) AS (
        SELECT space, coalesce(",
    first!(
        "notification",
        "AND namespace = space AND notification > coalesce(?4 ->> ('$.n' || space), 0)"
    ),
    ", ",
    first!("notification", "AND namespace = space"),
    ") FROM spaces WHERE space IS NOT NULL
        UNION SELECT space, coalesce(",
    first!(
        "notification",
        "AND namespace = space AND notification > seq"
    ),
    ", ",
    first!("notification", "AND namespace = space"),
    ") FROM heads LIMIT ?5)
    SELECT space, seq FROM heads"
);

/// Of each head (`?3`: index, namespace, notification) `?4` rows after the first `?5`.
pub(super) const CHUNK: &str =
    "SELECT h.value ->> 0, d.row, d.id, n.id, d.recipient, d.endpoint, d.locale, d.due_at,
        d.round, d.attempt, d.tried, c.delivery
    FROM json_each(?3) AS h CROSS JOIN deliveries AS d ON d.row IN (
        SELECT w.row FROM deliveries AS w WHERE w.waiting = 2 AND w.channel = ?1 AND w.priority = ?2
            AND w.namespace = (h.value ->> 1) AND w.notification = (h.value ->> 2)
        ORDER BY w.due_at, w.row LIMIT ?4 OFFSET ?5)
    CROSS JOIN notifications AS n ON n.seq = d.notification
    LEFT JOIN carried AS c ON c.row = d.row";

pub(super) const RELEASED_GROUPS: &str =
    "SELECT d.notification, d.state, count(*) FROM json_each(?1) AS r
    CROSS JOIN deliveries AS d ON d.row = (r.value ->> 0)
    WHERE d.waiting = 2 AND d.round = (r.value ->> 1) AND d.attempt = (r.value ->> 2)
    GROUP BY d.notification, d.state";

pub(super) const RELEASED: &str = "UPDATE deliveries SET waiting = 0, state = CASE state WHEN 1 THEN 2 ELSE state END,
        released_at = ?2, heard_at = max(coalesce(heard_at, 0), ?2)
    FROM json_each(?1) AS r
    WHERE row = (r.value ->> 0) AND waiting = 2 AND round = (r.value ->> 1) AND attempt = (r.value ->> 2)";

const RESTING: &str = "INSERT INTO resting (namespace, template)
    SELECT DISTINCT n.namespace, n.template FROM json_each(?1) AS j
    CROSS JOIN deliveries AS d ON d.row = j.value AND d.waiting = 2
    CROSS JOIN notifications AS n ON n.seq = d.notification
    WHERE ?2 IS NOT NULL ON CONFLICT DO NOTHING";

const REST: &str = "UPDATE deliveries SET waiting = 3
    WHERE row IN (SELECT value FROM json_each(?1)) AND waiting = 2 AND ?2 IS NOT NULL";

const UNREADABLE_GROUPS: &str = "SELECT d.notification, d.state, count(*) FROM json_each(?1) AS r
    CROSS JOIN deliveries AS d ON d.row = (r.value ->> 0) AND d.waiting = 2 GROUP BY d.notification, d.state";

const NOT_CARRIED: &str =
    "DELETE FROM carried WHERE row IN (SELECT value ->> 0 FROM json_each(?1)) AND ?2 IS NOT NULL";

const UNREADABLE: &str = "UPDATE deliveries SET state = 7, waiting = 0, dead = 1, ended_at = ?2,
        reason = 'unreadable', error = r.value ->> 1
    FROM json_each(?1) AS r WHERE row = (r.value ->> 0) AND waiting = 2";

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

/// In the order of the notifications given, and of ids within each: that is how the loops run, and sorting a million rows
/// for each page of them is out of the question.
pub(super) const OF_NOTIFICATIONS: &str = "SELECT n.key, d.row, d.id, d.waiting, d.channel FROM json_each(?1) AS n
    CROSS JOIN deliveries AS d ON d.id > unhex(n.value ->> '$[1][0]') AND d.id < unhex(n.value ->> '$[1][1]')
    WHERE d.notification = (n.value ->> 0) AND d.ended_at IS NULL LIMIT ?2";

pub(super) const OPEN_OF_TEMPLATE: &str = "SELECT seq, id FROM notifications
    WHERE namespace = ?1 AND template = ?2 AND ended_at IS NULL AND seq > ?3 ORDER BY seq LIMIT ?4";

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
