//! How many deliveries of a notification are in which state, and what happens when the last has ended.

use std::collections::HashMap;

use sqlx::sqlite::SqliteConnection;

use super::{failed, json};
use crate::store::{State, StoreError};

/// How many states there are.
const STATES: usize = 10;

/// What one transaction changes about notifications' counts, so that each notification is written once.
#[derive(Debug, Default)]
pub(super) struct Tally {
    changes: HashMap<i64, Change>,
    /// None of the notifications has sensitive parameters: nothing is to be blanked.
    is_harmless: bool,
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

    /// Writes the counts. Notifications of which everything has ended are ended, and lose their parameters if those are
    /// sensitive; those of which something has not (a replay) are open again.
    pub(super) async fn apply(self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let is_harmless = self.is_harmless;
        let changes: Vec<_> = self
            .changes
            .into_iter()
            .filter(|(_, c)| c.last_ended_at.is_some() || c.states.iter().any(|n| *n != 0))
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        let ending = changes.iter().any(|(_, c)| c.last_ended_at.is_some());
        let rows: Vec<_> = changes
            .iter()
            .map(|(seq, c)| (seq, c.states, c.last_ended_at, c.states.iter().sum::<i64>()))
            .collect();
        let rows = json(&rows);
        sqlx::query(
            "UPDATE notifications SET
                 rows = rows + (d.value ->> 3),
                 scheduled = scheduled + (d.value ->> '$[1][0]'),
                 queued = queued + (d.value ->> '$[1][1]'),
                 sending = sending + (d.value ->> '$[1][2]'),
                 retrying = retrying + (d.value ->> '$[1][3]'),
                 suppressed = suppressed + (d.value ->> '$[1][4]'),
                 cancelled = cancelled + (d.value ->> '$[1][5]'),
                 expired = expired + (d.value ->> '$[1][6]'),
                 failed = failed + (d.value ->> '$[1][7]'),
                 unknown = unknown + (d.value ->> '$[1][8]'),
                 sent = sent + (d.value ->> '$[1][9]'),
                 last_ended_at = max(coalesce(last_ended_at, 0), coalesce(d.value ->> 2, 0)),
                 ended_at = CASE WHEN pending = 0 AND held_allowed IS NULL
                         AND scheduled + queued + sending + retrying
                             + (d.value ->> '$[1][0]') + (d.value ->> '$[1][1]')
                             + (d.value ->> '$[1][2]') + (d.value ->> '$[1][3]') = 0
                     THEN max(coalesce(last_ended_at, 0), coalesce(d.value ->> 2, 0)) END
             FROM json_each(?1) AS d WHERE seq = (d.value ->> 0)",
        )
        .bind(&rows)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
        if ending && !is_harmless {
            sqlx::query(
                "UPDATE requests SET request = json_set(request, '$.parameters', json('{}'))
                 WHERE notification IN (
                     SELECT seq FROM json_each(?1) AS d JOIN notifications ON seq = (d.value ->> 0)
                     WHERE sensitive = 1 AND ended_at IS NOT NULL)",
            )
            .bind(&rows)
            .execute(connection)
            .await
            .map_err(failed)?;
        }
        Ok(())
    }
}
