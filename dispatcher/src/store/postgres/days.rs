//! Partitions: one for each day of acceptance and each table that grows with deliveries. They are made ahead, and
//! dropped whole at the end of retention.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::{PostgresStore, failed};
use crate::store::StoreError;

/// Tables with a partition for each day.
pub(super) const PARTITIONED: [&str; 3] = ["deliveries", "trail", "requests"];

/// Partitions are there for so many days from today on.
const AHEAD: i32 = 7;

/// Milliseconds of a day.
const MILLISECONDS: i64 = 86_400_000;

/// The advisory lock under which partitions come and go.
const LOCK: i64 = super::migrate::LOCK + 1;

/// The day of a time in milliseconds.
pub(super) fn day(millis: i64) -> i32 {
    millis.div_euclid(MILLISECONDS) as i32
}

/// Days that are known to have partitions.
#[derive(Debug, Default)]
pub(super) struct Days(Mutex<BTreeSet<i32>>);

impl Days {
    fn lacks(&self, wanted: &BTreeSet<i32>) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !wanted.is_subset(&known)
    }

    fn add(&self, days: &BTreeSet<i32>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(days);
    }

    /// Another gateway may have dropped what this one knows.
    pub(super) fn forget(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }
}

impl PostgresStore {
    /// Sees to it that rows of these days can be written; asks the database only about days it does not know.
    pub(super) async fn ensure_days(
        &self,
        days: impl IntoIterator<Item = i32>,
    ) -> Result<(), StoreError> {
        let wanted: BTreeSet<i32> = days.into_iter().collect();
        if !self.days.lacks(&wanted) {
            return Ok(());
        }
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        make(&mut connection, &wanted).await?;
        self.days.add(&wanted);
        Ok(())
    }

    /// Makes the partitions of the next days.
    pub(super) async fn make_days_ahead(&self, now: Timestamp) -> Result<(), StoreError> {
        let today = day(now.as_millisecond());
        self.ensure_days(today..=today + AHEAD).await
    }

    /// Drops the partitions of days before `before` (a day) of which everything ended before `ended` (milliseconds).
    ///
    /// To drop a table nobody may read it: it is waited for that for two seconds, in which others wait, too; else it is
    /// left for the next time.
    pub(super) async fn drop_days(&self, before: i32, ended: i64) -> Result<u64, StoreError> {
        let over: Vec<i32> = sqlx::query_scalar(OVER)
            .bind(before)
            .bind(ended)
            .bind(None::<i32>)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let mut dropped = 0;
        for day in over {
            self.days.forget();
            let mut tx = self.begin().await?;
            match drop_day(&mut tx, day, before, ended).await {
                Ok(is_over) => {
                    tx.commit().await.map_err(failed)?;
                    dropped += u64::from(is_over);
                }
                Err(error) => {
                    tracing::info!(day, %error, "a day past retention is in use and is dropped later");
                    tx.rollback().await.map_err(failed)?;
                }
            }
        }
        Ok(dropped)
    }
}

/// Drops a day's partitions, unless something of it goes on: asked again once nobody else can touch them, since a dead
/// letter may have been replayed, or a late notification accepted, a moment ago. Answers whether they are dropped.
async fn drop_day(
    connection: &mut PgConnection,
    day: i32,
    before: i32,
    ended: i64,
) -> Result<bool, sqlx::Error> {
    let tables = PARTITIONED.map(|table| format!("{table}_{day}")).join(", ");
    let alone = format!("SET LOCAL lock_timeout = '2s'; SELECT pg_advisory_xact_lock({LOCK})");
    let locked = format!("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE");
    for lock in [alone, locked] {
        sqlx::raw_sql(AssertSqlSafe(lock))
            .execute(&mut *connection)
            .await?;
        let over: Option<i32> = sqlx::query_scalar(OVER)
            .bind(before)
            .bind(ended)
            .bind(day)
            .fetch_optional(&mut *connection)
            .await?;
        if over.is_none() {
            return Ok(false);
        }
    }
    let drop = format!(
        "DROP TABLE {tables}; DELETE FROM carried WHERE day = {day}; DELETE FROM days WHERE day = {day}"
    );
    sqlx::raw_sql(AssertSqlSafe(drop))
        .execute(connection)
        .await?;
    Ok(true)
}

/// Days that are over, and of which nothing has yet to end: all, or (`$3`) this one.
pub(super) const OVER: &str =
    "SELECT d.day FROM days AS d WHERE d.day < $1 AND ($3::int IS NULL OR d.day = $3)
    AND NOT EXISTS (SELECT 1 FROM notifications AS n WHERE n.day = d.day AND n.ended_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM notifications AS n WHERE n.day = d.day AND n.ended_at >= $2)
    ORDER BY d.day";

/// Makes the partitions of days that have none. Attached rather than made as partitions, for which readers of the table
/// need not wait.
async fn make(connection: &mut PgConnection, days: &BTreeSet<i32>) -> Result<(), StoreError> {
    let mut tx = connection.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let days: Vec<i32> = days.iter().copied().collect();
    let new: Vec<i32> = sqlx::query_scalar(
        "INSERT INTO days SELECT unnest($1::int[]) ON CONFLICT DO NOTHING RETURNING day",
    )
    .bind(days)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    for day in new {
        let next = day + 1;
        for table in PARTITIONED {
            let statement = format!(
                "CREATE TABLE {table}_{day} (LIKE {table} INCLUDING ALL,
                     CHECK (day IS NOT NULL AND day >= {day} AND day < {next}));
                 ALTER TABLE {table} ATTACH PARTITION {table}_{day} FOR VALUES FROM ({day}) TO ({next})"
            );
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
    }
    tx.commit().await.map_err(failed)
}
