//! A Channel that another namespace's templates may route to: all of them, those with a label, or none.

use std::time::Instant;

use anyhow::ensure;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Stage;
use super::herald::{self, PATIENCE, Team};
use super::namespace::with_namespace;

/// The label that the Channel asks for.
const LABEL: &str = "mail.example/may-send";

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "platform", async |_, home| {
        with_namespace(stage, "guest", async |_, guest| {
            let platform = stage.team(&home)?;
            let team = stage.team(&guest)?;
            share(stage, &platform, &team).await
        })
        .await
    })
    .await
}

async fn share(stage: &Stage, platform: &Team<'_>, team: &Team<'_>) -> anyhow::Result<String> {
    let kubernetes = stage.kubernetes()?;
    let mut mail = platform.mail("mail");
    mail["spec"]["allowedNamespaces"] =
        json!({"from": "Selector", "selector": {"matchLabels": {LABEL: "yes"}}});
    let mut news = team.template("news", "news", &[]);
    news["spec"]["routing"]["channels"] =
        json!([{"name": "mail", "namespace": platform.namespace}]);
    platform.apply(&[mail.clone()])?;
    platform.ready("channel/mail").await?;
    team.apply(&[news])?;

    // It has no such label yet.
    refused(platform, team, "before it has the label").await?;
    let label = |value: &str| {
        let label = format!("{LABEL}{value}");
        kubernetes.kubectl(&["label", "namespace", &team.namespace, &label])
    };
    label("=yes")?;
    allowed(stage, team, "with the label").await?;
    label("-")?;
    refused(platform, team, "without the label again").await?;

    mail["spec"]["allowedNamespaces"] = json!({"from": "All"});
    platform.apply(&[mail.clone()])?;
    allowed(stage, team, "for all").await?;

    // Who names it in a request needs a right there, where it is.
    let named = format!("{}/mail", platform.namespace);
    let mut request = request();
    request["channels"] = json!([named]);
    let begin = Instant::now();
    loop {
        let (status, problem) = send(team, &request).await?;
        let told = problem["detail"].as_str().unwrap_or_default();
        if status == StatusCode::FORBIDDEN
            && told.contains("use channels.herald.dev")
            && told.contains(&format!("in namespace {}", platform.namespace))
        {
            break;
        }
        // Each gateway hears for itself that all may use it.
        ensure!(
            !status.is_success() && begin.elapsed() < PATIENCE,
            "a Channel of another namespace, named: {status}: {problem}"
        );
        tokio::time::sleep(herald::LOOK).await;
    }

    mail["spec"]["allowedNamespaces"] = json!({"from": "Same"});
    platform.apply(&[mail.clone()])?;
    refused(platform, team, "for its own alone").await?;
    Ok("a template routed to another namespace's Channel while that allowed it: with a label, then to all; mail arrived, \
        and without leave new sends were refused and the template said why"
        .to_owned())
}

fn request() -> Value {
    json!({"template": "news", "recipients": [{"address": {"email": "one@shared.example"}}]})
}

/// Waits until the template is Ready, then until a gateway takes a notification of it, and mail arrives.
async fn allowed(stage: &Stage, team: &Team<'_>, when: &str) -> anyhow::Result<()> {
    team.ready("notificationtemplate/news").await?;
    let id = team.send(when, &request()).await?;
    team.ended(&id).await?;
    stage.mails(team, &id, 1).await?;
    Ok(())
}

/// Waits until the template says that it may not route there, and until nothing of it is accepted.
async fn refused(platform: &Team<'_>, team: &Team<'_>, when: &str) -> anyhow::Result<()> {
    let what = "notificationtemplate/news";
    let found = team.until(what, "waiting for leave", |found| {
        herald::is(found, "Ready", "False")
    });
    let found = found.await?;
    let ready = herald::condition(&found, "Ready");
    let told = ready
        .map(|ready| ready["message"].to_string())
        .unwrap_or_default();
    let channel = format!("{}/mail", platform.namespace);
    ensure!(
        told.contains(&channel) && told.contains("allowedNamespaces"),
        "{when} the template says {told}"
    );
    // An edit of the Channel or of a namespace cures it, not one of the template.
    ensure!(
        herald::condition(&found, "Stalled").is_none_or(|stalled| stalled["status"] != "True"),
        "{when} the template is Stalled"
    );
    let begin = Instant::now();
    loop {
        let (status, problem) = send(team, &request()).await?;
        let told = problem.to_string();
        // Where it never had leave, the template was never in force.
        let refused = [StatusCode::NOT_FOUND, StatusCode::UNPROCESSABLE_ENTITY];
        if refused.contains(&status) && told.contains("allowedNamespaces") {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "{when}: {status}: {problem}");
        tokio::time::sleep(herald::LOOK).await;
    }
}

async fn send(team: &Team<'_>, request: &Value) -> anyhow::Result<(StatusCode, Value)> {
    let path = team.path("notifications");
    let answer = team.api.post(&path).json(request).send().await?;
    Ok((answer.status(), answer.json().await?))
}
