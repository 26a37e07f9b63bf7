//! The plain cases of recording, which nearly all are: of the attempt that a row waits for it is told that it was sent, or
//! that a relay brings the next. One statement does to all such rows what the rule for all events does to each; whatever is
//! not plain is left to that rule.
//!
//! A statement names one day's partition: to find a partition for each row would cost as much as to write it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::folded::DROP_CARRIED;
use super::{PostgresStore, clean, failed, fold, millis, notification_id};
use crate::id::{DeliveryId, NotificationId};
use crate::message::{Event, Step};
use crate::store::tally::Tally;
use crate::store::{State, StoreError};

/// Outcomes of one batch, as they are recorded.
#[derive(Default)]
pub(super) struct Divided<'e> {
    /// May be plain, and were sent; in the order of their deliveries.
    pub sent: Vec<&'e Event>,
    /// May be plain, and are with a relay; in the order of their deliveries.
    pub retrying: Vec<&'e Event>,
    /// All others, in the order in which they came.
    pub others: Vec<&'e Event>,
}

/// Divides the outcomes of one batch.
pub(super) fn divide<'e>(outcomes: impl Iterator<Item = &'e Event>) -> Divided<'e> {
    let outcomes: Vec<&Event> = outcomes.collect();
    let mut told: HashMap<DeliveryId, u32> = HashMap::with_capacity(outcomes.len());
    for event in &outcomes {
        *told.entry(event.delivery).or_default() += 1;
    }
    let mut divided = Divided::default();
    for event in outcomes {
        // What is told of a delivery stays together: its events may meet in one batch in any order.
        let is_all = told.get(&event.delivery) == Some(&1);
        match event.step {
            Step::Sent { .. } if is_all => divided.sent.push(event),
            Step::Retrying { .. } if is_all => divided.retrying.push(event),
            _ => divided.others.push(event),
        }
    }
    divided.sent.sort_unstable_by_key(|event| event.delivery);
    divided
        .retrying
        .sort_unstable_by_key(|event| event.delivery);
    divided
}

/// Where a notification's rows are.
#[derive(Clone, Copy)]
struct Place {
    seq: i64,
    day: i32,
}

/// Which rows a statement changes: those of a day that wait to hear of this attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wait {
    day: i32,
    round: u16,
    attempt: u16,
}

impl Wait {
    /// What such a row is.
    const fn state(self) -> State {
        if self.attempt == 1 {
            State::Sending
        } else {
            State::Retrying
        }
    }

    /// Whether such a row may carry what came back before, which is outdated then.
    const fn may_carry(self) -> bool {
        self.attempt > 1 || self.round > 0
    }
}

impl PostgresStore {
    /// Records what is plain of these, all sent or all with a relay, given in the order of their deliveries; answers the
    /// others. A transaction for each statement: within one, rows are locked in the order of their ids.
    pub(super) async fn record_plain<'e>(
        &self,
        events: Vec<&'e Event>,
    ) -> Result<Vec<&'e Event>, StoreError> {
        if events.is_empty() {
            return Ok(events);
        }
        let places = self.places(&events).await?;
        let mut others = Vec::new();
        let mut alike: BTreeMap<Wait, Vec<(&'e Event, i64)>> = BTreeMap::new();
        for event in events {
            let Some(Place { seq, day }) = places.get(&event.notification) else {
                others.push(event);
                continue;
            };
            let wait = Wait {
                day: *day,
                round: event.round,
                attempt: event.attempt,
            };
            alike.entry(wait).or_default().push((event, *seq));
        }
        for (wait, events) in alike {
            let mut tx = self.begin().await?;
            others.extend(record(&mut tx, wait, events).await?);
            tx.commit().await.map_err(failed)?;
        }
        Ok(others)
    }

    /// Where the rows of these events' notifications are, as far as there are any.
    async fn places(
        &self,
        events: &[&Event],
    ) -> Result<HashMap<NotificationId, Place>, StoreError> {
        let mut of: Vec<&[u8]> = events
            .iter()
            .map(|event| event.notification.as_bytes().as_slice())
            .collect();
        of.sort_unstable();
        of.dedup();
        let found: Vec<(Vec<u8>, i64, i32)> = sqlx::query_as(PLACES)
            .bind(of)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        found
            .into_iter()
            .map(|(id, seq, day)| Ok((notification_id(&id)?, Place { seq, day })))
            .collect()
    }
}

/// Events as statements take them, a column each.
#[derive(Default)]
struct Columns<'e> {
    ids: Vec<&'e [u8]>,
    at: Vec<i64>,
    tried: Vec<i32>,
    providers: Vec<Option<Cow<'e, str>>>,
    /// What the provider called it, or what it said instead.
    said: Vec<Option<Cow<'e, str>>>,
    milliseconds: Vec<i64>,
    reasons: Vec<Cow<'e, str>>,
    details: Vec<String>,
}

impl<'e> Columns<'e> {
    fn add(&mut self, event: &'e Event) {
        self.ids.push(event.delivery.as_bytes());
        self.at.push(millis(event.at));
        self.tried.push(event.tried.into());
        match &event.step {
            Step::Sent {
                provider,
                provider_id,
                milliseconds,
            } => {
                self.providers.push(Some(clean(provider)));
                self.said.push(provider_id.as_deref().map(clean));
                self.milliseconds.push(i64::from(*milliseconds));
            }
            Step::Retrying { error, .. } => {
                self.providers.push(error.provider.as_deref().map(clean));
                self.said.push(Some(clean(&error.detail)));
                self.reasons.push(clean(&error.reason));
                self.details.push(fold::detail(event));
            }
            _ => {}
        }
    }
}

/// Records those that rows wait for, all sent or all with a relay; answers the others.
async fn record<'e>(
    connection: &mut PgConnection,
    wait: Wait,
    events: Vec<(&'e Event, i64)>,
) -> Result<Vec<&'e Event>, StoreError> {
    let is_sent = events
        .iter()
        .all(|(event, _)| matches!(event.step, Step::Sent { .. }));
    let mut columns = Columns::default();
    for (event, _) in &events {
        columns.add(event);
    }
    let (statement, to) = if is_sent {
        (SENT, State::Sent)
    } else {
        (RETRYING, State::Retrying)
    };
    let mut query = sqlx::query_scalar(AssertSqlSafe(of_day(statement, wait.day)))
        .bind(i32::from(wait.round))
        .bind(i32::from(wait.attempt))
        .bind(wait.state() as i16)
        .bind(columns.ids)
        .bind(&columns.at)
        .bind(columns.tried)
        .bind(columns.providers)
        .bind(columns.said);
    query = if is_sent {
        query.bind(columns.milliseconds)
    } else {
        query.bind(columns.reasons).bind(columns.details)
    };
    let recorded: Vec<i64> = query.fetch_one(&mut *connection).await.map_err(failed)?;
    if wait.may_carry() {
        let ids = recorded.iter().map(|place| events[*place as usize - 1].0);
        let ids: Vec<&[u8]> = ids
            .map(|event| event.delivery.as_bytes().as_slice())
            .collect();
        sqlx::query(DROP_CARRIED)
            .bind(vec![wait.day; ids.len()])
            .bind(ids)
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    let mut tally = Tally::default();
    let mut is_recorded = vec![false; events.len()];
    for place in recorded {
        let place = place as usize - 1;
        is_recorded[place] = true;
        let (_, seq) = events[place];
        tally.moved(seq, Some(wait.state()), to, 1, columns.at[place]);
    }
    tally.write(connection).await?;
    let rest = events.into_iter().zip(is_recorded);
    Ok(rest
        .filter(|(_, is_recorded)| !is_recorded)
        .map(|((event, _), _)| event)
        .collect())
}

/// The statement for the deliveries of one day.
pub(super) fn of_day(statement: &str, day: i32) -> String {
    statement.replace("{day}", &day.to_string())
}

/// Of a day that is dropped there are no rows.
pub(super) const PLACES: &str = "SELECT n.id, n.seq, n.day FROM unnest($1::bytea[]) AS k(id)
    JOIN notifications AS n ON n.id = k.id
    JOIN days AS d ON d.day = n.day";

/// Rows that are out and wait for what is told. In the order given; answers places in it, from 1.
///
/// Neither the day nor `d.id = f.id` is said: either would offer the planner the key as a way through the whole partition,
/// with a look through all that is given for each row, which it takes while the partition has no statistics.
pub(super) const SENT: &str = "WITH told AS (
        UPDATE deliveries_{day} AS d SET state = 9, heard_at = greatest(d.heard_at, f.at), tried = f.tried,
            ended_at = f.at, provider = f.provider, provider_id = f.said, milliseconds = f.milliseconds, reason = NULL,
            error = NULL
        FROM unnest($4::bytea[], $5::bigint[], $6::int[], $7::text[], $8::text[], $9::bigint[])
            WITH ORDINALITY AS f(id, at, tried, provider, said, milliseconds, place)
        WHERE d.id >= f.id AND d.id <= f.id AND d.waiting = 0 AND d.round = $1 AND d.attempt = $2 AND d.state = $3
        RETURNING f.place)
    SELECT coalesce(array_agg(place), '{}') FROM told";

/// The same for those that a relay brings again, with their lines of the trail.
pub(super) const RETRYING: &str = "WITH told AS (
        UPDATE deliveries_{day} AS d SET state = 3, heard_at = greatest(d.heard_at, f.at), tried = f.tried,
            attempt = least($2 + 1, 65535), provider = f.provider, provider_id = NULL, milliseconds = NULL,
            reason = f.reason, error = f.said
        FROM unnest($4::bytea[], $5::bigint[], $6::int[], $7::text[], $8::text[], $9::text[], $10::text[])
            WITH ORDINALITY AS f(id, at, tried, provider, said, reason, detail, place)
        WHERE d.id >= f.id AND d.id <= f.id AND d.waiting = 0 AND d.round = $1 AND d.attempt = $2 AND d.state = $3
        RETURNING f.place, f.id, f.at, f.detail),
    noted AS (
        INSERT INTO trail_{day} (day, id, at, round, attempt, step, detail)
        SELECT {day}, id, at, $1, $2, 'retrying', detail FROM told ON CONFLICT DO NOTHING)
    SELECT coalesce(array_agg(place), '{}') FROM told";
