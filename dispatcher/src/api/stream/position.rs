//! Where a reader is, and whether it was passed.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::broker::MessageId;
use crate::catalog::FullName;

/// For so long, at least, events are kept: a little less than the horizon of the broker.
const KEPT: Duration = Duration::from_mins(14);

/// The longest place that a reader may come back with.
const LONGEST_PLACE: usize = 8 * 1024;

/// Where a reader is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Nothing that was published before this is missing: in seconds since 1970.
    pub(super) at: i64,
    /// Of each channel, the message of its events that was read last; `None`: there was none.
    pub(super) read: BTreeMap<FullName, Option<MessageId>>,
}

impl Position {
    /// Takes an event's id apart; `None`: it is none.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.len() > LONGEST_PLACE {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    }

    /// As the id of an event. `None`: over so many channels it is too long, and nobody can come back to it.
    pub(super) fn id(&self) -> Option<String> {
        let id = URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).ok()?);
        (id.len() <= LONGEST_PLACE).then_some(id)
    }
}

/// Until when a channel's events have been read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// All that was published before this.
    pub(super) at: Timestamp,
    /// It was said that something may be missing, and the reader has not caught up since.
    pub(super) told: bool,
}

impl Mark {
    /// About to go on from here: since when something may be missing, if that is still to be said.
    pub(super) fn lags(&mut self, now: Timestamp) -> Option<Timestamp> {
        let lags = !self.told && self.is_late(now);
        self.told |= lags;
        lags.then_some(self.at)
    }

    /// All that was published before `at` has been read.
    pub(super) fn reach(&mut self, at: Timestamp, now: Timestamp) {
        self.at = self.at.max(at.min(now));
        self.told &= self.is_late(now);
    }

    /// Whether what came next may be gone by now.
    fn is_late(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) > SignedDuration::try_from(KEPT).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_comes_back_from_its_id_and_anything_else_is_none() {
        let mut position = Position::default();
        position
            .read
            .insert("shop/mail".into(), Some(MessageId::of_entry(7)));
        position.read.insert("shop/hooks".into(), None);
        let id = position.id().unwrap();
        assert_eq!(Position::read(&id), Some(position.clone()));
        for wrong in ["", "7", "e30", &id[1..], &"A".repeat(LONGEST_PLACE + 1)] {
            assert_eq!(Position::read(wrong), None, "{wrong}");
        }
        for number in 0..1000 {
            let name = format!("a-namespace/channel-{number}");
            let id = Some(MessageId::of_entry(number));
            position.read.insert(name.into(), id);
        }
        assert_eq!(position.id(), None, "too long to come back with");
    }

    #[test]
    fn a_slow_reader_is_told_once_that_it_may_have_been_passed() {
        let minute = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let mut mark = Mark {
            at: minute(0),
            told: false,
        };
        assert_eq!(mark.lags(minute(14)), None);
        mark.reach(minute(5), minute(14));
        assert_eq!(mark.lags(minute(20)), Some(minute(5)));
        mark.reach(minute(6), minute(21));
        assert_eq!(mark.lags(minute(22)), None, "it was said");
        mark.reach(minute(7), minute(21));
        mark.reach(minute(3), minute(21));
        assert_eq!(mark.at, minute(7), "what is late says nothing new");
        assert_eq!(mark.lags(minute(30)), Some(minute(7)), "it had caught up");
        mark.reach(minute(90), minute(30));
        assert_eq!(mark.at, minute(30), "nobody has read what is to come");
    }
}
