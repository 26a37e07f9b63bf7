//! A disk that is full: nothing more is accepted, what was accepted stays, and room is all that it takes to go on.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;

use super::starts::Mounted;
use super::{accepted, ended, send};
use crate::server::{self, Setup};

/// Most notes until the disk must be full.
const MOST: usize = 2_000;

/// How long after there is room again it may take until something is accepted.
const RECOVER: Duration = Duration::from_secs(30);

/// Fills a small disk, looks at the answers, makes room.
pub async fn full(setup: Setup) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("           skipped: only root can mount a small disk");
        return Ok(());
    }
    fs::create_dir_all(&setup.state)?;
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&setup.state);
        command.status().is_ok_and(|status| status.success())
    };
    if !mount("size=12m") {
        println!("           skipped: root may not mount here");
        return Ok(());
    }
    let mounted = Mounted(setup.state.clone());
    let api = setup.api()?;
    let mut running = setup.start()?;
    server::ready(&mut running, &api).await?;
    let words = "w".repeat(100_000);
    let mut ids = Vec::new();
    let refusal = loop {
        ensure!(
            ids.len() < MOST,
            "{MOST} notes of 100 kB went onto a disk of 12 MB"
        );
        let number = ids.len();
        let answer = send(
            &api,
            &format!("disk-{number}"),
            "a@b.example",
            &words,
            "slow",
        )
        .await?;
        if answer.status() != StatusCode::ACCEPTED {
            break answer;
        }
        ids.push(answer.json::<super::Accepted>().await?.id);
    };
    let status = refusal.status();
    let after = refusal.headers().get(RETRY_AFTER).cloned();
    let body = refusal.text().await?;
    ensure!(
        status == StatusCode::SERVICE_UNAVAILABLE,
        "a full disk is answered {status}: {body}"
    );
    ensure!(after.is_some(), "503 without Retry-After: {body}");
    running
        .ended()?
        .map_or(Ok(()), |status| bail!("a full disk ended it: {status}"))?;

    ensure!(mount("remount,size=200m"), "cannot make room");
    let begin = Instant::now();
    let last = loop {
        let answer = send(&api, "disk-room", "a@b.example", "room", "quick").await?;
        if answer.status() == StatusCode::ACCEPTED {
            break answer.json::<super::Accepted>().await?.id;
        }
        ensure!(
            begin.elapsed() < RECOVER,
            "still {} though there is room",
            answer.status()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ids.push(last);
    ended(&api, &ids).await.context("after the disk was full")?;
    accepted(&api, "disk-after", "a@b.example", "after", "quick").await?;
    println!(
        "           {} were accepted before it was full, and all of them ended",
        ids.len() - 1
    );
    running.kill();
    drop(mounted);
    Ok(())
}
