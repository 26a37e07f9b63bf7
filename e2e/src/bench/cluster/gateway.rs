//! How many notifications a second a gateway accepts, with the broker's receipt.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use herald_crds::Priority;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AT_A_TIME, RAW, channel};
use crate::bench::http::Client;
use crate::bench::report::{Section, milliseconds, per_second, percentile};
use crate::bench::{Options, process};
use crate::cluster::{Channel, NAMESPACE};
use crate::server::Api;

const CHANNELS: &[Channel] = &[channel("mail", None), RAW];

/// Connections, each with one request at a time.
const CONNECTIONS: usize = 64;

/// Senders. Each may send 5,000 notifications a second, so one alone would measure that limit.
const SENDERS: usize = 16;

/// Notifications in one request of a batch.
const BATCH: usize = 100;

/// Bytes of a request as a message, alone: with its id, sender, times and the state of the system.
const KEPT_BYTES: usize = 1_024;

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "gateway",
        "A gateway: accepting, on Pulsar",
        "64 connections, kept alive, each with one request at a time; `sendAt` is 300 days ahead, so a request is in the \
         broker, answered, planned, and nothing follows. Raw: the same client's messages of 1 KiB, not batched, 1,000 \
         without a receipt at any time, to a topic of one partition. The broker, the database and both clients share the \
         machine. With and without the broker waiting for the disk (`journalSyncData`).",
    );
    for sync in [true, false] {
        let folder = tempfile::tempdir_in(crate::bench::place()?)?;
        let cluster = super::start(CHANNELS, 64, sync, folder.path()).await?;
        let raw = super::raw(&cluster, &super::topic("raw", Priority::Normal)).await?;
        let count = options.scaled(100_000, 5_000);
        Box::pin(raw.publish(count / 10, KEPT_BYTES, AT_A_TIME)).await?;
        let began = Instant::now();
        Box::pin(raw.publish(count, KEPT_BYTES, AT_A_TIME)).await?;
        let raw_rate = count as f64 / began.elapsed().as_secs_f64();

        let gateway = cluster.gateway("gateway").await?;
        let address = SocketAddr::from(([127, 0, 0, 1], gateway.port()));
        let process = gateway.process()?;
        let time = Duration::from_millis(options.scaled(10_000, 1_000) as u64);
        let keys = keys(&gateway.api).await?;
        load(address, &keys, time / 5, 1).await?;
        let how = if sync { "synced" } else { "not synced" };
        for (what, in_each, share) in [("one by one", 1, 0.2), ("in batches of 100", BATCH, 1.0)] {
            let busy = process::processor_time(process)?;
            let (rate, mut took) = load(address, &keys, time, in_each).await?;
            let busy = process::processor_time(process)? - busy;
            took.sort_by(f64::total_cmp);
            let each = busy / (rate * time.as_secs_f64());
            section.at_least(
                &format!("accepted {what}, {how}"),
                (rate, per_second(rate)),
                format!(
                    "{} ({:.0} %)",
                    per_second(raw_rate),
                    rate / raw_rate * 100.0
                ),
                (raw_rate * share, &format!("{:.0} % of raw", share * 100.0)),
            );
            section.told(
                &format!("99th percentile of an answer, {what}, {how}"),
                milliseconds(percentile(&took, 0.99)),
                String::new(),
            );
            section.told(
                &format!("processor time of one, {what}, {how}"),
                format!("{:.0} µs", each * 1e6),
                String::new(),
            );
        }
    }
    Ok(section)
}

/// Makes the senders known; their keys.
async fn keys(api: &Api) -> Result<Vec<String>> {
    let mut keys = Vec::with_capacity(SENDERS);
    for sender in 0..SENDERS {
        let new = json!({"name": format!("sender-{sender}"), "scopes": ["*"]});
        let answer = api.post("/v1/keys").json(&new).send().await?;
        let made: Value = answer.error_for_status()?.json().await?;
        let key = made["key"].as_str().context("a key that is not shown")?;
        keys.push(key.to_owned());
    }
    Ok(keys)
}

/// Accepted per second, and what each answer took in milliseconds.
async fn load(
    address: SocketAddr,
    keys: &[String],
    time: Duration,
    in_each: usize,
) -> Result<(f64, Vec<f64>)> {
    let send_at = Timestamp::now() + Duration::from_hours(300 * 24);
    let one = json!({
        "template": "note-mail",
        "recipients": [{"address": {"email": "somebody@bench.example"}}],
        "parameters": {"number": 1},
        "sendAt": send_at.to_string(),
    });
    let (path, body) = if in_each == 1 {
        ("notifications", one)
    } else {
        ("notifications/batch", Value::Array(vec![one; in_each]))
    };
    let path = format!("/v1/namespaces/{NAMESPACE}/{path}");
    let body: Arc<[u8]> = body.to_string().into_bytes().into();
    let began = Instant::now();
    let mut tasks = Vec::with_capacity(CONNECTIONS);
    for connection in 0..CONNECTIONS {
        let (path, body) = (path.clone(), Arc::clone(&body));
        let key = keys[connection % keys.len()].clone();
        tasks.push(tokio::spawn(async move {
            let mut client = Client::connect(address, &key).await?;
            let mut took = Vec::with_capacity(8_192);
            let mut limited = 0;
            while began.elapsed() < time {
                let asked = Instant::now();
                let answer = client.post(&path, &body).await?;
                let accepted = match answer.status {
                    202 => in_each,
                    // Each of a batch has its own.
                    200 | 207 => accepted(&answer.body)?,
                    // A sender's rate: the next second has more.
                    429 => 0,
                    status => {
                        let words = String::from_utf8_lossy(&answer.body);
                        anyhow::bail!("answered {status}: {words}");
                    }
                };
                if accepted == 0 {
                    limited += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                took.push((asked.elapsed().as_secs_f64() * 1e3, accepted));
            }
            ensure!(limited < 1_000, "the sender's rate was measured");
            anyhow::Ok(took)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    let count: usize = all.iter().map(|(_, accepted)| accepted).sum();
    let took = all.into_iter().map(|(took, _)| took).collect();
    Ok((count as f64 / began.elapsed().as_secs_f64(), took))
}

fn accepted(body: &[u8]) -> Result<usize> {
    let answer: Value = serde_json::from_slice(body)?;
    let results = answer["results"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(results.iter().filter(|one| one["status"] == 202).count())
}
