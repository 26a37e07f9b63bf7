//! A chunk on its way out: taken in turn, and what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;

use super::turns::{self, Head};
use super::{SqliteStore, delivery_id, failed, json, millis, notification_id, state, timestamp};
use crate::sqlite::Writer;
use crate::store::tally::Tally;
use crate::store::{Chunk, Hold, State, StoreError, Turn, Unreadable, Waiting};

impl SqliteStore {
    /// See [`WaitingStore::chunk`](crate::store::WaitingStore::chunk).
    pub(super) async fn take_chunk(
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
