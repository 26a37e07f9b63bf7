//! What is called back, expired or given another class, some rows at a time.

use std::collections::{HashMap, HashSet};

use herald_crds::Priority;
use sqlx::postgres::PgConnection;

use super::{PostgresStore, failed, notification_id, state};
use crate::id::NotificationId;
use crate::store::tally::Tally;
use crate::store::{Recalled, State, StoreError};

/// Most rows that one transaction changes when a whole notification is cancelled or given another class.
pub(super) const SWEEP: i64 = 2_000;

/// Which of a notification's rows a sweep is about, and what it does to them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Those that wait become cancelled.
    Cancel,
    /// Those that wait become expired.
    Expire,
    /// Those that have not ended get this class.
    Prioritize(Priority),
}

impl Order {
    /// How rows that wait end; `None`: they do not.
    const fn end(self) -> Option<State> {
        match self {
            Self::Cancel => Some(State::Cancelled),
            Self::Expire => Some(State::Expired),
            Self::Prioritize(_) => None,
        }
    }
}

/// A notification that has not ended: number, day, id.
pub(super) type Open = (i64, i32, Vec<u8>);

impl PostgresStore {
    /// Notifications of a template that have not ended, after that number, some of them.
    pub(super) async fn open_of_template(
        &self,
        namespace: &str,
        template: &str,
        after: i64,
    ) -> Result<Vec<Open>, StoreError> {
        sqlx::query_as(OPEN_OF_TEMPLATE)
            .bind(namespace)
            .bind(template)
            .bind(after)
            .bind(SWEEP)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)
    }

    /// Cancels notifications: first that they are resolved no further, then what waits of them.
    pub(super) async fn cancel_all(&self, of: Vec<Open>, now: i64) -> Result<Recalled, StoreError> {
        if of.is_empty() {
            return Ok(Recalled::default());
        }
        let mut seqs: Vec<i64> = of.iter().map(|(seq, ..)| *seq).collect();
        seqs.sort_unstable();
        let mut tx = self.begin().await?;
        note(&mut tx, &seqs, now, "cancelled", "{}").await?;
        sqlx::query(CANCEL)
            .bind(&seqs)
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let recalled = self.sweep(&of, Order::Cancel, now).await?;
        // Those that have no rows, or only ended ones, end with this.
        let mut tally = Tally::default();
        for seq in seqs {
            tally.settled(seq, now);
        }
        let mut tx = self.begin().await?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(recalled)
    }

    /// Carries an order out on the rows of notifications, some rows at a time, so that no other writer waits for a million.
    ///
    /// All that has not ended is locked, so that what is just being released or recorded is seen as it becomes. Whoever is
    /// interrupted repeats the order.
    pub(super) async fn sweep(
        &self,
        of: &[Open],
        order: Order,
        now: i64,
    ) -> Result<Recalled, StoreError> {
        let mut recalled = Recalled::default();
        let mut out: HashSet<(i64, NotificationId)> = HashSet::new();
        for (seq, day, id) in of {
            let notification = notification_id(id)?;
            let (mut after, until) = range(id);
            loop {
                let mut tx = self.begin().await?;
                let rows: Vec<(Vec<u8>, i16, i16, i64)> = sqlx::query_as(OF_NOTIFICATION)
                    .bind(day)
                    .bind(&after)
                    .bind(&until)
                    .bind(seq)
                    .bind(SWEEP)
                    .fetch_all(&mut *tx)
                    .await
                    .map_err(failed)?;
                let Some((last, ..)) = rows.last() else {
                    break;
                };
                after.clone_from(last);
                let mut ids = Vec::with_capacity(rows.len());
                let mut from: HashMap<i16, i64> = HashMap::new();
                for (id, state, waiting, channel) in rows {
                    let waits = waiting > 0;
                    if waits {
                        recalled.waiting += 1;
                    } else {
                        recalled.out += 1;
                    }
                    // Ready, so perhaps just handed over by one whose hold was lost: whoever has it is told too.
                    if waiting == 0 || waiting == 2 {
                        out.insert((channel, notification));
                    }
                    if waits || matches!(order, Order::Prioritize(_)) {
                        *from.entry(state).or_default() += 1;
                        ids.push(id);
                    }
                }
                carry_out(&mut tx, order, *day, ids, now).await?;
                if let Some(to) = order.end() {
                    let mut tally = Tally::default();
                    for (from, n) in from {
                        tally.moved(*seq, Some(state(from.into())?), to, n, now);
                    }
                    tally.write(&mut tx).await?;
                }
                tx.commit().await.map_err(failed)?;
            }
        }
        for (channel, notification) in out {
            let channel = self.channel_name(channel).await?;
            recalled.out_by_channel.push((channel, notification));
        }
        Ok(recalled)
    }
}

async fn carry_out(
    connection: &mut PgConnection,
    order: Order,
    day: i32,
    ids: Vec<Vec<u8>>,
    now: i64,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    match order {
        Order::Prioritize(priority) => {
            sqlx::query(PRIORITIZED)
                .bind(day)
                .bind(ids)
                .bind(priority.index() as i16)
                .execute(connection)
                .await
                .map_err(failed)?;
        }
        Order::Cancel | Order::Expire => {
            sqlx::query(NOT_CARRIED)
                .bind(day)
                .bind(&ids)
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
            sqlx::query(CANCELLED)
                .bind(day)
                .bind(ids)
                .bind(now)
                .bind(order.end().map(|state| i16::from(state as u8)))
                .execute(connection)
                .await
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// Notes in the trail of notifications what happened to them as a whole. What was cancelled already is not cancelled again.
pub(super) async fn note(
    connection: &mut PgConnection,
    seqs: &[i64],
    at: i64,
    step: &'static str,
    detail: &str,
) -> Result<(), StoreError> {
    sqlx::query(NOTE)
        .bind(seqs)
        .bind(at)
        .bind(step)
        .bind(detail)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Between which ids a notification's deliveries are: greater than the first, less than the second.
pub(super) fn range(notification: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let prefix = notification.get(..4).unwrap_or(notification);
    // One byte more than an id has, so that it is greater than the greatest.
    (prefix.to_vec(), [prefix, &[0xff; 9]].concat())
}

pub(super) const OPEN: &str =
    "SELECT seq, day, id FROM notifications WHERE id = $1 AND ended_at IS NULL";

pub(super) const OPEN_OF_TEMPLATE: &str = "SELECT seq, day, id FROM notifications
    WHERE namespace = $1 AND template = $2 AND ended_at IS NULL AND seq > $3 ORDER BY seq LIMIT $4";

/// Notifications that have expired and of which something may wait.
pub(super) const LATE: &str = "SELECT seq, day, id, expires_at FROM notifications
    WHERE ended_at IS NULL AND expires_at IS NOT NULL AND expires_at <= $1 AND (expires_at, seq) > ($2, $3)
        AND scheduled + queued + retrying > 0
    ORDER BY expires_at, seq LIMIT $4";

pub(super) const CANCEL: &str =
    "UPDATE notifications AS n SET cancelled_at = coalesce(n.cancelled_at, $2), pending = 0,
        held_recipients = NULL, held_allowed = NULL
    FROM unnest($1::bigint[]) AS k(seq) WHERE n.seq = k.seq";

pub(super) const NOTE: &str = "INSERT INTO notification_trail (notification, at, step, detail)
    SELECT seq, $2::bigint, $3::text, $4::text FROM notifications
    WHERE seq = ANY($1::bigint[]) AND NOT ($3::text = 'cancelled' AND cancelled_at IS NOT NULL)
    ON CONFLICT DO NOTHING";

/// What has not ended of a notification, in the order of ids.
pub(super) const OF_NOTIFICATION: &str = "SELECT id, state, waiting, channel FROM deliveries
    WHERE day = $1 AND id > $2 AND id < $3 AND notification = $4 AND ended_at IS NULL
    ORDER BY id LIMIT $5 FOR UPDATE";

pub(super) const PRIORITIZED: &str =
    "UPDATE deliveries SET priority = $3 WHERE day = $1 AND id = ANY($2::bytea[])";

pub(super) const NOT_CARRIED: &str = "DELETE FROM carried WHERE day = $1 AND id = ANY($2::bytea[])";

pub(super) const CANCELLED: &str = "UPDATE deliveries SET state = $4, waiting = 0, ended_at = $3
    WHERE day = $1 AND id = ANY($2::bytea[])";
