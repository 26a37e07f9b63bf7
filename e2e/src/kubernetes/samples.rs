//! What a team declares becomes topics and pods, in whatever order it comes, and mail.

use anyhow::{Context as _, ensure};
use herald_crds::Kind;
use rand::seq::SliceRandom as _;
use serde_json::{Value, json};

use super::Stage;
use super::crds::{kind_of, samples_in};
use super::herald::Team;
use super::namespace::with_namespace;
use crate::sinks::{Copy, MailSink};

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "samples", async |_, namespace| {
        let team = stage.team(&namespace)?;
        shipped(&team, &stage.mail, |_| {}).await
    })
    .await
}

/// The samples for a start, one after the other in any order: they become Ready, and one of their templates three mails, in
/// three languages. Each is changed before it is declared.
pub async fn shipped(
    team: &Team<'_>,
    mail: &MailSink,
    change: impl Fn(&mut Value),
) -> anyhow::Result<String> {
    let mut declared = vec![signing()];
    let mut names = Vec::new();
    for (file, mut document) in samples_in("quickstart")? {
        let kind: Kind = kind_of(&document)?;
        let name = document["metadata"]["name"].as_str();
        let name = name.with_context(|| format!("{file} has no name"))?;
        names.push(format!("{}/{name}", kind.plural()));
        // Of all that is declared only the mail server is elsewhere.
        if let Some(smtp) = document.pointer_mut("/spec/providers/0/smtp") {
            smtp["host"] = "mail.neighbours".into();
            smtp["port"] = 2525.into();
        }
        change(&mut document);
        declared.push(document);
    }
    declared.shuffle(&mut rand::rng());
    let order = declared
        .iter()
        .map(|one| format!("{} {}", one["kind"], one["metadata"]["name"]));
    let order = order.collect::<Vec<_>>().join(", ");
    for one in &mut declared {
        one["metadata"]["namespace"] = (&*team.namespace).into();
        team.apply(std::slice::from_ref(one))?;
    }
    for name in &names {
        team.ready(name).await.with_context(|| order.clone())?;
    }
    let request = json!({
        "template": "weekly-digest",
        "recipients": [{"group": "board"}],
        "parameters": {
            "headline": "New beans",
            "articles": [{"title": "A light roast", "url": "https://shop.example/beans"}],
        },
    });
    let id = team.send("digest-1", &request).await?;
    let ended = team.ended(&id).await?;
    ensure!(
        ended["counts"]["sent"] == 3,
        "of three: {}",
        ended["counts"]
    );
    let copies = once(mail, team, &id, 3).await?;
    let parsed = copies.into_iter().filter_map(|copy| copy.parsed);
    let mut subjects: Vec<_> = parsed.map(|mail| mail.subject).collect();
    subjects.sort();
    let expected = [
        "Neu in dieser Woche: New beans",
        "New beans",
        "[이번 주 소식] New beans",
    ];
    ensure!(subjects == expected, "the subjects are {subjects:?}");
    Ok(format!(
        "{} samples, declared in any order, became Ready, and one of them 3 mails in 3 languages",
        names.len()
    ))
}

/// What the samples sign their webhooks with, which is not for Git.
fn signing() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "warehouse-signing",
            "namespace": "shop",
            "labels": {"herald.dev/credentials": "true"},
        },
        "stringData": {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
    })
}

impl Stage {
    /// A team in a namespace that is there.
    pub fn team(&self, namespace: &str) -> anyhow::Result<Team<'_>> {
        Team::new(
            self.kubernetes()?,
            self.client.clone(),
            &self.gateways,
            namespace,
        )
    }

    /// The subjects of the mails that arrived of a notification: an error unless each delivery came, once, and so many are there.
    pub async fn mails(
        &self,
        team: &Team<'_>,
        id: &str,
        expected: usize,
    ) -> anyhow::Result<Vec<String>> {
        let copies = once(&self.mail, team, id, expected).await?;
        let subjects = copies
            .into_iter()
            .filter_map(|copy| Some(copy.parsed?.subject));
        Ok(subjects.collect())
    }
}

/// The mails that arrived of a notification: an error unless each delivery came, once, and so many are there.
pub async fn once(
    sink: &MailSink,
    team: &Team<'_>,
    id: &str,
    expected: usize,
) -> anyhow::Result<Vec<Copy>> {
    let mut arrived = sink.arrived()?;
    let mut mails = Vec::new();
    for delivery in team.deliveries(id).await? {
        let delivery = delivery["id"].as_str().context("a delivery has no id")?;
        let copies = arrived.remove(delivery).unwrap_or_default();
        ensure!(copies.len() == 1, "{delivery} came {} times", copies.len());
        mails.extend(copies);
    }
    ensure!(
        mails.len() == expected,
        "{} mails of {expected}",
        mails.len()
    );
    Ok(mails)
}

/// How many mails arrived of a notification.
pub async fn arrived(sink: &MailSink, team: &Team<'_>, id: &str) -> anyhow::Result<usize> {
    let deliveries = team.deliveries(id).await?;
    let arrived = sink.arrived()?;
    let ids = deliveries.iter().filter_map(|one| one["id"].as_str());
    Ok(ids.filter_map(|id| arrived.get(id)).map(Vec::len).sum())
}
