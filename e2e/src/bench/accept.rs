//! How many notifications a second are accepted, durably.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use herald_dispatcher::access::Keys;
use herald_dispatcher::store::sqlite::{Options as StoreOptions, SqliteStore};
use herald_dispatcher::store::{ApiKey, PeopleStore};
use jiff::Timestamp;

use super::http::Client;
use super::report::{Section, milliseconds, per_second, percentile};
use super::server::{Folder, Server};
use super::{Options, raw};

const CONNECTIONS: usize = 64;

/// Senders. Each may send 5,000 notifications a second, so one alone would measure that limit.
const SENDERS: usize = 8;

const YAML: &str = r#"
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: text, namespace: bench}
spec:
  medium: sms
  providers: [{name: "null", log: {path: /dev/null}}]
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: later, namespace: bench}
spec:
  description: Sent long after the benchmark
  category: news
  routing: {channels: [{name: text}]}
  parameters: {type: object, properties: {order: {type: string}}}
  content: {sms: {text: "Order {{ order }} is on its way"}}
"#;

/// Bytes of the request as it is kept: with its id, sender, times and the state of the system.
const KEPT_BYTES: usize = 1024;

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "accept",
        "Accepting",
        "64 connections, kept alive, each with one request at a time, of eight senders; `sendAt` is 300 days ahead, so a request \
         is made durable, answered and planned, and nothing follows. Raw: 64 callers that each wait for their insert of \
         1 KiB, one connection that commits for all that wait at once, the same SQLite settings; and appends of 4 KiB, \
         each with `fdatasync`.",
    );
    let time = Duration::from_millis(options.scaled(10_000, 2_000) as u64);
    let raw_folder = tempfile::tempdir_in(super::place()?)?;
    let syncs = raw::syncs(raw_folder.path(), options.scaled(2_000, 300))?;
    let sync_p99 = percentile(&syncs, 0.99);
    let (raw_rate, raw_p99) =
        raw::group_commit(raw_folder.path(), CONNECTIONS, KEPT_BYTES, time).await?;

    let folder = Folder::new(YAML)?;
    keys(&folder).await?;
    let server = Server::start(&folder, None).await?;
    // The first requests open files and fill caches.
    load(server.address, Duration::from_millis(500)).await?;
    let (rate, mut took) = load(server.address, time).await?;
    server.stop().await?;
    took.sort_by(f64::total_cmp);
    let p99 = percentile(&took, 0.99);

    section.at_least(
        "notifications accepted, durable",
        (rate, per_second(rate)),
        format!(
            "{} inserts ({:.0} %)",
            per_second(raw_rate),
            rate / raw_rate * 100.0
        ),
        (raw_rate * 0.4, "40 % of raw"),
    );
    section.at_most(
        "99th percentile of an answer",
        (p99, milliseconds(p99)),
        format!(
            "{} a raw insert; {} a raw sync",
            milliseconds(raw_p99),
            milliseconds(sync_p99)
        ),
        (
            4.0 * sync_p99 + 10.0,
            &format!("4 syncs + 10 ms = {}", milliseconds(4.0 * sync_p99 + 10.0)),
        ),
    );
    section.told(
        "median of an answer",
        milliseconds(percentile(&took, 0.5)),
        format!("{} a raw sync", milliseconds(percentile(&syncs, 0.5))),
    );
    Ok(section)
}

fn key(sender: usize) -> String {
    format!("bench-{sender}")
}

/// What is sent: for much later, so that nothing else happens.
fn request() -> Vec<u8> {
    let send_at = Timestamp::now() + Duration::from_hours(300 * 24);
    format!(
        "{{\"template\":\"later\",\"recipients\":[{{\"address\":{{\"phone\":\"+821012345678\"}}}}],\
         \"parameters\":{{\"order\":\"2026-0001\"}},\"sendAt\":\"{send_at}\",\"metadata\":{{\"campaign\":\"benchmark\"}}}}"
    )
    .into_bytes()
}

/// Makes the senders known, before the server starts.
async fn keys(folder: &Folder) -> Result<()> {
    let path = folder.state().join("history.db");
    let store = SqliteStore::open(&path, StoreOptions::default()).await?;
    for sender in 0..SENDERS {
        let key = ApiKey {
            name: format!("sender-{sender}"),
            digest: Keys::digest(&key(sender)),
            scopes: vec!["*".to_owned()],
            created_at: Timestamp::now(),
        };
        store.put_key(&key).await?;
    }
    store.close().await;
    Ok(())
}

/// Accepted per second, and what each answer took in milliseconds.
async fn load(address: SocketAddr, time: Duration) -> Result<(f64, Vec<f64>)> {
    let request: Arc<[u8]> = request().into();
    let began = Instant::now();
    let mut tasks = Vec::with_capacity(CONNECTIONS);
    for connection in 0..CONNECTIONS {
        let request = Arc::clone(&request);
        tasks.push(tokio::spawn(async move {
            let mut client = Client::connect(address, &key(connection % SENDERS)).await?;
            let mut took = Vec::with_capacity(8192);
            while began.elapsed() < time {
                let asked = Instant::now();
                let answer = client
                    .post("/v1/namespaces/bench/notifications", &request)
                    .await?;
                ensure!(
                    answer.status == 202,
                    "answered {}: {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                );
                took.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(took)
        }));
    }
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    Ok((took.len() as f64 / began.elapsed().as_secs_f64(), took))
}
