//! How fast a pod works off what is in the broker, with a provider that does nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use herald_crds::Priority;
use pulsar::SubType;

use super::{PREFETCH, RAW, channel};
use crate::bench::report::{Section, per_second};
use crate::bench::{Options, process};
use crate::cluster::{Channel, Cluster, Pod};

const CHANNELS: &[Channel] = &[channel("mail", None), RAW];

/// Deliveries of a bundle.
const BUNDLE: usize = 100;

/// W, of a pod that is to be fast.
const WINDOW: usize = 1_024;

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "deliver",
        "A pod: delivering, from Pulsar",
        "Deliveries with a text of 400 bytes are in the class topic before the pod starts (W 1,024, 256 slots); the `log` \
         provider writes to `/dev/null`. From the first to the last, as the pod counts them. Raw: the same client takes \
         messages of the same size from the same topic and acknowledges each, Key_Shared, prefetch 1,000. The broker waits for \
         the disk.",
    );
    let folder = tempfile::tempdir_in(crate::bench::place()?)?;
    let cluster = super::start(CHANNELS, WINDOW, true, folder.path()).await?;
    let broker = super::broker(&cluster)?;
    let singles = options.scaled(60_000, 3_000);
    let bundled = options.scaled(1_000_000, 50_000);

    super::publish(&broker, "raw", Priority::Normal, singles, 1).await?;
    let raw = super::raw(&cluster, &super::topic("raw", Priority::Normal)).await?;
    let began = Instant::now();
    Box::pin(raw.consume(singles, SubType::KeyShared, PREFETCH)).await?;
    let raw_singles = singles as f64 / began.elapsed().as_secs_f64();
    super::publish(&broker, "raw", Priority::Low, bundled, BUNDLE).await?;
    let raw = super::raw(&cluster, &super::topic("raw", Priority::Low)).await?;
    let began = Instant::now();
    Box::pin(raw.consume(bundled / BUNDLE, SubType::KeyShared, PREFETCH)).await?;
    let raw_bundled = bundled as f64 / began.elapsed().as_secs_f64();

    super::publish(&broker, "mail", Priority::Normal, singles, 1).await?;
    let (rate, _) = worked_off(&cluster, "singles", singles).await?;
    section.at_least(
        "single deliveries, nobody records",
        (rate, per_second(rate)),
        format!(
            "{} ({:.0} %)",
            per_second(raw_singles),
            rate / raw_singles * 100.0
        ),
        (raw_singles * 0.6, "60 % of raw"),
    );
    super::publish(&broker, "mail", Priority::Low, bundled, BUNDLE).await?;
    let (rate, each) = worked_off(&cluster, "bundles", bundled).await?;
    section.at_least(
        "from bundles of 100, nobody records",
        (rate, per_second(rate)),
        format!(
            "{} ({:.0} %)",
            per_second(raw_bundled),
            rate / raw_bundled * 100.0
        ),
        (60_000.0, "60,000/s"),
    );
    section.told(
        "processor time of one, from bundles",
        format!("{:.0} µs", each * 1e6),
        String::new(),
    );
    super::publish(&broker, "mail", Priority::Low, bundled, BUNDLE).await?;
    let gateway = cluster.gateway("gateway").await?;
    let (rate, _) = worked_off(&cluster, "recorded", bundled).await?;
    section.told(
        "from bundles of 100, while a gateway reads what comes of it",
        per_second(rate),
        String::new(),
    );
    drop(gateway);
    Ok(section)
}

/// Deliveries per second from the first to the last of so many, and the processor time of each in seconds.
async fn worked_off(cluster: &Cluster, name: &str, count: usize) -> Result<(f64, f64)> {
    let mut pod = cluster.pod(name, CHANNELS[0]).await?;
    let began = loop {
        if sent(&pod).await? > 0.0 {
            break Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let first = sent(&pod).await?;
    let mut last = (first, Instant::now());
    while last.0 < count as f64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = sent(&pod).await?;
        if now > last.0 {
            last = (now, Instant::now());
        }
        ensure!(
            last.1.elapsed() < Duration::from_mins(1),
            "only {now} of {count} were sent"
        );
    }
    let busy = process::processor_time(pod.process()?)?;
    let over = (last.1 - began).as_secs_f64().max(1e-3);
    pod.end(Duration::from_mins(1)).await?;
    Ok(((last.0 - first) / over, busy / count as f64))
}

async fn sent(pod: &Pod) -> Result<f64> {
    let metrics = pod.probes.metrics().await?;
    Ok(metrics
        .get("herald_sent_total")
        .copied()
        .unwrap_or_default())
}
