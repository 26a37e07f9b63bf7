//! Where somebody is reached, and who is meant.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{Medium, pattern};

/// Where somebody is reached: what a recipient of the directory has, or what a sender gives instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.email) || has(self.phone) || has(self.webhook)")
    .message("an address needs at least one of email, phone and webhook"))]
pub struct Address {
    /// Mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 254), regex(pattern = pattern::EMAIL))]
    pub email: Option<String>,
    /// Telephone number in the E.164 form, such as +821012345678: for text messages and calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = pattern::PHONE))]
    pub phone: Option<String>,
    /// http or https URL of a system that takes webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = pattern::HTTP_URL))]
    pub webhook: Option<String>,
    /// Language tag (BCP 47) that chooses the translation. Default: the template's defaultLocale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), regex(pattern = pattern::LOCALE))]
    pub locale: Option<String>,
}

impl Address {
    /// The endpoint that `medium` sends to; `None` if this address has none for it.
    ///
    /// Push, chat and inbox always answer `None`: they reach recipients of the directory, not addresses.
    pub fn usable(&self, medium: Medium) -> Option<&str> {
        match medium {
            Medium::Email => self.email.as_deref(),
            Medium::Sms | Medium::Voice => self.phone.as_deref(),
            Medium::Webhook => self.webhook.as_deref(),
            Medium::Push | Medium::Chat | Medium::Inbox => None,
        }
    }
}

/// Who is meant: exactly one of somebody in the directory, everybody in a group, or a bare address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.recipient), has(self.group), has(self.address)].exists_one(x, x)")
    .message("give exactly one of recipient, group and address"))]
pub struct RecipientRef {
    /// Id of a recipient in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = pattern::RECIPIENT_ID))]
    pub recipient: Option<String>,
    /// Name of a RecipientGroup of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = pattern::DNS_LABEL))]
    pub group: Option<String>,
    /// Somebody outside the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// What a [`RecipientRef`] says, as Rust can match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// The recipient of the directory with this id.
    Recipient(&'a str),
    /// Everybody in the group of this name.
    Group(&'a str),
    /// Somebody outside the directory.
    Address(&'a Address),
}

impl RecipientRef {
    /// Who is meant; `None` unless exactly one member is set.
    pub fn who(&self) -> Option<Who<'_>> {
        match (&self.recipient, &self.group, &self.address) {
            (Some(id), None, None) => Some(Who::Recipient(id)),
            (None, Some(name), None) => Some(Who::Group(name)),
            (None, None, Some(address)) => Some(Who::Address(address)),
            _ => None,
        }
    }
}
