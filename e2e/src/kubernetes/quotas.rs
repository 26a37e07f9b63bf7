//! Who sends faster than it may is told to wait, and nobody else is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Stage;
use super::herald::{self, PATIENCE, Team};
use super::namespace::with_namespace;
use crate::server::Api;

/// What one sender may send in a second in a namespace by each gateway; twice as much at once. Less than gateways take on a
/// machine with much else to do, and more than any other part sends.
pub const SENDER_RATE: u32 = 50;

/// Batches that are on their way at a time: more than a gateway may take.
const BATCHES: usize = 4;

/// Meanwhile the broker may be too busy for the other sender, which has nothing to do with its rate: for some seconds.
const MOST_BUSY: usize = 10;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "quotas", async |_, namespace| {
        let team = stage.team(&namespace)?;
        let news = team.template("news", "news", &["mail"]);
        team.apply(&[team.mail("mail"), news])?;
        team.ready("notificationtemplate/news").await?;
        let roles = ["herald-sender"];
        let kubernetes = stage.kubernetes()?;
        let flood = herald::sender(kubernetes, &stage.gateways, &namespace, "flood", &roles)?;
        // Its role counts, and the gateways know the template.
        for api in [&flood, &team.api] {
            let begin = Instant::now();
            while one(&team, api).await?.status() != StatusCode::ACCEPTED {
                ensure!(begin.elapsed() < PATIENCE, "nothing is accepted");
                tokio::time::sleep(herald::LOOK).await;
            }
        }
        let flooding = async {
            loop {
                let batches = (0..BATCHES).map(|_| batch(&team, &flood));
                futures::future::try_join_all(batches).await?;
            }
        };
        let (wait, others) = tokio::select! {
            ended = flooding => return ended,
            shown = limited(&team, &flood) => shown?,
        };
        // Who waits as it is told is let in again.
        let begin = Instant::now();
        loop {
            tokio::time::sleep(wait).await;
            let status = one(&team, &flood).await?.status();
            if status == StatusCode::ACCEPTED {
                break;
            }
            ensure!(begin.elapsed() < PATIENCE, "it is never let in again: {status}");
        }
        Ok(format!(
            "a sender beyond {SENDER_RATE} a second was refused until it had waited for {wait:?} as it was told; \
             {others} requests of another of its namespace meanwhile were not"
        ))
    })
    .await
}

/// Waits until one request is refused, and looks what it is told; meanwhile another sender of the namespace is not. Answers
/// for how long to wait, and how many requests of the other were accepted.
async fn limited(team: &Team<'_>, flood: &Api) -> anyhow::Result<(Duration, usize)> {
    let begin = Instant::now();
    let (refused, wait) = loop {
        let answer = one(team, flood).await?;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            let wait = answer.headers().get("Retry-After").cloned();
            break (answer.json::<Value>().await?, wait);
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "never refused: {}",
            answer.status()
        );
    };
    let told = refused["detail"].as_str().unwrap_or_default();
    ensure!(
        refused["type"] == "/problems/rate-limited" && told.contains(&SENDER_RATE.to_string()),
        "it is told {refused}"
    );
    let wait = wait
        .as_ref()
        .and_then(|wait| wait.to_str().ok()?.parse::<u64>().ok());
    let wait = wait.filter(|wait| *wait > 0).context("no Retry-After")?;
    let (mut others, mut busy) = (0, 0);
    while others < 10 {
        let status = one(team, &team.api).await?.status();
        if status == StatusCode::SERVICE_UNAVAILABLE && busy < MOST_BUSY {
            busy += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        ensure!(
            status == StatusCode::ACCEPTED,
            "another sender is answered {status}"
        );
        others += 1;
    }
    Ok((Duration::from_secs(wait), others))
}

async fn one(team: &Team<'_>, api: &Api) -> anyhow::Result<reqwest::Response> {
    let request =
        json!({"template": "news", "recipients": [{"address": {"email": "one@quotas.example"}}]});
    let answer = api.post(&team.path("notifications")).json(&request).send();
    answer.await.context("no answer")
}

/// A thousand requests at once, of a template that is not there: they count, and nobody has work with them.
async fn batch(team: &Team<'_>, api: &Api) -> anyhow::Result<()> {
    let request = json!({"template": "none", "recipients": [{"recipient": "nobody"}]});
    let batch = vec![request; 1000];
    let path = team.path("notifications/batch");
    let answer = api
        .post(&path)
        .timeout(Duration::from_secs(60))
        .json(&batch)
        .send();
    let answer = answer.await.context("no answer to a batch")?;
    ensure!(
        answer.status() == StatusCode::OK,
        "a batch: {}",
        answer.status()
    );
    answer
        .bytes()
        .await
        .context("the answer to a batch broke off")?;
    Ok(())
}
