//! What is resident: under a load that goes on, and while few or very many wait.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::channel;
use crate::bench::http::Client;
use crate::bench::report::{Section, grouped, mebibytes, per_second};
use crate::bench::{Options, process};
use crate::cluster::load::{self, GROUP};
use crate::cluster::{Channel, Cluster, Gateway, NAMESPACE, Setup};
use crate::server::KEY;

/// A second, of the load.
const RATE: usize = 500;

/// Connections that bring the load.
const CONNECTIONS: usize = 20;

/// One that is worked off, and one on which whatever comes waits.
const CHANNELS: &[Channel] = &[
    channel("mail", Some(2 * RATE as u32)),
    channel("slow", Some(1)),
];

/// The smaller group.
const FEW: &str = "few";

/// Its members.
const FEW_PEOPLE: usize = 1_000;

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_mins(2);

/// How much more may be resident.
const MORE: f64 = 1.2;

/// The processes, in the order of all figures.
const PROCESSES: [&str; 3] = ["gateway", "pod", "pod of the slow channel"];

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "memory",
        "A gateway and its pods: resident memory",
        "500 single notifications a second, a quarter of them critical and direct, for 2 H, with H = 2 minutes: what is \
         settled is remembered for H. Then, while they go on, a notification to 1,000 people waits on a channel of one send a \
         second, then one to 1,000,000. Each figure is the median of a sixth of H, a sample a second.",
    );
    let horizon = Duration::from_secs(if options.size < 1_000_000 { 30 } else { 120 });
    let rate = options.scaled(RATE, 100);
    let many = options.size;
    let folder = tempfile::tempdir_in(crate::bench::place()?)?;
    let cluster = start(folder.path(), horizon, many).await?;
    let gateway = cluster.gateway("gateway").await?;
    let pod = cluster.pod("mail", CHANNELS[0]).await?;
    let slow = cluster.pod("slow", CHANNELS[1]).await?;
    let processes = [gateway.process()?, pod.process()?, slow.process()?];

    let load = Load::start(&gateway, rate).await?;
    let began = Instant::now();
    let part = horizon / 6;
    tokio::time::sleep(part).await;
    let first = resident(&processes, part).await?;
    tokio::time::sleep(horizon.saturating_sub(began.elapsed())).await;
    let after_one = resident(&processes, part).await?;
    tokio::time::sleep((horizon * 2).saturating_sub(began.elapsed())).await;
    let after_two = resident(&processes, part).await?;
    section.told(
        "accepted meanwhile",
        per_second(load.count() as f64 / began.elapsed().as_secs_f64()),
        String::new(),
    );
    let sent = pod.probes.metrics().await?;
    let sent = sent.get("herald_sent_total").copied().unwrap_or_default();
    section.told(
        "sent meanwhile",
        per_second(sent / began.elapsed().as_secs_f64()),
        String::new(),
    );
    let levels = PROCESSES
        .iter()
        .zip(first.iter().zip(after_one).zip(after_two));
    for (which, ((first, one), two)) in levels.take(2) {
        section.at_most(
            &format!("{which}: after 2 H of the load"),
            (two as f64, mebibytes(two)),
            String::new(),
            (
                one as f64 * MORE,
                &format!(
                    "120 % of {} after H ({} at first)",
                    mebibytes(one),
                    mebibytes(*first)
                ),
            ),
        );
    }

    wait_for(&cluster, &gateway, FEW, FEW_PEOPLE.min(many)).await?;
    let few = resident(&processes, part).await?;
    let (took, most) = wait_for(&cluster, &gateway, GROUP, many).await?;
    section.told(
        &format!(
            "gateway: the most while {} are planned",
            grouped(many as u64)
        ),
        mebibytes(most),
        format!(
            "{} rows beside the load",
            per_second(many as f64 / took.as_secs_f64())
        ),
    );
    let waiting = resident(&processes, part).await?;
    for (which, (few, many_waiting)) in PROCESSES.iter().zip(few.iter().zip(waiting)) {
        section.at_most(
            &format!("{which}: with {} waiting", grouped(many as u64)),
            (many_waiting as f64, mebibytes(many_waiting)),
            String::new(),
            (
                *few as f64 * MORE,
                &format!("120 % of {} with 1,000", mebibytes(*few)),
            ),
        );
    }
    load.stop().await?;
    Ok(section)
}

/// The servers, and everybody in the directory.
async fn start(folder: &Path, horizon: Duration, many: usize) -> Result<Cluster> {
    let few = format!(
        "---\n\
         apiVersion: herald.dev/v1alpha1\n\
         kind: RecipientGroup\n\
         metadata: {{name: {FEW}, namespace: {NAMESPACE}}}\n\
         spec: {{managed: true}}\n"
    );
    let setup = Setup {
        channels: CHANNELS,
        templates: load::templates(CHANNELS) + &few,
        horizon,
        window: 64,
        sync: true,
        broker: Vec::new(),
    };
    let cluster = Cluster::start(setup, folder).await?;
    // Not by the gateway that is measured: what an import took it may keep.
    let mut other = cluster.gateway("import").await?;
    cluster.import(&other.api, GROUP, many).await?;
    cluster
        .import(&other.api, FEW, FEW_PEOPLE.min(many))
        .await?;
    other.end(PATIENCE).await?;
    Ok(cluster)
}

/// The median of what each process has in memory, over so long.
async fn resident(processes: &[u32; 3], over: Duration) -> Result<[u64; 3]> {
    let mut samples: [Vec<u64>; 3] = Default::default();
    let began = Instant::now();
    while began.elapsed() < over || samples[0].is_empty() {
        for (process, samples) in processes.iter().zip(&mut samples) {
            samples.push(process::resident(*process)?);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(samples.map(|mut samples| {
        samples.sort_unstable();
        samples[samples.len() / 2]
    }))
}

/// Sends to a group on the slow channel, and waits until all rows are written; answers how long that took, and the most
/// that the gateway had in memory meanwhile.
async fn wait_for(
    cluster: &Cluster,
    gateway: &Gateway,
    group: &str,
    count: usize,
) -> Result<(Duration, u64)> {
    let body = json!({
        "template": "news-slow",
        "recipients": [{"group": group}],
        "parameters": {"number": 0},
        "confirmRecipients": count,
    });
    let path = format!("/v1/namespaces/{NAMESPACE}/notifications");
    let answer = gateway.api.post(&path).json(&body).send().await?;
    let status = answer.status();
    ensure!(status.as_u16() == 202, "{body} was answered {status}");
    let accepted: Value = answer.json().await?;
    let id = accepted["id"]
        .as_str()
        .context("a notification without id")?;
    let began = Instant::now();
    let process = gateway.process()?;
    let (mut written, mut at, mut most) = (0, began, 0);
    while written < count as u64 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(process::resident(process)?);
        let path = format!("{path}/{id}");
        let answer = gateway.api.get(&path).send().await?;
        if !answer.status().is_success() {
            // It is not written down yet.
            ensure!(at.elapsed() < PATIENCE, "{id} is not there");
            continue;
        }
        let shown: Value = answer.json().await?;
        let counts = shown["counts"].as_object();
        let now = counts.map_or(0, |counts| counts.values().filter_map(Value::as_u64).sum());
        if now > written {
            (written, at) = (now, Instant::now());
        }
        ensure!(
            at.elapsed() < PATIENCE,
            "only {written} of {count} rows were written: {}",
            cluster.log(&gateway.name).display()
        );
    }
    Ok((began.elapsed(), most))
}

/// Single notifications to bare addresses, so many a second, until it is stopped.
struct Load {
    count: Arc<AtomicUsize>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    async fn start(gateway: &Gateway, rate: usize) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], gateway.port()));
        let count = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for connection in 0..CONNECTIONS {
            let mut client = Client::connect(address, KEY).await?;
            let count = Arc::clone(&count);
            let mut due =
                tokio::time::interval(Duration::from_secs(CONNECTIONS as u64) / rate as u32);
            tasks.spawn(async move {
                let path = format!("/v1/namespaces/{NAMESPACE}/notifications");
                for number in 0_usize.. {
                    due.tick().await;
                    let kind = if number.is_multiple_of(4) { "code" } else { "note" };
                    let body = json!({
                        "template": format!("{kind}-mail"),
                        "recipients": [{"address": {"email": format!("n{connection}-{number}@single.example")}}],
                        "parameters": {"number": number},
                    });
                    client.post(&path, body.to_string().as_bytes()).await?.json(202)?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Ok(Self { count, tasks })
    }

    /// How many were accepted.
    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// An error if one of them was not accepted.
    async fn stop(mut self) -> Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        self.tasks.shutdown().await;
        Ok(())
    }
}
