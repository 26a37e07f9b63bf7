//! A template is changed while a notification of it is under way: that one keeps the words it was accepted with.

use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::herald::{to_people, until_some};
use super::namespace::with_namespace;
use super::samples::{arrived, once};

/// To how many the first notification goes, at two a second.
const PEOPLE: usize = 60;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "definition", async |_, namespace| {
        let team = stage.team(&namespace)?;
        let mut channel = team.mail("mail");
        channel["spec"]["rateLimit"] = json!({"count": 2, "perSeconds": 1});
        team.apply(&[channel, team.template("news", "the old words", &["mail"])])?;
        team.ready("channel/mail").await?;
        let before = definition(&team.ready("notificationtemplate/news").await?)?;
        let old = team.send("old", &to_people("news", PEOPLE)).await?;
        until_some("the first mail", async || {
            Ok((arrived(&stage.mail, &team, &old).await? > 0).then_some(()))
        })
        .await?;

        team.apply(&[team.template("news", "the new words", &["mail"])])?;
        let changed = team.until("notificationtemplate/news", "of another definition", |found| {
            definition(found).is_ok_and(|now| now != before)
        });
        let after = definition(&changed.await?)?;
        // A gateway may hear of it a moment later than the operator: what it accepts till then has the old words.
        let mut sent = vec![old.clone()];
        until_some("a notification of the new definition", async || {
            let key = format!("new-{}", sent.len());
            let id = team.send(&key, &to_people("news", 1)).await?;
            let notification = team.notification(&id).await?;
            sent.push(id);
            Ok((notification["definition"] == *after).then_some(()))
        })
        .await?;
        let since = SystemTime::now();

        let (mut of_old, mut of_new, mut late) = (0, 0, 0);
        for id in &sent {
            let notification = team.ended(id).await?;
            let (words, count) = match notification["definition"].as_str() {
                Some(name) if name == before => ("the old words", &mut of_old),
                Some(name) if name == after => ("the new words", &mut of_new),
                other => anyhow::bail!("{id} is of definition {other:?}"),
            };
            let expected = if *id == old { PEOPLE } else { 1 };
            for mail in once(&stage.mail, &team, id, expected).await? {
                let subject = mail.parsed.map(|parsed| parsed.subject);
                ensure!(subject.as_deref() == Some(words), "{id} says {subject:?}");
                *count += 1;
                late += usize::from(words == "the old words" && mail.at > since);
            }
        }
        ensure!(late > 0, "no mail was waiting any more when a gateway knew the new words");
        Ok(format!(
            "of {of_old} mails with the old words {late} went out after a gateway knew the new ones; {of_new} sent later had the new"
        ))
    })
    .await
}

/// The name of the definition that is in force.
fn definition(template: &Value) -> anyhow::Result<String> {
    let name = template["status"]["definition"].as_str();
    Ok(name.context("no definition is in force")?.to_owned())
}
