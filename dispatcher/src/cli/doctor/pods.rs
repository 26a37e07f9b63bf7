//! What runs: the pods of Herald, and of which versions.

use std::collections::{BTreeMap, BTreeSet};

use herald_crds::names;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Client, ResourceExt as _};

use super::{Found, MOST_BESIDE, count, of_all};

/// Every pod of Herald; or why they cannot be listed.
pub(super) async fn list(client: &Client, namespaces: &[String]) -> Result<Vec<Pod>, String> {
    let mut all = Vec::new();
    for ours in ["app.kubernetes.io/part-of=herald", names::CHILDREN_SELECTOR] {
        let wanted = ListParams::default().labels(ours).limit(MOST_BESIDE);
        all.extend(of_all(client, namespaces, &wanted).await?);
    }
    Ok(all)
}

/// How many there are, and of which images.
pub(super) async fn check(client: &Client, namespaces: &[String]) -> Vec<Found> {
    match list(client, namespaces).await {
        Ok(pods) if pods.is_empty() => vec![Found::neither(
            "no pod of Herald in the namespaces that count",
        )],
        Ok(pods) => sum_up(&pods),
        Err(reason) => vec![Found::neither(format!("pods cannot be listed: {reason}"))],
    }
}

/// Pods that do the same.
#[derive(Default)]
struct Alike<'a> {
    all: usize,
    ready: usize,
    images: BTreeSet<&'a str>,
}

fn sum_up(pods: &[Pod]) -> Vec<Found> {
    let mut by_work = BTreeMap::<&str, Alike<'_>>::new();
    for pod in pods {
        let component = pod.labels().get("app.kubernetes.io/component");
        let work = match component.map(String::as_str) {
            Some(component @ ("operator" | "gateway")) => component,
            _ if pod.labels().contains_key(names::CHANNEL_LABEL) => "Channels",
            // What comes and goes with Helm.
            _ => continue,
        };
        let alike = by_work.entry(work).or_default();
        alike.all += 1;
        let conditions = pod
            .status
            .iter()
            .filter_map(|status| status.conditions.as_ref());
        let is_ready = conditions
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        alike.ready += usize::from(is_ready);
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        alike
            .images
            .extend(containers.filter_map(|container| container.image.as_deref()));
    }
    let told = by_work.into_iter().map(|(work, alike)| {
        let Alike { all, ready, images } = alike;
        let several = images.len() > 1;
        let images: Vec<_> = images.into_iter().collect();
        let mut text = format!(
            "{work}: {}, {ready} ready: {}",
            count(all, "pod"),
            images.join(", ")
        );
        if several {
            text += ": more than one version, until all are rolled out";
        }
        match ready {
            0 => Found::bad(text),
            _ if ready < all || several => Found::neither(text),
            _ => Found::good(text),
        }
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::State;

    fn pod(labels: &serde_json::Value, image: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": labels},
            "spec": {"containers": [{"name": "c", "image": image}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_do_the_same_are_counted_together_and_versions_told() {
        let gateway = json!({"app.kubernetes.io/component": "gateway"});
        let channel = json!({names::CHANNEL_LABEL: "mail"});
        let pods = [
            pod(&gateway, "herald:1", "True"),
            pod(&gateway, "herald:2", "True"),
            pod(&channel, "herald:2", "False"),
        ];
        let found = sum_up(&pods);
        assert_eq!(found[0].state, State::Bad);
        assert_eq!(found[0].text, "Channels: 1 pod, 0 ready: herald:2");
        assert_eq!(found[1].state, State::Neither);
        assert!(
            found[1]
                .text
                .starts_with("gateway: 2 pods, 2 ready: herald:1, herald:2")
        );
    }
}
