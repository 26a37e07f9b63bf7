//! The end of retention: whole days, and what is left of those that something keeps.

use jiff::Timestamp;

use super::{PostgresStore, days, failed, millis};
use crate::clock;
use crate::store::StoreError;

/// Most rows of the smaller tables that one call of `expire` deletes of each.
const SWEPT: i64 = 10_000;

impl PostgresStore {
    /// A day's partitions are dropped once everything of it has ended and it is over; of a day that something keeps open
    /// the rest is deleted row by row. Answers how many notifications went.
    pub(super) async fn delete_expired(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<u64, StoreError> {
        self.make_days_ahead(clock::now()).await?;
        let before = millis(before);
        let day = days::day(before);
        self.drop_days(day, before).await?;
        let mut tx = self.begin().await?;
        let ended: Vec<(i64, i32, Vec<u8>)> = sqlx::query_as(ENDED)
            .bind(before)
            .bind(day)
            .bind(limit as i64)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let expired = ended.len() as u64;
        let mut seqs = Vec::with_capacity(ended.len());
        let mut of_days = Vec::with_capacity(ended.len());
        let (mut after, mut until) = (Vec::new(), Vec::new());
        for (seq, day, id) in ended {
            let (first, last) = super::orders::range(&id);
            seqs.push(seq);
            of_days.push(day);
            after.push(first);
            until.push(last);
        }
        for statement in EXPIRE {
            sqlx::query(statement)
                .bind(&seqs)
                .bind(&of_days)
                .bind(&after)
                .bind(&until)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        for statement in OLD {
            sqlx::query(statement)
                .bind(before)
                .bind(SWEPT)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(expired)
    }
}

/// What ended before `$1` of days that are over (before `$2`): those whose partitions are dropped, and those that
/// something keeps.
pub(super) const ENDED: &str = "SELECT seq, day, id FROM notifications
    WHERE day < $2 AND ended_at < $1 ORDER BY day LIMIT $3 FOR UPDATE SKIP LOCKED";

/// What is deleted with notifications, given by number, day, and between which ids their deliveries are.
pub(super) const EXPIRE: [&str; 6] = [
    "DELETE FROM trail AS t USING unnest($1::bigint[], $2::int[], $3::bytea[], $4::bytea[]) AS n(seq, day, after, until)
     JOIN deliveries AS d ON d.day = n.day AND d.id > n.after AND d.id < n.until AND d.notification = n.seq
     WHERE t.day = d.day AND t.id = d.id",
    "DELETE FROM carried AS c USING unnest($1::bigint[], $2::int[], $3::bytea[], $4::bytea[]) AS n(seq, day, after, until)
     JOIN deliveries AS d ON d.day = n.day AND d.id > n.after AND d.id < n.until AND d.notification = n.seq
     WHERE c.day = d.day AND c.id = d.id",
    "DELETE FROM deliveries AS d USING unnest($1::bigint[], $2::int[], $3::bytea[], $4::bytea[]) AS n(seq, day, after, until)
     WHERE d.day = n.day AND d.id > n.after AND d.id < n.until AND d.notification = n.seq",
    "DELETE FROM requests AS r USING unnest($1::bigint[], $2::int[], $3::bytea[], $4::bytea[]) AS n(seq, day, after, until)
     WHERE r.day = n.day AND r.notification = n.seq",
    "DELETE FROM notification_trail AS t USING unnest($1::bigint[], $2::int[], $3::bytea[], $4::bytea[]) AS n(seq, day, after, until)
     WHERE t.notification = n.seq",
    "DELETE FROM notifications AS d USING unnest($1::bigint[], $2::int[], $3::bytea[], $4::bytea[]) AS n(seq, day, after, until)
     WHERE d.seq = n.seq",
];

/// What is deleted by age alone, at most `$2` of each at a time.
pub(super) const OLD: [&str; 5] = [
    "DELETE FROM garbage WHERE number IN (SELECT number FROM garbage WHERE at < $1 LIMIT $2)",
    "DELETE FROM orphans WHERE (delivery, at, round, attempt, step) IN (
         SELECT delivery, at, round, attempt, step FROM orphans WHERE at < $1 LIMIT $2)",
    "DELETE FROM claims WHERE (namespace, template, key) IN (
         SELECT namespace, template, key FROM claims WHERE until < $1 LIMIT $2)",
    "DELETE FROM recipient_labels WHERE (namespace, key, value, ord, id, valid_from) IN (
         SELECT namespace, key, value, ord, id, valid_from FROM recipient_labels WHERE valid_to < $1 LIMIT $2)",
    "DELETE FROM members WHERE (group_id, ord, id, valid_from) IN (
         SELECT group_id, ord, id, valid_from FROM members WHERE valid_to < $1 LIMIT $2)",
];
