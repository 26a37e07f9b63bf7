//! A Schedule falls due while the operator and a gateway are being started again: it fires once, and its status tells.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Stage;
use super::desk::{CHANNEL, Who};
use super::herald::{LOOK, PATIENCE};
use super::load::Load;

/// So long after it was declared it is due.
const AHEAD: SignedDuration = SignedDuration::from_secs(30);

/// So long before it is due the first is killed.
const BEFORE: Duration = Duration::from_millis(1_500);

/// What it sends, which nobody else does.
const TEMPLATE: &str = "due";

#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    sender: String,
}

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    let load = Load::start(&desk, "schedule").await?;
    let team = stage.desk_team(&desk)?;
    team.apply(&[team.template(TEMPLATE, "it is time", &[CHANNEL])])?;
    team.ready("notificationtemplate/due").await?;
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    let due = now.checked_add(AHEAD)?;
    let once = json!({
        "at": due.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        "serviceAccountName": "sender",
        "template": TEMPLATE,
        "recipients": [{"address": {"email": "due@reader.example"}}],
    });
    team.apply(&[team.resource("Schedule", "once", once)])?;
    let ready = team.ready("schedule/once").await?;
    let next = &ready["status"]["nextScheduleTime"];
    ensure!(
        *next == json!(due.to_string()),
        "due at {due}, and next is {next}"
    );
    let operators = stage.running(Who::Operator, &[]).await?;
    let gateways = stage.running(Who::Gateway, &[]).await?;
    let [gateway, ..] = &gateways[..] else {
        bail!("there is no gateway");
    };
    let rest = due.duration_since(Timestamp::now()).unsigned_abs();
    ensure!(
        due > Timestamp::now() && rest > BEFORE,
        "declaring it took too long"
    );
    tokio::time::sleep(rest.saturating_sub(BEFORE)).await;
    for operator in &operators {
        stage.kill(Who::Operator, operator)?;
    }
    stage.kill(Who::Gateway, gateway)?;
    let late = Instant::now();
    let fired = |schedule: &Value| schedule["status"]["lastScheduleTime"] == json!(due.to_string());
    let told = team.until("schedule/once", "fired", fired).await?;
    let told_after = late.elapsed().saturating_sub(BEFORE);
    ensure!(
        told["status"]["nextScheduleTime"].is_null(),
        "it would fire again: {}",
        told["status"]
    );
    // Whoever was started again has seen it by then.
    stage.running(Who::Operator, &operators).await?;
    stage
        .running(Who::Gateway, std::slice::from_ref(gateway))
        .await?;
    load.more(1).await?;
    let path = format!(
        "/v1/namespaces/{}/notifications?template={TEMPLATE}",
        desk.namespace
    );
    let begin = Instant::now();
    let listed = loop {
        let listed: Vec<Listed> = desk.api.all(&path).await?;
        if !listed.is_empty() {
            break listed;
        }
        ensure!(begin.elapsed() < PATIENCE, "history does not know of it");
        tokio::time::sleep(LOOK).await;
    };
    let [one] = &listed[..] else {
        bail!("it fired {} times: {listed:?}", listed.len());
    };
    let id = told["status"]["lastNotification"]["id"].as_str();
    ensure!(
        id == Some(one.id.as_str()),
        "its status tells of {id:?}, history of {one:?}"
    );
    team.ended(&one.id).await?;
    stage
        .mails(&team, &one.id, 1)
        .await
        .context("what it sent")?;
    let outcome = load.finish(stage, 0).await?;
    Ok(format!(
        "due while both operators and a gateway were killed: fired once, for {}; its status told after {told_after:.0?}; \
         {outcome}",
        one.sender
    ))
}
