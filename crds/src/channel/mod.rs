//! Channel: a way out, and how it is worked off.

mod pod;
mod provider;
mod validate;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use pod::{EnvVar, Pod};
pub use provider::{
    LogOutcome, LogRule, LogSpec, Provider, ProviderSpec, SmtpSpec, SmtpTls, WebhookSpec,
};

use crate::shared::{self, LabelSelector};
use crate::{Address, Medium, Priority};

/// Delays before attempts after the first: short ones over the broker's relays, the others as rows.
///
/// Fixed, so that two relay topics suffice for every Channel.
pub const RETRY_DELAYS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(5),
    Duration::from_hours(1),
];

/// A way out: one medium, the providers that carry it, and how it is worked off.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "herald.dev",
    version = "v1alpha1",
    kind = "Channel",
    plural = "channels",
    shortname = "hch",
    category = "herald",
    namespaced,
    status = "ChannelStatus",
    derive = "PartialEq",
    doc = "A way out: one medium, the providers that carry it, and how it is worked off.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Medium", type_ = "string", json_path = ".spec.medium"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.providers[0].name", description = "The preferred one"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Backlogged", type_ = "string", json_path = ".status.conditions[?(@.type==\"Backlogged\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 40 characters: lower-case letters, digits and '-'")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.topics) || !has(oldSelf.topics.partitions) || (has(self.topics) && has(self.topics.partitions) && self.topics.partitions >= oldSelf.topics.partitions)")
        .message("topics.partitions can only grow: a smaller number would lose what waits in the others"),
    validation = Rule::new("!has(self.autoscaling) || !has(oldSelf.autoscaling) || self.replicas == oldSelf.replicas")
        .message("the operator decides the number of replicas while autoscaling is present: change autoscaling, or remove it first"),
)]
pub struct ChannelSpec {
    /// What goes over it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// How people are reached; cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message("medium cannot be changed: make another Channel"))]
    pub medium: Medium,
    /// Who carries it, in order of preference: the next takes over when one fails. All of the Channel's medium.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub providers: Vec<Provider>,
    /// At most this many sends, of the whole Channel, however many pods. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Sends in flight in one pod. Default: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub concurrency: Option<i32>,
    /// How classes share the Channel under load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<PrioritySpec>,
    /// What happens to a send that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// Whose templates may route here. Default: those of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<AllowedNamespaces>,
    /// The Channel's topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<TopicsSpec>,
    /// Pods; kubectl scale, HPA and KEDA set this. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,
    /// If present the operator decides the number of pods. Default: absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// What the pods look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Whether nothing is sent for now: rows wait, and what is out is returned. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub suspend: bool,
}

impl ChannelSpec {
    /// A Channel of `medium` with `providers` and every default.
    pub fn new(medium: Medium, providers: Vec<Provider>) -> Self {
        Self {
            description: None,
            medium,
            providers,
            rate_limit: None,
            concurrency: None,
            priority: None,
            retry: None,
            allowed_namespaces: None,
            topics: None,
            replicas: one(),
            autoscaling: None,
            pod: None,
            suspend: false,
        }
    }

    /// Sends in flight in one pod; 64 unless given.
    pub fn concurrency(&self) -> usize {
        self.concurrency.unwrap_or(64).max(1) as usize
    }

    /// The share of the slots that only critical may take, in percent; 20 unless given.
    pub fn reserved_percent(&self) -> u32 {
        let given = self.priority.as_ref().and_then(|p| p.reserved_percent);
        given.unwrap_or(20).max(0) as u32
    }

    /// When a class is due although higher ones wait, and how much it then gets; `None` for critical.
    pub fn class_share(&self, class: Priority) -> Option<ClassShare> {
        let given = self.priority.as_ref();
        let (given, after, percent) = match class {
            Priority::Critical => return None,
            Priority::High => (given.and_then(|p| p.high.as_ref()), 5, 10),
            Priority::Normal => (given.and_then(|p| p.normal.as_ref()), 30, 5),
            Priority::Low => (given.and_then(|p| p.low.as_ref()), 60, 5),
        };
        Some(ClassShare {
            after: shared::seconds(given.and_then(|c| c.after_seconds), after),
            share: f64::from(
                given
                    .and_then(|c| c.share_percent)
                    .unwrap_or(percent)
                    .max(0),
            ) / 100.0,
        })
    }

    /// Attempts before a delivery becomes a dead letter, the first included; 8 unless given.
    pub fn max_attempts(&self) -> u32 {
        let given = self.retry.as_ref().and_then(|r| r.max_attempts);
        given.unwrap_or(8).max(1) as u32
    }

    /// What happens when nobody knows whether a send happened; the same provider is asked again unless given.
    pub fn on_unknown(&self) -> OnUnknown {
        self.retry
            .as_ref()
            .and_then(|r| r.on_unknown)
            .unwrap_or_default()
    }

    /// How many partitions each class topic has; 1 unless given.
    pub fn partitions(&self) -> u32 {
        let given = self.topics.as_ref().and_then(|t| t.partitions);
        given.unwrap_or(1).max(1) as u32
    }

    /// What happens to the topics when the Channel is deleted; they are kept unless given.
    pub fn deletion_policy(&self) -> DeletionPolicy {
        self.topics
            .as_ref()
            .and_then(|t| t.deletion_policy)
            .unwrap_or_default()
    }

    /// Where this Channel sends for somebody with `address`: the Channel's own webhook URL if it has one, else the
    /// address's endpoint of its medium. `None` if there is neither.
    pub fn endpoint<'a>(&'a self, address: &'a Address) -> Option<&'a str> {
        self.fixed_endpoint()
            .or_else(|| address.usable(self.medium))
    }

    /// The webhook URL that everything goes to; `None` if recipients bring their own endpoint.
    pub fn fixed_endpoint(&self) -> Option<&str> {
        self.providers
            .iter()
            .find_map(|p| p.webhook.as_ref()?.url.as_deref())
    }

    /// Whether templates of `namespace`, whose labels are `labels`, may route to this Channel, which lives in `own`.
    pub fn allows(
        &self,
        own: &str,
        namespace: &str,
        labels: &std::collections::BTreeMap<String, String>,
    ) -> bool {
        if own == namespace {
            return true;
        }
        self.allowed_namespaces
            .as_ref()
            .is_some_and(|allowed| match allowed.from {
                From::Same => false,
                From::All => true,
                From::Selector => allowed.selector.as_ref().is_some_and(|s| s.matches(labels)),
            })
    }
}

fn one() -> i32 {
    1
}

/// At most `count` sends in every `perSeconds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// How many sends.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: i32,
    /// In how many seconds. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub per_seconds: Option<i32>,
}

impl RateLimit {
    /// The time that `count` sends take at the least; a second unless given.
    pub fn per(&self) -> Duration {
        shared::seconds(self.per_seconds, 1)
    }

    /// Sends in a second.
    pub fn per_second(&self) -> f64 {
        f64::from(self.count) / self.per().as_secs_f64()
    }
}

/// How classes share a Channel under load. Shares of high, normal and low sum to at most 50 percent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrioritySpec {
    /// Share of the slots that only critical may take. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 90))]
    pub reserved_percent: Option<i32>,
    /// Default: afterSeconds 5, sharePercent 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<ClassSpec>,
    /// Default: afterSeconds 30, sharePercent 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal: Option<ClassSpec>,
    /// Default: afterSeconds 60, sharePercent 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<ClassSpec>,
}

/// When a class is due although higher ones wait, and how much it then gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClassSpec {
    /// How long its oldest must have waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub after_seconds: Option<i32>,
    /// The share of the sends that it then gets at the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 48))]
    pub share_percent: Option<i32>,
}

/// A class's floor, with its defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassShare {
    /// How long its oldest must have waited before it is due.
    pub after: Duration,
    /// The share of the sends that it gets at the least while due, 0 to 1.
    pub share: f64,
}

/// What happens to a send that failed. The delays are fixed: 5 s, 30 s, 5 min, then an hour each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// Attempts before it becomes a dead letter, the first included. Default: 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<i32>,
    /// What happens when nobody knows whether a send happened. Default: Retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
}

/// What happens when nobody knows whether a send happened: a timeout after the content was handed over.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
)]
pub enum OnUnknown {
    /// The same provider is asked again, with the same idempotency key.
    #[default]
    Retry,
    /// Any provider is asked again: at the risk of a second message.
    Resend,
    /// It is left at that: at the risk of none.
    Drop,
}

/// Whose templates may route to a Channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.selector) == (self.from == 'Selector')")
    .message("selector goes with from: Selector, and only with it"))]
pub struct AllowedNamespaces {
    /// Same: of the Channel's namespace. All: of every namespace. Selector: of namespaces with the labels of selector.
    pub from: From,
    /// Labels of the namespaces that may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Which namespaces.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, strum::Display,
)]
pub enum From {
    /// The Channel's own.
    Same,
    /// Every one.
    All,
    /// Those with certain labels.
    Selector,
}

/// A Channel's topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopicsSpec {
    /// Partitions of each class topic; only grows. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub partitions: Option<i32>,
    /// What happens to them when the Channel is deleted. Default: Keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// What happens to a Channel's topics when it is deleted.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
)]
pub enum DeletionPolicy {
    /// They stay.
    #[default]
    Keep,
    /// They are deleted, with what is in them.
    Delete,
}

/// How the operator decides the number of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.minReplicas) || self.minReplicas <= self.maxReplicas")
    .message("minReplicas must not be more than maxReplicas"))]
pub struct Autoscaling {
    /// At the least. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_replicas: Option<i32>,
    /// At the most.
    #[schemars(range(min = 1, max = 100))]
    pub max_replicas: i32,
    /// The age of the oldest waiting delivery above which pods are added. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub target_age_seconds: Option<i32>,
}

impl Autoscaling {
    /// Pods at the least; 1 unless given.
    pub fn min_replicas(&self) -> u32 {
        self.min_replicas.unwrap_or(1).max(1) as u32
    }

    /// The age of the oldest waiting delivery above which pods are added; 5 s unless given.
    pub fn target_age(&self) -> Duration {
        shared::seconds(self.target_age_seconds, 5)
    }
}

/// What the operator found and made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChannelStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Backlogged, DeadLetters, ProviderDegraded; Reconciling or Stalled while they apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Pods that exist; read by the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the pods, as text; read by the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn channel(spec: serde_json::Value) -> ChannelSpec {
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn what_is_not_given_is_what_the_descriptions_say() {
        let channel = ChannelSpec::new(Medium::Email, Vec::new());
        assert_eq!(channel.concurrency(), 64);
        assert_eq!(channel.reserved_percent(), 20);
        assert_eq!(channel.max_attempts(), 8);
        assert_eq!(channel.on_unknown(), OnUnknown::Retry);
        assert_eq!(channel.partitions(), 1);
        assert_eq!(channel.deletion_policy(), DeletionPolicy::Keep);
        assert_eq!(channel.class_share(Priority::Critical), None);
        let low = channel.class_share(Priority::Low).unwrap();
        assert_eq!(low.after, Duration::from_mins(1));
        assert!((low.share - 0.05).abs() < 1e-9);
    }

    #[test]
    fn a_webhook_channel_with_a_url_needs_no_address() {
        let nobody = Address::default();
        let own = Address {
            webhook: Some("https://hooks.customer.example/".to_owned()),
            ..Address::default()
        };
        let fixed = channel(json!({
            "medium": "webhook",
            "providers": [{"name": "a", "webhook": {"url": "https://hooks.shop.example/"}}],
        }));
        assert_eq!(fixed.endpoint(&nobody), Some("https://hooks.shop.example/"));
        assert_eq!(fixed.endpoint(&own), Some("https://hooks.shop.example/"));
        let each =
            channel(json!({"medium": "webhook", "providers": [{"name": "a", "webhook": {}}]}));
        assert_eq!(each.endpoint(&nobody), None);
        assert_eq!(each.endpoint(&own), own.webhook.as_deref());
    }

    #[test]
    fn a_rate_is_by_the_second_unless_given() {
        let limit = |limit| {
            serde_json::from_value::<RateLimit>(limit)
                .unwrap()
                .per_second()
        };
        assert!((limit(json!({"count": 50})) - 50.0).abs() < 1e-9);
        assert!((limit(json!({"count": 30, "perSeconds": 60})) - 0.5).abs() < 1e-9);
    }
}
