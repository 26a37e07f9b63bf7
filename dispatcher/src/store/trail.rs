//! A delivery's audit trail: what its row and its notification say themselves, with the entries that were appended.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::columns::{corrupt, timestamp};
use super::{DeliveryRecord, State, StoreError, TrailEntry};

/// A delivery's row: the record, and what the trail and cursors need of it.
pub(super) struct Found {
    pub record: DeliveryRecord,
    /// Where it is: in SQLite its row, in PostgreSQL its day.
    pub row: i64,
    pub attempt: u16,
    pub waiting: bool,
    pub milliseconds: Option<i64>,
    /// The notification's number.
    pub seq: i64,
    pub accepted_at: Timestamp,
    pub sender: String,
}

/// An entry as the table has it: when (milliseconds), round, attempt, step, detail.
pub(super) type Line = (i64, i64, i64, String, String);

/// All of a delivery's trail, oldest first. `own` are the entries that were appended for it, `whole` those of its
/// notification (when, step, detail), of which it shows what happened before it ended.
pub(super) fn compose(
    found: &Found,
    own: Vec<Line>,
    whole: Vec<(i64, String, String)>,
) -> Result<Vec<TrailEntry>, StoreError> {
    let record = &found.record;
    let mut entries = Vec::with_capacity(own.len() + whole.len() + 4);
    for (at, round, attempt, step, detail) in own {
        entries.push(TrailEntry {
            at: timestamp(at, "trail.at")?,
            step,
            round: round as u16,
            attempt: attempt as u16,
            detail: parse(&detail, "trail.detail")?,
        });
    }
    if let Some(released_at) = record.released_at {
        // Attempts that relays repeated count on without another release: the first that was heard of is its own.
        let attempt = entries
            .iter()
            .filter(|entry| entry.round == record.round && entry.at >= released_at)
            .map(|entry| entry.attempt)
            .chain((!found.waiting).then_some(found.attempt))
            .min()
            .unwrap_or(1);
        entries.push(TrailEntry {
            at: released_at,
            step: "released".to_owned(),
            round: record.round,
            attempt,
            detail: json!({}),
        });
    }
    entries.extend(end(found, &entries));
    for (at, step, detail) in whole {
        let at = timestamp(at, "notification_trail.at")?;
        if record.ended_at.is_some_and(|ended_at| at >= ended_at) {
            continue;
        }
        entries.push(TrailEntry {
            at,
            step,
            round: record.round,
            attempt: found.attempt,
            detail: parse(&detail, "notification_trail.detail")?,
        });
    }
    let begun = |at, step: &str, detail| TrailEntry {
        at,
        step: step.to_owned(),
        round: 0,
        attempt: 0,
        detail,
    };
    let sender = json!({ "sender": found.sender });
    entries.push(begun(found.accepted_at, "accepted", sender));
    let channel = json!({ "channel": record.channel });
    entries.push(begun(record.created_at, "planned", channel));
    entries.sort_by_key(|entry| (entry.at, place(&entry.step)));
    Ok(entries)
}

/// How a delivery ended, if its row alone says so.
fn end(found: &Found, entries: &[TrailEntry]) -> Option<TrailEntry> {
    let record = &found.record;
    let at = record.ended_at?;
    let step = record.state.to_string();
    let told = entries.iter().any(|entry| {
        (entry.at, entry.round, entry.attempt, &entry.step)
            == (at, record.round, found.attempt, &step)
    });
    if told {
        return None;
    }
    let detail = match record.state {
        State::Sent => json!({
            "provider": record.provider,
            "providerId": record.provider_id,
            "milliseconds": found.milliseconds,
        }),
        State::Suppressed => json!({ "reason": record.reason }),
        State::Failed | State::Unknown => json!({
            "reason": record.reason,
            "error": record.error,
            "provider": record.provider,
        }),
        _ => json!({}),
    };
    Some(TrailEntry {
        at,
        step,
        round: record.round,
        attempt: found.attempt,
        detail,
    })
}

/// What comes first of entries of one millisecond.
fn place(step: &str) -> u8 {
    match step {
        "accepted" => 0,
        "held" => 1,
        "confirmed" => 2,
        "planned" => 3,
        "released" => 5,
        "replayed" | "redriven" | "prioritized" => 4,
        "discarded" => 7,
        _ => 6,
    }
}

fn parse(text: &str, place: &'static str) -> Result<Value, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(place, &error))
}
