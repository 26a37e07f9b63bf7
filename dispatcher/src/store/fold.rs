//! How an event changes a row: pure.
//!
//! An event counts only if it is beyond what the row says, so repeats, reorderings and interleavings of the same events
//! give the same row:
//!
//! - an end is beyond everything that is no end, whatever their attempts, and beyond another end if its
//!   (round, rank, attempt) is; what remains equal is decided by the state, the time and the text, so that it is decided;
//! - a retry is beyond a row that has not ended if its attempt is not behind the one that the row waits for;
//! - an event of a later round is beyond everything of an earlier one.
//!
//! Of one attempt at most one retry is told, since a second copy of it is dropped as settled; should two pods tell two
//! all the same, the row keeps the one that came first.

use std::cmp::Ordering;
use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::json;

use super::State;
use super::columns::json as json_text;
use crate::id::DeliveryId;
use crate::message::{Event, Failure, Step};

/// What of a row an event can change, and what it must know to do so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Its number.
    pub number: i64,
    /// The notification's number.
    pub seq: i64,
    /// The notification was cancelled: what comes back ends.
    pub called_back: bool,
    pub state: State,
    pub waiting: u8,
    pub dead: bool,
    pub round: u16,
    pub attempt: u16,
    pub tried: u16,
    pub due_at: i64,
    pub heard_at: i64,
    pub ended_at: Option<i64>,
    pub said: Said,
}

/// What was said about the last attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Said {
    pub provider: Option<String>,
    pub provider_id: Option<String>,
    pub milliseconds: Option<i64>,
    pub reason: Option<String>,
    pub error: Option<String>,
}

/// What becomes of the delivery that a row carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Carried {
    /// Nothing.
    #[default]
    Kept,
    /// Replaced by this JSON.
    Put(Vec<u8>),
    /// It is not needed any more, or must not be kept.
    Dropped,
}

/// A line of the trail.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Line(
    /// The row.
    pub i64,
    /// When, in milliseconds.
    pub i64,
    /// Round.
    pub u16,
    /// Attempt.
    pub u16,
    /// Step.
    pub &'static str,
    /// JSON object.
    pub String,
);

/// A row as it was and as it becomes.
pub(super) struct Change {
    pub was: Row,
    pub is: Row,
    pub carried: Carried,
}

impl Change {
    /// Nothing has changed yet.
    pub(super) fn none(row: Row) -> Self {
        Self {
            is: row.clone(),
            was: row,
            carried: Carried::Kept,
        }
    }
}

/// Folds events into their rows, in order. Answers the lines of the trail that they make, and the events without a row.
pub(super) fn fold_all<'e>(
    changes: &mut HashMap<DeliveryId, Change>,
    events: impl IntoIterator<Item = &'e Event>,
) -> (Vec<Line>, Vec<&'e Event>) {
    let mut trail = Vec::new();
    let mut orphans = Vec::new();
    for event in events {
        match changes.get_mut(&event.delivery) {
            Some(change) => fold(&mut change.is, &mut change.carried, event, &mut trail),
            None => orphans.push(event),
        }
    }
    (trail, orphans)
}

/// What an overdue row becomes, and whether it waits: nobody waits for what was called back, so it is not released again.
pub(super) const fn redriven(called_back: bool, tried: i64) -> (State, u8) {
    match (called_back, tried) {
        (true, _) => (State::Cancelled, 0),
        (false, 0) => (State::Queued, 2),
        (false, _) => (State::Retrying, 2),
    }
}

/// The name of a step in the trail.
pub(super) const fn name(step: &Step) -> &'static str {
    match step {
        Step::Sent { .. } => "sent",
        Step::Retrying { .. } => "retrying",
        Step::Returned { .. } => "returned",
        Step::Failed { .. } => "failed",
        Step::Unknown { .. } => "unknown",
        Step::Expired => "expired",
        Step::Cancelled => "cancelled",
        Step::Suppressed { .. } => "suppressed",
    }
}

/// Folds an event into its row. Lines of the trail that it makes are added to `trail`.
pub(super) fn fold(row: &mut Row, carried: &mut Carried, event: &Event, trail: &mut Vec<Line>) {
    let at = event.at.as_millisecond();
    row.heard_at = row.heard_at.max(at);
    if let Step::Returned { due, .. } = &event.step {
        row.due_at = row.due_at.max(due.as_millisecond());
    }
    let back = matches!(event.step, Step::Returned { .. }) && row.called_back;
    let end = match &event.step {
        Step::Retrying { .. } => None,
        Step::Returned { .. } if !back => None,
        Step::Returned { .. } | Step::Cancelled => Some((State::Cancelled, Said::default())),
        Step::Sent {
            provider,
            provider_id,
            milliseconds,
        } => Some((
            State::Sent,
            Said {
                provider: Some(provider.to_string()),
                provider_id: provider_id.clone(),
                milliseconds: Some(i64::from(*milliseconds)),
                ..Said::default()
            },
        )),
        Step::Failed { error, .. } => Some((State::Failed, said(error))),
        Step::Unknown { error } => Some((State::Unknown, said(error))),
        Step::Expired => Some((State::Expired, Said::default())),
        Step::Suppressed { reason } => Some((
            State::Suppressed,
            Said {
                reason: Some(reason.to_string()),
                ..Said::default()
            },
        )),
    };
    match end {
        None => {
            trail.push(line(row.number, at, event));
            retry(row, carried, event, at, trail);
        }
        Some((state, said)) => finish(row, carried, event, at, state, said, trail),
    }
}

fn retry(row: &mut Row, carried: &mut Carried, event: &Event, at: i64, trail: &mut Vec<Line>) {
    let beyond = match event.round.cmp(&row.round) {
        Ordering::Less => false,
        Ordering::Equal => row.ended_at.is_none() && event.attempt >= row.attempt,
        Ordering::Greater => true,
    };
    if !beyond {
        return;
    }
    displace(row, trail);
    let outdated = may_carry(row, carried);
    row.round = event.round;
    row.attempt = event.attempt.saturating_add(1);
    row.tried = event.tried;
    row.ended_at = None;
    row.dead = false;
    match &event.step {
        Step::Returned {
            error,
            due,
            delivery,
        } => {
            row.attempt = row.attempt.max(delivery.attempt);
            let scheduled = due.as_millisecond() > at;
            row.waiting = if scheduled { 1 } else { 2 };
            row.state = match (event.tried, scheduled) {
                (1.., _) => State::Retrying,
                (0, true) => State::Scheduled,
                (0, false) => State::Queued,
            };
            row.said = said(error);
            *carried = Carried::Put(json_text(delivery).into_bytes());
        }
        Step::Retrying { error, .. } => {
            // What goes out next is with the relay; what came back before is older than that.
            if outdated {
                *carried = Carried::Dropped;
            }
            row.waiting = 0;
            row.state = State::Retrying;
            row.said = said(error);
        }
        _ => {}
    }
}

fn finish(
    row: &mut Row,
    carried: &mut Carried,
    event: &Event,
    at: i64,
    state: State,
    said: Said,
    trail: &mut Vec<Line>,
) {
    let order = match (event.round.cmp(&row.round), row.ended_at) {
        (Ordering::Equal, Some(ended_at)) => {
            let old = (
                row.state.rank(),
                row.attempt,
                row.state,
                ended_at,
                &row.said,
                row.tried,
            );
            (state.rank(), event.attempt, state, at, &said, event.tried).cmp(&old)
        }
        (Ordering::Equal, None) => Ordering::Greater,
        (other, _) => other,
    };
    match order {
        Ordering::Greater => {}
        // The row is what this repeats; if it is a `sent`, the row is also its line of the trail.
        Ordering::Equal if state == State::Sent => return,
        _ => {
            trail.push(line(row.number, at, event));
            return;
        }
    }
    displace(row, trail);
    if state != State::Sent {
        trail.push(line(row.number, at, event));
    }
    let outdated = may_carry(row, carried);
    *carried = match &event.step {
        Step::Failed {
            delivery: Some(delivery),
            ..
        } if !delivery.sensitive => Carried::Put(json_text(delivery).into_bytes()),
        _ if outdated => Carried::Dropped,
        _ => Carried::Kept,
    };
    row.state = state;
    row.waiting = 0;
    row.dead = state == State::Failed;
    row.round = event.round;
    row.attempt = event.attempt;
    row.tried = event.tried;
    row.ended_at = Some(at);
    row.said = said;
}

/// Before a row is overwritten: a `sent` that it alone told of so far is to be told still.
fn displace(row: &Row, trail: &mut Vec<Line>) {
    if let (State::Sent, Some(at)) = (row.state, row.ended_at) {
        let detail = sent(&row.said);
        trail.push(Line(row.number, at, row.round, row.attempt, "sent", detail));
    }
}

/// Whether there may be a delivery that the row carries: never while it is out, or waits, for the first time.
fn may_carry(row: &Row, carried: &Carried) -> bool {
    *carried != Carried::Kept || row.attempt > 1 || row.round > 0 || row.ended_at.is_some()
}

fn said(failure: &Failure) -> Said {
    Said {
        provider: failure.provider.as_deref().map(ToOwned::to_owned),
        reason: Some(failure.reason.to_string()),
        error: Some(failure.detail.clone()),
        ..Said::default()
    }
}

/// The particulars of a `sent`, as the trail tells them: what the reader says of a row that is its own line of the trail.
pub(super) fn sent(said: &Said) -> String {
    json!({
        "provider": said.provider,
        "providerId": said.provider_id,
        "milliseconds": said.milliseconds,
    })
    .to_string()
}

fn line(row: i64, at: i64, event: &Event) -> Line {
    Line(
        row,
        at,
        event.round,
        event.attempt,
        name(&event.step),
        detail(event),
    )
}

/// What the trail tells of an event, beside its step: a JSON object.
pub(super) fn detail(event: &Event) -> String {
    let failure = |error: &Failure, due: Option<&Timestamp>| {
        let mut detail = json!({
            "reason": error.reason,
            "error": error.detail,
            "provider": error.provider,
            "tried": event.tried,
        });
        if let Some(due) = due {
            detail["due"] = json!(due.to_string());
        }
        detail.to_string()
    };
    match &event.step {
        Step::Sent {
            provider,
            provider_id,
            milliseconds,
        } => json!({
            "provider": provider,
            "providerId": provider_id,
            "milliseconds": milliseconds,
        })
        .to_string(),
        Step::Retrying { error, due } | Step::Returned { error, due, .. } => {
            failure(error, Some(due))
        }
        Step::Failed { error, .. } | Step::Unknown { error } => failure(error, None),
        Step::Expired | Step::Cancelled => "{}".to_owned(),
        Step::Suppressed { reason } => json!({ "reason": reason }).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Waiting;
    use crate::store::contract::histories::{Told, histories, step};
    use crate::store::contract::stages::{at, event, request, row};

    /// Folds events of one delivery in this order and in batches, as the tables would keep the result.
    fn folded(told: &[Told], order: &[usize], batch: usize) -> impl PartialEq + std::fmt::Debug {
        let out = Waiting {
            row: 1,
            id: row(&request("1").id, "ann").id,
            notification: request("1").id,
            recipient: "ann".into(),
            endpoint: "ann@mail.example".into(),
            locale: "ko".into(),
            due: at(0),
            round: 0,
            attempt: 1,
            tried: 0,
            delivery: None,
        };
        let mut row = Row {
            number: 1,
            seq: 1,
            called_back: false,
            state: State::Sending,
            waiting: 0,
            dead: false,
            round: 0,
            attempt: 1,
            tried: 0,
            due_at: 0,
            heard_at: 0,
            ended_at: None,
            said: Said::default(),
        };
        let mut kept = None;
        let mut trail = std::collections::BTreeMap::new();
        for some in order.chunks(batch) {
            let mut carried = Carried::Kept;
            let mut lines = Vec::new();
            for place in some {
                let (_, round, attempt, number, tried) = told[*place];
                let milliseconds = *place as i64 + 1;
                let event = Event {
                    round,
                    tried,
                    ..event(
                        &out,
                        attempt,
                        milliseconds,
                        step(&out, round, attempt, number, milliseconds),
                    )
                };
                fold(&mut row, &mut carried, &event, &mut lines);
            }
            match carried {
                Carried::Kept => {}
                Carried::Put(delivery) => kept = Some(delivery),
                Carried::Dropped => kept = None,
            }
            for Line(_, at, round, attempt, step, detail) in lines {
                trail.entry((at, round, attempt, step)).or_insert(detail);
            }
        }
        (row, kept, trail)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_row_is_the_same_after_repeated_and_reordered_events((told, order, batch) in histories(1)) {
            let straight: Vec<usize> = (0..told.len()).collect();
            let expected = folded(&told, &straight, told.len());
            let found = folded(&told, &order, batch);
            prop_assert_eq!(expected, found);
        }
    }
}
