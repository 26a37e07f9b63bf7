//! Recording, beside `COPY` of the rows as they are afterwards.

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::TryStreamExt as _;
use herald_crds::Priority;
use herald_dispatcher::message::{Event, Events, Failure, Step};
use herald_dispatcher::store::postgres::PostgresStore;
use herald_dispatcher::store::{RecordStore as _, Waiting};
use jiff::Timestamp;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::{CHANNEL, copy, execute, out};
use crate::bench::Options;
use crate::bench::report::{Section, per_second};

/// Events that are recorded, and rows that are copied, in one transaction.
const AT_A_TIME: usize = 5_000;

/// Events in one message.
const BUNDLE: usize = 100;

/// What is recorded, and where it is to be seen then.
struct Told {
    what: &'static str,
    attempt: u16,
    step: fn(&Waiting) -> Step,
    tables: &'static [&'static str],
}

/// Measures.
pub async fn measure(
    options: &Options,
    section: &mut Section,
    store: &PostgresStore,
    url: &str,
) -> Result<()> {
    let count = options.scaled(200_000, 10_000);
    let mut connection = PgConnection::connect(url).await?;
    let first = out::released(store, "sent", count).await?;
    let second = out::released(store, "retried", count).await?;
    let told = [
        Told {
            what: "recorded that each was sent",
            attempt: 1,
            step: sent,
            tables: &["deliveries"],
        },
        Told {
            what: "recorded that each is retried",
            attempt: 1,
            step: retrying,
            tables: &["deliveries", "trail"],
        },
        Told {
            what: "recorded that each was sent at the second attempt",
            attempt: 2,
            step: sent,
            tables: &["deliveries"],
        },
    ];
    for (told, out) in told.iter().zip([&first, &second, &second]) {
        let began = Instant::now();
        for some in out.chunks(AT_A_TIME) {
            store.record(CHANNEL, &events(some, told)).await?;
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        let raw = copied(&mut connection, told.tables, out).await?;
        section.at_least(
            told.what,
            (rate, per_second(rate)),
            format!("{} ({:.0} %)", per_second(raw), rate / raw * 100.0),
            (raw * 0.5, "50 % of raw"),
        );
    }
    let left = store.unended().await?;
    ensure!(left == (0, 0), "{left:?} have not ended");
    Ok(())
}

fn sent(waiting: &Waiting) -> Step {
    Step::Sent {
        provider: "null".into(),
        provider_id: Some(waiting.id.to_string()),
        milliseconds: 1,
    }
}

fn retrying(_: &Waiting) -> Step {
    Step::Retrying {
        error: Failure {
            reason: "timeout".into(),
            detail: "the provider did not answer within 10 s".to_owned(),
            provider: Some("null".into()),
        },
        due: Timestamp::now(),
    }
}

fn events(out: &[Waiting], told: &Told) -> Vec<Events> {
    let at = Timestamp::now();
    let event = |waiting: &Waiting| {
        let Waiting {
            id, notification, ..
        } = *waiting;
        Event {
            delivery: id,
            notification,
            at,
            round: 0,
            attempt: told.attempt,
            tried: told.attempt,
            priority: Priority::Normal,
            step: (told.step)(waiting),
        }
    };
    let bundles = out.chunks(BUNDLE).map(|some| Events {
        outcomes: some.iter().map(event).collect(),
        ..Events::default()
    });
    bundles.collect()
}

/// How many deliveries a second `COPY` writes into these tables. Their rows are taken away first, and as they were after.
async fn copied(connection: &mut PgConnection, tables: &[&str], out: &[Waiting]) -> Result<f64> {
    let mut portions = Vec::with_capacity(tables.len());
    for table in tables {
        portions.push(taken(connection, table, out).await?);
    }
    let began = Instant::now();
    for portion in 0..out.len().div_ceil(AT_A_TIME) {
        execute(connection, "BEGIN".to_owned()).await?;
        for (table, portions) in tables.iter().zip(&mut portions) {
            copy(connection, table, std::mem::take(&mut portions[portion])).await?;
        }
        execute(connection, "COMMIT".to_owned()).await?;
    }
    Ok(out.len() as f64 / began.elapsed().as_secs_f64())
}

/// Takes all rows of a notification away, as `COPY` writes them, in portions.
async fn taken(
    connection: &mut PgConnection,
    table: &str,
    out: &[Waiting],
) -> Result<Vec<Vec<u8>>> {
    let ids: Vec<&[u8]> = out.iter().map(|one| one.id.as_bytes().as_slice()).collect();
    execute(
        connection,
        "CREATE TEMPORARY TABLE IF NOT EXISTS wanted (id BYTEA PRIMARY KEY); TRUNCATE wanted"
            .to_owned(),
    )
    .await?;
    sqlx::query("INSERT INTO wanted SELECT unnest($1::bytea[])")
        .bind(ids)
        .execute(&mut *connection)
        .await?;
    let rows = format!("{table} AS t JOIN wanted ON wanted.id = t.id");
    let lines: Vec<_> = connection
        .copy_out_raw(&format!(
            "COPY (SELECT t.* FROM {rows} ORDER BY t.id) TO STDOUT"
        ))
        .await?
        .try_collect()
        .await?;
    ensure!(
        lines.len() == out.len(),
        "{} rows of {} in {table}",
        lines.len(),
        out.len()
    );
    execute(
        connection,
        format!("DELETE FROM {table} AS t USING wanted WHERE wanted.id = t.id"),
    )
    .await?;
    execute(connection, format!("VACUUM {table}")).await?;
    let portions = lines.chunks(AT_A_TIME).map(<[_]>::concat);
    Ok(portions.collect())
}
