//! What rendering makes: a message, ready for a provider.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Medium;

/// One message, rendered for one recipient and one medium. At most [`MAX_RENDERED`](super::MAX_RENDERED) bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Rendered {
    /// A mail.
    Email {
        /// One line, without control characters.
        subject: String,
        /// HTML body; `None`: plain text alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
        /// Plain text body; derived from `html` where the template has none.
        text: String,
        /// Where answers go, one line; `None`: the provider's `from`. Whether it is an address is not checked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
        /// Further header fields; every value is one line without control characters.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
    },
    /// A text message.
    Sms {
        /// Its text.
        text: String,
    },
    /// The body of an HTTP request.
    Webhook {
        /// JSON text; `None`: the provider builds a `CloudEvent` around `parameters`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// The notification's parameters; `Some` only where `body` is `None`, since nothing else carries them then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parameters: Option<Arc<Value>>,
    },
}

impl Rendered {
    /// The medium it is for.
    pub const fn medium(&self) -> Medium {
        match self {
            Self::Email { .. } => Medium::Email,
            Self::Sms { .. } => Medium::Sms,
            Self::Webhook { .. } => Medium::Webhook,
        }
    }

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
            Self::Webhook { body, parameters } => {
                let parameters = parameters
                    .as_ref()
                    .map_or(0, |value| value.to_string().len());
                body.as_ref().map_or(parameters, String::len)
            }
        }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
