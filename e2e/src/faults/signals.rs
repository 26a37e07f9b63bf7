//! SIGTERM: what is being sent is finished, what is not is taken up at the next start, nothing twice.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{accepted, ended, written};
use crate::server::{self, Setup};

/// The time to drain (25 s), and some.
const DRAIN: Duration = Duration::from_secs(30);

/// Sends more than can be sent at a time, ends it in the middle, starts it again.
pub async fn terminate(setup: &Setup) -> anyhow::Result<()> {
    let api = setup.api()?;
    let mut running = setup.start()?;
    server::ready(&mut running, &api).await?;
    let mut ids = Vec::new();
    for number in 0..30 {
        let to = format!("n{number}@b.example");
        ids.push(accepted(&api, &format!("term-{number}"), &to, "slowly", "slow").await?);
    }
    let begin = std::time::Instant::now();
    while copies(setup)?.is_empty() {
        ensure!(begin.elapsed() < DRAIN, "nothing is sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.signal(Signal::TERM);
    let status = running.wait(DRAIN).await?;
    ensure!(status.success(), "SIGTERM ended it with {status}");
    let sent = copies(setup)?.len();
    ensure!(
        sent < ids.len(),
        "everything was sent before SIGTERM: this showed nothing"
    );

    let mut running = setup.start()?;
    server::ready(&mut running, &api).await?;
    ended(&api, &ids).await?;
    let copies = copies(setup)?;
    ensure!(
        copies.len() == ids.len(),
        "{} of {} were sent",
        copies.len(),
        ids.len()
    );
    let twice = copies.values().filter(|copies| **copies > 1).count();
    ensure!(
        twice == 0,
        "{twice} were sent twice, though it was ended in order"
    );
    println!(
        "           {sent} of {} were sent before it ended, the others after",
        ids.len()
    );
    Ok(())
}

/// How often each delivery was sent.
fn copies(setup: &Setup) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut copies = BTreeMap::new();
    let text = fs::read_to_string(written(setup)).unwrap_or_default();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).context("the rehearsal's file")?;
        if line["outcome"].as_str() == Some("Sent") {
            let id = line["delivery"]
                .as_str()
                .context("a line without its delivery")?;
            *copies.entry(id.to_owned()).or_default() += 1;
        }
    }
    Ok(copies)
}
