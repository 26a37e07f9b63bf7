//! Pulsar takes a pod for who it is in Kubernetes: by a token of its service account, made for Pulsar alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use herald_operator::pulsar_admin::{
    Action, AdminError, PulsarAdmin, RequestError, Settings, Token,
};
use reqwest::StatusCode;

use super::Stage;
use super::herald::PATIENCE;
use super::namespace::with_namespace;

/// Pulsar's namespaces of this part are in it.
const TENANT: &str = "identity";

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    let pulsar = stage.environment.pulsar()?;
    let admin = pulsar.admin()?;
    let kubernetes = stage.kubernetes()?;
    with_namespace(stage, "identity", async |_, namespace| {
        for account in ["mail", "other"] {
            kubernetes.kubectl(&[
                "create",
                "serviceaccount",
                account,
                "--namespace",
                &namespace,
            ])?;
        }
        let token = |account: &str, audience: &str| {
            let asked = [
                "create",
                "token",
                account,
                "--audience",
                audience,
                "--namespace",
            ];
            let asked: Vec<&str> = asked.into_iter().chain([&*namespace]).collect();
            kubernetes
                .kubectl(&asked)
                .map(|token| token.trim().to_owned())
        };
        let to = |token: String| {
            PulsarAdmin::new(Settings {
                url: pulsar.admin_url().to_owned(),
                token: Token::Fixed(token),
                ca: None,
                timeout: Duration::from_secs(30),
            })
        };
        let clusters = admin.clusters().await?;
        admin.create_tenant(TENANT, &clusters).await?;
        let topics = format!("{TENANT}/{namespace}");
        admin.create_namespace(&topics, &clusters).await?;
        let role = format!("system:serviceaccount:{namespace}:mail");
        admin.grant(&topics, &role, &[Action::Consume]).await?;

        let mail = to(token("mail", "pulsar")?)?;
        let begin = Instant::now();
        while let Err(error) = mail.topics(&topics).await {
            ensure!(
                begin.elapsed() < PATIENCE,
                "who was granted it does not get in: {error}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        refused(
            &to(token("other", "pulsar")?)?.topics(&topics).await,
            StatusCode::FORBIDDEN,
        )
        .context("with nothing granted")?;
        refused(
            &to(token("mail", "herald")?)?.topics(&topics).await,
            StatusCode::UNAUTHORIZED,
        )
        .context("with a token for somebody else")?;
        refused(
            &to("e30.e30.e30".to_owned())?.topics(&topics).await,
            StatusCode::UNAUTHORIZED,
        )
        .context("with no token at all")?;
        Ok(format!(
            "Pulsar knows {role}, and lets it do what was granted to it"
        ))
    })
    .await
}

fn refused<T>(answer: &Result<T, AdminError>, with: StatusCode) -> anyhow::Result<()> {
    match answer.as_ref().map_err(AdminError::request) {
        Err(Some(RequestError::Refused { status, .. })) if *status == with => Ok(()),
        Err(other) => bail!("refused, but not with {with}: {other:?}"),
        Ok(_) => bail!("let in, not refused with {with}"),
    }
}
