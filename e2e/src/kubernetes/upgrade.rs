//! The chart is upgraded from what it was in its first version, and rolled back, while somebody sends.

use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::Stage;
use super::declared::Declared;
use super::desk::Who;
use super::herald::{
    FROZEN_TAG, IMAGE, LOOK, NAMESPACE, PATIENCE, RELEASE, TAG, chart, frozen_chart, helm, release,
};
use super::load::Load;

/// The frozen chart's own tag, instead of the one that the values name.
const ITS_OWN_TAG: &str = "image.tag=";

/// Makes the definitions others than they were, whatever else differs.
const UPGRADED: &str = "crds.annotations.upgraded=yes";

/// What says which definitions those are that are there.
const DEFINITIONS: [&str; 7] = [
    "get",
    "crds",
    "channels.herald.dev",
    "notificationtemplates.herald.dev",
    "recipientgroups.herald.dev",
    "schedules.herald.dev",
    "--output",
];

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    let kubernetes = stage.kubernetes()?;
    kubernetes.tag(&format!("{IMAGE}:{TAG}"), &format!("{IMAGE}:{FROZEN_TAG}"))?;
    let load = Load::start(&desk, "upgrade").await?;
    release(
        kubernetes,
        &stage.folder,
        "upgrade",
        &frozen_chart(),
        &[ITS_OWN_TAG],
    )
    .context("to the frozen chart")?;
    rolled(stage, FROZEN_TAG)
        .await
        .context("the frozen chart")?;
    let revision = revision(stage)?;
    let declared = Declared::read(stage)?;
    let uids = definitions(stage, "jsonpath={.items[*].metadata.uid}")?;

    let begin = Instant::now();
    release(kubernetes, &stage.folder, "upgrade", &chart(), &[UPGRADED])?;
    rolled(stage, TAG).await.context("upgraded")?;
    let upgraded = begin.elapsed();
    let annotations = "jsonpath={.items[*].metadata.annotations.upgraded}";
    ensure!(
        definitions(stage, annotations)? == "yes yes yes yes",
        "the definitions were not upgraded"
    );
    declared.unchanged(stage).context("upgraded")?;

    let begin = Instant::now();
    let back = ["rollback", RELEASE, &revision, "--namespace", NAMESPACE];
    helm(
        kubernetes,
        &[&back[..], &["--wait", "--timeout", "4m"]].concat(),
    )?;
    rolled(stage, FROZEN_TAG).await.context("rolled back")?;
    let rolled_back = begin.elapsed();
    ensure!(
        definitions(stage, annotations)?.trim().is_empty(),
        "the definitions were not rolled back"
    );
    declared.unchanged(stage).context("rolled back")?;
    ensure!(
        definitions(stage, "jsonpath={.items[*].metadata.uid}")? == uids,
        "the definitions are not the same any more"
    );
    // Pods were asked to go, not killed.
    let outcome = load.finish(stage, 0).await?;
    release(kubernetes, &stage.folder, "upgrade", &chart(), &[]).context("forward again")?;
    Ok(format!(
        "from the frozen chart in {upgraded:.0?} and back in {rolled_back:.0?}, {} resources untouched: {outcome}",
        declared.len()
    ))
}

fn definitions(stage: &Stage, what: &str) -> anyhow::Result<String> {
    stage
        .kubernetes()?
        .kubectl(&[&DEFINITIONS[..], &[what]].concat())
}

/// The release's revision.
fn revision(stage: &Stage) -> anyhow::Result<String> {
    let asked = [
        "status",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--output",
        "json",
    ];
    let status: serde_json::Value = serde_json::from_str(&helm(stage.kubernetes()?, &asked)?)
        .context("the release's status is no JSON")?;
    let revision = status["version"].as_i64();
    Ok(revision.context("it has no revision")?.to_string())
}

/// Waits until all pods run the image of this tag, and no others are left.
async fn rolled(stage: &Stage, tag: &str) -> anyhow::Result<()> {
    let image = format!("{IMAGE}:{tag}");
    let begin = Instant::now();
    for who in [Who::Operator, Who::Gateway, Who::Deliver] {
        loop {
            let pods = stage.running(who, &[]).await?;
            if pods.iter().all(|pod| pod.image == image) {
                break;
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "{who:?} is not {image}: {pods:?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}
