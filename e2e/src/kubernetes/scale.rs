//! How many pods a Channel has: as it is declared, by whoever scales the Channel, or by what waits. Who scales the
//! Deployment is overruled.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::herald::{self, PATIENCE, Team};
use super::namespace::with_namespace;

/// What somebody is told who scales a Channel whose pods the operator decides about.
const DECIDED: &str = "the operator decides the number of replicas while autoscaling is present";

/// Deliveries of the load: with one send at a time that takes half a second, far more than one pod does in seconds.
const LOAD: usize = 300;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "scale", async |_, namespace| {
        let team = stage.team(&namespace)?;
        let mut busy = slow(&team, "busy");
        busy["spec"]["autoscaling"] =
            json!({"minReplicas": 1, "maxReplicas": 3, "targetAgeSeconds": 1});
        team.apply(&[
            slow(&team, "steady"),
            busy,
            team.template("news", "news", &["busy"]),
        ])?;
        for what in ["channel/steady", "channel/busy", "notificationtemplate/news"] {
            team.ready(what).await?;
        }
        let id = load(&team).await?;
        let (by_hand, by_load) = tokio::join!(by_hand(&team), by_load(&team, &id));
        let overruled = by_hand?;
        let (grown, shrunk) = by_load?;
        Ok(format!(
            "kubectl scale and an HPA set a Channel's replicas, and the Deployment follows; {overruled}; under load from 1 \
             to {grown} pods, {LOAD} deliveries sent, then down to {shrunk}"
        ))
    })
    .await
}

/// A Channel that does two sends a second in each pod.
fn slow(team: &Team<'_>, name: &str) -> Value {
    let log = json!({"latencyMilliseconds": 500});
    let spec = json!({
        "medium": "email", "providers": [{"name": "log", "log": log}], "concurrency": 1,
    });
    team.resource("Channel", name, spec)
}

async fn load(team: &Team<'_>) -> anyhow::Result<String> {
    let people: Vec<_> = (0..LOAD)
        .map(|number| json!({"address": {"email": format!("person-{number}@scale.example")}}))
        .collect();
    team.send("load", &json!({"template": "news", "recipients": people}))
        .await
}

/// More pods while something waits too long for a slot, fewer one by one when it does not. Answers the most, and the
/// least afterwards.
async fn by_load(team: &Team<'_>, id: &str) -> anyhow::Result<(u64, u64)> {
    let (steps, ()) = tokio::try_join!(steps(team), all_sent(team, id))?;
    let down = steps.windows(2).filter(|step| step[1] < step[0]);
    let sizes: Vec<_> = down.map(|step| step[0] - step[1]).collect();
    ensure!(
        sizes.iter().all(|size| *size == 1),
        "not one by one: {steps:?}"
    );
    // What the operator decides, it does not write where people declare.
    let found = team
        .until("channel/busy", "of one pod", |found| of_channel(found) == 1)
        .await?;
    let declared = &found["spec"]["replicas"];
    ensure!(*declared == 1, "it writes {declared} where others declare");
    let most = steps.iter().copied().max().unwrap_or_default();
    Ok((most, of_channel(&found)))
}

/// How many pods the Deployment was given, one after the other, until it had had the most and is back at the least.
async fn steps(team: &Team<'_>) -> anyhow::Result<Vec<u64>> {
    let begin = Instant::now();
    let mut steps = Vec::new();
    loop {
        let found = team
            .until("deployment/herald-busy", "there", |_| true)
            .await?;
        let now = found["spec"]["replicas"].as_u64().unwrap_or_default();
        if steps.last() != Some(&now) {
            steps.push(now);
        }
        if now == 1 && steps.contains(&3) {
            return Ok(steps);
        }
        ensure!(begin.elapsed() < 2 * PATIENCE, "it had {steps:?} pods");
        tokio::time::sleep(herald::LOOK).await;
    }
}

async fn all_sent(team: &Team<'_>, id: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        match team.ended(id).await {
            Ok(ended) => {
                let counts = &ended["counts"];
                ensure!(counts["sent"] == LOAD, "of {LOAD}: {counts}");
                return Ok(());
            }
            Err(error) => ensure!(begin.elapsed() < 2 * PATIENCE, "{error:#}"),
        }
    }
}

/// Whoever scales the Channel, by hand or by an HPA; and whoever scales what is not theirs.
async fn by_hand(team: &Team<'_>) -> anyhow::Result<String> {
    for count in ["3", "0", "1"] {
        team.kubectl(&["scale", "channel/steady", "--replicas", count])?;
        pods(team, "steady", count.parse()?).await?;
    }
    // The Deployment is the operator's.
    let deployment = "deployment/herald-steady";
    let generation = |found: &Value| found["metadata"]["generation"].as_u64().unwrap_or(0);
    let before = generation(&team.get(deployment)?);
    team.kubectl(&["scale", deployment, "--replicas=4"])?;
    let as_wanted =
        |found: &Value| found["spec"]["replicas"] == 1 && generation(found) >= before + 2;
    team.until(deployment, "scaled back", as_wanted).await?;

    // With autoscaling nobody else decides.
    let scaled = team.kubectl(&["scale", "channel/busy", "--replicas=2"]);
    let refused = scaled.err().map(|error| format!("{error:#}"));
    ensure!(
        refused.as_ref().is_some_and(|why| why.contains(DECIDED)),
        "kubectl scale with autoscaling: {refused:?}"
    );
    team.apply(&[autoscaler(team, "steady", 2), autoscaler(team, "busy", 3)])?;
    let begin = Instant::now();
    let refused = loop {
        let found = team.get("horizontalpodautoscaler/busy")?;
        let able = herald::condition(&found, "AbleToScale");
        if let Some(able) = able.filter(|able| able["status"] == "False") {
            break able["message"].to_string();
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "an HPA with autoscaling: {}",
            found["status"]
        );
        tokio::time::sleep(herald::LOOK).await;
    };
    ensure!(refused.contains(DECIDED), "an HPA is told {refused}");
    // It has no metrics here; its bounds it keeps without.
    pods(team, "steady", 2).await?;
    team.kubectl(&["delete", "horizontalpodautoscaler", "steady", "busy"])?;
    Ok(
        "a Deployment that was scaled is set back; with autoscaling both are refused, and told why"
            .to_owned(),
    )
}

/// Waits until a Channel has this many pods: its Deployment wants them, they are there, and the Channel says so.
async fn pods(team: &Team<'_>, channel: &str, count: u64) -> anyhow::Result<()> {
    let deployment = format!("deployment/herald-{channel}");
    let has = |found: &Value| {
        found["spec"]["replicas"] == count
            && found["status"]["replicas"].as_u64().unwrap_or(0) == count
    };
    let expected = format!("of {count} pods");
    let found = team.until(&deployment, &expected, has).await;
    found.with_context(|| {
        format!(
            "{channel}: {}",
            team.get(&format!("channel/{channel}")).unwrap_or_default()["status"]
        )
    })?;
    let told = |found: &Value| of_channel(found) == count;
    team.until(&format!("channel/{channel}"), &expected, told)
        .await?;
    Ok(())
}

/// How many pods a Channel says it has.
fn of_channel(channel: &Value) -> u64 {
    channel["status"]["replicas"].as_u64().unwrap_or(0)
}

/// An HPA that wants at least so many.
fn autoscaler(team: &Team<'_>, channel: &str, least: u32) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": 80});
    json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": channel, "namespace": team.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "herald.dev/v1alpha1", "kind": "Channel", "name": channel},
            "minReplicas": least,
            "maxReplicas": 4,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    })
}
