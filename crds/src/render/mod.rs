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

impl Rendered {
    /// How many bytes are said: what limits and bundles count.
    pub fn len(&self) -> usize {
        match self {
            Self::Email {
                subject,
                html,
                text,
                reply_to,
                headers,
            } => {
                let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                let headers: usize = headers
                    .iter()
                    .map(|(name, value)| name.len() + value.len())
                    .sum();
                subject.len() + optional(html) + text.len() + optional(reply_to) + headers
            }
            Self::Sms { text } => text.len(),
            Self::Webhook {
                body: Some(body), ..
            } => body.len(),
            Self::Webhook { parameters, .. } => parameters
                .as_ref()
                .map_or(0, |value| value.to_string().len()),
        }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
