//! The schema, step by step, so that an older and a newer program work on it at the same time: each step only adds
//! (expand), and what nobody needs any more goes with a later one (contract). The schema says which is the oldest program
//! it still supports, and only programs that are older than that refuse it, so that a rollback works.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

/// Of the advisory lock under which the schema is changed: `herald` in ASCII.
pub(super) const LOCK: i64 = 0x6865_7261_6c64;

/// A step towards the schema; a released step is never changed.
pub(super) struct Step {
    sql: &'static str,
    /// The number of the newest step that a program must know to work on the schema after this one.
    oldest: i32,
}

/// What this program knows.
pub(super) const STEPS: &[Step] = &[Step {
    sql: include_str!("schema.sql"),
    oldest: 1,
}];

/// Why the schema is not one this program can work on.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrateError {
    #[error("cannot bring the schema to version {version}: {source}")]
    Apply { version: usize, source: sqlx::Error },
    #[error("cannot read the schema's version: {source}")]
    Read { source: sqlx::Error },
    #[error(
        "its schema has version {found} and supports programs that know version {oldest} or later; this one knows \
         {known}: use a newer program"
    )]
    TooOld {
        found: i32,
        oldest: i32,
        known: usize,
    },
}

/// Brings a database to the schema that these steps make, one program at a time: others wait. A step is taken whole or not
/// at all.
pub(super) async fn migrate(
    connection: &mut PgConnection,
    steps: &[Step],
) -> Result<(), MigrateError> {
    let read = |source| MigrateError::Read { source };
    // A step, and the wait for another program's, may take its time. The lock is given up with the connection.
    sqlx::raw_sql("SET statement_timeout = 0; SET lock_timeout = 0")
        .execute(&mut *connection)
        .await
        .map_err(read)?;
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(LOCK)
        .execute(&mut *connection)
        .await
        .map_err(read)?;
    let done = apply(connection, steps).await;
    sqlx::query("SELECT pg_advisory_unlock($1)")
        .bind(LOCK)
        .execute(connection)
        .await
        .map_err(read)?;
    done
}

async fn apply(connection: &mut PgConnection, steps: &[Step]) -> Result<(), MigrateError> {
    let read = |source| MigrateError::Read { source };
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('herald_schema') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .map_err(read)?;
    let (found, oldest): (i32, i32) = if exists {
        sqlx::query_as("SELECT version, oldest FROM herald_schema")
            .fetch_one(&mut *connection)
            .await
            .map_err(read)?
    } else {
        (0, 0)
    };
    let known = steps.len();
    if oldest > known as i32 {
        return Err(MigrateError::TooOld {
            found,
            oldest,
            known,
        });
    }
    for (index, Step { sql, oldest }) in steps.iter().enumerate().skip(found as usize) {
        let version = index + 1;
        let note = if version == 1 {
            format!(
                "CREATE TABLE herald_schema (version INTEGER NOT NULL, oldest INTEGER NOT NULL);
                 INSERT INTO herald_schema VALUES (1, {oldest})"
            )
        } else {
            format!("UPDATE herald_schema SET version = {version}, oldest = {oldest}")
        };
        // Several statements in one message are one transaction.
        sqlx::raw_sql(AssertSqlSafe(format!("{sql};\n{note}")))
            .execute(&mut *connection)
            .await
            .map_err(|source| MigrateError::Apply { version, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;
    use crate::store::postgres::server::Database;

    const FIRST: Step = Step {
        sql: "CREATE TABLE first (n INTEGER)",
        oldest: 1,
    };

    async fn connect(database: &Database) -> PgConnection {
        PgConnection::connect(&database.url).await.unwrap()
    }

    async fn version(connection: &mut PgConnection) -> (i32, i32) {
        sqlx::query_as("SELECT version, oldest FROM herald_schema")
            .fetch_one(connection)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn an_older_schema_is_brought_to_the_newest_step_by_step_and_what_it_holds_stays() {
        let database = Database::empty().await;
        let mut connection = connect(&database).await;
        migrate(&mut connection, &[FIRST]).await.unwrap();
        sqlx::raw_sql("INSERT INTO first VALUES (1)")
            .execute(&mut connection)
            .await
            .unwrap();
        let newer = [
            FIRST,
            Step {
                sql: "ALTER TABLE first ADD m INTEGER NOT NULL DEFAULT 2",
                oldest: 1,
            },
            Step {
                sql: "ALTER TABLE first DROP n",
                oldest: 2,
            },
        ];
        migrate(&mut connection, &newer[..2]).await.unwrap();
        assert_eq!(version(&mut connection).await, (2, 1));
        migrate(&mut connection, &[FIRST])
            .await
            .expect("it is supported still");
        assert_eq!(
            version(&mut connection).await,
            (2, 1),
            "and changes nothing"
        );
        migrate(&mut connection, &newer).await.unwrap();
        assert_eq!(version(&mut connection).await, (3, 2));
        let kept: Vec<i32> = sqlx::query_scalar("SELECT m FROM first")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        assert_eq!(kept, [2]);
        migrate(&mut connection, &newer[..2])
            .await
            .expect("it is supported still");
        let refused = migrate(&mut connection, &[FIRST]).await.unwrap_err();
        assert!(matches!(
            refused,
            MigrateError::TooOld {
                found: 3,
                oldest: 2,
                known: 1
            }
        ));
        // Whoever was refused is in nobody's way.
        let mut another = connect(&database).await;
        migrate(&mut another, &newer).await.unwrap();
    }

    #[tokio::test]
    async fn a_step_that_fails_changes_nothing_and_is_taken_again() {
        let database = Database::empty().await;
        let mut connection = connect(&database).await;
        let broken = Step {
            sql: "CREATE TABLE second (n INTEGER); SELECT 1 / 0",
            oldest: 1,
        };
        let failed = migrate(&mut connection, &[FIRST, broken])
            .await
            .unwrap_err();
        assert!(matches!(failed, MigrateError::Apply { version: 2, .. }));
        assert_eq!(version(&mut connection).await, (1, 1));
        let mended = Step {
            sql: "CREATE TABLE second (n INTEGER)",
            oldest: 1,
        };
        migrate(&mut connection, &[FIRST, mended]).await.unwrap();
        assert_eq!(version(&mut connection).await, (2, 1));
    }
}
