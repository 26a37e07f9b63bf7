//! Outcomes are folded into their rows, which are read, changed by the one rule for all databases, and written back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::fold::{self, Carried, Change, Line, Row, Said};
use super::{corrupt, delivery_id, failed, json, millis, state};
use crate::id::DeliveryId;
use crate::message::Event;
use crate::store::StoreError;
use crate::store::tally::Tally;

/// Takes the outcomes that waited for these deliveries (a JSON array of ids) to have rows.
pub(super) async fn adopt(
    connection: &mut SqliteConnection,
    ids: &str,
) -> Result<Vec<Event>, StoreError> {
    let events: Vec<Vec<u8>> = sqlx::query_scalar(
        "DELETE FROM orphans WHERE delivery IN (SELECT unhex(value) FROM json_each(?1)) RETURNING event",
    )
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(failed)?;
    events
        .iter()
        .map(|text| serde_json::from_slice(text).map_err(|error| corrupt("orphans.event", &error)))
        .collect()
}

/// Folds outcomes into their rows; those without a row are kept until it appears.
pub(super) async fn fold_outcomes(
    connection: &mut SqliteConnection,
    outcomes: &[Event],
    orphaned: &AtomicBool,
) -> Result<(), StoreError> {
    if outcomes.is_empty() {
        return Ok(());
    }
    let mut changes = read_rows(connection, outcomes).await?;
    let (trail, orphans) = fold::fold_all(&mut changes, outcomes);
    let orphans: Vec<_> = orphans
        .into_iter()
        .map(|event| {
            let Event {
                delivery,
                at,
                round,
                attempt,
                ref step,
                ..
            } = *event;
            (
                delivery,
                millis(at),
                round,
                attempt,
                fold::name(step),
                json(event),
            )
        })
        .collect();
    if !orphans.is_empty() {
        orphaned.store(true, Ordering::Release);
        sqlx::query(
            "INSERT INTO orphans (delivery, at, round, attempt, step, event)
             SELECT unhex(o.value ->> 0), o.value ->> 1, o.value ->> 2, o.value ->> 3, o.value ->> 4,
                 CAST(o.value ->> 5 AS BLOB)
             FROM json_each(?1) AS o WHERE true ON CONFLICT DO NOTHING",
        )
        .bind(json(&orphans))
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    write_rows(connection, changes).await?;
    write_trail(connection, &trail).await
}

async fn read_rows(
    connection: &mut SqliteConnection,
    outcomes: &[Event],
) -> Result<HashMap<DeliveryId, Change>, StoreError> {
    let ids: Vec<DeliveryId> = outcomes.iter().map(|event| event.delivery).collect();
    let rows = sqlx::query(FOLDED)
        .bind(json(&ids))
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    let mut changes = HashMap::with_capacity(rows.len());
    for row in rows {
        let (id, was) = read_row(&row)?;
        changes.entry(id).or_insert_with(|| Change::none(was));
    }
    Ok(changes)
}

fn read_row(row: &SqliteRow) -> Result<(DeliveryId, Row), StoreError> {
    let number = |index: usize| row.try_get::<i64, _>(index).map_err(failed);
    let optional = |index: usize| row.try_get::<Option<i64>, _>(index).map_err(failed);
    let text = |index: usize| row.try_get::<Option<String>, _>(index).map_err(failed);
    let id = delivery_id(row.try_get(0).map_err(failed)?)?;
    let row = Row {
        number: number(1)?,
        seq: number(2)?,
        called_back: number(3)? != 0,
        state: state(number(4)?)?,
        waiting: number(5)? as u8,
        dead: number(6)? != 0,
        round: number(7)? as u16,
        attempt: number(8)? as u16,
        tried: number(9)? as u16,
        due_at: number(10)?,
        heard_at: number(11)?,
        ended_at: optional(12)?,
        said: Said {
            provider: text(13)?,
            provider_id: text(14)?,
            milliseconds: optional(15)?,
            reason: text(16)?,
            error: text(17)?,
        },
    };
    Ok((id, row))
}

async fn write_rows(
    connection: &mut SqliteConnection,
    changes: HashMap<DeliveryId, Change>,
) -> Result<(), StoreError> {
    let mut tally = Tally::default();
    let mut rows = Vec::with_capacity(changes.len());
    let mut dropped = Vec::new();
    for Change { was, is, carried } in changes.values() {
        match carried {
            Carried::Kept => {}
            Carried::Dropped => dropped.push(is.number),
            Carried::Put(delivery) => {
                sqlx::query(
                    "INSERT INTO carried (row, delivery) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET delivery = excluded.delivery",
                )
                .bind(is.number)
                .bind(delivery.clone())
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
            }
        }
        if was == is {
            continue;
        }
        if was.state != is.state {
            let at = is.ended_at.unwrap_or(is.heard_at);
            tally.moved(is.seq, Some(was.state), is.state, 1, at);
        }
        let said = &is.said;
        rows.push((
            is.number,
            is.state as u8,
            is.waiting,
            u8::from(is.dead),
            is.round,
            is.attempt,
            is.tried,
            is.due_at,
            is.heard_at,
            is.ended_at,
            &said.provider,
            &said.provider_id,
            said.milliseconds,
            &said.reason,
            &said.error,
        ));
    }
    if !dropped.is_empty() {
        sqlx::query("DELETE FROM carried WHERE row IN (SELECT value FROM json_each(?1))")
            .bind(json(&dropped))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    if !rows.is_empty() {
        sqlx::query(FOLD)
            .bind(json(&rows))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    tally.apply(connection).await
}

pub(super) async fn write_trail(
    connection: &mut SqliteConnection,
    trail: &[Line],
) -> Result<(), StoreError> {
    if trail.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO trail (row, at, round, attempt, step, detail)
         SELECT l.value ->> 0, l.value ->> 1, l.value ->> 2, l.value ->> 3, l.value ->> 4, l.value ->> 5
         FROM json_each(?1) AS l WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(json(trail))
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

pub(super) const FOLDED: &str = "SELECT d.id, d.row, d.notification, n.cancelled_at IS NOT NULL, d.state, d.waiting,
        d.dead, d.round, d.attempt, d.tried, d.due_at, coalesce(d.heard_at, 0), d.ended_at, d.provider,
        d.provider_id, d.milliseconds, d.reason, d.error
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.id = unhex(j.value)
    CROSS JOIN notifications AS n ON n.seq = d.notification";

pub(super) const FOLD: &str = "UPDATE deliveries SET state = f.value ->> 1, waiting = f.value ->> 2, dead = f.value ->> 3,
        round = f.value ->> 4, attempt = f.value ->> 5, tried = f.value ->> 6, due_at = f.value ->> 7,
        heard_at = f.value ->> 8, ended_at = f.value ->> 9, provider = f.value ->> 10,
        provider_id = f.value ->> 11, milliseconds = f.value ->> 12, reason = f.value ->> 13, error = f.value ->> 14
    FROM json_each(?1) AS f WHERE row = (f.value ->> 0)";
