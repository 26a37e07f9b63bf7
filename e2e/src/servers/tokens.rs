//! A token that expires while it is used: replaced before that, and after.

use std::fs;
use std::time::Duration;

use super::witness::{gets_ready, says};
use super::{MAIL, Stage, WINDOW};

/// How long a token is valid.
const VALID: Duration = Duration::from_secs(8);

/// The role of everything.
const ROLE: &str = "herald";

pub(super) async fn expire(stage: &mut Stage) -> anyhow::Result<()> {
    let token = stage.cluster.folder.join("token-short");
    let renew = |stage: &Stage, valid| -> anyhow::Result<()> {
        Ok(fs::write(
            &token,
            stage.cluster.environment.pulsar()?.token(ROLE, valid),
        )?)
    };
    renew(stage, Some(VALID))?;
    let mut access = stage.cluster.access().clone();
    access.token.clone_from(&token);
    let mut gateway = stage.cluster.begin_gateway("gateway-short", &access)?;
    let mut pod = stage.cluster.begin_pod("mail-short", MAIL, &access)?;
    tokio::time::sleep(VALID / 2).await;
    renew(stage, Some(VALID))?;
    gets_ready("gateway-short", &gateway.probes).await?;
    gets_ready("mail-short", &pod.probes).await?;
    let mut sent = stage.story.send(&gateway.api, "code-mail", 20).await?;
    // The first is over by then, and the second too.
    says(
        &stage.cluster.log("gateway-short"),
        &["the token expired at", "replace it"],
    )
    .await?;
    says(
        &stage.cluster.log("mail-short"),
        &["the token expired at", "replace it"],
    )
    .await?;
    super::witness::counts(&gateway.probes, "herald_broker_errors_total").await?;
    renew(stage, None)?;
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
