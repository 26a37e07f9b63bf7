//! What logs, probes and metrics say.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::server::Api;

/// How long it may take until something is said, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(45);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until a line of a log says all of these words.
pub(super) async fn says(log: &Path, words: &[&str]) -> anyhow::Result<()> {
    says_after(log, 0, words).await
}

/// The same for lines after so many bytes.
pub(super) async fn says_after(log: &Path, after: usize, words: &[&str]) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(after..).unwrap_or_default()).into_owned();
        if text
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
        {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            bail!("no line of {} says {words:?}", log.display());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How long a log is by now.
pub(super) fn length(log: &Path) -> usize {
    std::fs::metadata(log).map_or(0, |log| log.len() as usize)
}

/// It is up, and not ready, and counts failures under this name.
pub(super) async fn is_up_and_not_ready(probes: &Api, metric: &str) -> anyhow::Result<()> {
    let live = probes.get("/livez").send().await.context("it is not up")?;
    ensure!(live.status().is_success(), "/livez: {}", live.status());
    let ready = probes.get("/readyz").send().await.context("it is not up")?;
    ensure!(ready.status() == 503, "/readyz: {}", ready.status());
    counts(probes, metric).await
}

/// A metric is above zero.
pub(super) async fn counts(probes: &Api, metric: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let metrics = probes.metrics().await?;
        if metrics.get(metric).is_some_and(|value| *value > 0.0) {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "{metric} is not above zero");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until a metric is about `expected`, by no more than `about`.
pub(super) async fn reads(
    probes: &Api,
    metric: &str,
    expected: f64,
    about: f64,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let value = probes.metrics().await?.get(metric).copied();
        if value.is_some_and(|value| (value - expected).abs() <= about) {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "{metric} is {value:?}, not {expected}"
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until it is ready.
pub(super) async fn gets_ready(name: &str, probes: &Api) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let answer = probes.get("/readyz").send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "{name} was mended and is not ready"
        );
        tokio::time::sleep(LOOK).await;
    }
}
