//! What was made for a Channel is put right at once when somebody changes or deletes it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::herald::{Team, condition};
use super::namespace::with_namespace;

/// What is watched is put right long before the minute after which each Channel is looked at anyhow.
const AT_ONCE: Duration = Duration::from_secs(15);

/// What is made for a Channel, and a change that nobody asked for.
const CHANGES: [(&str, &str); 5] = [
    (
        "deployment/herald-mail",
        r#"{"spec": {"strategy": {"rollingUpdate": {"maxSurge": 3}}}}"#,
    ),
    ("deployment/herald-mail", r#"{"spec": {"replicas": 3}}"#),
    ("networkpolicy/herald-mail", r#"{"spec": {"egress": [{}]}}"#),
    (
        "poddisruptionbudget/herald-mail",
        r#"{"spec": {"maxUnavailable": 7}}"#,
    ),
    (
        "serviceaccount/herald-mail",
        r#"{"automountServiceAccountToken": true}"#,
    ),
];

/// What comes again when it is deleted; pods without their service account would not.
const DELETED: [&str; 4] = [
    "deployment/herald-mail",
    "networkpolicy/herald-mail",
    "poddisruptionbudget/herald-mail",
    "serviceaccount/herald-mail",
];

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "drift", async |_, namespace| {
        let team = stage.team(&namespace)?;
        team.apply(&[team.mail("mail")])?;
        let mut longest = Duration::ZERO;
        for (what, change) in CHANGES {
            // Nothing else is to wake the operator up.
            team.ready("channel/mail").await?;
            let before = owned(&team.get(what)?);
            team.kubectl(&["patch", what, "--type", "merge", "--patch", change])?;
            let took = put_right(&team, what, &before).await;
            longest = longest.max(took.with_context(|| format!("{what}: {change}"))?);
        }
        for what in DELETED {
            team.ready("channel/mail").await?;
            let before = team.get(what)?;
            team.kubectl(&["delete", what, "--wait=false"])?;
            let took = put_right(&team, what, &owned(&before)).await;
            longest = longest.max(took.with_context(|| format!("{what} was deleted"))?);
            ensure!(
                team.get(what)?["metadata"]["uid"] != before["metadata"]["uid"],
                "{what} was not deleted"
            );
        }
        // What the pods read is called by what is in it.
        let named = ["get", "configmaps", "--selector", "herald.dev/channel=mail"];
        let what = team.kubectl(&[&named[..], &["--output", "name"]].concat())?;
        let what = what.trim();
        let before = team.get(what)?;
        team.kubectl(&["delete", what, "--wait=false"])?;
        let took = put_right(&team, what, &owned(&before)).await;
        longest = longest.max(took.with_context(|| format!("{what} was deleted"))?);
        let channel = team.ready("channel/mail").await?;
        ensure!(
            condition(&channel, "Stalled").is_none(),
            "it is told: {}",
            channel["status"]
        );
        Ok(format!(
            "{} edits by hand were undone and {} objects that were deleted came again, each within {:.1} s",
            CHANGES.len(),
            DELETED.len() + 1,
            longest.as_secs_f64()
        ))
    })
    .await
}

/// What somebody declared of an object, as far as the operator owns it.
fn owned(object: &Value) -> Value {
    json!([
        object["spec"],
        object["data"],
        object["automountServiceAccountToken"],
        object["metadata"]["labels"]
    ])
}

/// Waits until an object is as it was; answers for how long.
async fn put_right(team: &Team<'_>, what: &str, expected: &Value) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    loop {
        let found = team.get(what);
        if let Ok(found) = &found
            && found["metadata"]["deletionTimestamp"].is_null()
            && owned(found) == *expected
        {
            return Ok(begin.elapsed());
        }
        ensure!(
            begin.elapsed() < AT_ONCE,
            "it is not as it was: {}",
            owned(&found?)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
