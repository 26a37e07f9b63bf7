//! Dead letters: found, released again, let rest.

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::history::select_deliveries;
use super::{SqliteStore, cursor, delivery_id, failed, json, millis, unanswered};
use crate::id::DeliveryId;
use crate::message::Suppression;
use crate::store::tally::Tally;
use crate::store::{
    DeadLetterFilter, DeliveryRecord, HistoryError, Page, Paging, Refusal, Replayed, State,
    StoreError,
};

/// Which dead letters are meant. `?1` namespace; `?2` and `?3` failed from and before; `?4` channel's number and `?5`
/// reason, each or NULL.
macro_rules! dead {
    () => {
        "CROSS JOIN notifications AS n ON n.seq = d.notification AND n.namespace = ?1
         WHERE d.dead = 1 AND d.ended_at >= ?2 AND d.ended_at < ?3
             AND (?4 IS NULL OR d.channel = ?4) AND (?5 IS NULL OR d.reason = ?5) "
    };
}

/// Those ids alone: `?6` is an array of them.
macro_rules! by_ids {
    () => {
        "json_each(?6) AS j CROSS JOIN deliveries AS d ON d.id = unhex(j.value) "
    };
}

/// After `?7` (when it failed) and `?8` (its row); `?9` limit.
const DEAD: &str = select_deliveries!(
    "deliveries AS d ",
    dead!(),
    "AND ?6 = '[]' AND (d.ended_at, d.row) < (?7, ?8) ORDER BY d.ended_at DESC, d.row DESC LIMIT ?9"
);
const DEAD_BY_ID: &str = select_deliveries!(
    by_ids!(),
    dead!(),
    "AND (d.ended_at, d.row) < (?7, ?8) ORDER BY d.ended_at DESC, d.row DESC LIMIT ?9"
);

/// Why the list suppresses a dead letter's address; NULL: it does not, or not for its template. `?7` is an array of the
/// mandatory templates. An address is of one medium by its form, but for a phone's: of two entries the stricter holds.
macro_rules! suppressed {
    () => {
        "(SELECT s.reason FROM suppressions AS s
          WHERE s.namespace = ?1 AND s.address = d.endpoint
              AND n.template NOT IN (SELECT m.value FROM json_each(?7) AS m) LIMIT 1)"
    };
}

/// Of a dead letter: nobody waits for what was called back, of what was sensitive nothing is kept once it has ended, and
/// to a suppressed address nothing goes.
macro_rules! cannot_be_replayed {
    () => {
        concat!(
            "(n.cancelled_at IS NOT NULL OR n.sensitive = 1 AND n.ended_at IS NOT NULL OR ",
            suppressed!(),
            " IS NOT NULL) "
        )
    };
}

/// Rows, their notifications' numbers and when they failed, oldest first; `?8` 1: only those that can be replayed; `?9` limit.
macro_rules! pick {
    ($($from:tt)*) => {
        concat!(
            "SELECT d.row, d.notification, d.ended_at FROM ",
            $($from)*,
            dead!(),
            "AND NOT (?8 AND ",
            cannot_be_replayed!(),
            ") ORDER BY d.ended_at, d.row LIMIT ?9"
        )
    };
}
const PICK: &str = pick!("deliveries AS d ");
const PICK_BY_ID: &str = pick!(by_ids!());

/// Those that cannot be replayed, oldest first; whether they were called back, and why they are suppressed.
macro_rules! refused {
    ($($from:tt)*) => {
        concat!(
            "SELECT d.id, n.cancelled_at IS NOT NULL, n.sensitive = 1 AND n.ended_at IS NOT NULL, ",
            suppressed!(),
            " FROM ",
            $($from)*,
            dead!(),
            "AND ?6 IS NOT NULL AND ",
            cannot_be_replayed!(),
            "ORDER BY d.ended_at, d.row LIMIT 1000"
        )
    };
}
const REFUSED: &str = refused!("deliveries AS d ");
const REFUSED_BY_ID: &str = refused!(by_ids!());

/// Keeps in the trail what rows say themselves about the life that is over: when they were released and how they ended.
const KEEP_RELEASE: &str = "
    INSERT INTO trail (row, at, round, attempt, step, detail)
    SELECT d.row, d.released_at, d.round, 1, 'released', '{}'
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
    WHERE d.released_at IS NOT NULL ON CONFLICT DO NOTHING";
const KEEP_FAILURE: &str = "
    INSERT INTO trail (row, at, round, attempt, step, detail)
    SELECT d.row, d.ended_at, d.round, d.attempt, 'failed',
        json_object('reason', d.reason, 'error', d.error, 'provider', d.provider)
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
    WHERE d.ended_at IS NOT NULL ON CONFLICT DO NOTHING";

const REPLAY: &str = "
    UPDATE deliveries SET dead = 0, state = 1, waiting = 2, round = round + 1, attempt = 1, tried = 0,
        due_at = ?2, released_at = NULL, heard_at = NULL, ended_at = NULL, provider = NULL,
        provider_id = NULL, milliseconds = NULL, reason = NULL, error = NULL
    WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";

/// What is carried goes out as it is, but for what tells its new life from the old one. Which provider may have sent it
/// in the old one binds nobody: that it is sent again is somebody's will.
const REPLAY_CARRIED: &str = "
    UPDATE carried SET delivery = CAST(json_remove(json_set(CAST(delivery AS TEXT),
        '$.round', (SELECT d.round FROM deliveries AS d WHERE d.row = carried.row),
        '$.attempt', 1, '$.tried', 0, '$.ready_at', ?2), '$.provider') AS BLOB)
    WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";

const DISCARD: &str =
    "UPDATE deliveries SET dead = 0 WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";
const DISCARD_CARRIED: &str =
    "DELETE FROM carried WHERE row IN (SELECT j.value FROM json_each(?1) AS j)";

/// Notes a step of rows; `?3` is its name.
const NOTE: &str = "
    INSERT INTO trail (row, at, round, attempt, step, detail)
    SELECT d.row, ?2, d.round, d.attempt, ?3, '{}'
    FROM json_each(?1) AS j CROSS JOIN deliveries AS d ON d.row = j.value
    WHERE true ON CONFLICT DO NOTHING";

impl SqliteStore {
    /// What a filter of dead letters is to SQL; `None`: it means none, since there is no such channel.
    fn dead(&self, namespace: &str, filter: &DeadLetterFilter) -> Option<Dead> {
        let channel = match filter.channel.as_deref() {
            Some(name) => Some(self.known_channel(name)?),
            None => None,
        };
        Some(Dead {
            namespace: namespace.to_owned(),
            from: filter.from.map_or(i64::MIN, millis),
            until: filter.until.map_or(i64::MAX, millis),
            channel,
            reason: filter.reason.clone(),
            ids: json(&filter.ids),
            mandatory: json(&filter.mandatory),
            by_id: !filter.ids.is_empty(),
        })
    }

    /// Dead letters, newest first.
    pub(super) async fn page_of_dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        paging: &Paging,
    ) -> Result<Page<DeliveryRecord>, HistoryError> {
        let (ended_at, row): (i64, i64) = cursor::after(paging)?.unwrap_or((i64::MAX, i64::MAX));
        let Some(dead) = self.dead(namespace, filter) else {
            return Ok(Page::none());
        };
        let rows = sqlx::query(if dead.by_id { DEAD_BY_ID } else { DEAD })
            .bind(dead.namespace)
            .bind(dead.from)
            .bind(dead.until)
            .bind(dead.channel)
            .bind(dead.reason)
            .bind(dead.ids)
            .bind(ended_at)
            .bind(row)
            .bind(cursor::rows(paging))
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let found = self.delivery_records(&rows)?;
        let page = cursor::page(paging, found, |last| {
            (last.record.ended_at.map(millis), last.row)
        });
        Ok(page.map(|found| found.record))
    }

    /// See [`HistoryStore::replay`](crate::store::HistoryStore::replay).
    pub(super) async fn replay_dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<Replayed, StoreError> {
        let Some(dead) = self.dead(namespace, filter) else {
            return Ok(Replayed::default());
        };
        let now = millis(now);
        let mut looked_at = dead.clone();
        let picked = self
            .write(move |c| {
                Box::pin(async move {
                    let picked = pick(c, dead, true, limit).await?;
                    if picked.rows.is_empty() {
                        return Ok(picked);
                    }
                    let mut tally = Tally::default();
                    for seq in &picked.seqs {
                        tally.moved(*seq, Some(State::Failed), State::Queued, 1, now);
                    }
                    let texts = json(&picked.rows);
                    for statement in [KEEP_RELEASE, KEEP_FAILURE, REPLAY, REPLAY_CARRIED, NOTE] {
                        apply(c, statement, &texts, now, "replayed").await?;
                    }
                    tally.apply(c).await?;
                    Ok(picked)
                })
            })
            .await?;
        // What is dead still, as far as was looked, could not go out. Nobody has to wait while that is read.
        if let Some(last) = picked.last
            && picked.rows.len() == limit
        {
            looked_at.until = looked_at.until.min(last.saturating_add(1));
        }
        Ok(Replayed {
            count: picked.rows.len() as u64,
            refused: self.refused(looked_at).await?,
        })
    }

    /// Which dead letters cannot be replayed, and why.
    async fn refused(&self, dead: Dead) -> Result<Vec<(DeliveryId, Refusal)>, StoreError> {
        let statement = if dead.by_id { REFUSED_BY_ID } else { REFUSED };
        let rows: Vec<(Vec<u8>, bool, bool, Option<String>)> = sqlx::query_as(statement)
            .bind(dead.namespace)
            .bind(dead.from)
            .bind(dead.until)
            .bind(dead.channel)
            .bind(dead.reason)
            .bind(dead.ids)
            .bind(dead.mandatory)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        let refused = rows.into_iter().map(|(id, called_back, blanked, listed)| {
            let refusal = match listed {
                _ if called_back => Refusal::CalledBack,
                Some(reason) if !blanked => Refusal::Suppressed(Suppression::of_list(&reason)),
                _ => Refusal::Blanked,
            };
            Ok((delivery_id(&id)?, refusal))
        });
        refused.collect()
    }

    /// See [`HistoryStore::discard`](crate::store::HistoryStore::discard).
    pub(super) async fn discard_dead(
        &self,
        namespace: &str,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let Some(dead) = self.dead(namespace, filter) else {
            return Ok(0);
        };
        let now = millis(now);
        self.write(move |c| {
            Box::pin(async move {
                let Picked { rows, .. } = pick(c, dead, false, limit).await?;
                if rows.is_empty() {
                    return Ok(0);
                }
                let texts = json(&rows);
                for statement in [DISCARD, DISCARD_CARRIED, NOTE] {
                    apply(c, statement, &texts, now, "discarded").await?;
                }
                Ok(rows.len() as u64)
            })
        })
        .await
    }
}

/// A filter of dead letters, as statements take it.
#[derive(Clone)]
struct Dead {
    namespace: String,
    from: i64,
    until: i64,
    channel: Option<i64>,
    reason: Option<String>,
    ids: String,
    mandatory: String,
    by_id: bool,
}

/// Dead letters, oldest first.
struct Picked {
    rows: Vec<i64>,
    /// Each one's notification.
    seqs: Vec<i64>,
    /// When the last of them failed.
    last: Option<i64>,
}

async fn pick(
    connection: &mut SqliteConnection,
    dead: Dead,
    only_wanted: bool,
    limit: usize,
) -> Result<Picked, StoreError> {
    let picked: Vec<(i64, i64, i64)> = sqlx::query_as(if dead.by_id { PICK_BY_ID } else { PICK })
        .bind(dead.namespace)
        .bind(dead.from)
        .bind(dead.until)
        .bind(dead.channel)
        .bind(dead.reason)
        .bind(dead.ids)
        .bind(dead.mandatory)
        .bind(only_wanted)
        .bind(limit as i64)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    let last = picked.last().map(|(.., ended_at)| *ended_at);
    let (rows, seqs) = picked.into_iter().map(|(row, seq, _)| (row, seq)).unzip();
    Ok(Picked { rows, seqs, last })
}

/// Does a statement to rows, given as JSON, at a time; the third parameter is a step's name.
async fn apply(
    connection: &mut SqliteConnection,
    statement: &'static str,
    rows: &str,
    now: i64,
    step: &str,
) -> Result<(), StoreError> {
    sqlx::query(statement)
        .bind(rows)
        .bind(now)
        .bind(step)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::explain::reads_no_whole_table;
    use super::super::tests::open;
    use super::*;
    use crate::message::{Request, Step};
    use crate::store::HistoryStore as _;
    use crate::store::contract::stages::{
        at, event, failure, planned, release, request, rows, tell,
    };

    #[tokio::test]
    async fn what_cannot_be_replayed_is_told_as_far_as_was_looked() {
        let opened = open().await;
        let sensitive = |text: &str| Request {
            sensitive: true,
            ..request(text)
        };
        let asked = [sensitive("1"), request("2"), sensitive("3")];
        let mut dead = Vec::new();
        for (request, failed_at) in asked.iter().zip([20, 30, 40]) {
            planned(&opened.store, request, &rows(&request.id, 1)).await;
            let waiting = release(&opened.store, 1, at(10)).await;
            let failed = Step::Failed {
                error: failure(),
                address_gone: false,
                delivery: None,
            };
            tell(
                &opened.store,
                vec![event(&waiting[0], 1, failed_at, failed)],
            )
            .await;
            dead.push(waiting[0].id);
        }
        let blanked = |id: DeliveryId| (id, Refusal::Blanked);
        let everything = DeadLetterFilter::default();
        let replay = async |limit| {
            let replayed = opened.store.replay("shop", &everything, limit, at(50));
            let Replayed { count, refused } = replayed.await.unwrap();
            (count, refused)
        };
        assert_eq!(replay(1).await, (1, vec![blanked(dead[0])]));
        let rest = vec![blanked(dead[0]), blanked(dead[2])];
        assert_eq!(replay(1).await, (0, rest));
    }

    #[tokio::test]
    async fn no_statement_about_dead_letters_reads_a_whole_table() {
        let opened = open().await;
        for statement in [
            DEAD,
            DEAD_BY_ID,
            PICK,
            PICK_BY_ID,
            REFUSED,
            REFUSED_BY_ID,
            KEEP_RELEASE,
            KEEP_FAILURE,
            REPLAY,
            REPLAY_CARRIED,
            DISCARD,
            DISCARD_CARRIED,
            NOTE,
            crate::store::sqlite::waiting::HAS_DEAD,
        ] {
            reads_no_whole_table(&opened.store, statement, &[]).await;
        }
    }
}
