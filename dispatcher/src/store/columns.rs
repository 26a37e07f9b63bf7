//! What is in the columns of both databases: numbers, times, ids and JSON, and what it means if they are not as they
//! should be.

use std::collections::HashMap;
use std::sync::Arc;

use herald_crds::Priority;
use jiff::Timestamp;
use serde::Serialize;

use super::{HistoryError, State, StoreError};
use crate::id::{DeliveryId, NotificationId};

/// Channels by number and by name: few, and never renumbered.
#[derive(Debug, Default)]
pub(super) struct Channels {
    names: HashMap<i64, Arc<str>>,
    numbers: HashMap<Arc<str>, i64>,
}

impl Channels {
    /// The channel has this number.
    pub(super) fn add(&mut self, number: i64, name: Arc<str>) {
        self.names.insert(number, Arc::clone(&name));
        self.numbers.insert(name, number);
    }

    /// The number of a channel, if it is known.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.numbers.get(name).copied()
    }

    /// The name of a channel, if it is known.
    pub(super) fn name(&self, number: i64) -> Option<Arc<str>> {
        self.names.get(&number).cloned()
    }
}

/// A failed statement of a question.
pub(super) fn unanswered(error: sqlx::Error) -> HistoryError {
    HistoryError::Store(failed(error))
}

/// What a failed statement means to a caller: what cannot be read is corrupt, everything else passes.
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::ColumnDecode { index, source } => StoreError::Corrupt {
            place: "a column",
            reason: format!("{index}: {source}"),
        },
        sqlx::Error::Decode(source) => StoreError::Corrupt {
            place: "a value",
            reason: source.to_string(),
        },
        other => StoreError::Unavailable {
            reason: other.to_string(),
        },
    }
}

/// A state from a table.
pub(super) fn state(number: i64) -> Result<State, StoreError> {
    u8::try_from(number)
        .ok()
        .and_then(State::from_repr)
        .ok_or_else(|| corrupt("deliveries.state", &number))
}

/// A notification's id from a table.
pub(super) fn notification_id(bytes: &[u8]) -> Result<NotificationId, StoreError> {
    NotificationId::from_slice(bytes)
        .ok_or_else(|| corrupt("notifications.id", &"not 16 bytes long"))
}

/// A delivery's id from a table.
pub(super) fn delivery_id(bytes: &[u8]) -> Result<DeliveryId, StoreError> {
    DeliveryId::from_slice(bytes).ok_or_else(|| corrupt("deliveries.id", &"not 12 bytes long"))
}

/// A class from a table.
pub(super) fn priority(number: i64) -> Result<Priority, StoreError> {
    usize::try_from(number)
        .ok()
        .and_then(|index| Priority::ALL.get(index).copied())
        .ok_or_else(|| corrupt("priority", &number))
}

/// A time as the tables hold it.
pub(super) fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// A time from a table; `place` is its table and column.
pub(super) fn timestamp(millis: i64, place: &'static str) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(|error| corrupt(place, &error))
}

/// Something in a table is not what Herald wrote there.
pub(super) fn corrupt(place: &'static str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        place,
        reason: error.to_string(),
    }
}

/// Rows as the JSON array that a statement takes apart with `json_each`.
///
/// # Panics
/// Never: what is given has string keys only, so that it always has a JSON form.
pub(super) fn json<T: Serialize + ?Sized>(rows: &T) -> String {
    match serde_json::to_string(rows) {
        Ok(text) => text,
        Err(error) => unreachable!("rows without a JSON form: {error}"),
    }
}
