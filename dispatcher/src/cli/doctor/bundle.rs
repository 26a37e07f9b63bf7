//! All that was found, in a folder, for those who help: without what is secret or about people.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{CliError, MOST_BESIDE, Resources, of_all, pods};
use crate::catalog::yaml;

/// Members of resources that may hold secrets, or say something about people.
const HIDDEN: [&str; 9] = [
    "address",
    "annotations",
    "env",
    "headers",
    "managedFields",
    "members",
    "parameters",
    "samples",
    "url",
];

/// Writes it.
pub(super) async fn write(
    folder: &Path,
    report: &str,
    resources: &Resources,
    client: &Client,
    namespaces: &[String],
) -> Result<(), CliError> {
    let plain = anstream::adapter::strip_str(report).to_string();
    put(folder, "report.txt", &without_addresses(&plain))?;
    for (kind, listed) in &resources.0 {
        for resource in listed.iter().flatten() {
            let mut value = serde_json::to_value(resource).unwrap_or_default();
            hide(&mut value);
            let namespace = resource.namespace().unwrap_or_default();
            let file = format!("{namespace}/{}/{}.yaml", kind.plural(), resource.name_any());
            put(folder, &file, &yaml::write(&value))?;
        }
    }
    put(
        folder,
        "events.json",
        &text(events(client, namespaces).await),
    )?;
    put(folder, "pods.json", &text(pods(client, namespaces).await))
}

fn text(mut value: Value) -> String {
    hide(&mut value);
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

fn put(folder: &Path, name: &str, text: &str) -> Result<(), CliError> {
    let file = folder.join(name);
    let parent = file.parent().unwrap_or(folder);
    let written = fs::create_dir_all(parent).and_then(|()| fs::write(&file, text));
    written.map_err(|source| CliError::WriteBundle { file, source })
}

/// Takes out what is not for others; that there was something stays to be seen.
pub(super) fn hide(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if HIDDEN.contains(&name.as_str()) {
                    *member = "(hidden)".into();
                } else {
                    hide(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::String(text) => *text = without_addresses(text),
        _ => {}
    }
}

/// A text without the words that may be addresses.
fn without_addresses(text: &str) -> String {
    let words = text.split_inclusive(char::is_whitespace);
    let words = words.map(|word| match word.trim_end() {
        bare if bare.contains('@') => format!("(hidden){}", &word[bare.len()..]),
        _ => word.to_owned(),
    });
    words.collect()
}

/// What happened to resources of Herald, or why that cannot be told.
async fn events(client: &Client, namespaces: &[String]) -> Value {
    let told = of_all::<Event>(
        client,
        namespaces,
        &ListParams::default().limit(MOST_BESIDE),
    )
    .await;
    let is_ours = |event: &Event| {
        let of = event.involved_object.api_version.as_deref();
        of.is_some_and(|version| version.starts_with("herald.dev/"))
    };
    let told = told.map(|events| {
        let ours = events.iter().filter(|event| is_ours(event)).map(|event| {
            let of = &event.involved_object;
            json!({
                "of": [of.kind, of.namespace, of.name],
                "type": event.type_, "reason": event.reason, "message": event.message,
                "count": event.count, "last": event.last_timestamp,
            })
        });
        ours.collect::<Value>()
    });
    told.unwrap_or_else(|reason| json!({"error": reason}))
}

/// How the pods of Herald are, or why that cannot be told. Neither environments nor arguments.
async fn pods(client: &Client, namespaces: &[String]) -> Value {
    let told = pods::list(client, namespaces).await.map(|pods| {
        let pods = pods.iter().map(|pod| {
            let status = pod.status.as_ref();
            let containers = status.and_then(|status| status.container_statuses.as_ref());
            let containers = containers.into_iter().flatten().map(|container| {
                json!({
                    "name": container.name, "image": container.image, "ready": container.ready,
                    "restarts": container.restart_count, "state": container.state, "last": container.last_state,
                })
            });
            json!({
                "namespace": pod.namespace(), "name": pod.name_any(), "labels": pod.labels(),
                "phase": status.and_then(|status| status.phase.as_ref()),
                "conditions": status.and_then(|status| status.conditions.as_ref()),
                "containers": containers.collect::<Vec<_>>(),
            })
        });
        pods.collect::<Value>()
    });
    told.unwrap_or_else(|reason| json!({"error": reason}))
}
