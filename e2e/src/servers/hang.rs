//! Pods that hang, and pods that end: their work moves on to others.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use herald_dispatcher::deliver::watchdog;
use rustix::process::Signal;

use super::witness::says;
use super::{MAIL, POST, Stage, WINDOW};
use crate::cluster::Pod;

/// More than there are threads to block.
const BLOCKED: usize = 24;

/// How long a pod hangs before it ends itself, and what it takes until others have its work, on a busy machine.
const MOVED_ON: Duration = Duration::from_secs(90);

/// A pod whose provider will never let go of its threads.
pub(super) struct Hanging {
    pod: Pod,
    /// What it wants to write to, and nobody reads.
    pipe: PathBuf,
    addresses: Vec<String>,
    begun: Instant,
}

/// Starts it, and gives it something to do.
pub(super) async fn begin(stage: &mut Stage) -> anyhow::Result<Hanging> {
    let pipe = stage.cluster.folder.join("sent/post-a.jsonl");
    let made = Command::new("mkfifo").arg(&pipe).status();
    ensure!(
        made.context("cannot run mkfifo")?.success(),
        "mkfifo failed"
    );
    let pod = stage.cluster.pod("post-a", POST).await?;
    let addresses = stage
        .story
        .send(&stage.gateway.api, "code-post", BLOCKED)
        .await?;
    Ok(Hanging {
        pod,
        pipe,
        addresses,
        begun: Instant::now(),
    })
}

/// It has ended itself, and another does its work.
pub(super) async fn end(stage: &mut Stage, hanging: Hanging) -> anyhow::Result<()> {
    let Hanging {
        mut pod,
        pipe,
        addresses,
        begun,
    } = hanging;
    let status = pod.ended(MOVED_ON).await?;
    let after = begun.elapsed();
    ensure!(
        status.code() == Some(watchdog::EXIT_CODE),
        "a pod that hangs ended with {status}"
    );
    says(
        &stage.cluster.log("post-a"),
        &["this pod hangs and ends itself"],
    )
    .await?;
    std::fs::remove_file(&pipe).context("cannot remove the pipe")?;
    let mut other = stage.cluster.pod("post-b", POST).await?;
    stage.story.arrive(&addresses, MOVED_ON).await?;
    other.end(Duration::from_secs(30)).await?;
    stage.shown(&format!(
        "a pod whose provider blocks every thread ended itself with {} within {after:.0?}, and its work was done by another",
        watchdog::EXIT_CODE
    ));
    Ok(())
}

/// A pod that is stopped in its tracks, with messages of its own on their way to it: the broker gives its work to another, and it begins nothing of it once it goes on.
pub(super) async fn stopped(stage: &mut Stage) -> anyhow::Result<()> {
    let mut pod = stage.cluster.pod("mail-b", MAIL).await?;
    let mut sent = stage
        .story
        .send(&stage.gateway.api, "code-mail", 100)
        .await?;
    pod.signal(Signal::STOP);
    let begin = Instant::now();
    stage.story.allow(WINDOW);
    sent.extend(
        stage
            .story
            .send(&stage.gateway.api, "code-mail", 100)
            .await?,
    );
    stage.story.arrive(&sent, MOVED_ON).await?;
    let moved = begin.elapsed();
    if let Some(rest) = stage.away.checked_sub(begin.elapsed()) {
        tokio::time::sleep(rest).await;
    }
    pod.signal(Signal::CONT);
    says(
        &stage.cluster.log("mail-b"),
        &["the consumer ended, beginning again"],
    )
    .await?;
    let more = stage
        .story
        .send(&stage.gateway.api, "code-mail", 50)
        .await?;
    stage.story.arrive(&more, MOVED_ON).await?;
    super::witness::counts(&pod.probes, "herald_broker_errors_total").await?;
    pod.end(Duration::from_secs(30)).await?;
    stage.shown(&format!(
        "a pod stopped for {:.0?}: its work was done by another after {moved:.1?}; continued, it let go of what it had not begun, and worked on",
        begin.elapsed()
    ));
    Ok(())
}

/// SIGTERM, with work under way: what is begun is finished, the rest is others'.
pub(super) async fn terminated(stage: &mut Stage) -> anyhow::Result<()> {
    let mut pod = stage.cluster.pod("mail-c", MAIL).await?;
    let mut gateway = stage.cluster.gateway("gateway-c").await?;
    let mut sent = stage.story.send(&gateway.api, "note-mail", 200).await?;
    let begin = Instant::now();
    let (first, second) = tokio::join!(
        pod.end(Duration::from_secs(30)),
        gateway.end(Duration::from_secs(30))
    );
    first?;
    second?;
    let took = begin.elapsed();
    says(
        &stage.cluster.log("mail-c"),
        &["all that was begun is finished"],
    )
    .await?;
    says(&stage.cluster.log("gateway-c"), &["shutting down"]).await?;
    sent.extend(
        stage
            .story
            .send(&stage.gateway.api, "note-mail", 10)
            .await?,
    );
    stage.story.arrive(&sent, MOVED_ON).await?;
    stage.shown(&format!(
        "SIGTERM with work under way: pod and gateway finished what was begun and ended within {took:.1?}, others did the rest"
    ));
    Ok(())
}
