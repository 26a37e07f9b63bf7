//! A token that expires while it is used: replaced before that, and after.

use std::fs;
use std::time::Duration;

use super::witness::{gets_ready, length, says_after};
use super::{MAIL, Stage, WINDOW};
use crate::cluster::Cluster;

/// How long a token is valid.
const VALID: Duration = Duration::from_secs(8);

/// The role of everything.
const ROLE: &str = "herald";

pub(super) async fn expire(stage: &mut Stage) -> anyhow::Result<()> {
    let token = stage.cluster.folder.join("token-short");
    let renew = |cluster: &Cluster, valid| -> anyhow::Result<()> {
        // As whoever mounts it does: never half of it.
        let new = token.with_extension("new");
        fs::write(&new, cluster.environment.pulsar()?.token(ROLE, valid))?;
        Ok(fs::rename(&new, &token)?)
    };
    renew(&stage.cluster, Some(VALID))?;
    let mut access = stage.cluster.access().clone();
    access.token.clone_from(&token);
    let mut gateway = stage.cluster.begin_gateway("gateway-short", &access)?;
    let mut pod = stage.cluster.begin_pod("mail-short", MAIL, &access)?;
    let (cluster, story) = (&stage.cluster, &mut stage.story);
    let renewing = async {
        loop {
            tokio::time::sleep(VALID / 2).await;
            renew(cluster, Some(VALID))?;
        }
    };
    let serving = async {
        // The first is over by then.
        tokio::time::sleep(VALID * 3 / 2).await;
        gets_ready("gateway-short", &gateway.probes).await?;
        gets_ready("mail-short", &pod.probes).await?;
        story.send(&gateway.api, "code-mail", 20).await
    };
    let mut sent = tokio::select! {
        sent = serving => sent?,
        ended = renewing => return ended,
    };
    // Nobody replaces the last.
    for log in ["gateway-short", "mail-short"].map(|name| stage.cluster.log(name)) {
        says_after(&log, length(&log), &["the token expired at", "replace it"]).await?;
    }
    super::witness::counts(&gateway.probes, "herald_broker_errors_total").await?;
    renew(&stage.cluster, None)?;
    stage.story.allow(WINDOW);
    sent.extend(stage.story.send(&gateway.api, "code-mail", 20).await?);
    let took = stage.story.arrive(&sent, Duration::from_secs(30)).await?;
    pod.end(Duration::from_secs(30)).await?;
    gateway.end(Duration::from_secs(30)).await?;
    stage.shown(&format!(
        "a token expired: replaced before that nothing happens, after that it is said; service goes on {took:.1?} after it is mended; both end by SIGTERM"
    ));
    Ok(())
}
