//! Raw baselines: what this machine does without Herald.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::sync::{mpsc, oneshot};

use super::report::percentile;

/// Milliseconds, sorted, that `count` appends of 4 KiB took to reach the disk, one after the other.
pub fn syncs(folder: &Path, count: usize) -> Result<Vec<f64>> {
    let path = folder.join("syncs");
    let mut file = File::create(&path)?;
    let page = [7; 4096];
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(path)?;
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// Opens a database as the embedded broker and store do.
async fn open(path: &Path) -> Result<SqliteConnection> {
    Ok(SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("temp_store", "memory")
        .pragma("cache_size", "-8192")
        .pragma("journal_size_limit", "33554432")
        .pragma("wal_autocheckpoint", "4000")
        .disable_statement_logging()
        .connect()
        .await?)
}

/// Rows inserted per second, and the 99th percentile of one caller's wait in milliseconds: `callers` tasks that wait for
/// each insert, one connection that commits for all that wait at once.
pub async fn group_commit(
    folder: &Path,
    callers: usize,
    bytes: usize,
    time: Duration,
) -> Result<(f64, f64)> {
    let path = folder.join("inserts.db");
    let mut connection = open(&path).await?;
    sqlx::raw_sql("CREATE TABLE inserts (id INTEGER PRIMARY KEY, payload BLOB NOT NULL)")
        .execute(&mut connection)
        .await?;
    let (insert, mut inserts) = mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>(callers);
    let committer = tokio::spawn(async move {
        let mut batch = Vec::with_capacity(callers);
        while inserts.recv_many(&mut batch, callers).await > 0 {
            sqlx::query("BEGIN IMMEDIATE")
                .execute(&mut connection)
                .await?;
            for (payload, _) in &batch {
                sqlx::query("INSERT INTO inserts (payload) VALUES (?1)")
                    .bind(payload.as_slice())
                    .execute(&mut connection)
                    .await?;
            }
            sqlx::query("COMMIT").execute(&mut connection).await?;
            for (_, done) in batch.drain(..) {
                let _ = done.send(());
            }
        }
        connection.close().await?;
        anyhow::Ok(())
    });
    let began = Instant::now();
    let mut tasks = Vec::with_capacity(callers);
    for _ in 0..callers {
        let insert = insert.clone();
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while began.elapsed() < time {
                let asked = Instant::now();
                let (done, is_done) = oneshot::channel();
                insert.send((vec![b'x'; bytes], done)).await?;
                is_done.await?;
                took.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(took)
        }));
    }
    drop(insert);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    committer.await??;
    took.sort_by(f64::total_cmp);
    Ok((rate, percentile(&took, 0.99)))
}

/// Rows per second that are written down three times, as a delivery's are at the least: inserted, marked as released,
/// marked as sent. 500 in a transaction, and 100 in a statement; one connection, and a second index.
pub async fn rows_written_thrice(folder: &Path, rows: usize) -> Result<f64> {
    const STEP: usize = 500;
    let path = folder.join("rows.db");
    let mut connection = open(&path).await?;
    sqlx::raw_sql(
        "CREATE TABLE rows (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, who TEXT NOT NULL, \
         endpoint TEXT NOT NULL, state INTEGER NOT NULL, at INTEGER)",
    )
    .execute(&mut connection)
    .await?;
    let insert = format!(
        "INSERT INTO rows (key, who, endpoint, state) VALUES {}",
        vec!["(randomblob(16), ?, ?, 0)"; 100].join(", ")
    );
    let began = Instant::now();
    for step in 0..rows / STEP {
        begin(&mut connection).await?;
        for hundred in 0..5 {
            let mut query = sqlx::query(AssertSqlSafe(insert.as_str()));
            for one in 0..100 {
                let who = step * STEP + hundred * 100 + one;
                query = query
                    .bind(format!("person-{who}"))
                    .bind(format!("+8210{who:08}"));
            }
            query.execute(&mut connection).await?;
        }
        sqlx::query("COMMIT").execute(&mut connection).await?;
    }
    for state in [1, 2] {
        for step in 0..rows / STEP {
            begin(&mut connection).await?;
            sqlx::query("UPDATE rows SET state = ?1, at = ?2 WHERE id > ?3 AND id <= ?4")
                .bind(state)
                .bind(1_800_000_000_000_i64)
                .bind((step * STEP) as i64)
                .bind((step * STEP + STEP) as i64)
                .execute(&mut connection)
                .await?;
            sqlx::query("COMMIT").execute(&mut connection).await?;
        }
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(rate)
}

async fn begin(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("BEGIN IMMEDIATE").execute(connection).await?;
    Ok(())
}
