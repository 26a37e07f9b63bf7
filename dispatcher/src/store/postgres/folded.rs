//! Outcomes are folded into their rows, which are locked in the order of their keys, changed by the one rule for all
//! databases, and written back as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::fold::{self, Carried, Change, Line, Row, Said};
use super::{clean, delivery_id, failed, json, millis, state};
use crate::id::{DeliveryId, NotificationId};
use crate::message::Event;
use crate::store::StoreError;
use crate::store::tally::Tally;

/// Locks deliveries, in the order of their ids, and reads them; those without a row are left out.
pub(super) async fn lock(
    connection: &mut PgConnection,
    ids: impl IntoIterator<Item = (DeliveryId, NotificationId)>,
) -> Result<Vec<(i32, DeliveryId, Row)>, StoreError> {
    let ids: BTreeMap<_, _> = ids.into_iter().collect();
    let (deliveries, notifications): (Vec<&[u8]>, Vec<&[u8]>) = ids
        .iter()
        .map(|(id, of)| (id.as_bytes().as_slice(), of.as_bytes().as_slice()))
        .unzip();
    let rows = sqlx::query(FOLDED)
        .bind(deliveries)
        .bind(notifications)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let mut locked = Vec::with_capacity(rows.len());
    let mut seqs = HashSet::new();
    for row in &rows {
        let (day, id, row) = read_row(row, locked.len())?;
        seqs.insert(row.seq);
        locked.push((day, id, row));
    }
    // Asked once the rows are held: whoever cancels says so first and looks for rows then, so that either it finds what
    // becomes of these rows, or it is seen here.
    let seqs: Vec<i64> = seqs.into_iter().collect();
    let called_back: Vec<i64> = sqlx::query_scalar(CALLED_BACK)
        .bind(seqs)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    if !called_back.is_empty() {
        let called_back: HashSet<i64> = called_back.into_iter().collect();
        for (_, _, row) in &mut locked {
            row.called_back = called_back.contains(&row.seq);
        }
    }
    Ok(locked)
}

/// Folds outcomes into their rows. Those without a row are kept until it appears, and answered.
pub(super) async fn fold_outcomes(
    connection: &mut PgConnection,
    outcomes: &[&Event],
) -> Result<Vec<DeliveryId>, StoreError> {
    let ids = outcomes
        .iter()
        .map(|event| (event.delivery, event.notification));
    let rows = lock(connection, ids).await?;
    let mut changes: HashMap<DeliveryId, Change> = rows
        .iter()
        .map(|(_, id, row)| (*id, Change::none(row.clone())))
        .collect();
    let (trail, orphans) = fold::fold_all(&mut changes, outcomes.iter().copied());
    keep_orphans(connection, &orphans).await?;
    let mut tally = Tally::default();
    let mut changed = Changes::default();
    let mut carried = CarriedChanges::default();
    for (day, id, _) in &rows {
        let Some(change) = changes.remove(id) else {
            continue;
        };
        carried.add(*day, *id, change.carried);
        let (was, is) = (change.was, change.is);
        if was == is {
            continue;
        }
        if was.state != is.state {
            let at = is.ended_at.unwrap_or(is.heard_at);
            tally.moved(is.seq, Some(was.state), is.state, 1, at);
        }
        changed.add(*day, *id, &is);
    }
    carried.write(connection).await?;
    changed.write(connection).await?;
    write_trail(connection, &rows, &trail).await?;
    tally.write(connection).await?;
    Ok(orphans.iter().map(|event| event.delivery).collect())
}

async fn keep_orphans(connection: &mut PgConnection, orphans: &[&Event]) -> Result<(), StoreError> {
    if orphans.is_empty() {
        return Ok(());
    }
    // In one order, so that two who keep the same ones do not wait for each other in a circle.
    let mut orphans = orphans.to_vec();
    orphans.sort_by_key(|event| (event.delivery, event.at, event.round, event.attempt));
    let ids: Vec<&[u8]> = orphans
        .iter()
        .map(|e| e.delivery.as_bytes().as_slice())
        .collect();
    let at: Vec<i64> = orphans.iter().map(|event| millis(event.at)).collect();
    let rounds: Vec<i32> = orphans.iter().map(|event| event.round.into()).collect();
    let attempts: Vec<i32> = orphans.iter().map(|event| event.attempt.into()).collect();
    let steps: Vec<&str> = orphans
        .iter()
        .map(|event| fold::name(&event.step))
        .collect();
    let of: Vec<&[u8]> = orphans
        .iter()
        .map(|event| event.notification.as_bytes().as_slice())
        .collect();
    let events: Vec<Vec<u8>> = orphans
        .iter()
        .map(|event| json(event).into_bytes())
        .collect();
    sqlx::query(
        "INSERT INTO orphans (delivery, at, round, attempt, step, notification, event)
         SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::int[], $4::int[], $5::text[], $6::bytea[], $7::bytea[])
         ON CONFLICT DO NOTHING",
    )
    .bind(ids)
    .bind(at)
    .bind(rounds)
    .bind(attempts)
    .bind(steps)
    .bind(of)
    .bind(events)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

fn read_row(row: &PgRow, place: usize) -> Result<(i32, DeliveryId, Row), StoreError> {
    let small = |index: usize| row.try_get::<i16, _>(index).map_err(failed);
    let int = |index: usize| row.try_get::<i32, _>(index).map_err(failed);
    let long = |index: usize| row.try_get::<i64, _>(index).map_err(failed);
    let optional = |index: usize| row.try_get::<Option<i64>, _>(index).map_err(failed);
    let text = |index: usize| row.try_get::<Option<String>, _>(index).map_err(failed);
    let id = delivery_id(row.try_get(1).map_err(failed)?)?;
    let folded = Row {
        number: place as i64,
        seq: long(2)?,
        called_back: false,
        state: state(small(3)?.into())?,
        waiting: small(4)? as u8,
        dead: row.try_get(5).map_err(failed)?,
        round: int(6)? as u16,
        attempt: int(7)? as u16,
        tried: int(8)? as u16,
        due_at: long(9)?,
        heard_at: long(10)?,
        ended_at: optional(11)?,
        said: Said {
            provider: text(12)?,
            provider_id: text(13)?,
            milliseconds: optional(14)?,
            reason: text(15)?,
            error: text(16)?,
        },
    };
    Ok((int(0)?, id, folded))
}

/// Rows as they become, a column each, in the order of their keys.
#[derive(Default)]
pub(super) struct Changes {
    days: Vec<i32>,
    ids: Vec<Vec<u8>>,
    states: Vec<i16>,
    waiting: Vec<i16>,
    dead: Vec<bool>,
    rounds: Vec<i32>,
    attempts: Vec<i32>,
    tried: Vec<i32>,
    due_at: Vec<i64>,
    heard_at: Vec<i64>,
    ended_at: Vec<Option<i64>>,
    providers: Vec<Option<String>>,
    provider_ids: Vec<Option<String>>,
    milliseconds: Vec<Option<i64>>,
    reasons: Vec<Option<String>>,
    errors: Vec<Option<String>>,
}

impl Changes {
    pub(super) fn add(&mut self, day: i32, id: DeliveryId, row: &Row) {
        let text = |text: &Option<String>| text.as_deref().map(|text| clean(text).into_owned());
        self.days.push(day);
        self.ids.push(id.as_bytes().to_vec());
        self.states.push(i16::from(row.state as u8));
        self.waiting.push(row.waiting.into());
        self.dead.push(row.dead);
        self.rounds.push(row.round.into());
        self.attempts.push(row.attempt.into());
        self.tried.push(row.tried.into());
        self.due_at.push(row.due_at);
        self.heard_at.push(row.heard_at);
        self.ended_at.push(row.ended_at);
        self.providers.push(text(&row.said.provider));
        self.provider_ids.push(text(&row.said.provider_id));
        self.milliseconds.push(row.said.milliseconds);
        self.reasons.push(text(&row.said.reason));
        self.errors.push(text(&row.said.error));
    }

    pub(super) async fn write(self, connection: &mut PgConnection) -> Result<(), StoreError> {
        if self.ids.is_empty() {
            return Ok(());
        }
        sqlx::query(FOLD)
            .bind(self.days)
            .bind(self.ids)
            .bind(self.states)
            .bind(self.waiting)
            .bind(self.dead)
            .bind(self.rounds)
            .bind(self.attempts)
            .bind(self.tried)
            .bind(self.due_at)
            .bind(self.heard_at)
            .bind(self.ended_at)
            .bind(self.providers)
            .bind(self.provider_ids)
            .bind(self.milliseconds)
            .bind(self.reasons)
            .bind(self.errors)
            .execute(connection)
            .await
            .map_err(failed)?;
        Ok(())
    }
}

/// What becomes of the deliveries that rows carry.
#[derive(Default)]
struct CarriedChanges {
    dropped: (Vec<i32>, Vec<Vec<u8>>),
    put: (Vec<i32>, Vec<Vec<u8>>, Vec<Vec<u8>>),
}

impl CarriedChanges {
    fn add(&mut self, day: i32, id: DeliveryId, carried: Carried) {
        let id = id.as_bytes().to_vec();
        match carried {
            Carried::Kept => {}
            Carried::Dropped => {
                self.dropped.0.push(day);
                self.dropped.1.push(id);
            }
            Carried::Put(delivery) => {
                self.put.0.push(day);
                self.put.1.push(id);
                self.put.2.push(delivery);
            }
        }
    }

    async fn write(self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let (days, ids) = self.dropped;
        if !ids.is_empty() {
            sqlx::query(DROP_CARRIED)
                .bind(days)
                .bind(ids)
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
        }
        let (days, ids, deliveries) = self.put;
        if !ids.is_empty() {
            sqlx::query(PUT_CARRIED)
                .bind(days)
                .bind(ids)
                .bind(deliveries)
                .execute(connection)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// Writes lines of the trail, whose rows are given by place.
pub(super) async fn write_trail(
    connection: &mut PgConnection,
    rows: &[(i32, DeliveryId, Row)],
    trail: &[Line],
) -> Result<(), StoreError> {
    if trail.is_empty() {
        return Ok(());
    }
    let of = |line: &Line| &rows[line.0 as usize];
    let days: Vec<i32> = trail.iter().map(|line| of(line).0).collect();
    let ids: Vec<&[u8]> = trail
        .iter()
        .map(|line| of(line).1.as_bytes().as_slice())
        .collect();
    let at: Vec<i64> = trail.iter().map(|line| line.1).collect();
    let rounds: Vec<i32> = trail.iter().map(|line| line.2.into()).collect();
    let attempts: Vec<i32> = trail.iter().map(|line| line.3.into()).collect();
    let steps: Vec<&str> = trail.iter().map(|line| line.4).collect();
    let details: Vec<&str> = trail.iter().map(|line| line.5.as_str()).collect();
    sqlx::query(
        "INSERT INTO trail (day, id, at, round, attempt, step, detail)
         SELECT * FROM unnest($1::int[], $2::bytea[], $3::bigint[], $4::int[], $5::int[], $6::text[], $7::text[])
         ON CONFLICT DO NOTHING",
    )
    .bind(days)
    .bind(ids)
    .bind(at)
    .bind(rounds)
    .bind(attempts)
    .bind(steps)
    .bind(details)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

/// In the order given, one after another.
pub(super) const FOLDED: &str = "SELECT d.day, d.id, d.notification, d.state, d.waiting, d.dead, d.round, d.attempt,
        d.tried, d.due_at, coalesce(d.heard_at, 0), d.ended_at, d.provider, d.provider_id, d.milliseconds,
        d.reason, d.error
    FROM unnest($1::bytea[], $2::bytea[]) AS e(id, notification)
    JOIN notifications AS n ON n.id = e.notification
    CROSS JOIN LATERAL (
        SELECT w.* FROM deliveries AS w WHERE w.day = n.day AND w.id = e.id OFFSET 0 FOR UPDATE) AS d";

pub(super) const CALLED_BACK: &str =
    "SELECT seq FROM notifications WHERE seq = ANY($1::bigint[]) AND cancelled_at IS NOT NULL";

pub(super) const FOLD: &str = "UPDATE deliveries AS d SET state = f.state, waiting = f.waiting, dead = f.dead,
        round = f.round, attempt = f.attempt, tried = f.tried, due_at = f.due_at, heard_at = f.heard_at,
        ended_at = f.ended_at, provider = f.provider, provider_id = f.provider_id,
        milliseconds = f.milliseconds, reason = f.reason, error = f.error
    FROM unnest($1::int[], $2::bytea[], $3::smallint[], $4::smallint[], $5::boolean[], $6::int[], $7::int[],
        $8::int[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::bigint[],
        $15::text[], $16::text[])
        AS f(day, id, state, waiting, dead, round, attempt, tried, due_at, heard_at, ended_at, provider,
            provider_id, milliseconds, reason, error)
    WHERE d.day = f.day AND d.id = f.id";

pub(super) const DROP_CARRIED: &str =
    "DELETE FROM carried AS c USING unnest($1::int[], $2::bytea[]) AS k(day, id)
    WHERE c.day = k.day AND c.id = k.id";

pub(super) const PUT_CARRIED: &str = "INSERT INTO carried (day, id, delivery)
    SELECT * FROM unnest($1::int[], $2::bytea[], $3::bytea[])
    ON CONFLICT (day, id) DO UPDATE SET delivery = excluded.delivery";
