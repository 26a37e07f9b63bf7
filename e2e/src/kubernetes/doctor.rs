//! Where all is well the doctor says so, in Herald's pods; where something is wrong, what.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::Stage;
use super::desk::CHANNEL;
use super::herald::{NAMESPACE, until_some};

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    // Other parts' namespaces may still be on their way out.
    let alone = "may use 1 of 1 namespaces with Channels";
    let operator = until_some("all well in the operator's pod", async || {
        let Examined { is_well, said } = examine(stage, "operator")?;
        Ok((is_well && said.contains(alone)).then_some(said))
    })
    .await?;
    let gateway = until_some("all well in a gateway's pod", async || {
        let Examined { is_well, said } = examine(stage, "gateway")?;
        Ok(is_well.then_some(said))
    })
    .await?;

    let team = stage.desk_team(&desk)?;
    let mut broken = team.template("broken", "broken", &[CHANNEL]);
    broken["spec"]["content"]["email"]["subject"] = "{{ unclosed".into();
    team.apply(&[broken])?;
    let why = team.stalled("notificationtemplate/broken").await?;
    let sick = examine(stage, "operator")?;
    team.kubectl(&["delete", "notificationtemplate/broken"])?;
    ensure!(
        !sick.is_well && sick.said.contains(&why),
        "it does not say {why:?}: {}",
        sick.said
    );

    // A right is missing: what does not work without it is said.
    let role = "clusterrole/herald-gateway-cluster";
    let kubernetes = stage.kubernetes()?;
    let rules = kubernetes.kubectl(&["get", role, "--output", "jsonpath={.rules}"])?;
    let replace = |rules: &serde_json::Value| {
        let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
        kubernetes.kubectl(&["patch", role, "--type=json", "--patch", &patch])
    };
    replace(&json!([]))?;
    let mut last = String::new();
    let told = until_some("a missing right", async || {
        let Examined { is_well, said } = examine(stage, "gateway")?;
        let why = [
            "may not create tokenreviews.authentication.k8s.io",
            "nobody may send",
        ];
        let is_told = !is_well && why.iter().all(|why| said.contains(why));
        last = said;
        Ok(is_told.then_some(()))
    })
    .await;
    replace(&serde_json::from_str(&rules)?)?;
    told.with_context(|| last)?;
    let allowed = |said: &str| {
        let mut lines = said.lines();
        let line = lines.find(|line| line.contains(" of ") && line.ends_with(" allowed"));
        line.unwrap_or_default().replace("ok", "").trim().to_owned()
    };
    Ok(format!(
        "in the operator's pod {}, in a gateway's {}, and all is well; a broken template and a right that is missing are named",
        allowed(&operator),
        allowed(&gateway)
    ))
}

/// What it found.
struct Examined {
    is_well: bool,
    said: String,
}

fn examine(stage: &Stage, component: &str) -> anyhow::Result<Examined> {
    let deployment = format!("deployment/herald-{component}");
    let mut kubectl = stage.kubernetes()?.program("kubectl");
    kubectl.args(["exec", "--namespace", NAMESPACE, &deployment, "--"]);
    kubectl.args(["herald", "doctor", &format!("--{component}")]);
    let answer = kubectl.output().context("kubectl")?;
    let said = [answer.stdout, answer.stderr].concat();
    Ok(Examined {
        is_well: answer.status.success(),
        said: String::from_utf8_lossy(&said).into_owned(),
    })
}
