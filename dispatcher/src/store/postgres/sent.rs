//! The plain case of recording, which nearly all is: a delivery went out once and was sent. One statement does what the
//! rule for all events does to such a row; whatever is not plain is left to that rule.

use std::collections::HashMap;

use sqlx::postgres::PgConnection;

use super::{clean, failed, millis};
use crate::id::DeliveryId;
use crate::message::{Event, Step};
use crate::store::tally::Tally;
use crate::store::{State, StoreError};

/// Outcomes of one batch, in the order of their deliveries: those that may be plain, and the others.
pub(super) fn divide<'e>(
    outcomes: impl Iterator<Item = &'e Event>,
) -> (Vec<&'e Event>, Vec<&'e Event>) {
    let outcomes: Vec<&Event> = outcomes.collect();
    let mut told: HashMap<DeliveryId, u32> = HashMap::with_capacity(outcomes.len());
    for event in &outcomes {
        *told.entry(event.delivery).or_default() += 1;
    }
    // What is told of a delivery stays together: its events may meet in one batch in any order.
    let (mut plain, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|event| {
        matches!(event.step, Step::Sent { .. })
            && (event.round, event.attempt) == (0, 1)
            && told.get(&event.delivery) == Some(&1)
    });
    plain.sort_unstable_by_key(|event| event.delivery);
    (plain, others)
}

/// Records what is plain of these, given in the order of their deliveries; answers the others.
pub(super) async fn record<'e>(
    connection: &mut PgConnection,
    events: Vec<&'e Event>,
) -> Result<Vec<&'e Event>, StoreError> {
    let n = events.len();
    let mut ids: Vec<&[u8]> = Vec::with_capacity(n);
    let mut notifications: Vec<&[u8]> = Vec::with_capacity(n);
    let (mut at, mut tried) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let (mut providers, mut provider_ids, mut times) = (
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::with_capacity(n),
    );
    for event in &events {
        let Step::Sent {
            provider,
            provider_id,
            milliseconds,
        } = &event.step
        else {
            continue;
        };
        ids.push(event.delivery.as_bytes());
        notifications.push(event.notification.as_bytes());
        at.push(millis(event.at));
        tried.push(i32::from(event.tried));
        providers.push(clean(provider));
        provider_ids.push(provider_id.as_deref().map(clean));
        times.push(i64::from(*milliseconds));
    }
    let recorded: Vec<(i32, i64)> = sqlx::query_as(SENT)
        .bind(ids)
        .bind(notifications)
        .bind(&at)
        .bind(tried)
        .bind(providers)
        .bind(provider_ids)
        .bind(times)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let mut tally = Tally::default();
    let mut is_recorded = vec![false; n];
    for (place, seq) in recorded {
        let place = place as usize - 1;
        is_recorded[place] = true;
        tally.moved(seq, Some(State::Sending), State::Sent, 1, at[place]);
    }
    tally.write(connection).await?;
    let rest = events.into_iter().zip(is_recorded);
    Ok(rest
        .filter(|(_, is_recorded)| !is_recorded)
        .map(|(event, _)| event)
        .collect())
}

/// Rows that are out for the first time, of which nothing was told yet: they carry nothing, and nothing is displaced. In
/// the order given; answers places in it, from 1, and numbers of notifications.
pub(super) const SENT: &str = "UPDATE deliveries AS d SET state = 9, heard_at = greatest(d.heard_at, f.at), tried = f.tried,
        ended_at = f.at, provider = f.provider, provider_id = f.provider_id, milliseconds = f.milliseconds, reason = NULL,
        error = NULL
    FROM (SELECT n.day, e.* FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::int[], $5::text[], $6::text[], $7::bigint[])
            WITH ORDINALITY AS e(id, notification, at, tried, provider, provider_id, milliseconds, place)
        JOIN notifications AS n ON n.id = e.notification OFFSET 0) AS f
    WHERE d.day = f.day AND d.id = f.id AND d.state = 2 AND d.waiting = 0 AND d.round = 0 AND d.attempt = 1
    RETURNING f.place::int, d.notification";
