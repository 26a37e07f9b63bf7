//! Schedule: when.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cron::{Due, ParseTiming};
use crate::group::check_recipients;
use crate::shared;
use crate::validate::{FREE_OBJECT_BYTES, Problem, Validate, validate};
use crate::{Kind, Priority, RecipientRef, pattern};

/// When a template is sent to whom: again and again, or once. Fires once for each due time.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "herald.dev",
    version = "v1alpha1",
    kind = "Schedule",
    plural = "schedules",
    shortname = "hsc",
    category = "herald",
    namespaced,
    status = "ScheduleStatus",
    derive = "PartialEq",
    doc = "When a template is sent to whom: by a cron expression, or once.",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "At", type_ = "string", json_path = ".spec.at", priority = 1),
    printcolumn(name = "Time Zone", type_ = "string", json_path = ".spec.timeZone"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.template"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduleTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 40 characters: lower-case letters, digits and '-'")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.schedule), has(self.at)].exists_one(x, x)")
    .message("give exactly one of schedule (cron, again and again) and at (once)"))]
pub struct ScheduleSpec {
    /// What is sent and why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Cron expression of five fields: minute, hour, day of month, month, day of week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 128), regex(pattern = pattern::LINE))]
    pub schedule: Option<String>,
    /// Local date and time, such as 2026-12-24T18:00: fires once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 19), regex(pattern = pattern::LOCAL_TIME))]
    pub at: Option<String>,
    /// IANA time zone, such as Asia/Seoul. Default: UTC. A time that daylight saving skips fires at the next
    /// instant; one that it repeats fires once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = pattern::LINE))]
    pub time_zone: Option<String>,
    /// The service account whose rights decide what may be sent. Default: default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = pattern::DNS_SUBDOMAIN))]
    pub service_account_name: Option<String>,
    /// Name of a NotificationTemplate of the same namespace.
    #[schemars(length(min = 1, max = 40), regex(pattern = pattern::DNS_LABEL))]
    pub template: String,
    /// Who gets it.
    #[schemars(length(min = 1, max = 100))]
    pub recipients: Vec<RecipientRef>,
    /// The template's parameters; at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shared::free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// How urgent it is. Default: low, since what was planned yields to what happens now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Released evenly over this time, so that a mass send does not arrive as one wave. Default: 0, all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub spread_over_seconds: Option<i32>,
    /// A due time missed by more than this is skipped, counted and said. Default: 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub starting_deadline_seconds: Option<i32>,
    /// Whether nothing is fired for now; what would have been due is skipped. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub suspend: bool,
}

impl ScheduleSpec {
    /// IANA time zone; UTC unless given.
    pub fn time_zone(&self) -> &str {
        self.time_zone.as_deref().unwrap_or("UTC")
    }

    /// The service account whose rights decide; `default` unless given.
    pub fn service_account_name(&self) -> &str {
        self.service_account_name.as_deref().unwrap_or("default")
    }

    /// How urgent it is; low unless given.
    pub fn priority(&self) -> Priority {
        self.priority.unwrap_or(Priority::Low)
    }

    /// Over which time it is released; zero (all at once) unless given.
    pub fn spread_over(&self) -> Duration {
        shared::seconds(self.spread_over_seconds, 0)
    }

    /// When it is due.
    ///
    /// Fails as [`Validate::validate`] would: unless exactly one of `schedule` and `at` is there and can be read.
    pub fn due(&self) -> Result<Due, ParseTiming> {
        match (&self.schedule, &self.at) {
            (Some(cron), None) => Due::cron(cron, self.time_zone()),
            (None, Some(at)) => Due::once(at, self.time_zone()),
            _ => Err(ParseTiming::ChooseOne),
        }
    }

    /// How late it may still fire; an hour unless given.
    pub fn starting_deadline(&self) -> Duration {
        shared::seconds(self.starting_deadline_seconds, 3600)
    }
}

/// What the gateways did and will do, as the operator mirrors it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and Reconciling or Stalled while they apply. Not Ready while what was due last is refused by the gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The due time that fired last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// The due time that comes next; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// What came of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_notification: Option<LastNotification>,
    /// How many due times were skipped since creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<i64>,
}

/// What came of the last due time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastNotification {
    /// The notification's id.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Whether it was accepted.
    pub accepted: bool,
}

impl Validate for Schedule {
    fn validate(&self) -> Vec<Problem> {
        let spec = &self.spec;
        validate(Kind::Schedule, &self.metadata, spec, |problems| {
            if let Err(error) = spec.due() {
                let at = match error {
                    ParseTiming::ChooseOne => "/spec",
                    ParseTiming::ReadCron { .. } | ParseTiming::FindOccurrence => "/spec/schedule",
                    ParseTiming::ReadTime { .. } => "/spec/at",
                    ParseTiming::FindTimeZone { .. } => "/spec/timeZone",
                };
                problems.add(at, error.to_string());
            }
            check_recipients("/spec/recipients", &spec.recipients, problems);
            problems.size("/spec/parameters", &spec.parameters, FREE_OBJECT_BYTES);
        })
    }
}
