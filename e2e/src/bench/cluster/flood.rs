//! What is critical, while what is low comes ten times as fast as it can go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use herald_crds::Priority;
use herald_dispatcher::broker::Broker as _;
use herald_dispatcher::broker::pulsar::PulsarBroker;
use pulsar::SubType;
use tokio_util::sync::CancellationToken;

use super::{PREFETCH, channel};
use crate::bench::Options;
use crate::bench::report::{Section, milliseconds, percentile};
use crate::cluster::{Channel, Cluster, sent};

/// Sends a second that the channel may do.
const RATE: u32 = 500;

/// Ten times as many come.
const FLOOD: usize = 10 * RATE as usize;

/// Critical ones a second.
const CRITICAL: usize = 25;

/// Deliveries of a bundle of the flood.
const BUNDLE: usize = 100;

const CHANNELS: &[Channel] = &[
    Channel {
        kept: true,
        ..channel("mail", Some(RATE))
    },
    channel("raw", None),
];

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "flood",
        "A pod: what is critical, in a flood of what is low",
        "A channel of 500 sends a second gets 25 critical deliveries a second, alone and then while 5,000 low ones a second come in \
         bundles of 100. From before publishing to the end of the send, which takes no time. Raw: the same two floods in two topics \
         of the broker, each with a consumer of the client alone; from before publishing to receiving.",
    );
    let folder = tempfile::tempdir_in(crate::bench::place()?)?;
    let cluster = super::start(CHANNELS, 64, true, folder.path()).await?;
    let broker = Arc::new(super::broker(&cluster)?);
    let count = options.scaled(600, 50);

    let raw_alone = raw(&cluster, &broker, count, false).await?;
    let raw_flood = raw(&cluster, &broker, count, true).await?;
    let pod = cluster.pod("mail", CHANNELS[0]).await?;
    // It sends nothing before it has heard itself twice.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let alone = critical(&cluster, &broker, count, false).await?;
    let flood = critical(&cluster, &broker, count, true).await?;
    drop(pod);
    let [alone_p99, flood_p99] = [&alone, &flood].map(|took| percentile(took, 0.99));
    let [raw_alone, raw_flood] = [&raw_alone, &raw_flood].map(|took| percentile(took, 0.99));
    section.told(
        "critical, 99th percentile, alone",
        milliseconds(alone_p99),
        milliseconds(raw_alone),
    );
    section.at_most(
        "critical, 99th percentile, in the flood",
        (flood_p99, milliseconds(flood_p99)),
        format!(
            "{} ({:.1} × alone)",
            milliseconds(raw_flood),
            raw_flood / raw_alone
        ),
        (
            alone_p99 * 3.0,
            &format!("3 × alone = {}", milliseconds(alone_p99 * 3.0)),
        ),
    );
    section.told(
        "critical, median, in the flood",
        milliseconds(percentile(&flood, 0.5)),
        format!("{} alone", milliseconds(percentile(&alone, 0.5))),
    );
    Ok(section)
}

/// Lets what is low come, until it is told to stop.
fn pour(broker: &Arc<PulsarBroker>, channel: &'static str, stop: &CancellationToken) {
    let (broker, stop) = (Arc::clone(broker), stop.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        let mut number = 0;
        loop {
            interval.tick().await;
            let part = FLOOD / 10;
            let some = super::messages(channel, Priority::Low, number, part, BUNDLE);
            number += part;
            // One that fails is missing in the flood, and nothing else.
            let _ = broker
                .publish(&super::topic(channel, Priority::Low), some)
                .await;
        }
    }));
}

/// Milliseconds from publishing to the end of the send, sorted.
async fn critical(
    cluster: &Cluster,
    broker: &Arc<PulsarBroker>,
    count: usize,
    in_flood: bool,
) -> Result<Vec<f64>> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    if in_flood {
        pour(broker, "mail", &stop);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let mut interval = tokio::time::interval(Duration::from_secs(1) / CRITICAL as u32);
    let mut ids = std::collections::HashMap::with_capacity(count);
    for number in 0..count {
        interval.tick().await;
        let one = super::delivery("mail", Priority::Critical, number);
        ids.insert(one.id.to_string(), one.released_at);
        let message = super::single(one);
        broker
            .publish(&super::topic("mail", Priority::Critical), vec![message])
            .await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut took = Vec::with_capacity(count);
    for sent in sent::read(&cluster.folder)? {
        if let Some(at) = ids.remove(&*sent.delivery) {
            took.push(sent.at.duration_since(at).as_secs_f64() * 1e3);
        }
    }
    anyhow::ensure!(ids.is_empty(), "{} critical ones were not sent", ids.len());
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// Milliseconds from publishing to receiving, sorted, with the client alone.
async fn raw(
    cluster: &Cluster,
    broker: &Arc<PulsarBroker>,
    count: usize,
    in_flood: bool,
) -> Result<Vec<f64>> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    if in_flood {
        let low = super::raw(cluster, &super::topic("raw", Priority::Low)).await?;
        let mut low = low.consumer(SubType::KeyShared, PREFETCH).await?;
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok(Some(message)) = low.try_next().await {
                // What is not acknowledged comes again, to nobody.
                let _ = low.ack(&message).await;
            }
        }));
        pour(broker, "raw", &stop);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let topic = super::topic("raw", Priority::Critical);
    let raw = super::raw(cluster, &topic).await?;
    let mut consumer = raw.consumer(SubType::KeyShared, PREFETCH).await?;
    let mut interval = tokio::time::interval(Duration::from_secs(1) / CRITICAL as u32);
    let mut took = Vec::with_capacity(count);
    for number in 0..count {
        interval.tick().await;
        let message = super::single(super::delivery("raw", Priority::Critical, number));
        let begun = Instant::now();
        let publishing = broker.publish(&topic, vec![message]);
        let receiving = async {
            let message = consumer.try_next().await?.context("the consumer ended")?;
            let took = begun.elapsed();
            consumer.ack(&message).await?;
            anyhow::Ok(took)
        };
        let (published, received) = futures::join!(publishing, receiving);
        published?;
        took.push(received?.as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}
