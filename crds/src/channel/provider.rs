//! Who carries it.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RateLimit;
use crate::shared::{self, NameRef};
use crate::{Medium, pattern};

/// Who carries it: exactly one of smtp, webhook and log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("[has(self.smtp), has(self.webhook), has(self.log)].exists_one(x, x)")
    .message("give exactly one of smtp, webhook and log"))]
pub struct Provider {
    /// What this provider is called, in metrics and histories.
    #[schemars(length(min = 1, max = 40), regex(pattern = pattern::DNS_LABEL))]
    pub name: String,
    /// A mail server. For medium email.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<SmtpSpec>,
    /// HTTP requests with Standard Webhooks signatures. For medium webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSpec>,
    /// Writes a JSON line instead of sending, for rehearsals. For any medium.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSpec>,
    /// How long one send may take. Default: 15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: Option<i32>,
    /// At most this many sends of this provider. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// What a [`Provider`] is, as Rust can match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderSpec<'a> {
    /// A mail server.
    Smtp(&'a SmtpSpec),
    /// HTTP requests.
    Webhook(&'a WebhookSpec),
    /// A JSON line.
    Log(&'a LogSpec),
}

impl ProviderSpec<'_> {
    /// The medium that it carries; `None` if any.
    pub fn medium(self) -> Option<Medium> {
        match self {
            Self::Smtp(_) => Some(Medium::Email),
            Self::Webhook(_) => Some(Medium::Webhook),
            Self::Log(_) => None,
        }
    }

    /// Its member's name in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smtp(_) => "smtp",
            Self::Webhook(_) => "webhook",
            Self::Log(_) => "log",
        }
    }

    /// The Secret with its credentials; `None` if it needs none.
    pub fn credentials(&self) -> Option<&str> {
        match self {
            Self::Smtp(smtp) => smtp.credentials_ref.as_ref(),
            Self::Webhook(webhook) => webhook.credentials_ref.as_ref(),
            Self::Log(_) => None,
        }
        .map(|r| r.name.as_str())
    }
}

impl Provider {
    /// What it is; `None` unless exactly one member is set.
    pub fn spec(&self) -> Option<ProviderSpec<'_>> {
        match (&self.smtp, &self.webhook, &self.log) {
            (Some(smtp), None, None) => Some(ProviderSpec::Smtp(smtp)),
            (None, Some(webhook), None) => Some(ProviderSpec::Webhook(webhook)),
            (None, None, Some(log)) => Some(ProviderSpec::Log(log)),
            _ => None,
        }
    }

    /// How long one send may take; 15 s unless given.
    pub fn timeout(&self) -> Duration {
        shared::seconds(self.timeout_seconds, 15)
    }
}

/// A mail server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SmtpSpec {
    /// Host name or IP address.
    #[schemars(length(min = 1, max = 253), regex(pattern = pattern::HOST))]
    pub host: String,
    /// Port. Default: 587 with StartTls, 465 with Tls, 25 with None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// How the connection is protected. Default: StartTls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SmtpTls>,
    /// ConfigMap whose key ca.crt has the certificates to trust. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<NameRef>,
    /// Who it is from, such as "Shop <orders@shop.example>".
    #[schemars(length(min = 3, max = 320), regex(pattern = pattern::LINE))]
    pub from: String,
    /// Secret labelled herald.dev/credentials=true with the keys username and password. Default: no authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<NameRef>,
    /// Whether the server may have a private, loopback or link-local address. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub allow_private_addresses: bool,
}

impl SmtpSpec {
    /// How the connection is protected; by STARTTLS unless given.
    pub fn tls(&self) -> SmtpTls {
        self.tls.unwrap_or_default()
    }

    /// The port; the usual one of [`SmtpSpec::tls`] unless given.
    pub fn port(&self) -> u16 {
        let usual = match self.tls() {
            SmtpTls::None => 25,
            SmtpTls::StartTls => 587,
            SmtpTls::Tls => 465,
        };
        self.port
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(usual)
    }
}

/// How a connection to a mail server is protected.
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
pub enum SmtpTls {
    /// Not at all.
    None,
    /// By STARTTLS (RFC 3207); a server that does not offer it is not spoken to.
    #[default]
    StartTls,
    /// From the first byte (RFC 8314).
    Tls,
}

/// HTTP requests with Standard Webhooks signatures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookSpec {
    /// http or https URL that everything goes to. Default: each recipient's own webhook address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = pattern::HTTP_URL))]
    pub url: Option<String>,
    /// Secret labelled herald.dev/credentials=true whose key secret signs the requests (Standard Webhooks, whsec_…).
    /// Default: not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<NameRef>,
    /// Whether the system may have a private, loopback or link-local address. Default: false.
    #[serde(default, skip_serializing_if = "shared::off")]
    pub allow_private_addresses: bool,
    /// Further header fields of each request. Not for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "shared::short_strings")]
    pub headers: BTreeMap<String, String>,
}

/// Writes a JSON line instead of sending, and can be told to fail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogSpec {
    /// File to write to. Default: standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = pattern::LINE))]
    pub path: Option<String>,
    /// What happens to whom; the first that matches counts. Default: everything is sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rules: Vec<LogRule>,
    /// How long each send takes. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 60_000))]
    pub latency_milliseconds: Option<i32>,
}

impl LogSpec {
    /// What happens to a send to `endpoint`: the first rule that matches, else it is sent.
    pub fn outcome(&self, endpoint: &str) -> LogOutcome {
        self.rules
            .iter()
            .find(|rule| glob(&rule.recipient, endpoint))
            .map_or(LogOutcome::Sent, |rule| rule.outcome)
    }

    /// How long each send takes; none unless given.
    pub fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_milliseconds.unwrap_or(0).max(0) as u64)
    }
}

/// What happens to whom, in a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogRule {
    /// The endpoint (mail address, number, URL), with * for anything.
    #[schemars(length(min = 1, max = 254), regex(pattern = pattern::LINE))]
    pub recipient: String,
    /// What happens.
    pub outcome: LogOutcome,
}

/// What happens to a send in a rehearsal.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, strum::Display,
)]
pub enum LogOutcome {
    /// It is sent.
    Sent,
    /// It fails, and might not later.
    Transient,
    /// It fails for good.
    Permanent,
    /// The provider asks to slow down.
    Throttled,
    /// Nobody knows whether it was sent.
    Unknown,
    /// Nothing happens until the timeout.
    Hang,
}

/// Whether `text` is what `pattern` describes, where `*` stands for anything, also nothing.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut rest) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts = tail.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything_also_nothing() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "alice@shop.example"),
            ("alice@shop.example", "alice@shop.example"),
            ("*@shop.example", "alice@shop.example"),
            ("+8210*", "+821012345678"),
            ("a*b*c", "abc"),
            ("a*b*c", "a-b-b-c"),
            ("*aab", "aaab"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("alice", "alice@shop.example"),
            ("*@shop.example", "alice@other.example"),
            ("ab*ba", "aba"),
            ("a*b*c", "a-c-b"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rule = |recipient: &str, outcome| LogRule {
            recipient: recipient.to_owned(),
            outcome,
        };
        let log = LogSpec {
            rules: vec![
                rule("vip@shop.example", LogOutcome::Sent),
                rule("*@shop.example", LogOutcome::Throttled),
            ],
            ..LogSpec::default()
        };
        assert_eq!(log.outcome("vip@shop.example"), LogOutcome::Sent);
        assert_eq!(log.outcome("bob@shop.example"), LogOutcome::Throttled);
        assert_eq!(log.outcome("bob@other.example"), LogOutcome::Sent);
    }

    #[test]
    fn the_port_follows_from_the_protection_unless_given() {
        let port = |tls, port| {
            SmtpSpec {
                port,
                tls,
                ..SmtpSpec::default()
            }
            .port()
        };
        assert_eq!(port(None, None), 587);
        assert_eq!(port(Some(SmtpTls::Tls), None), 465);
        assert_eq!(port(Some(SmtpTls::None), None), 25);
        assert_eq!(port(Some(SmtpTls::Tls), Some(2525)), 2525);
    }
}
