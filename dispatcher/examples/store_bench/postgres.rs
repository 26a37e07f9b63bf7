//! The store on PostgreSQL, beside what `COPY` alone does.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use herald_crds::Priority;
use herald_dispatcher::id::{DeliveryId, NotificationId, order};
use herald_dispatcher::message::{Failure, Step};
use herald_dispatcher::store::postgres::{Options, PostgresStore};
use herald_dispatcher::store::{HistoryStore, News, PlanStore, RecordStore, Waiting, WaitingStore};
use jiff::{SignedDuration, Timestamp};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::{CHANNEL, EVENTS, Watch, alone, record, request, resident, sent, steps, tell};

/// Deliveries of each notification of the history.
const EACH: usize = 1_000;

/// Over so many days the history goes.
const DAYS: usize = 7;

/// How often the status is asked.
const ASKED: usize = 5_000;

/// How often another gateway is told something.
const TOLD: usize = 200;

pub async fn measure(url: &str, rows: usize) -> Result<()> {
    let mut admin = PgConnection::connect(url).await.context("cannot connect")?;
    let name = format!("herald_bench_{}", std::process::id());
    execute(&mut admin, format!("CREATE DATABASE {name}")).await?;
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (server, _) = address.rsplit_once('/').context("no database in the URL")?;
    let measured = on(&format!("{server}/{name}?{query}"), rows).await;
    execute(&mut admin, format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    measured
}

async fn on(url: &str, rows: usize) -> Result<()> {
    let store = PostgresStore::open(Options::new(url)).await?;
    let other = PostgresStore::open(Options::new(url)).await?;
    told(&store, &other).await?;
    other.close().await;
    let history = std::env::var("HERALD_BENCH_HISTORY").map_or(Ok(0), |n| n.parse())?;
    if history > 0 {
        write_history(&store, url, history).await?;
        status(&store, history).await?;
    }
    steps(&store, rows).await?;
    recording(&store, url, rows).await?;
    println!("resident {} MiB", resident()? / 1024);
    store.close().await;
    Ok(())
}

/// How long it takes until another gateway hears a word.
async fn told(store: &PostgresStore, other: &PostgresStore) -> Result<()> {
    other.hear().await?;
    let word = [News::Ready(CHANNEL.into(), Some(Priority::Normal))];
    let mut took = Vec::with_capacity(TOLD);
    while took.len() < TOLD {
        let began = Instant::now();
        let (told, heard) = tokio::join!(store.tell(&word), other.hear());
        told?;
        if heard? == word {
            took.push(began.elapsed());
        }
    }
    took.sort_unstable();
    println!(
        "another gateway hears a word after {:?} (p50), {:?} (p99)",
        took[TOLD / 2],
        took[TOLD * 99 / 100]
    );
    Ok(())
}

/// Recording beside `COPY` of the rows as they are afterwards, into the same tables, in the same portions.
async fn recording(store: &PostgresStore, url: &str, rows: usize) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    println!("recording {rows} deliveries, beside COPY of the same rows into the same tables:");
    let out = alone(store, "sent", rows, 1).await?;
    let recorded = {
        let watch = Watch::start()?;
        for some in out.chunks(EVENTS) {
            tell(store, some, sent).await?;
        }
        watch.told("record that each is sent", rows)?
    };
    let deliveries = table(&mut connection, "deliveries", &out).await?;
    let copied = copy(&mut connection, &[("deliveries", deliveries)], rows).await?;
    println!("  = {:.0} % of COPY", 100.0 * recorded / copied);

    let out = alone(store, "retried", rows, 1).await?;
    let recorded = {
        let watch = Watch::start()?;
        for some in out.chunks(EVENTS) {
            tell(store, some, retried).await?;
        }
        watch.told("record that each is retried", rows)?
    };
    let tables = [
        (
            "deliveries",
            table(&mut connection, "deliveries", &out).await?,
        ),
        ("trail", table(&mut connection, "trail", &out).await?),
    ];
    let copied = copy(&mut connection, &tables, rows).await?;
    println!("  = {:.0} % of COPY", 100.0 * recorded / copied);
    record(store, &out).await
}

fn retried(_: &Waiting) -> Step {
    Step::Retrying {
        error: Failure {
            reason: "timeout".into(),
            detail: "the provider did not answer within 10 s".to_owned(),
            provider: Some("null".into()),
        },
        due: Timestamp::now(),
    }
}

/// All rows of a notification, as `COPY` writes them, one a line.
async fn table(connection: &mut PgConnection, table: &str, out: &[Waiting]) -> Result<Vec<Bytes>> {
    let first = out.first().context("nothing is out")?;
    let [a, b, c, d, ..] = *first.notification.as_bytes();
    let id = format!("{:08x}", u32::from_be_bytes([a, b, c, d]));
    let statement = format!(
        "COPY (SELECT * FROM {table} WHERE id >= '\\x{id}' AND id <= '\\x{id}ffffffffffffffff' ORDER BY id) TO STDOUT"
    );
    let lines = connection.copy_out_raw(&statement).await?;
    let lines: Vec<Bytes> = lines.try_collect().await?;
    ensure!(
        lines.len() == out.len(),
        "{} rows of {}",
        lines.len(),
        out.len()
    );
    Ok(lines)
}

/// Takes rows away and copies them into their tables again; answers how many of each a second.
async fn copy(
    connection: &mut PgConnection,
    tables: &[(&str, Vec<Bytes>)],
    rows: usize,
) -> Result<f64> {
    for (table, lines) in tables {
        execute(
            connection,
            format!("CREATE TEMPORARY TABLE taken (LIKE {table})"),
        )
        .await?;
        copy_some(connection, "taken", lines).await?;
        execute(
            connection,
            format!(
                "DELETE FROM {table} AS t USING taken WHERE t.day = taken.day AND t.id = taken.id"
            ),
        )
        .await?;
        execute(connection, "DROP TABLE taken".to_owned()).await?;
        execute(connection, format!("VACUUM {table}")).await?;
    }
    let watch = Watch::start()?;
    for from in (0..rows).step_by(EVENTS) {
        execute(connection, "BEGIN".to_owned()).await?;
        for (table, lines) in tables {
            let some = &lines[from..rows.min(from + EVENTS)];
            copy_some(connection, table, some).await?;
        }
        execute(connection, "COMMIT".to_owned()).await?;
    }
    let names: Vec<&str> = tables.iter().map(|(table, _)| *table).collect();
    watch.told(&format!("COPY into {}", names.join(" and ")), rows)
}

async fn copy_some(connection: &mut PgConnection, table: &str, lines: &[Bytes]) -> Result<()> {
    let mut into = connection
        .copy_in_raw(&format!("COPY {table} FROM STDIN"))
        .await?;
    into.send(lines.concat()).await?;
    into.finish().await?;
    Ok(())
}

fn key(notification: usize) -> String {
    format!("history-{notification}")
}

fn person(notification: usize, n: usize) -> String {
    format!("person-{}", notification * EACH + n)
}

fn delivery(notification: usize, n: usize) -> DeliveryId {
    let id = NotificationId::from_key("shop", "bench", &key(notification));
    let person = person(notification, n);
    DeliveryId::new(
        &id,
        &person,
        CHANNEL,
        0,
        &format!("{person}@mail.example"),
        0,
    )
}

/// Deliveries that were sent in the last days.
async fn write_history(store: &PostgresStore, url: &str, deliveries: usize) -> Result<()> {
    println!("a history of {deliveries} deliveries:");
    let mut connection = PgConnection::connect(url).await?;
    let notifications = deliveries / EACH;
    let mut requests = Vec::with_capacity(notifications);
    for n in 0..notifications {
        let mut one = request(&key(n))?;
        one.accepted_at -= SignedDuration::from_hours(24 * (n * DAYS / notifications) as i64);
        requests.push(std::sync::Arc::new(one));
    }
    for some in requests.chunks(200) {
        store.insert_notifications(&[], some).await?;
    }
    execute(
        &mut connection,
        format!(
            "UPDATE notifications SET pending = 0, resolved = true, rows = {EACH}, sent = {EACH},
                 ended_at = accepted_at + 1000, last_ended_at = accepted_at + 1000;
             INSERT INTO channels (name) VALUES ('{CHANNEL}') ON CONFLICT DO NOTHING"
        ),
    )
    .await?;
    let places: Vec<(Vec<u8>, i64, i32)> = sqlx::query_as("SELECT id, seq, day FROM notifications")
        .fetch_all(&mut connection)
        .await?;
    let places: std::collections::HashMap<_, _> = places
        .into_iter()
        .map(|(id, seq, day)| (id, (seq, day)))
        .collect();
    let channel: i64 = sqlx::query_scalar("SELECT id FROM channels WHERE name = $1")
        .bind(CHANNEL)
        .fetch_one(&mut connection)
        .await?;
    let space = order("shop");
    let watch = Watch::start()?;
    for (n, request) in requests.iter().enumerate() {
        let (seq, day) = places[request.id.as_bytes().as_slice()];
        let at = request.accepted_at.as_millisecond();
        let mut lines = String::with_capacity(EACH * 160);
        for place in 0..EACH {
            use std::fmt::Write as _;
            let id = delivery(n, place);
            lines.push_str("\\\\x");
            for byte in id.as_bytes() {
                write!(lines, "{byte:02x}")?;
            }
            let person = person(n, place);
            writeln!(
                lines,
                "\t{day}\t{seq}\t{space}\t{channel}\t2\t9\t0\t{at}\t{at}\t{at}\t{at}\t{at}\t{person}\t{person}@mail.example\tko\tnull\t{id}"
            )?;
        }
        let mut into = connection
            .copy_in_raw(
                "COPY deliveries (id, day, notification, namespace, channel, priority, state, waiting, created_at,
                     due_at, released_at, heard_at, ended_at, recipient, endpoint, locale, provider, provider_id)
                 FROM STDIN",
            )
            .await?;
        into.send(lines.into_bytes()).await?;
        into.finish().await?;
    }
    watch.told("COPY into deliveries", notifications * EACH)?;
    execute(&mut connection, "VACUUM ANALYZE".to_owned()).await?;
    Ok(())
}

/// How long it takes to say how one delivery is.
async fn status(store: &PostgresStore, deliveries: usize) -> Result<()> {
    let notifications = deliveries / EACH;
    let mut took = Vec::with_capacity(ASKED);
    for n in 0..ASKED {
        // Far from each other.
        let number = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (notifications * EACH);
        let id = delivery(number / EACH, number % EACH);
        let began = Instant::now();
        let found = store.delivery("shop", &id).await?;
        took.push(began.elapsed());
        ensure!(found.is_some(), "{id} is not found");
    }
    took.sort_unstable();
    println!(
        "  status by id: {:?} (p50), {:?} (p99) with {} deliveries",
        took[ASKED / 2],
        took[ASKED * 99 / 100],
        notifications * EACH
    );
    let unended = store.unended().await?;
    ensure!(unended == (0, 0), "{unended:?} have not ended");
    Ok(())
}

async fn execute(connection: &mut PgConnection, statement: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(connection)
        .await?;
    Ok(())
}
