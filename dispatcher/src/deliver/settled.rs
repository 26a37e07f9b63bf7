//! Which copies are settled: the exact memory of the last H.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::id::DeliveryId;

/// Most ids remembered; beyond, the oldest are forgotten and the horizon shrinks to what is covered.
const MOST: usize = 4_000_000;

/// The horizon never shrinks below this.
const SHORTEST: Duration = Duration::from_secs(60);

/// In how many parts the horizon is forgotten.
const SLOTS: i64 = 16;

/// What is known of a delivery. Four bytes beside the twelve of the id.
#[derive(Debug, Clone, Copy)]
struct Entry {
    attempt: u16,
    round: u8,
    /// The highest bit: the round has ended. The rest: the part of the horizon it was heard in, modulo 128.
    mark: u8,
}

const ENDED: u8 = 0x80;

/// Remembers for every delivery heard of within the horizon the highest round and attempt that are settled, exactly.
#[derive(Debug)]
pub struct Settled {
    entries: HashMap<DeliveryId, Entry>,
    horizon: Duration,
    /// Length of a part of the horizon, in milliseconds.
    part: i64,
    /// The part in which we are.
    now: i64,
    /// Parts before this one are forgotten.
    kept_from: i64,
}

impl Settled {
    /// Remembers for `horizon`.
    pub fn new(horizon: Duration) -> Self {
        let part = (horizon.as_millis() as i64 / SLOTS).max(1);
        Self {
            entries: HashMap::new(),
            horizon,
            part,
            now: 0,
            kept_from: 0,
        }
    }

    /// For how long back it knows everything: H, or less while too much happens.
    pub fn horizon(&self) -> Duration {
        let kept = Duration::from_millis(((self.now - self.kept_from).max(0) * self.part) as u64);
        if self.entries.len() < MOST / 2 || kept >= self.horizon {
            self.horizon
        } else {
            kept.max(SHORTEST).min(self.horizon)
        }
    }

    /// Notes that this attempt is settled; `ended`: and with it the round.
    pub fn note(&mut self, id: DeliveryId, round: u16, attempt: u16, ended: bool, at: Timestamp) {
        self.forget(at);
        let mark = (self.now % 128) as u8;
        let round = u8::try_from(round).unwrap_or(u8::MAX);
        let entry = self.entries.entry(id).or_insert(Entry {
            attempt,
            round,
            mark,
        });
        if round > entry.round {
            *entry = Entry {
                attempt,
                round,
                mark: 0,
            };
        }
        if round == entry.round {
            entry.attempt = entry.attempt.max(attempt);
            let has_ended = ended || entry.mark & ENDED != 0;
            entry.mark = mark | if has_ended { ENDED } else { 0 };
        }
    }

    /// Whether a copy with this round and attempt is to be dropped.
    pub fn is_settled(&self, id: &DeliveryId, round: u16, attempt: u16) -> bool {
        let round = u8::try_from(round).unwrap_or(u8::MAX);
        self.entries.get(id).is_some_and(|entry| {
            round < entry.round
                || (round == entry.round && (attempt <= entry.attempt || entry.mark & ENDED != 0))
        })
    }

    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what is older than the horizon, a part at a time.
    fn forget(&mut self, at: Timestamp) {
        let part = at.as_millisecond() / self.part;
        if part <= self.now && self.entries.len() < MOST {
            return;
        }
        self.now = self.now.max(part);
        let mut from = (self.now - SLOTS).max(self.kept_from);
        if self.entries.len() >= MOST {
            from = from.max(self.kept_from + 1).min(self.now);
        }
        if from == self.kept_from {
            return;
        }
        self.kept_from = from;
        let (now, kept) = (self.now, self.now - from);
        self.entries.retain(|_, entry| {
            let age = (now - i64::from(entry.mark & !ENDED)).rem_euclid(128);
            age <= kept
        });
        self.entries.shrink_to(self.entries.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NotificationId;

    fn id(n: u32) -> DeliveryId {
        DeliveryId::new(
            &NotificationId::from_key("a", "b", "c"),
            &n.to_string(),
            "shop/mail",
            0,
            "x",
            0,
        )
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_settled_attempt_settles_those_before_it_and_an_end_settles_the_round() {
        let mut settled = Settled::new(Duration::from_secs(900));
        settled.note(id(1), 0, 2, false, at(0));
        assert!(settled.is_settled(&id(1), 0, 1));
        assert!(settled.is_settled(&id(1), 0, 2));
        assert!(!settled.is_settled(&id(1), 0, 3));
        settled.note(id(1), 0, 3, true, at(1));
        assert!(settled.is_settled(&id(1), 0, 9));
        assert!(!settled.is_settled(&id(1), 1, 1));
        settled.note(id(1), 1, 1, false, at(2));
        assert!(settled.is_settled(&id(1), 0, 9));
        assert!(!settled.is_settled(&id(1), 1, 2));
        assert!(!settled.is_settled(&id(2), 0, 1));
    }

    #[test]
    fn a_late_note_of_an_earlier_attempt_changes_nothing() {
        let mut settled = Settled::new(Duration::from_secs(900));
        settled.note(id(1), 1, 3, true, at(0));
        settled.note(id(1), 1, 1, false, at(1));
        settled.note(id(1), 0, 9, false, at(1));
        assert!(settled.is_settled(&id(1), 1, 7));
        assert!(!settled.is_settled(&id(1), 2, 1));
    }

    #[test]
    fn everything_within_the_horizon_is_known_and_what_is_older_is_forgotten_in_time() {
        let mut settled = Settled::new(Duration::from_secs(160));
        for second in 0..1000 {
            settled.note(id(second), 0, 1, true, at(i64::from(second)));
            if second >= 159 {
                assert!(settled.is_settled(&id(second - 159), 0, 1), "{second}");
            }
        }
        assert!(settled.len() < 200);
        assert!(!settled.is_settled(&id(700), 0, 1));
    }
}
