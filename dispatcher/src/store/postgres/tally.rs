//! How many deliveries of a notification are in which state, as it is written.

use serde_json::value::RawValue;
use sqlx::postgres::PgConnection;

use super::{asked, corrupt, failed};
use crate::store::StoreError;
use crate::store::tally::{STATES, Tally};

/// In the order given, which is that of the notifications' numbers, so that two who count do not wait for each other in a
/// circle. `$1` numbers, `$2` new rows, `$3` when the last ended, then the counts by state.
pub(super) const COUNT: &str = "UPDATE notifications AS n SET rows = n.rows + d.new,
        scheduled = n.scheduled + d.scheduled,
        queued = n.queued + d.queued,
        sending = n.sending + d.sending,
        retrying = n.retrying + d.retrying,
        suppressed = n.suppressed + d.suppressed,
        cancelled = n.cancelled + d.cancelled,
        expired = n.expired + d.expired,
        failed = n.failed + d.failed,
        unknown = n.unknown + d.unknown,
        sent = n.sent + d.sent,
        last_ended_at = greatest(n.last_ended_at, d.ended),
        ended_at = CASE WHEN n.pending = 0 AND n.held_allowed IS NULL
                AND n.scheduled + n.queued + n.sending + n.retrying
                    + d.scheduled + d.queued + d.sending + d.retrying = 0
            THEN greatest(n.last_ended_at, d.ended, 0) END
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[])
        AS d(seq, new, ended, scheduled, queued, sending, retrying, suppressed, cancelled, expired, failed, unknown, sent)
    WHERE n.seq = d.seq
    RETURNING n.seq, n.day, n.sensitive AND n.ended_at IS NOT NULL";

pub(super) const SENSITIVE: &str = "SELECT r.day, r.notification, r.packed, r.request
    FROM unnest($1::int[], $2::bigint[]) AS b(day, seq)
    JOIN requests AS r ON r.day = b.day AND r.notification = b.seq";

pub(super) const BLANK: &str = "UPDATE requests AS r SET request = b.request
    FROM unnest($1::int[], $2::bigint[], $3::bytea[]) AS b(day, seq, request)
    WHERE r.day = b.day AND r.notification = b.seq";

impl Tally {
    /// Writes the counts. Notifications of which everything has ended are ended, and lose their parameters if those are
    /// sensitive; those of which something has not (a replay) are open again.
    pub(super) async fn write(self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let changes = self.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&crate::store::tally::Changed) -> i64| -> Vec<i64> {
            changes.iter().map(of).collect()
        };
        let ended: Vec<_> = changes.iter().map(|change| change.last_ended_at).collect();
        let mut statement = sqlx::query_as(COUNT)
            .bind(column(|change| change.seq))
            .bind(column(crate::store::tally::Changed::new_rows))
            .bind(ended);
        for state in 0..STATES {
            let counts: Vec<i64> = changes.iter().map(|change| change.states[state]).collect();
            statement = statement.bind(counts);
        }
        let counted: Vec<(i64, i32, bool)> = statement
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        if !self.may_blank(&changes) {
            return Ok(());
        }
        let (days, seqs) = counted
            .into_iter()
            .filter(|(.., blanks)| *blanks)
            .map(|(seq, day, _)| (day, seq))
            .unzip();
        blank(connection, days, seqs).await
    }
}

/// Blanks the parameters of these notifications, given by day and number.
async fn blank(
    connection: &mut PgConnection,
    days: Vec<i32>,
    seqs: Vec<i64>,
) -> Result<(), StoreError> {
    if seqs.is_empty() {
        return Ok(());
    }
    let found: Vec<(i32, i64, bool, Vec<u8>)> = sqlx::query_as(SENSITIVE)
        .bind(days)
        .bind(seqs)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let mut days = Vec::with_capacity(found.len());
    let mut seqs = Vec::with_capacity(found.len());
    let mut blanked = Vec::with_capacity(found.len());
    for (day, seq, packed, column) in found {
        let mut request = asked::unpack(packed, &column, 0)?;
        request.parameters = RawValue::from_string("{}".to_owned())
            .map_err(|error| corrupt("requests.request", &error))?;
        // Sensitive ones are never packed. The class is that of the notification's row, whatever is kept here.
        blanked.push(super::json(&request).into_bytes());
        days.push(day);
        seqs.push(seq);
    }
    sqlx::query(BLANK)
        .bind(days)
        .bind(seqs)
        .bind(blanked)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}
