//! The status of one delivery, among millions.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use herald_dispatcher::id::{DeliveryId, order};
use herald_dispatcher::message::Request;
use herald_dispatcher::store::postgres::PostgresStore;
use herald_dispatcher::store::{HistoryStore as _, PlanStore as _, RecordStore as _};
use jiff::{SignedDuration, Timestamp};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::{CHANNEL, copy, execute, out, request};
use crate::bench::Options;
use crate::bench::http::Client;
use crate::bench::report::{Section, grouped, milliseconds, percentile};
use crate::cluster::{Cluster, NAMESPACE};
use crate::server::KEY;

/// Deliveries of each notification.
const EACH: usize = 1_000;

/// Over so many days they go.
const DAYS: usize = 7;

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;

/// Questions at a time, where it is several.
const SEVERAL: usize = 8;

/// p99 of an answer is to be no more, in milliseconds.
const GOAL: f64 = 5.0;

/// Measures.
pub async fn measure(
    options: &Options,
    section: &mut Section,
    cluster: &Cluster,
    store: &PostgresStore,
) -> Result<()> {
    let url = &cluster.access().database;
    let requests = load(store, url, options.scaled(5_000_000, 50_000)).await?;
    let rows = grouped((requests.len() * EACH) as u64);
    let count = options.scaled(20_000, 2_000);
    let gateway = cluster.gateway("history").await?;
    let address = SocketAddr::from(([127, 0, 0, 1], gateway.port()));
    for (how, at_a_time) in [("one", 1), ("eight", SEVERAL)] {
        let mut connections = Vec::with_capacity(at_a_time);
        let mut clients = Vec::with_capacity(at_a_time);
        for _ in 0..at_a_time {
            connections.push(PgConnection::connect(url).await?);
            clients.push(Client::connect(address, KEY).await?);
        }
        let some = |salt| -> Vec<_> {
            let numbers = (0..count).map(|n| scattered(salt * count + n) % (requests.len() * EACH));
            numbers
                .map(|number| sought(&requests[number / EACH], number))
                .collect()
        };
        let raw = asked(
            &mut connections,
            &some(at_a_time),
            async |connection, one| {
                sqlx::query("SELECT * FROM deliveries WHERE id = $1 AND day = $2")
                    .bind(one.id.as_bytes().as_slice())
                    .bind(one.day)
                    .fetch_one(&mut *connection)
                    .await?;
                Ok(())
            },
        )
        .await?;
        let mut nobody = vec![(); at_a_time];
        let by_store = asked(&mut nobody, &some(at_a_time + SEVERAL), async |(), one| {
            let found = store.delivery(NAMESPACE, &one.id).await?;
            found.map(drop).context("a delivery is not found")
        })
        .await?;
        let over_http = asked(
            &mut clients,
            &some(at_a_time + 2 * SEVERAL),
            async |client, one| {
                let path = format!("/v1/namespaces/{NAMESPACE}/deliveries/{}", one.id);
                client.get(&path).await?.json(200).map(drop)
            },
        )
        .await?;
        for (what, took) in [("the store", by_store), ("a gateway", over_http)] {
            section.told(
                &format!("median of a status from {what}, {how} at a time, of {rows}"),
                milliseconds(percentile(&took, 0.5)),
                milliseconds(percentile(&raw, 0.5)),
            );
            let p99 = percentile(&took, 0.99);
            section.at_most(
                &format!("99th percentile of it, {how} at a time"),
                (p99, milliseconds(p99)),
                milliseconds(percentile(&raw, 0.99)),
                (GOAL, &milliseconds(GOAL)),
            );
        }
    }
    Ok(())
}

/// A delivery that is asked about.
#[derive(Clone, Copy)]
struct Sought {
    id: DeliveryId,
    day: i32,
}

fn sought(of: &Request, number: usize) -> Sought {
    let person = out::person(number);
    Sought {
        id: DeliveryId::new(&of.id, &person, CHANNEL, 0, &out::address(&person), 0),
        day: day(of),
    }
}

fn day(of: &Request) -> i32 {
    of.accepted_at.as_millisecond().div_euclid(DAY) as i32
}

/// Numbers that follow each other become numbers that are far from each other.
fn scattered(number: usize) -> usize {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 8
}

/// What each answer took, in milliseconds, sorted; each client asks one question at a time.
async fn asked<C>(
    clients: &mut [C],
    sought: &[Sought],
    ask: impl AsyncFn(&mut C, Sought) -> Result<()>,
) -> Result<Vec<f64>> {
    let share = sought.len().div_ceil(clients.len());
    let ask = &ask;
    let asking = clients.iter_mut().zip(sought.chunks(share));
    let asking = asking.map(|(client, sought)| async move {
        let mut took = Vec::with_capacity(sought.len());
        for one in sought {
            let began = Instant::now();
            ask(client, *one).await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::Ok(took)
    });
    let mut took = try_join_all(asking).await?.concat();
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// Writes deliveries that were sent in the last days; answers their notifications, each with [`EACH`] of them.
async fn load(store: &PostgresStore, url: &str, count: usize) -> Result<Vec<Arc<Request>>> {
    let notifications = count / EACH;
    let now = Timestamp::now();
    let mut requests = Vec::with_capacity(notifications);
    for n in 0..notifications {
        let ago = SignedDuration::from_hours(24 * (n * DAYS / notifications) as i64);
        requests.push(Arc::new(request(&format!("history-{n}"), now - ago)?));
    }
    for some in requests.chunks(200) {
        store.insert_notifications(&[], some).await?;
    }
    let mut connection = PgConnection::connect(url).await?;
    execute(
        &mut connection,
        format!(
            "UPDATE notifications SET pending = 0, resolved = true, rows = {EACH}, sent = {EACH},
                 ended_at = accepted_at + 1000, last_ended_at = accepted_at + 1000 WHERE pending <> 0;
             INSERT INTO channels (name) VALUES ('{CHANNEL}') ON CONFLICT DO NOTHING"
        ),
    )
    .await?;
    let numbers: Vec<(Vec<u8>, i64)> = sqlx::query_as("SELECT id, seq FROM notifications")
        .fetch_all(&mut connection)
        .await?;
    let numbers: HashMap<_, _> = numbers.into_iter().collect();
    let channel: i64 = sqlx::query_scalar("SELECT id FROM channels WHERE name = $1")
        .bind(CHANNEL)
        .fetch_one(&mut connection)
        .await?;
    for (n, request) in requests.iter().enumerate() {
        let seq = numbers
            .get(request.id.as_bytes().as_slice())
            .context("a notification was not written")?;
        let lines = lines(request, n * EACH, *seq, channel)?;
        copy(
            &mut connection,
            "deliveries (id, day, notification, namespace, channel, priority, state, waiting, created_at, due_at,
                 released_at, heard_at, ended_at, recipient, endpoint, locale, provider, provider_id)",
            lines,
        )
        .await?;
    }
    execute(&mut connection, "VACUUM ANALYZE".to_owned()).await?;
    let left = store.unended().await?;
    ensure!(left == (0, 0), "{left:?} have not ended");
    Ok(requests)
}

/// The deliveries of a notification, as `COPY` reads them.
fn lines(request: &Request, first: usize, seq: i64, channel: i64) -> Result<Vec<u8>> {
    let (day, space) = (day(request), order(NAMESPACE));
    let at = request.accepted_at.as_millisecond();
    let mut lines = String::with_capacity(EACH * 240);
    for number in first..first + EACH {
        let id = sought(request, number).id;
        let person = out::person(number);
        let address = out::address(&person);
        writeln!(
            lines,
            "\\\\x{id}\t{day}\t{seq}\t{space}\t{channel}\t2\t9\t0\t{at}\t{at}\t{at}\t{at}\t{at}\t{person}\t{address}\tko\
             \tnull\t{id}"
        )?;
    }
    Ok(lines.into_bytes())
}
