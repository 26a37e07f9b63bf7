//! Herald is told which namespaces count: its roles are bound in these, it works there as everywhere, lets go of one that is
//! deleted, and leaves the others alone.

use std::time::Instant;

use anyhow::ensure;
use herald_crds::names;
use serde_json::json;

use super::Stage;
use super::desk::{self, Who};
use super::herald::{NAMESPACE, TENANT, chart, release, to_people, until_some};
use super::rights::{self, judged};

/// One that counts, besides the desk's.
const COUNTED: &str = "counted";

/// One that does not.
const OUTSIDE: &str = "outside";

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    stage.desk().await?;
    let kubernetes = stage.kubernetes()?;
    for name in [COUNTED, OUTSIDE] {
        kubernetes.kubectl(&["create", "namespace", name])?;
    }
    let watched = format!("watchNamespaces={{{},{COUNTED}}}", desk::NAME);
    let begin = judged::calls(&kubernetes.audited()?)?.len();
    upgrade(stage, Some(&watched)).await?;
    let begun = judged::calls(&kubernetes.audited()?)?.len();

    let outside = stage.team(OUTSIDE)?;
    outside.apply(&[outside.mail("mail")])?;
    let team = stage.team(COUNTED)?;
    rights::everything(&team).await?;
    let mut held = team.mail("held");
    held["spec"]["topics"] = json!({"deletionPolicy": "Delete"});
    team.apply(&[held, team.template("brief", "brief", &["held"])])?;
    team.ready("channel/held").await?;
    team.ready("notificationtemplate/brief").await?;
    let id = team.send("restricted", &to_people("brief", 3)).await?;
    team.ended(&id).await?;
    stage.mails(&team, &id, 3).await?;

    let deleted = Instant::now();
    kubernetes.kubectl(&["delete", "namespace", COUNTED, "--timeout=240s"])?;
    let took = deleted.elapsed();
    let admin = stage.environment.pulsar()?.admin()?;
    let there = admin.topics(&format!("{TENANT}/{COUNTED}")).await?;
    let topics = names::of(&format!("{COUNTED}/held"));
    let left: Vec<_> = topics
        .iter()
        .filter(|topic| there.iter().any(|name| name == topic.name()))
        .collect();
    ensure!(left.is_empty(), "still there: {left:?}");
    let status = outside.get("channel/mail")?["status"].clone();
    ensure!(
        status.is_null(),
        "one that does not count is told: {status}"
    );

    let granted = judged::granted(&rights::rendered(stage)?)?;
    let within = format!("system:serviceaccount:{NAMESPACE}:");
    let since = |first: usize| {
        let calls = judged::calls(&kubernetes.audited()?)?.split_off(first);
        let calls = calls
            .into_iter()
            .filter(|call| call.account.starts_with(&within));
        anyhow::Ok(calls.collect::<Vec<_>>())
    };
    let calls = since(begun)?;
    let mut verdict = judged::compare(&granted, &calls, &[rights::finishes()]);
    // Some of it is done when a pod begins, and not everything in each namespace.
    let anywhere = judged::anywhere(&granted);
    let anywhere = judged::compare(&anywhere, &since(begin)?, &[rights::finishes()]);
    verdict.unused = anywhere.unused;
    // The Lease was made long before.
    verdict
        .unused
        .retain(|right| right.starts_with("ClusterRole/"));
    verdict.check()?;

    upgrade(stage, None).await?;
    outside.ready("channel/mail").await?;
    // The parts after this one compare all that is declared.
    stage
        .kubernetes()?
        .kubectl(&["delete", "namespace", OUTSIDE, "--timeout=240s"])?;
    Ok(format!(
        "with two namespaces that count, all is done in one of them by roles that are bound there, {} calls; it was gone in \
         {:.0} s, with its topics; another was left alone until all counted again",
        calls.len(),
        took.as_secs_f64()
    ))
}

/// The release with this value, once none of its pods is left that ran without.
async fn upgrade(stage: &Stage, value: Option<&str>) -> anyhow::Result<()> {
    let values: Vec<_> = value.into_iter().collect();
    release(
        stage.kubernetes()?,
        &stage.folder,
        "upgrade",
        &chart(),
        &values,
    )?;
    for who in [Who::Operator, Who::Gateway] {
        stage.running(who, &[]).await?;
    }
    // Those that ran without may still be going.
    let part_of = "--selector=app.kubernetes.io/part-of=herald";
    let going = "jsonpath={.items[*].metadata.deletionTimestamp}";
    until_some("the end of the pods before", async || {
        let listed = [
            "get",
            "pods",
            "--namespace",
            NAMESPACE,
            part_of,
            "--output",
            going,
        ];
        let left = stage.kubernetes()?.kubectl(&listed)?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await
}
