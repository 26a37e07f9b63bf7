//! A fixed load on two gateways and three pods, of which each is killed again and again, with the broker and the
//! database: everything arrives, and twice only what a fault can explain.
//!
//! - This file: the run. [`faults`]: what is killed when. [`verdict`]: what arrived, held against what was accepted.

mod faults;
mod verdict;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Deserialize;

use crate::cluster::load::{self, Load};
use crate::cluster::{Channel, Cluster, NAMESPACE, Setup, sent};
use crate::run::Options;
use crate::server::Api;
use faults::Faults;

/// W of each pod.
const WINDOW: usize = 64;

/// How large it is.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// The two Channels.
    channels: &'static [Channel],
    /// For how long is sent.
    over: Duration,
    /// Single notifications a second.
    singles: u32,
    /// Members of the group that a bulk goes to, on each channel.
    people: usize,
    /// How often each of the four is killed, in a minute or part of one that it shares with the other three.
    faults: usize,
    /// H.
    horizon: Duration,
    /// By when all must have ended after the last was accepted.
    end_within: Duration,
}

const fn channel(name: &'static str, rate: u32) -> Channel {
    Channel {
        name,
        rate: Some(rate),
        latency: Duration::from_millis(20),
        slots: 32,
        kept: true,
    }
}

/// 500 deliveries a second: a tenth of them critical, a third bulk.
const FULL: Size = Size {
    channels: &[channel("mail", 250), channel("post", 250)],
    over: Duration::from_mins(20),
    singles: 333,
    people: 100_000,
    faults: 10,
    horizon: Duration::from_mins(2),
    end_within: Duration::from_mins(12),
};

/// For every run of the tests, unoptimized.
const SMALL: Size = Size {
    channels: &[channel("mail", 60), channel("post", 60)],
    over: Duration::from_secs(75),
    singles: 60,
    people: 1_500,
    faults: 1,
    horizon: Duration::from_secs(60),
    end_within: Duration::from_mins(4),
};

/// A notification as the API shows it.
#[derive(Debug, Deserialize)]
struct Shown {
    id: String,
    status: String,
}

/// Runs it. An error says what was not as it has to be.
pub async fn run(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let size = if options.small { SMALL } else { FULL };
    let seed = options.seed.unwrap_or_else(rand::random);
    let begin = Instant::now();
    let say = move |words: &str| println!("{:>7.1} s  {words}", begin.elapsed().as_secs_f64());
    println!("seed {seed} (again with --seed {seed})");
    let mut cluster = Cluster::start(
        Setup {
            channels: size.channels,
            templates: load::templates(size.channels),
            horizon: size.horizon,
            window: WINDOW,
            sync: true,
            broker: Vec::new(),
        },
        folder,
    )
    .await?;
    let mut gateways = Vec::new();
    for name in ["gateway-a", "gateway-b"] {
        gateways.push(cluster.gateway(name).await?);
    }
    let mut pods = Vec::new();
    for (name, channel) in [("mail-a", 0), ("mail-b", 0), ("post-a", 1)] {
        pods.push(cluster.pod(name, size.channels[channel]).await?);
    }
    say("up: two gateways, three pods");
    let apis: Arc<[Api]> = gateways.iter().map(|gateway| gateway.api.clone()).collect();
    cluster.import(&apis[0], load::GROUP, size.people).await?;
    say(&format!("{} people imported", size.people));

    let load = Load::start(&apis, size.channels, size.singles, size.over);
    let mut faults = Faults::new(size.over, size.faults, StdRng::seed_from_u64(seed));
    while let Some(fault) = faults.next() {
        faults
            .until(fault.at, &gateways, &load, &say)
            .await
            .context("waiting for the next fault")?;
        faults
            .strike(fault, &mut cluster, &mut gateways, &mut pods, &say)
            .await?;
    }
    let over = size.over;
    faults.until(over, &gateways, &load, &say).await?;
    let accepted = load.finish().await?;
    say(&format!("all {} were accepted", accepted.ids.len()));

    let ended = until_ended(&apis[0], &accepted.ids, size.end_within, &say).await?;
    faults.look(&gateways).await;
    // What comes twice may come late.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sent = sent::read(&cluster.folder)?;
    let verdict = verdict::judge(&verdict::Evidence {
        accepted: &accepted,
        ended,
        sent: &sent,
        people: size.people,
        channels: size.channels,
        faults: &faults,
        window: WINDOW,
    });
    println!("\n{verdict}");
    ensure!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("; "));
    drop((gateways, pods));
    Ok(())
}

/// Waits until every notification has ended; how many have.
async fn until_ended(
    api: &Api,
    ids: &[String],
    within: Duration,
    say: &impl Fn(&str),
) -> anyhow::Result<usize> {
    let begin = Instant::now();
    let mut said = None;
    loop {
        let shown: anyhow::Result<Vec<Shown>> = api
            .all(&format!("/v1/namespaces/{NAMESPACE}/notifications"))
            .await;
        // The database may have been the last that was killed.
        let shown = match shown {
            Err(_) if begin.elapsed() < within => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                continue;
            }
            shown => shown?,
        };
        let ended: std::collections::HashSet<&str> = shown
            .iter()
            .filter(|shown| shown.status == "ended")
            .map(|shown| &*shown.id)
            .collect();
        let count = ids.iter().filter(|id| ended.contains(&***id)).count();
        if said != Some(count) {
            say(&format!("{count} of {} have ended", ids.len()));
            said = Some(count);
        }
        if count == ids.len() || begin.elapsed() > within {
            return Ok(count);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
