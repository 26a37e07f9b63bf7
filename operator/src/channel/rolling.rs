//! Whose turn it is: at most five Channels replace their pods at a time, so that a change of all of them (a new image,
//! say) is noticed while most still run as before.

use std::collections::HashMap;
use std::sync::Mutex;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use kube::ResourceExt as _;
use kube::runtime::reflector::Store;

use super::plant::lock;
use herald_crds::names;

/// So many at a time.
const AT_ONCE: usize = 5;

/// What Kubernetes says when all pods were replaced, and goes on to say until they are replaced again.
const ROLLED: &str = "NewReplicaSetAvailable";

/// Channels that have begun to roll, and the generation of their Deployment that they roll to; `None`: it is being
/// written. What the watch has not told yet is known from here.
#[derive(Debug, Default)]
pub(super) struct Rolling(Mutex<HashMap<String, Option<i64>>>);

impl Rolling {
    /// Whether `channel` may replace its pods now. If so it counts until [`began`](Self::began) and the watch say more, or
    /// [`forget`](Self::forget) is called.
    pub fn may_begin(&self, channel: &str, deployments: &Store<Deployment>) -> bool {
        let mut begun = lock(&self.0);
        let mut rolling = 0;
        for deployment in deployments.state() {
            let name = of(&deployment);
            let seen = deployment.metadata.generation;
            let has_begun = match begun.get(&name) {
                Some(None) => true,
                Some(Some(generation)) => seen < Some(*generation),
                None => false,
            };
            if !has_begun {
                begun.remove(&name);
            }
            if name != channel && (has_begun || is_rolling(&deployment)) {
                rolling += 1;
            }
        }
        if rolling >= AT_ONCE {
            return false;
        }
        begun.insert(channel.to_owned(), None);
        true
    }

    /// The Deployment was written, and has this generation now.
    pub fn began(&self, channel: &str, generation: Option<i64>) {
        if let Some(begun) = lock(&self.0).get_mut(channel) {
            *begun = generation.or(Some(0));
        }
    }

    /// It did not begin, or is gone.
    pub fn forget(&self, channel: &str) {
        lock(&self.0).remove(channel);
    }
}

fn of(deployment: &Deployment) -> String {
    let namespace = deployment.namespace().unwrap_or_default();
    let name = deployment.labels().get(names::CHANNEL_LABEL);
    format!("{namespace}/{}", name.map_or("", String::as_str))
}

/// Whether pods are being replaced. One that makes no progress does not hold up the others, nor one whose pods were all
/// replaced once and do not serve now, or are fewer than they should be: its cure may be what waits for its turn.
pub fn is_rolling(deployment: &Deployment) -> bool {
    wanted(deployment) > 0
        && !(is_complete(deployment) || is_stuck(deployment) || has_rolled(deployment))
}

/// Whether all pods are as declared and serve.
pub fn is_complete(deployment: &Deployment) -> bool {
    let replicas = wanted(deployment);
    observed(deployment).is_some_and(|status| {
        status.updated_replicas.unwrap_or(0) >= replicas
            && status.replicas.unwrap_or(0) <= replicas
            && status.available_replicas.unwrap_or(0) >= replicas
    })
}

fn wanted(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

/// What Kubernetes tells of it as it is declared now; `None`: it has yet to look.
fn observed(deployment: &Deployment) -> Option<&DeploymentStatus> {
    let status = deployment.status.as_ref();
    status.filter(|status| status.observed_generation >= deployment.metadata.generation)
}

/// Whether no pod is left of what was declared before.
fn has_no_old(deployment: &Deployment) -> bool {
    observed(deployment)
        .is_some_and(|status| status.updated_replicas.unwrap_or(0) == status.replicas.unwrap_or(0))
}

/// Whether all pods were replaced once: those that there are, are as declared, be they fewer than they should be. More of
/// the same replace none.
pub fn has_rolled(deployment: &Deployment) -> bool {
    has_no_old(deployment) && progress(deployment) == Some(ROLLED)
}

/// Whether Kubernetes has given up waiting for new pods, or refuses them and never will: it does not wait for a template
/// that it has rolled out before.
pub fn is_stuck(deployment: &Deployment) -> bool {
    match progress(deployment) {
        Some("ProgressDeadlineExceeded") => true,
        Some(ROLLED) => {
            observed(deployment).is_some()
                && !has_no_old(deployment)
                && refusal(deployment).is_some()
        }
        _ => false,
    }
}

/// Why Kubernetes makes no more pods (over a quota, say), in its words; `None`: it does.
pub fn refusal(deployment: &Deployment) -> Option<&str> {
    let refused = condition(deployment, "ReplicaFailure")?;
    (refused.status == "True").then(|| refused.message.as_deref().unwrap_or_default())
}

/// What Kubernetes says of how replacing pods goes on.
fn progress(deployment: &Deployment) -> Option<&str> {
    progressing(deployment)?.reason.as_deref()
}

/// The condition that tells of it, and since when.
pub fn progressing(deployment: &Deployment) -> Option<&DeploymentCondition> {
    condition(deployment, "Progressing")
}

fn condition<'a>(deployment: &'a Deployment, kind: &str) -> Option<&'a DeploymentCondition> {
    let mut conditions = deployment
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .flatten();
    conditions.find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    fn deployment(name: &str, generation: i64, updated: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": format!("herald-{name}"), "namespace": "shop", "generation": generation, "labels": {"herald.dev/channel": name}},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"observedGeneration": generation, "replicas": 2, "updatedReplicas": updated, "availableReplicas": 2},
        }))
        .unwrap()
    }

    #[test]
    fn a_deployment_rolls_until_all_its_pods_are_new_and_serve() {
        assert!(is_rolling(&deployment("a", 1, 1)));
        assert!(!is_rolling(&deployment("a", 1, 2)));
        let mut unseen = deployment("a", 1, 2);
        unseen.metadata.generation = Some(2);
        assert!(is_rolling(&unseen));
        let mut none = deployment("a", 1, 1);
        none.spec.as_mut().unwrap().replicas = Some(0);
        assert!(!is_rolling(&none));
    }

    #[test]
    fn one_that_makes_no_progress_does_not_hold_up_the_others() {
        let mut stuck = deployment("a", 1, 1);
        let condition =
            json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
        stuck.status.as_mut().unwrap().conditions =
            Some(vec![serde_json::from_value(condition).unwrap()]);
        assert!(is_stuck(&stuck) && !is_rolling(&stuck));
    }

    #[test]
    fn those_whose_pods_fail_after_they_rolled_do_not_keep_anybody_from_a_cure() {
        let mut writer = Writer::default();
        for name in ["a", "b", "c", "d", "e", "f"] {
            let mut sick = deployment(name, 1, 2);
            let status = sick.status.as_mut().unwrap();
            status.available_replicas = Some(0);
            let condition = json!({"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"});
            status.conditions = Some(vec![serde_json::from_value(condition).unwrap()]);
            writer.apply_watcher_event(&Event::Apply(sick));
        }
        assert!(Rolling::default().may_begin("shop/f", &writer.as_reader()));
    }

    /// Kubernetes replaced all pods once, and makes no more of them since.
    fn refused(name: &str, updated: i32) -> Deployment {
        let mut refused = deployment(name, 1, updated);
        refused.spec.as_mut().unwrap().replicas = Some(3);
        let conditions = json!([
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: small"},
        ]);
        refused.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
        refused
    }

    #[test]
    fn those_that_are_refused_more_pods_replace_none_and_keep_nobody_from_a_turn() {
        let mut writer = Writer::default();
        for name in ["a", "b", "c", "d", "e", "f"] {
            writer.apply_watcher_event(&Event::Apply(refused(name, 2)));
        }
        assert!(Rolling::default().may_begin("shop/f", &writer.as_reader()));
        let scaled = refused("a", 2);
        assert!(has_rolled(&scaled) && !is_complete(&scaled) && !is_stuck(&scaled));
        assert_eq!(refusal(&scaled), Some("exceeded quota: small"));
        // Until Kubernetes has looked it may yet replace some.
        let mut unseen = refused("a", 2);
        unseen.metadata.generation = Some(2);
        assert!(is_rolling(&unseen) && !is_stuck(&unseen));
    }

    #[test]
    fn a_template_of_before_whose_pods_are_refused_is_stuck_though_kubernetes_never_says_so() {
        let back = refused("a", 0);
        assert!(is_stuck(&back) && !is_rolling(&back) && !has_rolled(&back));
        let mut slow = back;
        slow.status
            .as_mut()
            .unwrap()
            .conditions
            .as_mut()
            .unwrap()
            .pop();
        assert!(!is_stuck(&slow) && is_rolling(&slow));
    }

    #[test]
    fn at_most_five_roll_also_when_the_watch_has_not_told_yet() {
        let mut writer = Writer::default();
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        for name in names {
            writer.apply_watcher_event(&Event::Apply(deployment(name, 1, 2)));
        }
        let store = writer.as_reader();
        let rolling = Rolling::default();
        let may = |name: &str| rolling.may_begin(&format!("shop/{name}"), &store);
        for name in &names[..5] {
            assert!(may(name), "{name}");
            rolling.began(&format!("shop/{name}"), Some(2));
        }
        assert!(!may("f"));
        // The watch tells that one rolls, then that it has.
        writer.apply_watcher_event(&Event::Apply(deployment("a", 2, 1)));
        assert!(!may("f"));
        writer.apply_watcher_event(&Event::Apply(deployment("a", 2, 2)));
        assert!(may("f"));
        assert!(!may("g"));
        // Its own turn does not count against it.
        assert!(may("b"));
        rolling.forget("shop/f");
        assert!(may("g"));
    }
}
