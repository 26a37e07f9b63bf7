//! A template, a Channel and a Schedule are suspended: nothing is sent meanwhile, all of it after, and it is told.

use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use reqwest::header::CONNECTION;
use serde_json::{Value, json};

use super::Stage;
use super::herald::{Team, asked, condition, is, sender, to_people, until_some};
use super::namespace::with_namespace;
use super::samples::{arrived, once};
use super::table::cell;

/// To how many is sent each time.
const PEOPLE: usize = 5;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "suspend", async |_, namespace| {
        let team = stage.team(&namespace)?;
        team.apply(&[
            channel(&team, false),
            template(&team, "news", false),
            template(&team, "aside", false),
            schedule(&team, true),
        ])?;
        for what in ["channel/mail", "notificationtemplate/news", "notificationtemplate/aside", "schedule/often"] {
            team.ready(what).await?;
        }
        let since = Timestamp::now();
        suspended_template(stage, &team).await?;
        suspended_channel(stage, &team).await?;
        let passed = suspended_schedule(stage, &team, since).await?;
        Ok(format!(
            "a template's {PEOPLE} and a Channel's {PEOPLE} came when they were resumed, none before; its pods went and came; \
             a schedule let {passed} due time(s) pass, and fired when it was resumed"
        ))
    })
    .await
}

fn channel(team: &Team<'_>, suspend: bool) -> Value {
    let mut channel = team.mail("mail");
    channel["spec"]["suspend"] = json!(suspend);
    channel
}

fn template(team: &Team<'_>, name: &str, suspend: bool) -> Value {
    let mut template = team.template(name, name, &["mail"]);
    template["spec"]["suspend"] = json!(suspend);
    template
}

/// Every minute, to one.
fn schedule(team: &Team<'_>, suspend: bool) -> Value {
    let spec = json!({
        "schedule": "* * * * *", "template": "aside", "serviceAccountName": "sender", "suspend": suspend,
        "recipients": [{"address": {"email": "often@people.example"}}],
    });
    team.resource("Schedule", "often", spec)
}

/// Of a suspended template nothing comes while what was accepted later comes by the same Channel.
async fn suspended_template(stage: &Stage, team: &Team<'_>) -> anyhow::Result<()> {
    let what = "notificationtemplate/news";
    team.apply(&[template(team, "news", true)])?;
    current(team, what).await?;
    shown(team, what, "true")?;
    // Gateways hear of it as the operator does, perhaps a moment later.
    knows(stage, team, "templates/news").await?;
    let news = team.send("news", &to_people("news", PEOPLE)).await?;
    let aside = team.send("aside", &to_people("aside", PEOPLE)).await?;
    team.ended(&aside).await?;
    stage.mails(team, &aside, PEOPLE).await?;
    nothing_of(stage, team, &news).await.context(what)?;
    let resumed = SystemTime::now();
    team.apply(&[template(team, "news", false)])?;
    all_of(stage, team, &news, resumed).await?;
    current(team, what).await?;
    shown(team, what, "false")
}

/// A suspended Channel has no pods, once they have given back what is out.
async fn suspended_channel(stage: &Stage, team: &Team<'_>) -> anyhow::Result<()> {
    team.apply(&[channel(team, true)])?;
    let told = current(team, "channel/mail").await?;
    ensure!(
        condition(&told, "Ready").is_some_and(|ready| ready["reason"] == "Suspended"),
        "it is told: {}",
        told["status"]
    );
    shown(team, "channel/mail", "true")?;
    knows(stage, team, "channels/mail").await?;
    let news = team.send("later", &to_people("news", PEOPLE)).await?;
    team.until("channel/mail", "without pods", |channel| {
        channel["status"]["replicas"] == 0
    })
    .await?;
    current(team, "channel/mail").await?;
    nothing_of(stage, team, &news)
        .await
        .context("channel/mail")?;
    let resumed = SystemTime::now();
    team.apply(&[channel(team, false)])?;
    all_of(stage, team, &news, resumed).await?;
    let told = current(team, "channel/mail").await?;
    ensure!(
        condition(&told, "Ready").is_some_and(|ready| ready["reason"] == "Delivering"),
        "it is told: {}",
        told["status"]
    );
    shown(team, "channel/mail", "false")
}

/// What was due while it was suspended is never sent; it goes on with what is due then. Answers how often it was due.
async fn suspended_schedule(
    stage: &Stage,
    team: &Team<'_>,
    since: Timestamp,
) -> anyhow::Result<u64> {
    shown(team, "schedule/often", "true")?;
    let is_suspended = current(team, "schedule/often").await?;
    ensure!(
        is_suspended["status"]["nextScheduleTime"].is_null(),
        "it is suspended, and will be due at {}",
        is_suspended["status"]["nextScheduleTime"]
    );
    let minutes = |at: Timestamp| at.as_second() / 60;
    until_some("a due time", async || {
        let now = Timestamp::now();
        // A gateway fires within a moment.
        let passed = minutes(now) - minutes(since);
        Ok((passed > 0 && now.as_second() % 60 > 5).then_some(()))
    })
    .await?;
    let sent = async || {
        let path = format!("/v1/namespaces/{}/notifications", team.namespace);
        let sent: Vec<Value> = team.api.all(&path).await?;
        anyhow::Ok(
            sent.into_iter()
                .filter(|one| one["sender"] == "schedule:often")
                .collect::<Vec<_>>(),
        )
    };
    let early = sent().await?;
    ensure!(
        early.is_empty(),
        "it was sent while it was suspended: {early:?}"
    );
    let resumed = Timestamp::now();
    team.apply(&[schedule(team, false)])?;
    let fired = team.until("schedule/often", "fired", |found| {
        is(found, "Ready", "True") && found["status"]["lastNotification"]["accepted"] == true
    });
    let status = fired.await?["status"].take();
    let due: Timestamp = serde_json::from_value(status["lastScheduleTime"].clone())?;
    ensure!(
        due > resumed,
        "it fired what was due at {due}, and was resumed at {resumed}"
    );
    shown(team, "schedule/often", "false")?;
    let id = status["lastNotification"]["id"].as_str();
    let id = id.context("it was sent without an id")?;
    team.ended(id).await?;
    stage.mails(team, id, 1).await?;
    let passed = status["missed"].as_u64().unwrap_or(0);
    ensure!(passed > 0, "what passed is not counted: {status}");
    Ok(passed)
}

/// Waits until it is what `kubectl wait` and GitOps call current: seen as it was declared last, ready, and at rest.
async fn current(team: &Team<'_>, what: &str) -> anyhow::Result<Value> {
    team.until(what, "current", |found| {
        is(found, "Ready", "True")
            && condition(found, "Reconciling").is_none()
            && condition(found, "Stalled").is_none()
    })
    .await
}

/// What `kubectl get` prints below SUSPENDED.
fn shown(team: &Team<'_>, what: &str, expected: &str) -> anyhow::Result<()> {
    let shown = cell(&team.kubectl(&["get", what])?, "SUSPENDED")?;
    ensure!(shown == expected, "{what}: SUSPENDED {shown}");
    Ok(())
}

/// Waits until the gateways tell that it is suspended, several times: it may be either of them that answers.
async fn knows(stage: &Stage, team: &Team<'_>, what: &str) -> anyhow::Result<()> {
    let (kubernetes, roles) = (stage.kubernetes()?, ["herald-viewer"]);
    let viewer = sender(
        kubernetes,
        &stage.gateways,
        &team.namespace,
        "viewer",
        &roles,
    )?;
    let path = format!("/v1/namespaces/{}/{what}", team.namespace);
    let mut told = 0;
    until_some("gateways that know of it", async || {
        // Each connection may lead to another of them.
        let request = viewer.get(&path).header(CONNECTION, "close");
        let found: Value = asked(&request).await?.json().await?;
        told = if found["spec"]["suspend"] == true {
            told + 1
        } else {
            0
        };
        Ok((told == 20).then_some(()))
    })
    .await
}

async fn nothing_of(stage: &Stage, team: &Team<'_>, id: &str) -> anyhow::Result<()> {
    let early = arrived(&stage.mail, team, id).await?;
    ensure!(early == 0, "{early} mails arrived while it was suspended");
    let waiting = team.notification(id).await?;
    ensure!(
        waiting["status"] == "processing",
        "it is not waiting: {waiting}"
    );
    Ok(())
}

async fn all_of(
    stage: &Stage,
    team: &Team<'_>,
    id: &str,
    resumed: SystemTime,
) -> anyhow::Result<()> {
    team.ended(id).await?;
    let mails = once(&stage.mail, team, id, PEOPLE).await?;
    ensure!(
        mails.iter().all(|mail| mail.at > resumed),
        "some arrived before it was resumed"
    );
    Ok(())
}
