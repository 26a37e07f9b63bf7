//! A Secret with credentials is changed: the Channel's pod goes on with the new ones, without being started again.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::herald::{Team, to_people, until_some};
use super::namespace::with_namespace;
use super::samples::once;
use crate::sinks::MailSink;

/// Where the mail server listens that asks who comes.
const PORT: u16 = 2526;

/// The Channel's pods.
const PODS: &str = "herald.dev/channel=mail";

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    let folder = stage.folder.join("guarded");
    fs::create_dir_all(&folder).context("cannot make a folder for the mail server")?;
    let logins = folder.join("logins.json");
    let_in(&logins, "spring", "crocus")?;
    let sink = MailSink::guarded(stage.kubernetes()?, &folder, PORT, &logins)?;
    with_namespace(stage, "secret", async |_, namespace| {
        let team = stage.team(&namespace)?;
        let mut channel = team.mail("mail");
        let smtp = &mut channel["spec"]["providers"][0]["smtp"];
        smtp["host"] = json!("guarded-mail.neighbours");
        smtp["port"] = json!(PORT);
        smtp["credentialsRef"] = json!({"name": "mail-login"});
        let template = team.template("news", "news", &["mail"]);
        team.apply(&[credentials(&team, "spring", "crocus"), channel, template])?;
        team.ready("channel/mail").await?;
        team.ready("notificationtemplate/news").await?;
        let before = pods(&team)?;
        ensure!(sent_as(&team, &sink, "first", 3).await? == ["spring"; 3]);

        // The server changes its mind, then the Secret follows, and the mounted files some seconds later. Mails are sent all
        // the time, so that a connection of the old login never idles.
        let_in(&logins, "summer", "poppy")?;
        team.apply(&[credentials(&team, "summer", "poppy")])?;
        let mut meanwhile = 0;
        until_some("a mail of the new login", async || {
            let users = sent_as(&team, &sink, &format!("meanwhile-{meanwhile}"), 1).await?;
            meanwhile += 1;
            Ok((users == ["summer"]).then_some(()))
        })
        .await?;
        let after = sent_as(&team, &sink, "second", 3).await?;
        ensure!(after == ["summer"; 3], "sent as {after:?}");
        let now = pods(&team)?;
        ensure!(before == now, "{before} became {now}");
        Ok(format!(
            "the Secret was changed, and the same pod, never started again, went on as the new user after {meanwhile} mails; none was lost"
        ))
    })
    .await
}

/// From now on the mail server takes mail from this user alone.
fn let_in(logins: &Path, user: &str, password: &str) -> anyhow::Result<()> {
    // Whole at any moment: the server may be reading.
    let new = logins.with_extension("new");
    fs::write(&new, json!({user: password}).to_string())
        .and_then(|()| fs::rename(&new, logins))
        .context("cannot write who may log in")
}

fn credentials(team: &Team<'_>, user: &str, password: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "mail-login",
            "namespace": team.namespace,
            "labels": {"herald.dev/credentials": "true"},
        },
        "stringData": {"username": user, "password": password},
    })
}

/// Sends to so many; answers as whom each mail was handed over.
async fn sent_as(
    team: &Team<'_>,
    sink: &MailSink,
    key: &str,
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let id = team.send(key, &to_people("news", count)).await?;
    team.ended(&id).await?;
    let mails = once(sink, team, &id, count).await?;
    let users = mails.into_iter().filter_map(|mail| mail.parsed?.user);
    Ok(users.collect())
}

/// Which pods there are, and how often each was started again.
fn pods(team: &Team<'_>) -> anyhow::Result<String> {
    let each = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount} {end}";
    let pods = team.kubectl(&["get", "pods", "--selector", PODS, "--output", each])?;
    let restarts: Vec<_> = pods.split_whitespace().skip(1).step_by(2).collect();
    ensure!(restarts == ["0"], "pods and their restarts: {pods}");
    Ok(pods)
}
