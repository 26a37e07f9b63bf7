//! What Herald asked of the API server, from the first part to the uninstall: all of it was allowed by the chart's roles,
//! and there is no rule in them that nothing needed.
//!
//! - [`judged`]: the comparison.

pub mod judged;

use std::time::Instant;

use anyhow::{Context as _, ensure};
use herald_dispatcher::catalog::yaml;
use serde_json::{Value, json};

use super::Stage;
use super::herald::{self, NAMESPACE, PATIENCE, RELEASE, Team};
use super::namespace::with_namespace;
use judged::Right;

/// Runs it. What else ran before is judged, too.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "rights", async |_, namespace| {
        let team = stage.team(&namespace)?;
        everything(&team).await?;
        guarded(stage, &team)?;
        // What is left for the uninstall to let go of.
        let mut left = team.mail("left");
        left["spec"]["topics"] = json!({"deletionPolicy": "Delete"});
        team.apply(&[left])?;
        team.ready("channel/left").await?;
        let documents = rendered(stage)?;
        let hooks = hooks(stage)?;
        abandon(&team, &hooks)?;
        uninstall(stage, &team)?;
        judge(stage, &[documents, hooks].concat())
    })
    .await
}

/// What Herald does seldom: it makes, changes and removes whatever it can make, change and remove.
pub async fn everything(team: &Team<'_>) -> anyhow::Result<()> {
    let mut mail = team.mail("mail");
    mail["spec"]["topics"] = json!({"deletionPolicy": "Delete"});
    // It names a ConfigMap, which has to be asked for.
    let smtp = &mut mail["spec"]["providers"][0]["smtp"];
    smtp["tls"] = "StartTls".into();
    smtp["caRef"] = json!({"name": "authority"});
    let weekly = json!({
        "schedule": "0 9 * * MON", "template": "news", "serviceAccountName": "sender",
        "recipients": [{"group": "readers"}],
    });
    let readers = json!({"members": [{"address": {"email": "reader@rights.example"}}]});
    let news = team.template("news", "news", &["mail"]);
    team.apply(&[
        mail.clone(),
        news.clone(),
        team.resource("Schedule", "weekly", weekly),
        team.resource("RecipientGroup", "readers", readers),
    ])?;
    team.until("channel/mail", "waiting for a ConfigMap", |found| {
        herald::is(found, "Ready", "False")
    })
    .await?;
    let authority = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "authority", "namespace": team.namespace}, "data": {"ca.crt": ""},
    });
    team.apply(&[authority])?;
    for what in [
        "channel/mail",
        "notificationtemplate/news",
        "recipientgroup/readers",
        "schedule/weekly",
    ] {
        team.ready(what).await?;
    }
    told_twice(team, news).await?;
    // Pods with another configuration; the old one goes when they are there.
    let configurations = [
        "get",
        "configmaps",
        "--selector",
        "herald.dev/channel=mail",
        "--output",
        "name",
    ];
    let before = team.kubectl(&configurations)?;
    mail["spec"]["concurrency"] = 3.into();
    team.apply(&[mail])?;
    until("an old configuration is not removed", || {
        let now = team.kubectl(&configurations)?;
        Ok(now.lines().count() == 1 && now != before)
    })
    .await?;
    team.kubectl(&["delete", "channel", "mail", "--timeout=240s"])?;
    Ok(())
}

/// It is told twice what is wrong with a template called `news`: an Event, then the same again.
pub async fn told_twice(team: &Team<'_>, mut news: Value) -> anyhow::Result<()> {
    for _ in 0..2 {
        news["spec"]["content"]["email"]["subject"] = "{{ nobody.said }}".into();
        news["spec"]["samples"] = json!([{"name": "one", "parameters": {}}]);
        team.apply(std::slice::from_ref(&news))?;
        team.stalled("notificationtemplate/news").await?;
        news["spec"]["content"]["email"]["subject"] = "news".into();
        team.apply(std::slice::from_ref(&news))?;
        team.ready("notificationtemplate/news").await?;
    }
    Ok(())
}

/// Where the API server guards it, nobody makes what would hold up the deletion of a Channel but who may finish a Channel:
/// the operator is asked for that right when it makes something, in a way that is written down nowhere.
fn guarded(stage: &Stage, team: &Team<'_>) -> anyhow::Result<()> {
    let kubernetes = stage.kubernetes()?;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "almost", "namespace": team.namespace},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "almost", "namespace": team.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "almost"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "almost"}],
    });
    team.apply(&[role, binding])?;
    let file = stage.folder.join("guarded.json");
    let owner = json!({
        "apiVersion": "herald.dev/v1alpha1", "kind": "Channel", "name": "mail",
        "uid": "00000000-0000-0000-0000-000000000000", "controller": true, "blockOwnerDeletion": true,
    });
    let guarded = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "guarded", "namespace": team.namespace, "ownerReferences": [owner]},
    });
    std::fs::write(&file, guarded.to_string()).context("cannot write a document")?;
    let file = file.display().to_string();
    let make = |user: &str| {
        kubernetes.kubectl(&[
            "create",
            "--dry-run=server",
            "--as",
            user,
            "--filename",
            &file,
        ])
    };
    make(&account("operator"))?;
    let refused = make("almost").err().map(|error| format!("{error:#}"));
    ensure!(
        refused
            .as_ref()
            .is_some_and(|why| why.contains("blockOwnerDeletion")),
        "nobody guards what holds up a deletion: {refused:?}"
    );
    Ok(())
}

/// Who a part of Herald is, to Kubernetes.
pub fn account(part: &str) -> String {
    format!("system:serviceaccount:{NAMESPACE}:{RELEASE}-{part}")
}

/// The release's documents.
pub fn rendered(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    documents(stage, "manifest")
}

/// What is there only while it is uninstalled, or tested.
fn hooks(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    documents(stage, "hooks")
}

fn documents(stage: &Stage, what: &str) -> anyhow::Result<Vec<Value>> {
    let release = ["get", what, RELEASE, "--namespace", NAMESPACE];
    let text = herald::helm(stage.kubernetes()?, &release)?;
    let read = yaml::read(text.as_bytes()).with_context(|| format!("the release's {what}"))?;
    Ok(read.into_iter().map(|document| document.value).collect())
}

/// As if no operator had ever led, and an uninstall had been broken off: what lets Channels go does so there, too.
fn abandon(team: &Team<'_>, hooks: &[Value]) -> anyhow::Result<()> {
    let kubectl =
        |arguments: &[&str]| team.kubectl(&[&["--namespace", NAMESPACE], arguments].concat());
    kubectl(&["scale", "deployment/herald-operator", "--replicas=0"])?;
    let operators = "app.kubernetes.io/component=operator";
    kubectl(&[
        "wait",
        "pod",
        "--selector",
        operators,
        "--for=delete",
        "--timeout=240s",
    ])?;
    kubectl(&["delete", "lease", "herald-operator"])?;
    let before_deletion = hooks
        .iter()
        .filter(|one| one["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete");
    let before_deletion: Vec<_> = before_deletion.cloned().collect();
    team.apply(&before_deletion)?;
    kubectl(&[
        "wait",
        "job/herald-uninstall",
        "--for=condition=Complete",
        "--timeout=240s",
    ])?;
    ensure!(
        finalizers(team)?.is_null(),
        "it is held by {}",
        finalizers(team)?
    );
    let again = r#"{"metadata":{"finalizers":["herald.dev/topics"]}}"#;
    team.kubectl(&["patch", "channel/left", "--type=merge", "--patch", again])?;
    Ok(())
}

/// What holds up the deletion of the Channel that is left.
fn finalizers(team: &Team<'_>) -> anyhow::Result<Value> {
    Ok(team.get("channel/left")?["metadata"]["finalizers"].clone())
}

/// Herald goes, and holds nothing up.
fn uninstall(stage: &Stage, team: &Team<'_>) -> anyhow::Result<()> {
    herald::uninstall(stage.kubernetes()?, "5m")?;
    ensure!(
        finalizers(team)?.is_null(),
        "nobody is there any more to take them off: {}",
        finalizers(team)?
    );
    Ok(())
}

/// Compares the chart's rules with what was asked.
fn judge(stage: &Stage, documents: &[Value]) -> anyhow::Result<String> {
    let granted = judged::granted(documents)?;
    let within = format!("system:serviceaccount:{NAMESPACE}:");
    let all = judged::calls(&stage.kubernetes()?.audited()?)?;
    let pods: Vec<_> = all
        .iter()
        .filter(|call| is_pod_of_channel(&call.account))
        .collect();
    ensure!(
        pods.is_empty(),
        "a Channel's pod asks the API server: {}",
        pods[0]
    );
    let calls: Vec<_> = all
        .into_iter()
        .filter(|call| call.account.starts_with(&within))
        .collect();
    judged::compare(&granted, &calls, &[finishes()]).check()?;
    Ok(format!(
        "{} calls of Herald's, none of a Channel's pods: each allowed by one of the chart's {} rules, each of which was \
         needed; uninstalled, it holds nothing up",
        calls.len(),
        granted.len()
    ))
}

/// What the operator is asked for when it makes something, in a way that is written down nowhere.
pub fn finishes() -> Right {
    Right::Resource {
        verb: "update".to_owned(),
        group: "herald.dev".to_owned(),
        resource: "channels/finalizers".to_owned(),
        name: None,
    }
}

fn is_pod_of_channel(account: &str) -> bool {
    let mut parts = account.split(':').skip(2);
    let namespace = parts.next().unwrap_or_default();
    let child = herald_crds::names::child("");
    namespace != NAMESPACE && parts.next().is_some_and(|name| name.starts_with(&child))
}

async fn until(
    wrong: &'static str,
    is_so: impl Fn() -> anyhow::Result<bool> + Send,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        ensure!(begin.elapsed() < PATIENCE, wrong);
        tokio::time::sleep(herald::LOOK).await;
    }
    Ok(())
}
