//! What is called back, expired or given another class, some rows at a time.

use std::collections::HashSet;
use std::sync::Arc;

use herald_crds::Priority;

use super::{SqliteStore, failed, json, notification_id, priority, state};
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

impl SqliteStore {
    /// Numbers and ids of some notifications of a template that have not ended, after the one numbered `after`.
    pub(super) async fn open_of_template(
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

    pub(super) fn named(
        &self,
        numbers: Vec<(i64, i64)>,
    ) -> Result<Vec<(Arc<str>, Priority)>, StoreError> {
        numbers
            .into_iter()
            .map(|(channel, class)| Ok((self.channel_name(channel)?, priority(class)?)))
            .collect()
    }

    /// Cancels notifications, given by number and id: first that they are resolved no further, then what waits of them.
    pub(super) async fn cancel_all(
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
    pub(super) async fn sweep(
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

/// Notes in the trail of notifications (a JSON array of their numbers) what happened to them as a whole. What was
/// cancelled already is not cancelled again.
pub(super) async fn note(
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

/// In the order of the notifications given, and of ids within each: that is how the loops run, and sorting a million rows
/// for each page of them is out of the question.
pub(super) const OF_NOTIFICATIONS: &str = "SELECT n.key, d.row, d.id, d.waiting, d.channel FROM json_each(?1) AS n
    CROSS JOIN deliveries AS d ON d.id > unhex(n.value ->> '$[1][0]') AND d.id < unhex(n.value ->> '$[1][1]')
    WHERE d.notification = (n.value ->> 0) AND d.ended_at IS NULL LIMIT ?2";

pub(super) const OPEN_OF_TEMPLATE: &str = "SELECT seq, id FROM notifications
    WHERE namespace = ?1 AND template = ?2 AND ended_at IS NULL AND seq > ?3 ORDER BY seq LIMIT ?4";
