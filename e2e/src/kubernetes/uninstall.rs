//! Herald is uninstalled: nothing that is declared goes with it, and nothing is held by it. Then it is installed again, and
//! all is as it was.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::Stage;
use super::declared::Declared;
use super::desk::{CHANNEL, Who};
use super::herald::{LOOK, NAMESPACE, PATIENCE, chart, gateways, release, uninstall};

/// The namespace of somebody who goes while Herald is not there.
const LEAVING: &str = "leaving";

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    let kubernetes = stage.kubernetes()?;
    let team = stage.desk_team(&desk)?;
    let request = json!({
        "template": "note", "recipients": [{"address": {"email": "before@reader.example"}}],
    });
    let before = team.send("before-uninstall", &request).await?;
    team.ended(&before).await?;
    kubernetes.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEAVING}})
            .to_string(),
    )?;
    let leaving = stage.team(LEAVING)?;
    let mut held = leaving.mail("held");
    held["spec"]["topics"] = json!({"deletionPolicy": "Delete"});
    leaving.apply(&[held])?;
    leaving.ready("channel/held").await?;
    let finalizers = |channel: &serde_json::Value| channel["metadata"]["finalizers"].clone();
    ensure!(
        finalizers(&leaving.get("channel/held")?).is_array(),
        "nothing holds a Channel whose topics are to go with it"
    );
    let declared = Declared::read(stage)?;
    let delivers = stage.running(Who::Deliver, &[]).await?;

    let begin = Instant::now();
    uninstall(kubernetes, "4m")?;
    let uninstalled = begin.elapsed();
    declared.unchanged(stage).context("uninstalled")?;
    let left = finalizers(&leaving.get("channel/held")?);
    ensure!(left.is_null(), "a Channel is still held: {left}");
    let begin = Instant::now();
    kubernetes.kubectl(&["delete", "namespace", LEAVING, "--timeout=240s"])?;
    let left = begin.elapsed();
    let hooks = [
        "get",
        "jobs,serviceaccounts,roles,rolebindings",
        "--namespace",
        NAMESPACE,
    ];
    let hooks = kubernetes.kubectl(&[&hooks[..], &["--output", "name"]].concat())?;
    ensure!(!hooks.contains("herald"), "it left behind: {hooks}");

    let begin = Instant::now();
    release(kubernetes, &stage.folder, "install", &chart(), &[])?;
    let installed = begin.elapsed();
    // Its Service has another address than before.
    stage.gateways = gateways(stage.environment.kubernetes_mut()?)?;
    let desk = stage.desk().await?;
    ensure!(
        stage.running(Who::Deliver, &[]).await? == delivers,
        "a pod was started again for it: {delivers:?}"
    );
    let team = stage.desk_team(&desk)?;
    let request = json!({
        "template": "note", "recipients": [{"address": {"email": "after@reader.example"}}],
    });
    let after = team.send("after-uninstall", &request).await?;
    for id in [&before, &after] {
        team.ended(id).await.context("installed again")?;
        stage.mails(&team, id, 1).await?;
    }
    let begin = Instant::now();
    while !super::herald::is(&team.get(&format!("channel/{CHANNEL}"))?, "Ready", "True") {
        ensure!(begin.elapsed() < PATIENCE, "its Channel is not ready again");
        tokio::time::sleep(LOOK).await;
    }
    Ok(format!(
        "uninstalled in {uninstalled:.0?}: {} resources stayed, a Channel was let go and its namespace gone in {left:.0?}; \
         installed again in {installed:.0?}, history is there and its pods ran on",
        declared.len()
    ))
}
