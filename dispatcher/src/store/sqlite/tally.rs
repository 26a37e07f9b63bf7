//! How many deliveries of a notification are in which state, as it is written.

use sqlx::sqlite::SqliteConnection;

use super::{failed, json};
use crate::store::StoreError;
use crate::store::tally::Tally;

impl Tally {
    /// Writes the counts. Notifications of which everything has ended are ended, and lose their parameters if those are
    /// sensitive; those of which something has not (a replay) are open again.
    pub(super) async fn apply(self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let changes = self.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let blanks = self.may_blank(&changes);
        let rows: Vec<_> = changes
            .iter()
            .map(|c| (c.seq, c.states, c.last_ended_at, c.new_rows()))
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
        if blanks {
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
