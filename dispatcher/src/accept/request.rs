//! What a sender asks for.

use std::collections::BTreeMap;

use herald_crds::{Priority, RecipientRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::api::schema;
use crate::id::NotificationId;

/// What a sender asks for: the body of `POST …/notifications`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SendRequest {
    /// Name of a `NotificationTemplate` of this namespace.
    #[schema(example = "order-shipped")]
    pub template: String,
    /// To whom: 1 to 10,000 recipients, groups and addresses. Who is meant twice gets one message.
    #[schema(schema_with = schema::recipients)]
    pub recipients: Vec<RecipientRef>,
    /// The template's parameters, checked against its schema.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub parameters: Map<String, Value>,
    /// How urgent it is. A more urgent class than the template's needs the scope `priorities:<class>`. Default: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::priority)]
    pub priority: Option<Priority>,
    /// Channels (`name`, or `namespace/name`) instead of the template's routing, in order of preference: at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub channels: Vec<String>,
    /// Not before this, and at most a year ahead. Members of groups are those of that moment. Default: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub send_at: Option<Timestamp>,
    /// Released evenly over this time, so that a mass send does not arrive as one wave. Default: 0, as fast as the
    /// channel goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 86400)]
    pub spread_over_seconds: Option<u32>,
    /// Not after this. Default: the template's `expiresAfterSeconds` after acceptance or `sendAt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// The sender's own words about it, for search: at most 32, of at most 256 characters each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// More recipients than the template's `maxRecipients` are meant, up to so many. They are counted before those that
    /// are in twice are found: somebody who is in by id and by the same bare address, or in two groups, counts twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_recipients: Option<u64>,
}

impl SendRequest {
    /// A digest of what is asked: the same for bodies that mean the same, however they are spaced and ordered.
    pub fn digest(&self) -> String {
        use std::fmt::Write as _;
        // Members come in the order of the struct, and objects are sorted, so this JSON is canonical.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut text = String::with_capacity(64);
        for byte in Sha256::digest(&json) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// A notification that was accepted: durable, and on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub id: NotificationId,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Its class.
    pub priority: Priority,
    /// It was accepted before, under the same key, and this is that answer.
    pub replayed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(json: &str) -> String {
        serde_json::from_str::<SendRequest>(json).unwrap().digest()
    }

    #[test]
    fn what_means_the_same_has_the_same_digest_and_what_does_not_has_another() {
        let one = digest(
            r#"{"template":"t","recipients":[{"recipient":"a"}],"parameters":{"b":1,"a":{"y":2,"x":[1,2]}},
                "sendAt":"2030-01-01T00:00:00Z"}"#,
        );
        let same = digest(
            r#"{"sendAt":"2030-01-01T09:00:00+09:00","priority":null,
                "parameters":{"a":{"x":[1,2],"y":2},"b":1},"recipients":[{"recipient":"a"}],"template":"t"}"#,
        );
        let other = digest(
            r#"{"template":"t","recipients":[{"recipient":"a"}],"parameters":{"b":1,"a":{"y":2,"x":[2,1]}},
                "sendAt":"2030-01-01T00:00:00Z"}"#,
        );
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
