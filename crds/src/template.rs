//! NotificationTemplate: what is said.

mod validate;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Medium, Priority, pattern, shared};

/// What is said, in which languages, over which channels, to how many at most.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "herald.dev",
    version = "v1alpha1",
    kind = "NotificationTemplate",
    plural = "notificationtemplates",
    shortname = "hnt",
    category = "herald",
    namespaced,
    status = "NotificationTemplateStatus",
    derive = "PartialEq",
    doc = "What is said, in which languages, over which channels.",
    printcolumn(name = "Category", type_ = "string", json_path = ".spec.category"),
    printcolumn(name = "Priority", type_ = "string", json_path = ".spec.priority"),
    printcolumn(name = "Mandatory", type_ = "boolean", json_path = ".spec.mandatory", priority = 1),
    printcolumn(name = "Mediums", type_ = "string", json_path = ".status.mediums"),
    printcolumn(name = "Locales", type_ = "string", json_path = ".status.locales", priority = 1),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 40 characters: lower-case letters, digits and '-'")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationTemplateSpec {
    /// What it tells whom, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// What a recipient can switch off, such as order-updates. Default: none, which cannot be switched off by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = pattern::DNS_LABEL))]
    pub category: Option<String>,
    /// Whether it goes out whatever a recipient opted out of: password codes, legal notices. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub mandatory: bool,
    /// How urgent it is unless the request says otherwise. Default: normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// JSON Schema (2020-12) of the parameters, checked when a notification is accepted; at most 64 KiB, and no
    /// $ref that leaves it. Default: an object of anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shared::free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// JSON Pointers to parameters that are never stored or shown after sending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 256), regex(pattern = pattern::JSON_POINTER)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub sensitive: Vec<String>,
    /// Over which channels it goes.
    pub routing: Routing,
    /// Language tag of `content`. Default: en.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), regex(pattern = pattern::LOCALE))]
    pub default_locale: Option<String>,
    /// What is said, one block for each medium, in minijinja.
    pub content: Content,
    /// The same by language tag. Falls back block by block: pt-BR, then pt, then the default locale.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub translations: BTreeMap<String, Content>,
    /// Parts by name, for {% include "footer" %}; "brand/footer" is the part footer of template brand.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "partials")]
    pub partials: BTreeMap<String, String>,
    /// Says which messages say the same again, so that only the first goes out. Default: none is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<Deduplication>,
    /// Later than this after acceptance it is not sent at all. Default: 259200, three days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub expires_after_seconds: Option<i32>,
    /// With more recipients than this a notification is held until confirmed. Default: 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_recipients: Option<i32>,
    /// The kill switch: whether nothing of this template leaves. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub suspend: bool,
    /// Parameters to try it with; a template that does not render with them is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub samples: Vec<Sample>,
}

impl NotificationTemplateSpec {
    /// How urgent it is unless the request says otherwise; normal unless given.
    pub fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    /// Language tag of `content`; `en` unless given.
    pub fn default_locale(&self) -> &str {
        self.default_locale.as_deref().unwrap_or("en")
    }

    /// Later than this after acceptance it is not sent at all; three days unless given.
    pub fn expires_after(&self) -> Duration {
        shared::seconds(self.expires_after_seconds, 259_200)
    }

    /// With more recipients than this a notification is held; 10 000 unless given.
    pub fn max_recipients(&self) -> u64 {
        self.max_recipients.unwrap_or(10_000).max(0) as u64
    }

    /// The mediums that the default content has a block for, in their order.
    pub fn mediums(&self) -> impl Iterator<Item = Medium> + '_ {
        self.content.mediums()
    }
}

/// Over which channels a notification goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Routing {
    /// All: over each of the channels. FirstAvailable: over the first with an address that is usable, wanted and
    /// not suppressed. Default: All.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The channels, in order of preference.
    #[schemars(length(min = 1, max = 8))]
    pub channels: Vec<Route>,
}

impl Routing {
    /// How the channels are chosen; all of them unless given.
    pub fn strategy(&self) -> Strategy {
        self.strategy.unwrap_or_default()
    }
}

/// How the channels are chosen.
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
pub enum Strategy {
    /// Over each of the channels.
    #[default]
    All,
    /// Over the first channel with an address that is usable, wanted and not suppressed.
    FirstAvailable,
}

/// One channel that a template goes over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The Channel's name.
    #[schemars(length(min = 1, max = 40), regex(pattern = pattern::DNS_LABEL))]
    pub name: String,
    /// The Channel's namespace, which must allow this one. Default: the template's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = pattern::DNS_LABEL))]
    pub namespace: Option<String>,
}

/// What is said, one block for each medium.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.email) || has(self.sms) || has(self.webhook)")
    .message("give at least one block: email, sms or webhook"))]
pub struct Content {
    /// Mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailContent>,
    /// Text message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sms: Option<SmsContent>,
    /// HTTP request to another system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookContent>,
}

impl Content {
    /// The mediums that have a block, in their order.
    pub fn mediums(&self) -> impl Iterator<Item = Medium> + '_ {
        [
            self.email.is_some().then_some(Medium::Email),
            self.sms.is_some().then_some(Medium::Sms),
            self.webhook.is_some().then_some(Medium::Webhook),
        ]
        .into_iter()
        .flatten()
    }

    /// Whether `medium` has a block.
    pub fn has(&self, medium: Medium) -> bool {
        match medium {
            Medium::Email => self.email.is_some(),
            Medium::Sms => self.sms.is_some(),
            Medium::Webhook => self.webhook.is_some(),
            Medium::Voice | Medium::Push | Medium::Chat | Medium::Inbox => false,
        }
    }
}

/// A mail. At most 64 KiB altogether.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.html) || has(self.text)")
    .message("a mail needs html or text"))]
pub struct EmailContent {
    /// Subject line.
    #[schemars(length(min = 1, max = 998), regex(pattern = pattern::LINE))]
    pub subject: String,
    /// HTML body; what is printed into it is escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub html: Option<String>,
    /// Plain text body. Default: derived from html.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub text: Option<String>,
    /// Where answers go. Default: the provider's from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 320), regex(pattern = pattern::LINE))]
    pub reply_to: Option<String>,
    /// Further header fields by name, such as List-Id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "shared::short_strings")]
    pub headers: BTreeMap<String, String>,
}

/// A text message. At most 64 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SmsContent {
    /// Its text.
    #[schemars(length(min = 1, max = 65536))]
    pub text: String,
}

/// The body of an HTTP request. At most 64 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookContent {
    /// JSON. Default: a CloudEvent that carries the parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub body: Option<String>,
}

/// Which messages say the same again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deduplication {
    /// Rendered with the parameters; messages of this template to one recipient over one channel with the same key say the same.
    #[schemars(length(min = 1, max = 1024))]
    pub key: String,
    /// For how long the first one counts.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub window_seconds: i32,
}

impl Deduplication {
    /// For how long the first one counts.
    pub fn window(&self) -> Duration {
        shared::seconds(Some(self.window_seconds), 0)
    }
}

/// Parameters to try a template with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sample {
    /// What this sample is called.
    #[schemars(length(min = 1, max = 63), regex(pattern = pattern::DNS_LABEL))]
    pub name: String,
    /// Language tag to render it in. Default: the template's defaultLocale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), regex(pattern = pattern::LOCALE))]
    pub locale: Option<String>,
    /// The parameters; at most 64 KiB. Default: an empty object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shared::free_object")]
    pub parameters: Option<Map<String, Value>>,
}

/// What the operator found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationTemplateStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and Reconciling or Stalled while they apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Hash of the definition in force, such as sha256:….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub definition: Option<String>,
    /// The mediums that have a block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub mediums: Vec<Medium>,
    /// The languages that it speaks, the default first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 65), inner(length(max = 35)))]
    pub locales: Vec<String>,
}

fn partials(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 65536},
        "maxProperties": 32,
    })
}
