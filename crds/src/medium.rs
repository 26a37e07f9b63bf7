//! How a person is reached.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a person is reached, whoever carries it: what a Channel is for, and what a template has a block for.
///
/// The order is the order of the resources' documentation and means nothing else.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Medium {
    /// Mail, to `address.email`.
    Email,
    /// Text messages, to `address.phone`.
    Sms,
    /// Calls, to `address.phone`.
    Voice,
    /// Push notifications, to a recipient's registered devices.
    Push,
    /// Team chat.
    Chat,
    /// An HTTP request to another system, to `address.webhook` or to the Channel's own URL.
    Webhook,
    /// The inbox inside an application; needs a recipient of the directory, not an address.
    Inbox,
}

impl Medium {
    /// Every medium.
    pub const ALL: [Self; 7] = [
        Self::Email,
        Self::Sms,
        Self::Voice,
        Self::Push,
        Self::Chat,
        Self::Webhook,
        Self::Inbox,
    ];

    /// Its name in YAML, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
