//! Events become rows: outcomes are folded, notifications that were fanned out without SQL are written down.
//!
//! Rows are locked in the order of their keys, folded by the one rule for all databases, and written back as a whole.
//! An outcome that comes before its row is kept, and whoever writes the row looks for it once the row can be seen; so does
//! whoever kept it, since the row may have come in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::fold::{self, Carried, Change, Line, Row, Said};
use super::rows::{Beginning, Of, Rows, insert, insert_definitions};
use super::{
    PostgresStore, clean, corrupt, days, delivery_id, failed, json, millis, notification_id,
    priority, sent, state, timestamp,
};
use crate::id::{self, DeliveryId, NotificationId};
use crate::message::{DefinitionHash, Direct, Event, Events, Garbage};
use crate::store::tally::Tally;
use crate::store::{Overdue, RecordStore, StoreError};

/// Most messages kept that cannot be read.
const MOST_GARBAGE: i64 = 1_000;

/// Orphans that are adopted in one transaction.
const ADOPTED: i64 = 1_000;

#[async_trait]
impl RecordStore for PostgresStore {
    async fn record(&self, channel: &str, events: &[Events]) -> Result<(), StoreError> {
        let garbage: Vec<&Garbage> = events.iter().flat_map(|events| &events.garbage).collect();
        self.keep_garbage(&garbage).await?;
        let directs: Vec<&Direct> = events.iter().flat_map(|events| &events.direct).collect();
        if !directs.is_empty() {
            self.record_directs(channel, &directs).await?;
        }
        // What the orders are about was changed in the rows before they were published: nothing is left to do for them.
        let outcomes = events.iter().flat_map(|events| &events.outcomes);
        let (plain, mut others) = sent::divide(outcomes);
        if !plain.is_empty() {
            let mut tx = self.begin().await?;
            others.extend(sent::record(&mut tx, plain).await?);
            tx.commit().await.map_err(failed)?;
        }
        // Not within one transaction with the plain ones, which would lock rows in two orders.
        if !others.is_empty() {
            let mut tx = self.begin().await?;
            let orphans = fold_outcomes(&mut tx, &others).await?;
            tx.commit().await.map_err(failed)?;
            self.adopt(orphans).await?;
        }
        Ok(())
    }

    async fn overdue(
        &self,
        channel: &str,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Overdue>, StoreError> {
        let Some(number) = self.known_channel(channel).await? else {
            return Ok(Vec::new());
        };
        let channel: Arc<str> = Arc::from(channel);
        let since = self.open_since().await?;
        let rows: Vec<(Vec<u8>, Vec<u8>, i16, i64, i32, i32, i32)> = sqlx::query_as(OVERDUE)
            .bind(number)
            .bind(millis(before))
            .bind(limit as i64)
            .bind(since)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        rows.into_iter()
            .map(|(id, notification, class, since, round, attempt, tried)| {
                Ok(Overdue {
                    id: delivery_id(&id)?,
                    notification: notification_id(&notification)?,
                    channel: Arc::clone(&channel),
                    priority: priority(class.into())?,
                    since: timestamp(since, "deliveries.heard_at")?,
                    round: round as u16,
                    attempt: attempt as u16,
                    tried: tried as u16,
                })
            })
            .collect()
    }

    async fn redrive(&self, overdue: &[Overdue], now: Timestamp) -> Result<u64, StoreError> {
        let now = millis(now);
        let mut tx = self.begin().await?;
        let ids = overdue.iter().map(|one| (one.id, one.notification));
        let rows = lock(&mut tx, ids).await?;
        let heard: HashMap<DeliveryId, i64> = overdue
            .iter()
            .map(|one| (one.id, millis(one.since)))
            .collect();
        let mut tally = Tally::default();
        let mut changes = Changes::default();
        let mut trail = Vec::new();
        let mut redriven = 0;
        for (place, (day, id, row)) in rows.iter().enumerate() {
            let is_out = row.waiting == 0 && row.ended_at.is_none();
            if !is_out || heard.get(id) != Some(&row.heard_at) {
                continue;
            }
            let (to, waiting) = fold::redriven(row.called_back, row.tried.into());
            tally.moved(row.seq, Some(row.state), to, 1, now);
            let mut row = row.clone();
            row.state = to;
            row.waiting = waiting;
            row.ended_at = row.called_back.then_some(now);
            row.due_at = row.due_at.max(now);
            if !row.called_back {
                redriven += 1;
                let (round, attempt) = (row.round, row.attempt);
                let detail = "{}".to_owned();
                trail.push(Line(place as i64, now, round, attempt, "redriven", detail));
            }
            changes.add(*day, *id, &row);
        }
        changes.write(&mut tx).await?;
        write_trail(&mut tx, &rows, &trail).await?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(redriven)
    }

    async fn expire(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.adopt_all().await?;
        self.delete_expired(before, limit).await
    }

    async fn unended(&self) -> Result<(u64, u64), StoreError> {
        let since = self.open_since().await?;
        let (waiting, out): (i64, i64) = sqlx::query_as(UNENDED)
            .bind(since)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        Ok((waiting as u64, out as u64))
    }
}

impl PostgresStore {
    /// Writes notifications down with the deliveries that are out already.
    async fn record_directs(&self, channel: &str, directs: &[&Direct]) -> Result<(), StoreError> {
        let mut definitions: HashMap<DefinitionHash, Bytes> = HashMap::new();
        let mut channels = HashMap::new();
        for direct in directs {
            let request = &direct.request;
            if !definitions.contains_key(&request.definition) {
                match STANDARD.decode(direct.definition.as_bytes()) {
                    Ok(definition) => {
                        definitions.insert(Arc::clone(&request.definition), definition.into());
                    }
                    Err(error) => tracing::warn!(
                        channel, notification = %request.id, %error,
                        "a definition cannot be read: what it said will not be shown"
                    ),
                }
            }
            for delivery in &direct.deliveries {
                if !channels.contains_key(&delivery.channel) {
                    let number = self.channel_number(&delivery.channel).await?;
                    channels.insert(Arc::clone(&delivery.channel), number);
                }
            }
        }
        let accepted = directs.iter().map(|direct| direct.request.accepted_at);
        self.ensure_days(accepted.map(|at| days::day(millis(at))))
            .await?;
        let definitions: Vec<_> = definitions.into_iter().collect();
        let requests: Vec<_> = directs.iter().map(|direct| &direct.request).collect();
        let mut tx = self.begin().await?;
        insert_definitions(&mut tx, &definitions).await?;
        let written = insert(&mut tx, self, &requests, Beginning::Resolved).await?;
        let mut rows = Rows::default();
        for (direct, written) in directs.iter().zip(&written) {
            let request = &direct.request;
            let of = Of {
                seq: written.seq,
                day: written.day,
                namespace: i64::from(id::order(&request.namespace)),
                priority: request.priority.index() as i16,
            };
            let at = millis(request.accepted_at);
            for delivery in &direct.deliveries {
                let number = channels[&delivery.channel];
                let (endpoint, locale) = (&delivery.endpoint, &delivery.locale);
                rows.direct(&delivery.id, of, number, endpoint, locale, at);
            }
        }
        let mut tally = Tally::default();
        rows.write(&mut tx, self, 0, &mut tally).await?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        let ids = directs.iter().flat_map(|direct| &direct.deliveries);
        self.adopt(ids.map(|delivery| delivery.id)).await
    }

    /// Keeps messages that cannot be read, each once.
    async fn keep_garbage(&self, garbage: &[&Garbage]) -> Result<(), StoreError> {
        if garbage.is_empty() {
            return Ok(());
        }
        for one in garbage {
            // Written by Herald; should it be no base64 all the same, it is kept as it is.
            let bytes = STANDARD
                .decode(one.bytes.as_bytes())
                .unwrap_or_else(|_| one.bytes.as_bytes().to_vec());
            sqlx::query(
                "INSERT INTO garbage (topic, message, at, reason, length, bytes)
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            )
            .bind(&*one.topic)
            .bind(one.message.to_string())
            .bind(millis(one.at))
            .bind(clean(&one.reason))
            .bind(one.length as i64)
            .bind(bytes)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        }
        sqlx::query(
            "DELETE FROM garbage WHERE number IN (SELECT number FROM garbage ORDER BY number DESC OFFSET $1)",
        )
        .bind(MOST_GARBAGE)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    /// Folds the outcomes that waited for these deliveries to have rows, if they have them now.
    pub(super) async fn adopt(
        &self,
        ids: impl IntoIterator<Item = DeliveryId>,
    ) -> Result<(), StoreError> {
        let ids: Vec<Vec<u8>> = ids.into_iter().map(|id| id.as_bytes().to_vec()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let waiting: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(ORPHANED)
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        if waiting.is_empty() {
            return Ok(());
        }
        let mut of = Vec::with_capacity(waiting.len());
        for (id, notification) in &waiting {
            of.push((delivery_id(id)?, notification_id(notification)?));
        }
        let waiting: Vec<Vec<u8>> = waiting.into_iter().map(|(id, _)| id).collect();
        let mut tx = self.begin().await?;
        // The rows first, as whoever keeps orphans does.
        lock(&mut tx, of).await?;
        let events: Vec<Vec<u8>> = sqlx::query_scalar(ADOPT)
            .bind(waiting)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut outcomes = Vec::with_capacity(events.len());
        for text in &events {
            let event: Event =
                serde_json::from_slice(text).map_err(|error| corrupt("orphans.event", &error))?;
            outcomes.push(event);
        }
        let outcomes: Vec<&Event> = outcomes.iter().collect();
        fold_outcomes(&mut tx, &outcomes).await?;
        tx.commit().await.map_err(failed)
    }

    /// The same for whatever was left by a gateway that ended between writing a row and looking for its outcomes.
    async fn adopt_all(&self) -> Result<(), StoreError> {
        let ids: Vec<Vec<u8>> = sqlx::query_scalar(ORPHANED_WITH_ROW)
            .bind(ADOPTED)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let ids: Vec<DeliveryId> = ids
            .iter()
            .map(|id| delivery_id(id))
            .collect::<Result<_, _>>()?;
        self.adopt(ids).await
    }
}

/// Locks deliveries, in the order of their ids, and reads them; those without a row are left out.
async fn lock(
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
async fn fold_outcomes(
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
struct Changes {
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
    fn add(&mut self, day: i32, id: DeliveryId, row: &Row) {
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

    async fn write(self, connection: &mut PgConnection) -> Result<(), StoreError> {
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
async fn write_trail(
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

pub(super) const ORPHANED: &str = "SELECT DISTINCT o.delivery, o.notification FROM unnest($1::bytea[]) AS k(id)
    JOIN orphans AS o ON o.delivery = k.id
    JOIN notifications AS n ON n.id = o.notification
    CROSS JOIN LATERAL (SELECT 1 FROM deliveries AS w WHERE w.day = n.day AND w.id = o.delivery OFFSET 0) AS d";

pub(super) const ADOPT: &str =
    "DELETE FROM orphans WHERE delivery = ANY($1::bytea[]) RETURNING event";

/// Orphans are few: they are gone as soon as their rows are there, and at the end of retention.
pub(super) const ORPHANED_WITH_ROW: &str = "SELECT DISTINCT o.delivery FROM orphans AS o
    JOIN notifications AS n ON n.id = o.notification
    CROSS JOIN LATERAL (SELECT 1 FROM deliveries AS w WHERE w.day = n.day AND w.id = o.delivery OFFSET 0) AS d
    LIMIT $1";

pub(super) const OVERDUE: &str = "SELECT d.id, n.id, d.priority, d.heard_at, d.round, d.attempt, d.tried
    FROM deliveries AS d
    JOIN notifications AS n ON n.seq = d.notification
    WHERE d.day >= $4 AND d.channel = $1 AND d.heard_at < $2 AND d.waiting = 0 AND d.ended_at IS NULL
    LIMIT $3";

pub(super) const UNENDED: &str = "SELECT
    (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 1)
        + (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 2)
        + (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 3),
    (SELECT count(*) FROM deliveries WHERE day >= $1 AND waiting = 0 AND ended_at IS NULL)";
