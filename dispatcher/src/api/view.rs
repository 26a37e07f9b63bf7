//! What callers see of notifications and deliveries.

use std::collections::BTreeMap;

use herald_crds::Priority;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::schema;
use crate::message::{SystemState, To};
use crate::store::{DeliveryRecord, NotificationRecord, State, TrailEntry};

/// Where a notification stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Status {
    /// Durable, and its recipients are being found.
    Accepted,
    /// Waits for its `sendAt`.
    Scheduled,
    /// Has more recipients than its template allows, and waits for its sender to confirm them.
    Held,
    /// Deliveries are waiting or under way.
    Processing,
    /// Called back: what had not gone out does not go out.
    Cancelled,
    /// Every delivery has ended; `counts` says how.
    Ended,
}

/// A notification.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Its id.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Who sent it.
    pub sender: String,
    /// Its template's name.
    pub template: String,
    /// The template's definition as it was: `sha256:…`.
    pub definition: String,
    /// The class it has now.
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
    /// Where it stands.
    pub status: Status,
    /// Deliveries by state.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: BTreeMap<State, u64>,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub accepted_at: Timestamp,
    /// Not before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub send_at: Option<Timestamp>,
    /// Not after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When it was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub cancelled_at: Option<Timestamp>,
    /// When its last delivery ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Released evenly over this time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spread_over_seconds: u32,
    /// Why it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Recipients and addresses that were listed.
    pub listed: usize,
    /// Groups that were named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Channels that were named instead of the template's routing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// The sender's own words about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// So often a different body came under the same Idempotency-Key.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub conflicts: u64,
    /// How Herald was when it accepted this.
    #[schema(value_type = Object)]
    pub system: SystemState,
    /// Its trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Why a notification is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// So many recipients it has, before those that are in twice are found.
    pub recipients: u64,
    /// So many its template allows.
    pub allowed: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(super) fn is_none_yet(count: &u64) -> bool {
    *count == 0
}

impl Notification {
    /// What history knows, as it is at `now`.
    pub fn new(record: &NotificationRecord, now: Timestamp) -> Self {
        let request = &record.request;
        let status = if record.cancelled_at.is_some() {
            Status::Cancelled
        } else if record.held.is_some() {
            Status::Held
        } else if record.ended() {
            Status::Ended
        } else if request.send_at.is_some_and(|at| at > now) {
            Status::Scheduled
        } else if record.resolved || record.counts.values().any(|n| *n > 0) {
            Status::Processing
        } else {
            Status::Accepted
        };
        let groups = request.recipients.iter().filter_map(|to| match to {
            To::Group(name) => Some(name.rsplit('/').next().unwrap_or(name).to_owned()),
            To::Recipient(_) | To::Address(_) => None,
        });
        let groups: Vec<String> = groups.collect();
        Self {
            id: request.id.to_string(),
            namespace: request.namespace.to_string(),
            sender: request.sender.to_string(),
            template: request.template.to_string(),
            definition: request.definition.to_string(),
            priority: record.priority,
            status,
            counts: record
                .counts
                .iter()
                .filter(|(_, n)| **n > 0)
                .map(|(state, n)| (*state, *n))
                .collect(),
            accepted_at: request.accepted_at,
            send_at: request.send_at,
            expires_at: request.expires_at,
            cancelled_at: record.cancelled_at,
            ended_at: record.ended_at,
            spread_over_seconds: request.spread_over_seconds,
            held: record.held.map(|(recipients, allowed)| Held {
                recipients,
                allowed,
            }),
            listed: request.recipients.len() - groups.len(),
            groups,
            channels: request.channels.iter().map(ToString::to_string).collect(),
            metadata: request.metadata.clone(),
            conflicts: record.conflicts,
            system: request.system.clone(),
            traceparent: request.traceparent.as_deref().map(str::to_owned),
        }
    }
}

/// One message to one recipient on one channel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Its id.
    pub id: String,
    /// Its notification.
    pub notification: String,
    /// Its recipient's id; absent for a bare address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Its channel, `namespace/name`; absent if none could be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Its address.
    pub endpoint: String,
    /// Its locale; absent: the template's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Its class.
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
    /// Its state.
    pub state: State,
    /// What the state is due to: `opted-out`, `address-gone`, `duplicate`, `no-address`, `smtp-550`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the provider said last when it did not send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its round: 0, and one more with each replay.
    pub round: u16,
    /// Attempts of this round that reached a provider.
    pub attempts: u16,
    /// The provider that sent it or tried it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// What that provider calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// When it was planned.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it is or was due.
    #[schema(value_type = String, format = DateTime)]
    pub due_at: Timestamp,
    /// When it last left the waiting room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub released_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
}

impl From<DeliveryRecord> for Delivery {
    fn from(record: DeliveryRecord) -> Self {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            id: record.id.to_string(),
            notification: record.notification.to_string(),
            recipient: given(&record.recipient),
            channel: given(&record.channel),
            endpoint: record.endpoint.to_string(),
            locale: given(&record.locale),
            priority: record.priority,
            state: record.state,
            reason: record.reason,
            error: record.error,
            round: record.round,
            attempts: record.attempts,
            provider: record.provider,
            provider_id: record.provider_id,
            created_at: record.created_at,
            due_at: record.due_at,
            released_at: record.released_at,
            ended_at: record.ended_at,
        }
    }
}

/// One step of a delivery's audit trail.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trail {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Which step: `accepted`, `planned`, `released`, `sent`, `retrying`, `returned`, `failed`, `unknown`, `expired`,
    /// `cancelled`, `suppressed`, `prioritized`, `redriven`, `replayed`, `discarded`.
    pub step: String,
    /// Of which round.
    pub round: u16,
    /// Of which attempt.
    pub attempt: u16,
    /// The step's particulars.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

impl From<TrailEntry> for Trail {
    fn from(entry: TrailEntry) -> Self {
        let TrailEntry {
            at,
            step,
            round,
            attempt,
            detail,
        } = entry;
        Self {
            at,
            step,
            round,
            attempt,
            detail,
        }
    }
}
