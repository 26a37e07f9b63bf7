//! Messages that nobody can read: put aside with the reason, and whatever comes after them goes on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use herald_crds::Priority;
use herald_crds::names::{self, Path, Topic};

use super::Stage;
use super::witness::{counts, says};
use crate::cluster::NAMESPACE;

/// What is published.
const GARBAGE: &str = "{\"this\": \"is none of ours\"}";

pub(super) async fn put_aside(stage: &mut Stage) -> anyhow::Result<()> {
    let file = stage.cluster.folder.join("garbage");
    fs::write(&file, GARBAGE).context("cannot write garbage")?;
    let channel = format!("{NAMESPACE}/mail");
    let topics: [Topic; 4] = [
        names::requests(Path::Stored, Priority::Normal),
        names::requests(Path::Direct, Priority::Critical),
        names::deliveries(&channel, Priority::High),
        names::events(&channel),
    ];
    let pulsar = stage.cluster.environment.pulsar()?;
    let (tenant, file) = (&stage.cluster.access().tenant, file.as_path());
    std::thread::scope(|scope| {
        let publishing: Vec<_> = topics
            .iter()
            .map(|topic| {
                scope.spawn(move || pulsar.publish(&format!("persistent://{tenant}/{topic}"), file))
            })
            .collect();
        publishing.into_iter().try_for_each(|one| {
            one.join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
        })
    })?;
    let (gateway, pod) = (stage.cluster.log("gateway-a"), stage.cluster.log("mail-a"));
    says(&gateway, &["a request cannot be read and is put aside"]).await?;
    says(&gateway, &["an event cannot be read and is put aside"]).await?;
    says(&pod, &["a message that is none of ours is put aside"]).await?;
    counts(&stage.gateway.probes, "herald_unreadable_messages_total").await?;
    counts(&stage.pod.probes, "herald_unreadable_messages_total").await?;
    // Behind it, on the same topics.
    let mut sent = stage.story.send(&stage.gateway.api, "code-mail", 5).await?;
    sent.extend(
        stage
            .story
            .send(&stage.gateway.api, "alert-mail", 5)
            .await?,
    );
    sent.extend(stage.story.send(&stage.gateway.api, "note-mail", 5).await?);
    stage.story.arrive(&sent, Duration::from_secs(30)).await?;
    let access = stage.cluster.access();
    let postgres = stage.cluster.environment.postgres()?;
    let begin = std::time::Instant::now();
    loop {
        let kept = postgres.ask(
            &access.database,
            "SELECT count(*), count(DISTINCT message), bool_and(reason <> '') FROM garbage",
        )?;
        if kept == "4|4|t" {
            break;
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(20),
            "kept of garbage: {kept}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.shown("garbage on topics of requests, deliveries and events: each kept once with the reason, the rest goes on");
    Ok(())
}
