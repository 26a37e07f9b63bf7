//! A namespace for a part alone.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use herald_e2e::environment::Kubernetes;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use super::Stage;

/// What is asked about when a part failed.
const LOOKED_AT: [&[&str]; 5] = [
    &["get", "all,configmaps,herald", "--output", "wide"],
    &["get", "events", "--sort-by", ".lastTimestamp"],
    &["describe", "pods"],
    &["logs", "--selector", HERALD, "--prefix", "--tail", "5000"],
    &["logs", "--selector", HERALD, "--prefix", "--previous"],
];

/// What all of Herald's pods are labelled with.
const HERALD: &str = "app.kubernetes.io/name in (herald, herald-deliver)";

/// Gives a part a namespace of its own, which goes with it.
///
/// If it fails, what was in there is written to a file in the run's folder first.
pub async fn with_namespace<F>(
    stage: &Stage,
    name: &str,
    part: impl FnOnce(Client, String) -> F,
) -> anyhow::Result<String>
where
    F: Future<Output = anyhow::Result<String>>,
{
    let api: Api<Namespace> = Api::all(stage.client.clone());
    let namespace = Namespace {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let made = api.create(&PostParams::default(), &namespace).await;
    let name = made.context("cannot make a namespace")?.metadata.name;
    let name = name.context("it has no name")?;
    let shown = part(stage.client.clone(), name.clone()).await;
    if shown.is_err() {
        look(stage.kubernetes()?, &stage.folder, &name)?;
    }
    // It goes by itself, and with the cluster at the latest.
    api.delete(&name, &DeleteParams::background())
        .await
        .with_context(|| format!("cannot delete {name}"))?;
    shown
}

/// Writes what is in a namespace to a file of this folder.
pub fn look(kubernetes: &Kubernetes, folder: &Path, namespace: &str) -> anyhow::Result<()> {
    let mut seen = String::new();
    for what in LOOKED_AT {
        let mut arguments = vec!["--namespace", namespace];
        arguments.extend(what);
        // What cannot be asked about now may still be said by the others.
        let answer = kubernetes.kubectl(&arguments);
        let answer = answer.unwrap_or_else(|error| format!("{error:#}\n"));
        let _ = writeln!(seen, "# kubectl {}\n{answer}", what.join(" "));
    }
    let path = folder.join(format!("{namespace}.txt"));
    fs::write(&path, seen).with_context(|| format!("cannot write {}", path.display()))
}
