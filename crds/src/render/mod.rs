//! What is said, from a template and its parameters. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is said to one recipient over one medium.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rendered {
    /// Mail.
    Email {
        /// Subject line.
        subject: String,
        /// HTML body; `None`: plain text only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
        /// Plain text body.
        text: String,
        /// Where answers go; `None`: to the provider's `from`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
        /// Further header fields.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
    },
    /// Text message.
    Sms {
        /// Its text.
        text: String,
    },
    /// Body of an HTTP request.
    Webhook {
        /// JSON, rendered; `None`: a CloudEvent that carries `parameters`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// The parameters, for the CloudEvent; `None` if there is a body.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parameters: Option<serde_json::Value>,
    },
}
