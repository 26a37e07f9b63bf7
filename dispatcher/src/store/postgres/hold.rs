//! A chunk on its way out: taken in turn, locked until it is settled.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::Priority;
use jiff::Timestamp;
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, Transaction};

use super::turns::{self, Head};
use super::{
    PostgresStore, by_keys, delivery_id, failed, json, millis, notification_id, state, timestamp,
};
use crate::store::tally::Tally;
use crate::store::{Chunk, Hold, Places, State, StoreError, Turn, Unreadable, Waiting};

impl PostgresStore {
    /// See [`WaitingStore::chunk`](crate::store::WaitingStore::chunk).
    pub(super) async fn take_chunk(
        &self,
        channel: &str,
        priority: Priority,
        turn: &Turn,
        limit: usize,
    ) -> Result<Chunk, StoreError> {
        let nothing = |turn: Turn, held| Chunk {
            rows: Vec::new(),
            unreadable: Vec::new(),
            next: turn,
            hold: Box::new(held),
        };
        let Some(channel) = self.known_channel(channel).await? else {
            return Ok(nothing(turn.clone(), Held::default()));
        };
        let class = priority.index() as i16;
        let since = self.open_since().await?;
        let mut tx = self.releasing.begin().await.map_err(failed)?;
        let mut places = turn.places.current();
        let of = (channel, class);
        let (mut heads, mut rows) = look(&mut tx, of, turn, &places, limit, since).await?;
        if rows.is_empty() && places != Places::default() {
            places = Places::default();
            (heads, rows) = look(&mut tx, of, turn, &places, limit, since).await?;
        }
        if rows.is_empty() {
            tx.rollback().await.map_err(failed)?;
            return Ok(nothing(turn.clone(), Held::default()));
        }
        // In turn; those of one notification by due time.
        rows.sort_unstable_by(|(a_index, a), (b_index, b)| {
            (a_index, a.1, &a.2).cmp(&(b_index, b.1, &b.2))
        });
        let mut held = Held {
            tx: Some(tx),
            ..Held::default()
        };
        let mut last: Vec<Option<&Taken>> = vec![None; heads.len()];
        for row in rows.iter().filter(|(index, _)| heads[*index].open) {
            last[row.0] = Some(row);
        }
        for (head, last) in heads.iter().zip(last) {
            if let Some((due, id)) = last.map(place) {
                places.note(head, due, id);
            } else if !head.open {
                places.forget(head);
            }
        }
        let mut waiting = Vec::with_capacity(rows.len());
        let mut unreadable = Vec::new();
        for (_, row) in rows {
            let number = held.take(&row)?;
            match row_that_waits(number, row) {
                Ok(row) => waiting.push(row),
                Err(error) => unreadable.push(Unreadable {
                    row: number,
                    reason: error.to_string(),
                }),
            }
        }
        Ok(Chunk {
            rows: waiting,
            unreadable,
            next: Turn {
                places,
                ..turns::after(turn, &heads)
            },
            hold: Box::new(held),
        })
    }
}

/// A row, with the index of its head.
type Taken = (usize, ChunkRow);

/// Heads, and their rows.
type Found = (Vec<Head>, Vec<Taken>);

/// The order in which a notification's rows are taken: due, id.
fn place((_, row): &Taken) -> (i64, &[u8]) {
    (row.1, &row.2)
}

/// Takes rows in turn, each notification's from its place on.
async fn look(
    connection: &mut PgConnection,
    (channel, class): (i64, i16),
    turn: &Turn,
    places: &Places,
    limit: usize,
    since: i32,
) -> Result<Found, StoreError> {
    let mut heads = heads(connection, (channel, class), turn, places, limit, since).await?;
    let mut rows: Vec<Taken> = Vec::with_capacity(limit);
    // Of each head, the last row that was taken: counted instead, a row that becomes ready meanwhile would have one come twice.
    let mut last: Vec<Option<usize>> = vec![None; heads.len()];
    while rows.len() < limit && heads.iter().any(|head| head.open) {
        for ((taken, share), of) in turns::alike(&mut heads, limit - rows.len()) {
            let mut columns = Asked::default();
            for index in of {
                let from = match last[index] {
                    Some(last) => Some(place(&rows[last])),
                    None => places.of(&heads[index]).map(|(due, id)| (*due, &id[..])),
                };
                columns.add(index, &heads[index], from);
            }
            let found: Vec<ChunkRow> = sqlx::query_as(CHUNK)
                .bind(channel)
                .bind(class)
                .bind(columns.places)
                .bind(columns.namespaces)
                .bind(columns.notifications)
                .bind(share as i64)
                .bind(columns.dues)
                .bind(columns.ids)
                .fetch_all(&mut *connection)
                .await
                .map_err(failed)?;
            for row in found {
                let index = row.0 as usize;
                heads[index].taken += 1;
                heads[index].open = heads[index].taken == taken + share;
                let row = (index, row);
                if last[index].is_none_or(|last| place(&rows[last]) < place(&row)) {
                    last[index] = Some(rows.len());
                }
                rows.push(row);
            }
        }
    }
    Ok((heads, rows))
}

/// Heads of which rows are asked for, a column each.
#[derive(Default)]
struct Asked<'a> {
    places: Vec<i64>,
    namespaces: Vec<i64>,
    notifications: Vec<i64>,
    dues: Vec<i64>,
    ids: Vec<&'a [u8]>,
}

impl<'a> Asked<'a> {
    /// A head, and after which row of it (due, id) to go on; `None`: from the start.
    fn add(&mut self, index: usize, head: &Head, from: Option<(i64, &'a [u8])>) {
        let (due, id) = from.unwrap_or((i64::MIN, &[]));
        self.places.push(index as i64);
        self.namespaces.push(head.namespace);
        self.notifications.push(head.notification);
        self.dues.push(due);
        self.ids.push(id);
    }
}

/// The notifications that have rows of a channel and class to release, in turn: one of each namespace, then the next of
/// each; at most `limit`.
async fn heads(
    connection: &mut PgConnection,
    (channel, class): (i64, i16),
    turn: &Turn,
    places: &Places,
    limit: usize,
    since: i32,
) -> Result<Vec<Head>, StoreError> {
    let (spaces, seqs): (Vec<i64>, Vec<i64>) = places.rows.keys().copied().unzip();
    let last: BTreeMap<String, i64> = turn
        .notifications
        .iter()
        .map(|(namespace, seq)| (namespace.to_string(), *seq))
        .collect();
    let heads: Vec<(i64, i64)> = sqlx::query_as(HEADS)
        .bind(channel)
        .bind(class)
        .bind(turn.namespace)
        .bind(json(&last))
        .bind(limit as i64)
        .bind(since)
        .bind(spaces)
        .bind(seqs)
        .fetch_all(connection)
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

/// Rows that are locked as long as this transaction is open.
#[derive(Default)]
struct Held {
    /// `None`: there are no rows.
    tx: Option<Transaction<'static, Postgres>>,
    rows: Vec<HeldRow>,
}

struct HeldRow {
    day: i32,
    id: Vec<u8>,
    seq: i64,
    state: State,
    round: u16,
    attempt: u16,
}

impl Held {
    /// Keeps a row; its number is its place in the chunk.
    fn take(&mut self, row: &ChunkRow) -> Result<i64, StoreError> {
        let (.., round, attempt, _, _, day, seq, from) = row;
        self.rows.push(HeldRow {
            day: *day,
            id: row.2.clone(),
            seq: *seq,
            state: state((*from).into())?,
            round: *round as u16,
            attempt: *attempt as u16,
        });
        Ok(self.rows.len() as i64 - 1)
    }
}

fn row_that_waits(number: i64, row: ChunkRow) -> Result<Waiting, StoreError> {
    let (_, due, id, notification, recipient, endpoint, locale, round, attempt, tried, carried, ..) =
        row;
    Ok(Waiting {
        row: number,
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

/// Rows that are held, by day and id.
fn keys<'r>(rows: impl IntoIterator<Item = &'r HeldRow>) -> (Vec<i32>, Vec<&'r [u8]>) {
    rows.into_iter()
        .map(|row| (row.day, row.id.as_slice()))
        .unzip()
}

#[async_trait]
impl Hold for Held {
    async fn settle(
        mut self: Box<Self>,
        left: &[(i64, u16, u16)],
        resting: &[i64],
        unreadable: &[Unreadable],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(mut tx) = self.tx.take() else {
            return Ok(());
        };
        let now = millis(now);
        let row = |number: i64| usize::try_from(number).ok().and_then(|n| self.rows.get(n));
        let left: Vec<&HeldRow> = left
            .iter()
            .filter_map(|(number, round, attempt)| {
                row(*number).filter(|row| (row.round, row.attempt) == (*round, *attempt))
            })
            .collect();
        let resting: Vec<&HeldRow> = resting.iter().filter_map(|number| row(*number)).collect();
        let (unreadable, reasons): (Vec<&HeldRow>, Vec<_>) = unreadable
            .iter()
            .filter_map(|one| Some((row(one.row)?, super::clean(&one.reason))))
            .unzip();
        let mut tally = Tally::default();
        if !left.is_empty() {
            for row in left.iter().filter(|row| row.state == State::Queued) {
                tally.moved(row.seq, Some(State::Queued), State::Sending, 1, now);
            }
            let (days, ids) = keys(left);
            sqlx::query(RELEASED)
                .bind(days)
                .bind(ids)
                .bind(now)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        if !resting.is_empty() {
            let (days, ids) = keys(resting);
            for statement in [RESTING, REST] {
                sqlx::query(statement)
                    .bind(&days)
                    .bind(&ids)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
            }
        }
        if !unreadable.is_empty() {
            for row in &unreadable {
                tally.moved(row.seq, Some(row.state), State::Failed, 1, now);
            }
            let (days, ids) = keys(unreadable);
            sqlx::query(super::folded::DROP_CARRIED)
                .bind(&days)
                .bind(&ids)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            sqlx::query(UNREADABLE)
                .bind(days)
                .bind(ids)
                .bind(now)
                .bind(reasons)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)
    }
}

/// Index of the head, due, id, notification's id, recipient, endpoint, locale, round, attempt, tried, the delivery carried;
/// day, notification's number, state.
type ChunkRow = (
    i64,
    i64,
    Vec<u8>,
    Vec<u8>,
    String,
    String,
    String,
    i32,
    i32,
    i32,
    Option<Vec<u8>>,
    i32,
    i64,
    i16,
);

/// The next after `$from` of what is ready, or of those that have a place, which are taken to have more: of what they had
/// before it nothing is looked at, though the index still holds it.
macro_rules! next {
    ($column:literal, $place:literal, $from:literal, $of:literal, $with:literal) => {
        concat!(
            "coalesce((SELECT ",
            $column,
            " FROM deliveries WHERE day >= $6 AND waiting = 2 AND channel = $1 AND priority = $2 ",
            $of,
            " AND ",
            $column,
            " > ",
            $from,
            " AND ",
            $column,
            " < coalesce(",
            next!($place, $from, $with),
            ", 9223372036854775807) ORDER BY ",
            $column,
            " LIMIT 1), ",
            next!($place, $from, $with),
            ")"
        )
    };
    ($place:literal, $from:literal, $with:literal) => {
        concat!(
            "(SELECT min(p.",
            $place,
            ") FROM places AS p WHERE p.",
            $place,
            " > ",
            $from,
            " ",
            $with,
            ")"
        )
    };
    (space after $from:literal) => {
        next!("namespace", "space", $from, "", "")
    };
    (notification of turns after $from:literal) => {
        next!(
            "notification",
            "seq",
            $from,
            "AND namespace = turns.space",
            "AND p.space = turns.space"
        )
    };
    (notification of heads after $from:literal) => {
        next!(
            "notification",
            "seq",
            $from,
            "AND namespace = heads.space",
            "AND p.space = heads.space"
        )
    };
}

/// Goes from one namespace to the next that has rows, and in each from one notification to the next, by the index alone.
/// After the last comes the first again; whoever comes again is dropped, which ends it. What is found first is looked
/// from first, so that namespaces take turns. `$3`: the last namespace, `$4`: the last notification of each, `$6`: since
/// which day something has not ended, `$7` and `$8`: which namespaces' notifications have a place.
pub(super) const HEADS: &str = concat!(
    "WITH RECURSIVE places AS MATERIALIZED (SELECT * FROM unnest($7::bigint[], $8::bigint[]) AS p(space, seq)),
    spaces (space) AS (
        SELECT coalesce(",
    next!(space after "$3"),
    ", ",
    next!(space after "-1"),
    ") UNION SELECT coalesce(",
    next!(space after "spaces.space"),
    ", ",
    next!(space after "-1"),
    ") FROM spaces WHERE space IS NOT NULL),
    turns AS (SELECT space FROM spaces WHERE space IS NOT NULL LIMIT $5),
    heads (space, seq) AS (
        SELECT space, coalesce(",
    next!(notification of turns after "coalesce(($4::text::jsonb ->> turns.space::text)::bigint, 0)"),
    ", ",
    next!(notification of turns after "0"),
    ") FROM turns
        UNION SELECT space, coalesce(",
    next!(notification of heads after "heads.seq"),
    ", ",
    next!(notification of heads after "0"),
    ") FROM heads)
    SELECT space, seq FROM heads LIMIT $5"
);

/// Of each head (`$3`: index, `$4`: namespace, `$5`: notification) `$6` rows after the one where it goes on (`$7`: due, `$8`:
/// id), but for those that somebody else holds.
pub(super) const CHUNK: &str = "SELECT h.place, d.due_at, d.id, n.id, d.recipient, d.endpoint, d.locale, d.round,
        d.attempt, d.tried, c.delivery, d.day, d.notification, d.state
    FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $7::bigint[], $8::bytea[]) AS h(place, namespace, seq, due, id)
    JOIN notifications AS n ON n.seq = h.seq
    CROSS JOIN LATERAL (
        SELECT w.* FROM deliveries AS w WHERE w.day = n.day AND w.waiting = 2 AND w.channel = $1 AND w.priority = $2
            AND w.namespace = h.namespace AND w.notification = h.seq AND (w.due_at, w.id) > (h.due, h.id)
        ORDER BY w.due_at, w.id LIMIT $6 FOR UPDATE SKIP LOCKED) AS d
    LEFT JOIN carried AS c ON c.day = d.day AND c.id = d.id";

/// The rows are held: nobody has changed them.
pub(super) const RELEASED: &str = by_keys!(
    "UPDATE deliveries AS d SET waiting = 0, state = CASE d.state WHEN 1 THEN 2 ELSE d.state END, released_at = $3,
         heard_at = greatest(d.heard_at, $3)"
);

/// Of rows that rest from now on. An entry that is there is held, so that nobody takes it for done with.
pub(super) const RESTING: &str = "INSERT INTO resting (namespace, template)
    SELECT DISTINCT n.namespace, n.template FROM unnest($1::int[], $2::bytea[]) AS k(day, id)
    JOIN deliveries AS d ON d.day = k.day AND d.id = k.id AND d.waiting = 2
    JOIN notifications AS n ON n.seq = d.notification
    ORDER BY n.namespace, n.template
    ON CONFLICT (namespace, template) DO UPDATE SET template = excluded.template";

pub(super) const REST: &str = by_keys!(
    "UPDATE deliveries AS d SET waiting = 3",
    " AND d.waiting = 2"
);

pub(super) const UNREADABLE: &str = "UPDATE deliveries AS d SET state = 7, waiting = 0, dead = true, ended_at = $3,
        reason = 'unreadable', error = k.error
    FROM unnest($1::int[], $2::bytea[], $4::text[]) AS k(day, id, error) WHERE d.day = k.day AND d.id = k.id
        AND d.waiting = 2";
