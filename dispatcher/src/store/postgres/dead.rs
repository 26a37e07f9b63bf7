//! Dead letters: found, released again, let rest.

use jiff::Timestamp;
use sqlx::postgres::PgConnection;

use super::history::select_deliveries;
use super::{PostgresStore, corrupt, cursor, delivery_id, failed, json, millis, unanswered};
use crate::id::DeliveryId;
use crate::message::{Delivery, Suppression};
use crate::store::tally::Tally;
use crate::store::{
    DeadLetterFilter, DeliveryRecord, HistoryError, Page, Paging, Refusal, Replayed, State,
    StoreError,
};

/// Which dead letters are meant. `$1` namespace; `$2` and `$3` failed from and before; `$4` channel's number and `$5`
/// reason, each or NULL; `$6` ids, NULL: all.
macro_rules! dead {
    () => {
        "deliveries AS d JOIN notifications AS n ON n.seq = d.notification AND n.namespace = $1
         WHERE d.dead AND d.ended_at >= $2 AND d.ended_at < $3 AND ($4::bigint IS NULL OR d.channel = $4)
             AND ($5::text IS NULL OR d.reason = $5) AND $6::bytea[] IS NULL "
    };
}

/// The same for those ids alone: each begins with four bytes of its notification's.
macro_rules! dead_by_id {
    () => {
        "unnest($6::bytea[]) AS j(id)
         CROSS JOIN LATERAL (
             SELECT m.* FROM notifications AS m
             WHERE m.id >= substr(j.id, 1, 4) || '\\x000000000000000000000000'::bytea
                 AND m.id <= substr(j.id, 1, 4) || '\\xffffffffffffffffffffffff'::bytea OFFSET 0) AS n
         CROSS JOIN LATERAL (
             SELECT w.* FROM deliveries AS w WHERE w.day = n.day AND w.id = j.id AND w.notification = n.seq OFFSET 0) AS d
         WHERE n.namespace = $1 AND d.dead AND d.ended_at >= $2 AND d.ended_at < $3 AND ($4::bigint IS NULL OR d.channel = $4)
             AND ($5::text IS NULL OR d.reason = $5) "
    };
}

/// Before `$7` (when it failed) and `$8` (its id); `$9` limit.
macro_rules! page {
    ($($from:tt)*) => {
        select_deliveries!(
            $($from)*,
            "AND (d.ended_at, d.id) < ($7, $8) ORDER BY d.ended_at DESC, d.id DESC LIMIT $9"
        )
    };
}
pub(super) const DEAD: &str = page!(dead!());
pub(super) const DEAD_BY_ID: &str = page!(dead_by_id!());

/// Why the list suppresses a dead letter's address; NULL: it does not, or not for its template. `$7` are the mandatory
/// templates. An address is of one medium by its form, but for a phone's: of two entries the stricter holds.
macro_rules! suppressed {
    () => {
        "(SELECT s.reason FROM suppressions AS s
          WHERE s.namespace = $1 AND s.address = d.endpoint AND n.template <> ALL ($7::text[]) LIMIT 1)"
    };
}

/// Of a dead letter: nobody waits for what was called back, of what was sensitive nothing is kept once it has ended, and
/// to a suppressed address nothing goes.
macro_rules! cannot_be_replayed {
    () => {
        concat!(
            "(n.cancelled_at IS NOT NULL OR n.sensitive AND n.ended_at IS NOT NULL OR ",
            suppressed!(),
            " IS NOT NULL) "
        )
    };
}

/// Day, id, notification's number and when it failed, oldest first; `$8`: only those that can be replayed; `$9` limit.
macro_rules! pick {
    ($($from:tt)*) => {
        concat!(
            "SELECT d.day, d.id, d.notification, d.ended_at FROM ",
            $($from)*,
            "AND NOT ($8 AND ",
            cannot_be_replayed!(),
            ") ORDER BY d.ended_at, d.id LIMIT $9 FOR UPDATE OF d SKIP LOCKED"
        )
    };
}
pub(super) const PICK: &str = pick!(dead!());
pub(super) const PICK_BY_ID: &str = pick!(dead_by_id!());

/// Those that cannot be replayed, oldest first; whether they were called back or blanked, and why they are suppressed.
macro_rules! refused {
    ($($from:tt)*) => {
        concat!(
            "SELECT d.id, n.cancelled_at IS NOT NULL, n.sensitive AND n.ended_at IS NOT NULL, ",
            suppressed!(),
            " FROM ",
            $($from)*,
            "AND ",
            cannot_be_replayed!(),
            "ORDER BY d.ended_at, d.id LIMIT 1000"
        )
    };
}
pub(super) const REFUSED: &str = refused!(dead!());
pub(super) const REFUSED_BY_ID: &str = refused!(dead_by_id!());

macro_rules! of_picked {
    ($of:literal, $rest:literal) => {
        concat!(
            "FROM unnest($1::int[], $2::bytea[]) AS k(day, id) JOIN ",
            $of,
            " AS d ON d.day = k.day AND d.id = k.id ",
            $rest
        )
    };
}

/// Keeps in the trail what rows say themselves about the life that is over: when they were released and how they ended.
pub(super) const KEEP: [&str; 2] = [
    concat!(
        "INSERT INTO trail (day, id, at, round, attempt, step, detail)
         SELECT d.day, d.id, d.released_at, d.round, 1, 'released', '{}' ",
        of_picked!("deliveries", "WHERE d.released_at IS NOT NULL ON CONFLICT DO NOTHING")
    ),
    concat!(
        "INSERT INTO trail (day, id, at, round, attempt, step, detail)
         SELECT d.day, d.id, d.ended_at, d.round, d.attempt, 'failed',
             json_build_object('reason', d.reason, 'error', d.error, 'provider', d.provider)::text ",
        of_picked!("deliveries", "WHERE d.ended_at IS NOT NULL ON CONFLICT DO NOTHING")
    ),
];

pub(super) const REPLAY: &str = "UPDATE deliveries AS d SET dead = false, state = 1, waiting = 2, round = d.round + 1,
        attempt = 1, tried = 0, due_at = $3, released_at = NULL, heard_at = NULL, ended_at = NULL, provider = NULL,
        provider_id = NULL, milliseconds = NULL, reason = NULL, error = NULL
    FROM unnest($1::int[], $2::bytea[]) AS k(day, id) WHERE d.day = k.day AND d.id = k.id";

pub(super) const CARRIED: &str = concat!(
    "SELECT d.day, d.id, d.round, c.delivery ",
    of_picked!(
        "deliveries",
        "JOIN carried AS c ON c.day = k.day AND c.id = k.id"
    )
);

pub(super) const CARRY: &str = "UPDATE carried AS c SET delivery = k.delivery
    FROM unnest($1::int[], $2::bytea[], $3::bytea[]) AS k(day, id, delivery) WHERE c.day = k.day AND c.id = k.id";

pub(super) const DISCARD: &str = "UPDATE deliveries AS d SET dead = false
    FROM unnest($1::int[], $2::bytea[]) AS k(day, id) WHERE d.day = k.day AND d.id = k.id";

/// Notes a step of rows; `$3` is when, `$4` its name.
pub(super) const NOTE: &str = concat!(
    "INSERT INTO trail (day, id, at, round, attempt, step, detail)
     SELECT d.day, d.id, $3::bigint, d.round, d.attempt, $4::text, '{}' ",
    of_picked!("deliveries", "ON CONFLICT DO NOTHING")
);

/// A filter of dead letters, as statements take it.
struct Dead {
    namespace: String,
    from: i64,
    until: i64,
    channel: Option<i64>,
    reason: Option<String>,
    /// `None`: all.
    ids: Option<Vec<Vec<u8>>>,
    mandatory: Vec<String>,
}

impl Dead {
    fn bind<'q>(
        &'q self,
        statement: &'static str,
    ) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
        sqlx::query(statement)
            .bind(&self.namespace)
            .bind(self.from)
            .bind(self.until)
            .bind(self.channel)
            .bind(&self.reason)
            .bind(&self.ids)
    }

    /// One of two statements: for all, or for some ids.
    fn either(&self, all: &'static str, by_id: &'static str) -> &'static str {
        if self.ids.is_some() { by_id } else { all }
    }
}

/// Rows that were picked and are held: days and ids, and their notifications' numbers.
#[derive(Default)]
struct Picked {
    days: Vec<i32>,
    ids: Vec<Vec<u8>>,
    seqs: Vec<i64>,
    /// When the last of them failed.
    last: Option<i64>,
}

impl PostgresStore {
    /// What a filter of dead letters is to SQL; `None`: it means none, since there is no such channel.
    async fn dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
    ) -> Result<Option<Dead>, StoreError> {
        let channel = match filter.channel.as_deref() {
            Some(name) => match self.known_channel(name).await? {
                None => return Ok(None),
                number => number,
            },
            None => None,
        };
        let ids = filter.ids.iter().map(|id| id.as_bytes().to_vec());
        Ok(Some(Dead {
            namespace: namespace.to_owned(),
            from: filter.from.map_or(i64::MIN, millis),
            until: filter.until.map_or(i64::MAX, millis),
            channel,
            reason: filter.reason.clone(),
            ids: (!filter.ids.is_empty()).then(|| ids.collect()),
            mandatory: filter.mandatory.clone(),
        }))
    }

    /// Dead letters, newest first.
    pub(super) async fn page_of_dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        let after: Option<(i64, DeliveryId)> = cursor::after(paging)?;
        let (before, id) = after.map_or((i64::MAX, Vec::new()), |(at, id)| {
            (at, id.as_bytes().to_vec())
        });
        let dead = self.dead(namespace, filter).await;
        let Some(dead) = dead.map_err(HistoryError::Store)? else {
            return Ok(Page::none());
        };
        let rows = dead
            .bind(dead.either(DEAD, DEAD_BY_ID))
            .bind(before)
            .bind(id)
            .bind(cursor::rows(paging))
            .fetch_all(&self.pool)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows).await?;
        let page = cursor::page(paging, found, |last| {
            (last.record.ended_at.map(millis), last.record.id)
        });
        Ok(page.map(|found| found.record))
    }

    /// See [`HistoryStore::replay`](crate::store::HistoryStore::replay).
    pub(super) async fn replay_dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<Replayed, StoreError> {
        let Some(mut dead) = self.dead(namespace, filter).await? else {
            return Ok(Replayed::default());
        };
        let at = millis(now);
        let mut tx = self.begin().await?;
        let picked = pick(&mut tx, &dead, true, limit).await?;
        let count = picked.ids.len() as u64;
        if count > 0 {
            let mut tally = Tally::default();
            for seq in &picked.seqs {
                tally.moved(*seq, Some(State::Failed), State::Queued, 1, at);
            }
            for statement in KEEP {
                apply(&mut tx, statement, &picked).await?;
            }
            sqlx::query(REPLAY)
                .bind(&picked.days)
                .bind(&picked.ids)
                .bind(at)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            carry(&mut tx, &picked, now).await?;
            note(&mut tx, &picked, at, "replayed").await?;
            tally.write(&mut tx).await?;
        }
        tx.commit().await.map_err(failed)?;
        // What is dead still, as far as was looked, could not go out. Nobody has to wait while that is read.
        if let Some(last) = picked.last
            && picked.ids.len() == limit
        {
            dead.until = dead.until.min(last.saturating_add(1));
        }
        Ok(Replayed {
            count,
            refused: self.refused(&dead).await?,
        })
    }

    /// Which dead letters cannot be replayed, and why.
    async fn refused(&self, dead: &Dead) -> Result<Vec<(DeliveryId, Refusal)>, StoreError> {
        use sqlx::Row as _;
        let rows = dead
            .bind(dead.either(REFUSED, REFUSED_BY_ID))
            .bind(&dead.mandatory)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let refused = rows.into_iter().map(|row| {
            let id: &[u8] = row.try_get(0).map_err(failed)?;
            let called_back: bool = row.try_get(1).map_err(failed)?;
            let blanked: bool = row.try_get(2).map_err(failed)?;
            let listed: Option<&str> = row.try_get(3).map_err(failed)?;
            let refusal = match listed {
                _ if called_back => Refusal::CalledBack,
                Some(reason) if !blanked => Refusal::Suppressed(Suppression::of_list(reason)),
                _ => Refusal::Blanked,
            };
            Ok((delivery_id(id)?, refusal))
        });
        refused.collect()
    }

    /// See [`HistoryStore::discard`](crate::store::HistoryStore::discard).
    pub(super) async fn discard_dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let Some(dead) = self.dead(namespace, filter).await? else {
            return Ok(0);
        };
        let mut tx = self.begin().await?;
        let picked = pick(&mut tx, &dead, false, limit).await?;
        if !picked.ids.is_empty() {
            for statement in [DISCARD, super::folded::DROP_CARRIED] {
                apply(&mut tx, statement, &picked).await?;
            }
            note(&mut tx, &picked, millis(now), "discarded").await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(picked.ids.len() as u64)
    }
}

/// Dead letters, oldest first, locked.
async fn pick(
    connection: &mut PgConnection,
    dead: &Dead,
    only_wanted: bool,
    limit: usize,
) -> Result<Picked, StoreError> {
    use sqlx::Row as _;
    let rows = dead
        .bind(dead.either(PICK, PICK_BY_ID))
        .bind(&dead.mandatory)
        .bind(only_wanted)
        .bind(limit as i64)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    let mut picked = Picked::default();
    for row in rows {
        picked.days.push(row.try_get(0).map_err(failed)?);
        picked.ids.push(row.try_get(1).map_err(failed)?);
        picked.seqs.push(row.try_get(2).map_err(failed)?);
        picked.last = row.try_get(3).map_err(failed)?;
    }
    Ok(picked)
}

/// What is carried goes out as it is, but for what tells its new life from the old one. Which provider may have sent it
/// in the old one binds nobody: that it is sent again is somebody's will.
async fn carry(
    connection: &mut PgConnection,
    picked: &Picked,
    now: Timestamp,
) -> Result<(), StoreError> {
    let found: Vec<(i32, Vec<u8>, i32, Vec<u8>)> = sqlx::query_as(CARRIED)
        .bind(&picked.days)
        .bind(&picked.ids)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    if found.is_empty() {
        return Ok(());
    }
    let (mut days, mut ids, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for (day, id, round, text) in found {
        let delivery: Delivery =
            serde_json::from_slice(&text).map_err(|error| corrupt("carried.delivery", &error))?;
        let again = Delivery {
            round: round as u16,
            attempt: 1,
            tried: 0,
            ready_at: now,
            provider: None,
            ..delivery
        };
        days.push(day);
        ids.push(id);
        deliveries.push(json(&again).into_bytes());
    }
    sqlx::query(CARRY)
        .bind(days)
        .bind(ids)
        .bind(deliveries)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Does a statement to rows that were picked.
async fn apply(
    connection: &mut PgConnection,
    statement: &'static str,
    picked: &Picked,
) -> Result<(), StoreError> {
    sqlx::query(statement)
        .bind(&picked.days)
        .bind(&picked.ids)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn note(
    connection: &mut PgConnection,
    picked: &Picked,
    at: i64,
    step: &'static str,
) -> Result<(), StoreError> {
    sqlx::query(NOTE)
        .bind(&picked.days)
        .bind(&picked.ids)
        .bind(at)
        .bind(step)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}
