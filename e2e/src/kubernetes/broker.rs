//! The broker dies, is away for a moment, and comes back with what it had.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Stage;
use super::desk::Who;
use super::load::{Load, RATE};

/// How long it is away before it is started again.
const AWAY: Duration = Duration::from_secs(3);

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    let before = stage.pods(Who::Gateway)?;
    let load = Load::start(&desk, "broker").await?;
    let pulsar = stage.environment.pulsar_mut()?;
    let begin = Instant::now();
    pulsar.kill();
    tokio::time::sleep(AWAY).await;
    pulsar.restart().await?;
    let away = begin.elapsed();
    load.more(2 * RATE as usize).await?;
    let back = begin.elapsed().saturating_sub(away);
    // Its restart touches every pod: one delivers.
    let outcome = load.finish(stage, 1).await?;
    let after = stage.running(Who::Gateway, &[]).await?;
    let is_same = |pod| before.iter().any(|old| old.container == pod);
    ensure!(
        after.iter().all(|pod| is_same(pod.container.as_str())),
        "a gateway ended: {before:?} became {after:?}"
    );
    Ok(format!(
        "Pulsar away for {away:.0?}, two seconds of the load accepted {back:.0?} later: {outcome}"
    ))
}
