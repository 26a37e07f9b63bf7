//! How fast a store is, step by step and all at once: the embedded one on this machine's disk, or that on PostgreSQL.
//!
//! `cargo run --release -p herald-dispatcher --example store_bench -- [ROWS] [FOLDER]`
//!
//! With `--features postgres` and `HERALD_E2E_DATABASE_URL` (somebody who may make databases) it is that one, in a database
//! of its own that is gone afterwards. Recording is measured beside `COPY` of the same rows into the same tables, and with
//! `HERALD_BENCH_HISTORY` deliveries beside it, also how long the status of one of them takes.

#[cfg(feature = "postgres")]
mod postgres;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use herald_crds::Priority;
use herald_dispatcher::id::{DeliveryId, NotificationId, order};
use herald_dispatcher::message::{Event, Events, Request, Step, SystemState, To};
use herald_dispatcher::store::sqlite::{Options, SqliteStore};
use herald_dispatcher::store::{
    Chunk, Cursor, Hold, NewDelivery, ResolveStep, Store, Turn, Waiting,
};
use jiff::Timestamp;
use serde_json::value::RawValue;

const CHANNEL: &str = "shop/log";
const STEP: usize = 500;
const EVENTS: usize = 5_000;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rows = arguments
        .next()
        .map_or(Ok(200_000), |n| n.parse::<usize>())
        .context("ROWS is a number")?;
    #[cfg(feature = "postgres")]
    if let Ok(url) = std::env::var("HERALD_E2E_DATABASE_URL") {
        return postgres::measure(&url, rows).await;
    }
    let folder = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    embedded(&folder, rows).await
}

async fn embedded(folder: &Path, rows: usize) -> Result<()> {
    let path = folder.join(format!("herald-store-bench-{}.db", std::process::id()));
    let store = SqliteStore::open(&path, Options::default()).await?;
    steps(&store, rows).await?;
    println!(
        "resident {} MiB, file {} MiB",
        resident()? / 1024,
        std::fs::metadata(&path)?.len() / (1024 * 1024)
    );
    store.close().await;
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
    Ok(())
}

/// What every store is measured by.
async fn steps(store: &dyn Store, rows: usize) -> Result<()> {
    println!("one notification of {rows} rows:");
    let out = alone(store, "large", rows, 1).await?;
    record(store, &out).await?;

    let singles = rows / 5;
    println!("{singles} notifications of one row:");
    let out = alone(store, "small", singles, singles).await?;
    record(store, &out).await?;

    println!("one notification of {rows} rows, all steps at once:");
    together(store, rows).await
}

/// Plans, then releases; answers what is out.
async fn alone(
    store: &dyn Store,
    key: &str,
    rows: usize,
    notifications: usize,
) -> Result<Vec<Waiting>> {
    let watch = Watch::start()?;
    let mut requests = Vec::with_capacity(notifications);
    for n in 0..notifications {
        requests.push(Arc::new(request(&format!("{key}-{n}"))?));
    }
    for some in requests.chunks(200) {
        store.insert_notifications(&[], some).await?;
    }
    if notifications > 1 {
        watch.told("insert", notifications)?;
    }
    let people = people(rows / notifications);
    let watch = Watch::start()?;
    // As the planner does: short ones share a transaction.
    if people.len() < STEP {
        for some in requests.chunks(STEP / people.len()) {
            let steps = some.iter().map(|request| ResolveStep {
                notification: request.id,
                from: Cursor::default(),
                next: None,
                rows: deliveries(&request.id, &people),
            });
            let taken = store.resolve(steps.collect(), Timestamp::now()).await?;
            ensure!(!taken.contains(&false), "a step was refused");
        }
    } else {
        for request in &requests {
            plan(store, &request.id, &people).await?;
        }
    }
    watch.told("resolve", rows)?;

    let watch = Watch::start()?;
    let mut out = Vec::with_capacity(rows);
    let mut turn = Turn::default();
    loop {
        let Chunk {
            rows: mut chunk,
            next,
            hold,
            ..
        } = store.chunk(CHANNEL, Priority::Normal, &turn, STEP).await?;
        if chunk.is_empty() {
            break;
        }
        turn = next;
        release(hold, &chunk).await?;
        out.append(&mut chunk);
    }
    ensure!(out.len() == rows, "{} of {rows} rows came out", out.len());
    watch.told("chunk and release", rows)?;
    Ok(out)
}

async fn record(store: &dyn Store, out: &[Waiting]) -> Result<()> {
    let watch = Watch::start()?;
    for some in out.chunks(EVENTS) {
        tell(store, some, sent).await?;
    }
    watch.told("record", out.len())?;
    let left = store.unended().await?;
    ensure!(left == (0, 0), "{left:?} have not ended");
    Ok(())
}

/// All steps side by side, as in a running process.
async fn together(store: &dyn Store, rows: usize) -> Result<()> {
    let request = Arc::new(request("together")?);
    store
        .insert_notifications(&[], &[Arc::clone(&request)])
        .await?;
    let people = people(rows);
    println!("  resident {} MiB before", resident()? / 1024);
    let watch = Watch::start()?;
    let (out, told_of) = tokio::sync::mpsc::channel::<Waiting>(4 * EVENTS);
    let planning = plan(store, &request.id, &people);
    let releasing = async {
        let mut released = 0;
        while released < rows {
            let turn = Turn::default();
            let Chunk {
                rows: chunk, hold, ..
            } = store.chunk(CHANNEL, Priority::Normal, &turn, STEP).await?;
            release(hold, &chunk).await?;
            released += chunk.len();
            for waiting in chunk {
                out.send(waiting).await?;
            }
        }
        drop(out);
        println!(
            "  all released after {:.1} s",
            watch.began.elapsed().as_secs_f64()
        );
        anyhow::Ok(())
    };
    let recording = async {
        let mut told_of = told_of;
        let mut some = Vec::with_capacity(EVENTS);
        while told_of.recv_many(&mut some, EVENTS).await > 0 {
            tell(store, &some, sent).await?;
            some.clear();
        }
        anyhow::Ok(())
    };
    tokio::try_join!(planning, releasing, recording)?;
    watch.told("all", rows)?;
    Ok(())
}

async fn plan(store: &dyn Store, id: &NotificationId, people: &[Arc<str>]) -> Result<()> {
    let mut from = Cursor::default();
    let mut steps = people.chunks(STEP).peekable();
    while let Some(step) = steps.next() {
        let rows = deliveries(id, step);
        let next = steps.peek().map(|_| Cursor {
            source: 0,
            after: step.last().map(|last| (order(last), last.to_string())),
        });
        let taken = ResolveStep {
            notification: *id,
            from,
            next: next.clone(),
            rows,
        };
        let done = store.resolve(vec![taken], Timestamp::now()).await?;
        ensure!(done == [true], "a step was refused");
        from = next.unwrap_or_default();
    }
    Ok(())
}

fn deliveries(id: &NotificationId, people: &[Arc<str>]) -> Vec<NewDelivery> {
    let channel: Arc<str> = CHANNEL.into();
    people
        .iter()
        .map(|person| {
            let endpoint: Arc<str> = format!("{person}@mail.example").into();
            NewDelivery {
                id: DeliveryId::new(id, person, &channel, 0, &endpoint, 0),
                recipient: Arc::clone(person),
                channel: Arc::clone(&channel),
                endpoint,
                locale: "ko".into(),
                due: Timestamp::UNIX_EPOCH,
                suppressed: None,
            }
        })
        .collect()
}

async fn release(hold: Box<dyn Hold>, chunk: &[Waiting]) -> Result<()> {
    let rows: Vec<_> = chunk.iter().map(|w| (w.row, w.round, w.attempt)).collect();
    hold.settle(&rows, &[], &[], Timestamp::now()).await?;
    Ok(())
}

fn sent(waiting: &Waiting) -> Step {
    Step::Sent {
        provider: "null".into(),
        provider_id: Some(waiting.id.to_string()),
        milliseconds: 1,
    }
}

async fn tell(store: &dyn Store, out: &[Waiting], step: impl Fn(&Waiting) -> Step) -> Result<()> {
    let now = Timestamp::now();
    let events: Vec<_> = out
        .chunks(STEP)
        .map(|some| Events {
            outcomes: some
                .iter()
                .map(|waiting| Event {
                    delivery: waiting.id,
                    notification: waiting.notification,
                    at: now,
                    round: 0,
                    attempt: 1,
                    tried: 1,
                    priority: Priority::Normal,
                    step: step(waiting),
                })
                .collect(),
            ..Events::default()
        })
        .collect();
    store.record(CHANNEL, &events).await?;
    Ok(())
}

fn people(n: usize) -> Vec<Arc<str>> {
    let mut people: Vec<Arc<str>> = (0..n).map(|n| format!("person-{n}").into()).collect();
    people.sort_by_cached_key(|person| order(person));
    people
}

fn request(key: &str) -> Result<Request> {
    Ok(Request {
        id: NotificationId::from_key("shop", "bench", key),
        namespace: "shop".into(),
        sender: "bench".into(),
        body: "sha256:0123456789abcdef".into(),
        template: "news".into(),
        definition: "sha256:1".into(),
        groups: None,
        priority: Priority::Normal,
        recipients: vec![To::Group("shop/everybody".into())],
        parameters: RawValue::from_string(r#"{"headline":"measured"}"#.to_owned())?,
        sensitive: false,
        channels: Vec::new(),
        accepted_at: Timestamp::now(),
        send_at: None,
        expires_at: None,
        spread_over_seconds: 0,
        confirm_recipients: None,
        metadata: BTreeMap::new(),
        traceparent: None,
        system: SystemState::default(),
    })
}

/// A step of the measurement: what the clock and the processors say.
struct Watch {
    began: Instant,
    processors: Duration,
}

impl Watch {
    fn start() -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            processors: processors()?,
        })
    }

    /// Says how fast it was; answers how many a second.
    fn told(&self, what: &str, n: usize) -> Result<f64> {
        let took = self.began.elapsed();
        let used = processors()?.saturating_sub(self.processors);
        println!(
            "  {what:<32} {:>9.0} per second: {:6.2} µs each, of processors {:6.2} µs",
            n as f64 / took.as_secs_f64(),
            took.as_secs_f64() * 1e6 / n as f64,
            used.as_secs_f64() * 1e6 / n as f64
        );
        Ok(n as f64 / took.as_secs_f64())
    }
}

/// Processor time of this process so far, in the kernel's ticks of 10 ms.
fn processors() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// KiB in memory.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .context("no VmRSS")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("no number")?
        .parse()?)
}
