//! What `kubectl get` shows of each kind is true.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::json;

use super::Stage;
use super::herald::{PATIENCE, Team, is, to_people, until_some};
use super::namespace::with_namespace;
use super::table::cell;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "columns", async |_, namespace| {
        let team = stage.team(&namespace)?;
        let mut template = team.template("news", "news", &["mail"]);
        template["spec"]["category"] = json!("gazette");
        template["spec"]["priority"] = json!("high");
        let group = json!({
            "managed": true, "members": [{"address": {"email": "reader@people.example"}}],
        });
        let often = json!({
            "schedule": "* * * * *", "template": "news", "recipients": [{"group": "readers"}],
            "serviceAccountName": "sender", "suspend": false,
        });
        let mut slow = team.mail("slow");
        slow["spec"]["rateLimit"] = json!({"count": 1, "perSeconds": 60});
        let declared = [
            team.mail("mail"),
            template,
            team.resource("RecipientGroup", "readers", group),
            team.resource("Schedule", "often", often),
            team.template("slow", "slow", &["slow"]),
            slow,
        ];
        team.apply(&declared)?;
        team.ready("channel/slow").await?;
        team.ready("notificationtemplate/slow").await?;
        // It will have waited for long when all else has been looked at.
        let waits = to_people("slow", 10);
        team.send("waits", &waits).await?;

        shows(&team, "channel/mail", &[
            ("MEDIUM", "email"), ("READY", "True"), ("REPLICAS", "1"), ("BACKLOGGED", "False"),
        ])
        .await?;
        shows(&team, "notificationtemplate/news", &[
            ("CATEGORY", "gazette"), ("PRIORITY", "high"), ("MEDIUMS", "[\"email\"]"), ("READY", "True"),
        ])
        .await?;
        shows(&team, "recipientgroup/readers", &[("READY", "True"), ("MANAGED", "true")]).await?;
        shows(&team, "schedule/often", &[
            ("SCHEDULE", "* * * * *"), ("SUSPENDED", "false"), ("READY", "True"),
        ])
        .await?;
        for what in ["channel/mail", "notificationtemplate/news", "recipientgroup/readers", "schedule/often"] {
            age(&team, what, "AGE")?;
        }
        team.kubectl(&["scale", "channel/mail", "--replicas", "2"])?;
        shows(&team, "channel/mail", &[("REPLICAS", "2"), ("READY", "True")]).await?;
        fires(&team).await?;
        // A minute of waiting, and another till it is told.
        for _ in 0..2 {
            let backlogged = shows(&team, "channel/slow", &[("BACKLOGGED", "True")]).await;
            if backlogged.is_ok() {
                break;
            }
        }
        shows(&team, "channel/slow", &[("BACKLOGGED", "True")]).await?;
        Ok("every column of the four kinds says what is so, before and after a scale, a due time and a backlog".to_owned())
    })
    .await
}

/// Waits until `kubectl get` shows this, a value below each heading.
async fn shows(team: &Team<'_>, what: &str, expected: &[(&str, &str)]) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let table = team.kubectl(&["get", what])?;
        let wrong = expected.iter().find_map(|(heading, value)| {
            let found = cell(&table, heading);
            let is_so = found.as_ref().is_ok_and(|found| found == value);
            (!is_so).then_some((heading, found))
        });
        let Some((heading, found)) = wrong else {
            return Ok(());
        };
        // A heading that is missing does not come by waiting.
        let found = found?;
        ensure!(
            begin.elapsed() < PATIENCE,
            "{what}: {heading} {found:?} in\n{table}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// How long ago something was is shown in seconds and minutes.
fn age(team: &Team<'_>, what: &str, heading: &str) -> anyhow::Result<()> {
    let table = team.kubectl(&["get", what])?;
    let age = cell(&table, heading)?;
    let is_one = age.starts_with(|c: char| c.is_ascii_digit()) && age.ends_with(['s', 'm']);
    ensure!(is_one, "{what}: {heading} {age:?} in\n{table}");
    Ok(())
}

/// LAST says when a Schedule was due, NEXT when it will be: a minute later.
async fn fires(team: &Team<'_>) -> anyhow::Result<()> {
    until_some("a due time", async || {
        let fired = team.get("schedule/often")?;
        let is_accepted = fired["status"]["lastNotification"]["accepted"] == true;
        Ok((is(&fired, "Ready", "True") && is_accepted).then_some(()))
    })
    .await?;
    age(team, "schedule/often", "LAST")?;
    let next = cell(&team.kubectl(&["get", "schedule/often"])?, "NEXT")?;
    let next: Timestamp = next
        .parse()
        .with_context(|| format!("schedule/often: NEXT {next:?}"))?;
    let rest = next.duration_since(Timestamp::now()).as_secs();
    ensure!(
        next.as_second() % 60 == 0 && (-10..=60).contains(&rest),
        "schedule/often: NEXT {next}, which is {rest} s from now"
    );
    Ok(())
}
