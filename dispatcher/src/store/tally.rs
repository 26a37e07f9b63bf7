//! How many deliveries of a notification are in which state, and what happens when the last has ended.

use std::collections::HashMap;

use super::State;

/// How many states there are.
pub(super) const STATES: usize = 10;

/// What one transaction changes about notifications' counts, so that each notification is written once.
#[derive(Debug, Default)]
pub(super) struct Tally {
    changes: HashMap<i64, Change>,
    /// None of the notifications has sensitive parameters: nothing is to be blanked.
    is_harmless: bool,
}

/// What changes about one notification.
#[derive(Debug)]
pub(super) struct Changed {
    /// The notification's number.
    pub(super) seq: i64,
    /// By how much each count changes.
    pub(super) states: [i64; STATES],
    /// When its last delivery ended, in milliseconds; `None`: none did.
    pub(super) last_ended_at: Option<i64>,
}

impl Changed {
    /// How many deliveries are new.
    pub(super) fn new_rows(&self) -> i64 {
        self.states.iter().sum()
    }
}

#[derive(Debug, Default)]
struct Change {
    states: [i64; STATES],
    last_ended_at: Option<i64>,
}

impl Tally {
    /// `n` deliveries of a notification went from one state to another; `None`: they are new. `at` is when, in
    /// milliseconds; of those that ended the latest becomes the notification's end.
    pub(super) fn moved(&mut self, seq: i64, from: Option<State>, to: State, n: i64, at: i64) {
        let change = self.changes.entry(seq).or_default();
        if let Some(from) = from {
            change.states[from as usize] -= n;
        }
        change.states[to as usize] += n;
        if to.ended() {
            change.last_ended_at = change.last_ended_at.max(Some(at));
        }
    }

    /// A notification's resolving is over, so that it may have ended at `at` (milliseconds) though no delivery did.
    pub(super) fn settled(&mut self, seq: i64, at: i64) {
        let change = self.changes.entry(seq).or_default();
        change.last_ended_at = change.last_ended_at.max(Some(at));
    }

    /// None of the notifications has sensitive parameters, which saves looking.
    pub(super) fn harmless(&mut self) {
        self.is_harmless = true;
    }

    /// What is to be written, in the order of the notifications' numbers.
    pub(super) fn changes(&self) -> Vec<Changed> {
        let mut changes: Vec<Changed> = self
            .changes
            .iter()
            .filter(|(_, change)| {
                change.last_ended_at.is_some() || change.states.iter().any(|n| *n != 0)
            })
            .map(|(seq, change)| Changed {
                seq: *seq,
                states: change.states,
                last_ended_at: change.last_ended_at,
            })
            .collect();
        changes.sort_unstable_by_key(|changed| changed.seq);
        changes
    }

    /// Whether some of these changes may end a notification with sensitive parameters, which are blanked then.
    pub(super) fn may_blank(&self, changes: &[Changed]) -> bool {
        !self.is_harmless
            && changes
                .iter()
                .any(|changed| changed.last_ended_at.is_some())
    }
}
