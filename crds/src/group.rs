//! RecipientGroup: who gets it.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::shared::{self, LabelSelector};
use crate::validate::{Problem, Problems, Validate, validate};
use crate::{Kind, RecipientRef};

/// Who gets it: named people, other groups, addresses, everybody in the directory with certain labels, and whoever
/// was added over HTTP. A person in it twice gets one message.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "herald.dev",
    version = "v1alpha1",
    kind = "RecipientGroup",
    plural = "recipientgroups",
    shortname = "hrg",
    category = "herald",
    namespaced,
    status = "RecipientGroupStatus",
    derive = "PartialEq",
    doc = "Who gets it: people of the directory, other groups, addresses.",
    printcolumn(name = "Managed", type_ = "boolean", json_path = ".spec.managed", description = "Whether members are also added over HTTP"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 40 characters: lower-case letters, digits and '-'")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.members) || has(self.selector) || (has(self.managed) && self.managed)")
    .message("nobody could ever be in this group: give members, a selector, or managed: true"))]
pub struct RecipientGroupSpec {
    /// What this group is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// People, groups and addresses that are in it. For more than a thousand, use managed: true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub members: Vec<RecipientRef>,
    /// Everybody in the directory who has these labels is in it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Whether members may also be added and removed over HTTP; large groups live there, not in YAML. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub managed: bool,
}

/// What the operator found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecipientGroupStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and Reconciling or Stalled while they apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

impl Validate for RecipientGroup {
    fn validate(&self) -> Vec<Problem> {
        let spec = &self.spec;
        validate(Kind::RecipientGroup, &self.metadata, spec, |problems| {
            if spec.members.is_empty() && spec.selector.is_none() && !spec.managed {
                let message = "nobody could ever be in this group: give members, a selector, or managed: true";
                problems.add("/spec", message);
            }
            check_recipients("/spec/members", &spec.members, problems);
            if let Some(selector) = &spec.selector {
                problems.labels(
                    "/spec/selector/matchLabels",
                    &selector.match_labels,
                    true,
                    &[],
                );
            }
        })
    }
}

/// Each by itself, and that none is there twice.
pub(crate) fn check_recipients(at: &str, recipients: &[RecipientRef], problems: &mut Problems) {
    let mut seen = HashSet::new();
    for (index, recipient) in recipients.iter().enumerate() {
        let at = format!("{at}/{index}");
        problems.extend(recipient.problems(&at));
        if !seen.insert(recipient) {
            problems.add(at, "is in the list twice");
        }
    }
}
