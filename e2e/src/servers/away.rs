//! Broker and database away: stopped in their tracks, so that nothing answers, and killed. And a broker that is full.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use herald_crds::Priority;
use herald_crds::names::{self, Path};
use herald_operator::pulsar_admin::{BacklogQuota, TopicName, TopicPolicy};
use reqwest::StatusCode;

use super::story::refused;
use super::witness::{counts, gets_ready, length, says_after};
use super::{Stage, WINDOW};
use crate::cluster::NAMESPACE;

/// Within so long a direct notification is sent, whatever the database does, on a busy machine.
const DIRECT: Duration = Duration::from_secs(30);

/// Within so long after something is back all is as before.
const BACK: Duration = Duration::from_secs(60);

/// A quota that some requests reach.
const FEW: BacklogQuota = BacklogQuota { bytes: 10_000 };

/// And one that is reached by nobody.
const MANY: BacklogQuota = BacklogQuota {
    bytes: 2 * 1024 * 1024 * 1024,
};

/// Nothing of it answers. Meanwhile the stored requests fill up the broker.
pub(super) async fn database_paused(stage: &mut Stage) -> anyhow::Result<()> {
    let log = stage.cluster.log("gateway-a");
    let before = length(&log);
    stage.cluster.environment.postgres()?.pause();
    let begin = Instant::now();
    let outcome = without_database(stage).await;
    if let Some(rest) = stage.away.checked_sub(begin.elapsed()) {
        tokio::time::sleep(rest).await;
    }
    stage.cluster.environment.postgres()?.resume();
    let stored = outcome?;
    says_after(&log, before, &["the database is not available"]).await?;
    counts(&stage.gateway.probes, "herald_store_errors_total").await?;
    goes_on(stage).await?;
    let took = stage.story.arrive(&stored, BACK).await?;
    is_recorded(stage).await?;
    stage.shown(&format!(
        "database stopped for {:.0?}: direct ones are sent, reads answer 503, a full broker too, a gateway starts; back, what waited is sent after {took:.1?} and all is recorded",
        begin.elapsed()
    ));
    Ok(())
}

async fn without_database(stage: &mut Stage) -> anyhow::Result<Vec<String>> {
    let starting = stage
        .cluster
        .begin_gateway("gateway-late", stage.cluster.access())?;
    let direct = stage
        .story
        .send(&stage.gateway.api, "code-mail", 10)
        .await?;
    let took = stage.story.arrive(&direct, DIRECT).await?;
    stage.shown(&format!(
        "without a database direct notifications are sent within {took:.1?}"
    ));
    let answer = stage
        .gateway
        .api
        .get(&format!("/v1/namespaces/{NAMESPACE}/notifications"))
        .send()
        .await
        .context("a read is not answered")?;
    refused(answer).await?;
    let mut stored = stage
        .story
        .send(&stage.gateway.api, "note-mail", 10)
        .await?;
    stored.extend(full(stage).await?);
    gets_ready("gateway-late", &starting.probes).await?;
    let late = stage.story.send(&starting.api, "code-mail", 5).await?;
    stage.story.arrive(&late, DIRECT).await?;
    ensure!(
        stage.story.count(&stored)? == 0,
        "stored ones were sent without a database"
    );
    Ok(stored)
}

/// Requests that are not taken fill their topic up to its quota.
async fn full(stage: &mut Stage) -> anyhow::Result<Vec<String>> {
    let admin = stage.cluster.environment.pulsar()?.admin()?;
    let topic = names::requests(Path::Stored, Priority::High);
    let topic = TopicName::new(&stage.cluster.access().tenant, &topic);
    let quota = |quota| TopicPolicy {
        backlog_quota: Some(quota),
        retention: None,
    };
    admin.set_policy(&topic, &quota(FEW)).await?;
    let mut accepted = Vec::new();
    let begin = Instant::now();
    let problem = loop {
        let (answer, address) = stage
            .story
            .try_one(&stage.gateway.api, "alert-mail")
            .await?;
        if answer.status() == StatusCode::ACCEPTED {
            accepted.push(address);
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            let problem = refused(answer).await?;
            // What was under way when the broker let go of its producers has no receipt.
            if problem != "no-receipt" {
                break problem;
            }
        }
        ensure!(
            begin.elapsed() < BACK,
            "the broker takes more than its quota"
        );
    };
    ensure!(
        problem == "queue-full",
        "a full broker is said to be {problem}"
    );
    counts(&stage.gateway.probes, "herald_refused_total").await?;
    stage.shown(&format!(
        "broker full after {} requests: 503 {problem} with Retry-After",
        accepted.len()
    ));
    Ok(accepted)
}

/// The broker takes requests again: what filled it is gone.
async fn goes_on(stage: &mut Stage) -> anyhow::Result<()> {
    let more = stage
        .story
        .send(&stage.gateway.api, "alert-mail", 3)
        .await?;
    stage.story.arrive(&more, BACK).await?;
    let admin = stage.cluster.environment.pulsar()?.admin()?;
    let topic = names::requests(Path::Stored, Priority::High);
    let topic = TopicName::new(&stage.cluster.access().tenant, &topic);
    let policy = TopicPolicy {
        backlog_quota: Some(MANY),
        retention: None,
    };
    admin.set_policy(&topic, &policy).await?;
    Ok(())
}

/// Waits until the history says of all that was accepted that it has ended.
async fn is_recorded(stage: &Stage) -> anyhow::Result<()> {
    let begin = Instant::now();
    let path = format!("/v1/namespaces/{NAMESPACE}/notifications");
    loop {
        let shown = stage.gateway.api.all::<serde_json::Value>(&path).await;
        let shown = shown.unwrap_or_default();
        let ended = shown.iter().filter(|one| one["status"] == "ended").count();
        if ended >= stage.story.accepted() {
            return Ok(());
        }
        let all = stage.story.accepted();
        ensure!(begin.elapsed() < BACK, "{ended} of {all} are recorded");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Nobody listens any more.
pub(super) async fn database_killed(stage: &mut Stage) -> anyhow::Result<()> {
    stage.cluster.environment.postgres_mut()?.kill();
    let begin = Instant::now();
    let direct = stage
        .story
        .send(&stage.gateway.api, "code-mail", 10)
        .await?;
    let sent = stage.story.arrive(&direct, DIRECT).await?;
    let read = stage
        .gateway
        .api
        .get(&format!("/v1/namespaces/{NAMESPACE}/notifications"))
        .send()
        .await
        .context("a read is not answered")?;
    refused(read).await?;
    let stored = stage
        .story
        .send(&stage.gateway.api, "note-mail", 10)
        .await?;
    if let Some(rest) = stage.away.checked_sub(begin.elapsed()) {
        tokio::time::sleep(rest).await;
    }
    stage.cluster.environment.postgres_mut()?.restart().await?;
    let took = stage.story.arrive(&stored, BACK).await?;
    is_recorded(stage).await?;
    stage.shown(&format!(
        "database killed for {:.0?}: direct ones are sent within {sent:.1?}; back, what waited is sent after {took:.1?}",
        begin.elapsed()
    ));
    Ok(())
}

/// Connections stay, and nothing answers.
pub(super) async fn broker_paused(stage: &mut Stage) -> anyhow::Result<()> {
    stage.cluster.environment.pulsar()?.pause();
    let begin = Instant::now();
    let tried = stage.story.try_one(&stage.gateway.api, "code-mail").await;
    let answered = begin.elapsed();
    if let Some(rest) = stage.away.checked_sub(begin.elapsed()) {
        tokio::time::sleep(rest).await;
    }
    stage.cluster.environment.pulsar()?.resume();
    let problem = refused(tried?.0).await?;
    back(
        stage,
        &format!(
            "broker stopped for {:.0?}: 503 {problem} with Retry-After after {answered:.1?}",
            begin.elapsed()
        ),
    )
    .await
}

/// All connections break.
pub(super) async fn broker_killed(stage: &mut Stage) -> anyhow::Result<()> {
    stage.cluster.environment.pulsar_mut()?.kill();
    let begin = Instant::now();
    let (answer, _) = stage.story.try_one(&stage.gateway.api, "code-mail").await?;
    let problem = refused(answer).await?;
    let answered = begin.elapsed();
    if let Some(rest) = stage.away.checked_sub(begin.elapsed()) {
        tokio::time::sleep(rest).await;
    }
    stage.cluster.environment.pulsar_mut()?.restart().await?;
    back(
        stage,
        &format!(
            "broker killed for {:.0?}: 503 {problem} with Retry-After after {answered:.1?}",
            begin.elapsed()
        ),
    )
    .await
}

async fn back(stage: &mut Stage, words: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    // One pod of each channel is there.
    stage.story.allow(2 * WINDOW);
    counts(&stage.gateway.probes, "herald_broker_errors_total").await?;
    let mut sent = stage
        .story
        .send(&stage.gateway.api, "code-mail", 10)
        .await?;
    sent.extend(
        stage
            .story
            .send(&stage.gateway.api, "note-mail", 10)
            .await?,
    );
    stage.story.arrive(&sent, BACK).await?;
    stage.shown(&format!(
        "{words}; all goes on {:.1?} after it is back",
        begin.elapsed()
    ));
    Ok(())
}
