//! The API server is away for a minute: half of it as if it were thinking, half of it gone. Who was known goes on sending,
//! and what was accepted goes out. What is declared afterwards comes into force.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use herald_e2e::environment::kubernetes::Server;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::Stage;
use super::desk::{Desk, TEMPLATES, Who};
use super::herald::{asked, condition, token, until_some};
use super::load::Load;
use crate::server::Api;

/// As long it does not answer, and as long it is not there.
const HALF: Duration = Duration::from_secs(30);

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    // The same account's, but nobody has seen them yet.
    let unseen = || {
        let token = token(stage.kubernetes()?, &desk.namespace, "sender", "herald")?;
        anyhow::Ok(desk.api.with_key(&token))
    };
    let unseen = [unseen()?, unseen()?];
    known(stage, &desk).await?;
    let load = Load::start(&desk, "apiserver").await?;
    let begin = Instant::now();
    let meanwhile = away(stage, &desk, &load, &unseen).await;
    // Whatever came of it, the others need one.
    let kubernetes = stage.environment.kubernetes_mut()?;
    kubernetes.kill_server(Server::ApiServer)?;
    kubernetes.launch(Server::ApiServer)?;
    kubernetes.until_ready(Server::ApiServer).await?;
    let took = meanwhile?;
    ensure!(took < HALF, "a token that nobody had seen took {took:?}");
    let away = begin.elapsed();
    let back = Instant::now();
    let team = stage.desk_team(&desk)?;
    team.apply(&[
        team.mail("late"),
        team.template("late", "later than the others", &["late"]),
    ])?;
    // The pods are Kubernetes' to begin, which comes to itself later than the operator does.
    let is_told = |found: &Value| condition(found, "Ready").is_some();
    team.until("channel/late", "taken up", is_told).await?;
    let told = back.elapsed();
    team.ready("channel/late").await?;
    team.ready("notificationtemplate/late").await?;
    let ready = back.elapsed();
    let request = json!({
        "template": "late", "recipients": [{"address": {"email": "late@reader.example"}}],
    });
    let id = team.send("late-1", &request).await?;
    team.ended(&id).await?;
    stage.mails(&team, &id, 1).await?;
    // No pod was touched.
    let load_size = load.count();
    let outcome = load.finish(stage, 0).await?;
    // One that comes just when a decision has to be asked for anew waits, and may have to come again: not one in ten.
    let again: usize = outcome.repeated.values().sum();
    ensure!(
        again * 10 <= load_size,
        "who was known was not accepted at once: {outcome}"
    );
    Ok(format!(
        "away for {away:.0?}: {outcome}; tokens that nobody had seen were accepted within {took:.1?}; a Channel declared \
         afterwards was taken up after {told:.1?}, and ready after {ready:.0?}"
    ))
}

/// Has every gateway decide once what the desk may do, of each of its templates: each knows only what it was asked itself,
/// and a Service leads each connection where it likes.
async fn known(stage: &mut Stage, desk: &Desk) -> anyhow::Result<()> {
    let pods = stage.running(Who::Gateway, &[]).await?;
    let kubernetes = stage.environment.kubernetes_mut()?;
    for pod in pods {
        let gateway = kubernetes.reach(&format!("{}:8080", pod.address))?;
        until_some("every gateway knows who sends", async || {
            let api = desk.api.at(gateway.port());
            for template in TEMPLATES {
                if once(desk, &api, template).await.is_err() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

/// Ends with no API server; answers the longest that a notification took from somebody whose token nobody had seen.
async fn away(
    stage: &mut Stage,
    desk: &Desk,
    load: &Load,
    [first, second]: &[Api; 2],
) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let kubernetes = stage.kubernetes()?;
    kubernetes.signal_server(Server::ApiServer, Signal::STOP)?;
    tokio::time::sleep(HALF / 3).await;
    let accepted = load.count();
    let arrived = load.arrive(stage, accepted).await;
    arrived.context("while it hangs")?;
    let took = once(desk, first, TEMPLATES[0])
        .await
        .context("while it hangs")?;
    tokio::time::sleep(HALF.saturating_sub(begin.elapsed())).await;
    let kubernetes = stage.environment.kubernetes_mut()?;
    kubernetes.kill_server(Server::ApiServer)?;
    tokio::time::sleep((2 * HALF).saturating_sub(begin.elapsed())).await;
    let accepted = load.count();
    let arrived = load.arrive(stage, accepted).await;
    arrived.context("while it is gone")?;
    let again = once(desk, second, TEMPLATES[0]).await;
    Ok(took.max(again.context("while it is gone")?))
}

/// What one notification took, which has to be accepted.
async fn once(desk: &Desk, api: &Api, template: &str) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let request = api
        .post(&format!("/v1/namespaces/{}/notifications", desk.namespace))
        .json(&json!({
            "template": template, "recipients": [{"address": {"email": "unseen@reader.example"}}],
        }));
    let answer = asked(&request).await.context("not answered")?;
    let status = answer.status();
    ensure!(
        status.is_success(),
        "a token that was signed by the cluster came to {status}: {}",
        answer.text().await.unwrap_or_default()
    );
    Ok(begin.elapsed())
}
