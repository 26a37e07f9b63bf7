//! What a Channel wants: topics, and pods with what belongs to them. Pure.

mod config;
mod network;
mod pod;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use herald_crds::names;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::dereference::{Found, Topics};
use super::plant::Plant;
use super::topics::{self, Plan};
use super::validate::Valid;
use crate::apply;
use crate::settings::PodSettings;
use crate::status::Because;

/// Old `ReplicaSets` that are kept, to look at.
const HISTORY: i32 = 2;

/// After so long without progress a roll counts as stuck.
const PROGRESS_SECONDS: i32 = 300;

/// Everything that a Channel wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its full name, `namespace/name`.
    pub channel: String,
    /// What is to be done in Pulsar.
    pub topics: Plan,
    /// Its pods; errors: what they wait for.
    pub workload: Result<Workload, Because>,
}

/// A Channel's pods and what belongs to them.
#[derive(Debug, Clone)]
pub struct Workload {
    /// As whom they are.
    pub account: ServiceAccount,
    /// How they are configured.
    pub config: ConfigMap,
    /// Whom they may speak to.
    pub policy: NetworkPolicy,
    /// How many of them may be away at a time.
    pub budget: PodDisruptionBudget,
    /// They themselves, without how many.
    pub deployment: Deployment,
    /// A hash of their template: with another one they are replaced.
    pub template: String,
}

/// Says what a Channel wants.
pub fn build(valid: &Valid<'_>, found: &Found, plant: &Plant) -> Wanted {
    let Valid {
        channel,
        namespace,
        name,
        uids,
        missing,
        ..
    } = valid;
    let full = format!("{namespace}/{name}");
    let pods = &plant.pods;
    let role = pods.role_of(namespace, name, &names::child(name));
    let topics = match &found.topics {
        Topics::Fine => Plan::default(),
        Topics::Seen(seen) => {
            let roles = (plant.gateway_role.as_deref(), role.as_deref());
            let partitions = channel.spec.partitions();
            let wanted =
                topics::of_channel(&pods.tenant, &full, partitions, plant.horizon, roles, uids);
            topics::plan(&wanted, seen)
        }
    };
    Wanted {
        channel: full,
        topics,
        workload: match missing {
            Some(because) => Err(because.clone()),
            None => Ok(workload(valid, pods)),
        },
    }
}

/// A Channel's pods and what belongs to them.
pub fn workload(valid: &Valid<'_>, pods: &PodSettings) -> Workload {
    let config = config::config_map(valid, pods);
    let config_name = config.metadata.name.clone().unwrap_or_default();
    let template = pod::template(valid, pods, &config_name);
    let hash = apply::hash(&serde_json::to_value(&template).unwrap_or_default());
    let mut metadata = child_metadata(valid);
    metadata.annotations = Some([(names::POD_TEMPLATE.to_owned(), hash.clone())].into());
    let deployment = Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            // How many there are is written by a field manager of its own.
            replicas: None,
            selector: selector(valid),
            template,
            revision_history_limit: Some(HISTORY),
            progress_deadline_seconds: Some(PROGRESS_SECONDS),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                // What one holds no other can send: the new one is there before the old one goes.
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            ..DeploymentSpec::default()
        }),
        status: None,
    };
    Workload {
        account: account(valid),
        config,
        policy: network::policy(valid, pods),
        budget: budget(valid),
        deployment,
        template: hash,
    }
}

/// Labels of everything that is made for a Channel.
fn labels(valid: &Valid<'_>) -> BTreeMap<String, String> {
    names::pod_labels(&valid.name)
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn selector(valid: &Valid<'_>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels(valid)),
        match_expressions: None,
    }
}

fn child_metadata(valid: &Valid<'_>) -> ObjectMeta {
    ObjectMeta {
        name: Some(names::child(&valid.name)),
        namespace: Some(valid.namespace.clone()),
        labels: Some(labels(valid)),
        owner_references: Some(vec![valid.owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn account(valid: &Valid<'_>) -> ServiceAccount {
    let mut metadata = child_metadata(valid);
    let given = valid.channel.spec.pod.as_ref();
    metadata.annotations = given
        .map(|pod| pod.service_account_annotations.clone())
        .filter(|annotations| !annotations.is_empty());
    ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

fn budget(valid: &Valid<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: child_metadata(valid),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(valid)),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
