//! The seam to the world: how one provider is spoken to, and nothing else.
//!
//! A provider module knows its protocol; it knows nothing of queues, retries, rates or preferences. A new one is a
//! folder here and a line in [`build`].
//!
//! What they share: [`credentials`] (mounted Secrets), [`address`] (where connections may lead), [`tls`] (whom they
//! trust), and `detail` (what a provider said, made fit to be kept).

pub mod address;
pub mod credentials;
mod detail;
pub mod log;
pub mod smtp;
pub mod tls;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::ProviderSpec;

use crate::message::Delivery;
use credentials::Credentials;

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider took responsibility.
    Sent {
        /// What the provider calls it, if it says.
        provider_id: Option<String>,
    },
    /// Not sent; another attempt may succeed, here or at another provider.
    Transient(Reason),
    /// Not sent, and this message to this address never will be.
    Permanent {
        /// Why.
        reason: Reason,
        /// The address itself is gone (HTTP 410, SMTP 5.1.1): it goes on the suppression list.
        address_gone: bool,
    },
    /// Not sent: the provider asks to slow down.
    Throttled {
        /// Why.
        reason: Reason,
        /// For how long, if it says.
        retry_after: Option<Duration>,
    },
    /// Perhaps sent: a timeout or a reset after the content had been handed over.
    Unknown(Reason),
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable and short, a metric's label: `smtp-550`, `http-503`, `timeout`, `connect`, `tls`, `refused-address`.
    pub code: Arc<str>,
    /// What the provider said, for people, cut at 500 characters. Without addresses and without secrets.
    pub detail: String,
}

/// One provider of a Channel, ready to send: built once, shared by all sends, keeps its connections.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Sends one delivery within `timeout`, and says what became of it: never an error, never a panic.
    ///
    /// The implementation keeps the time itself, since only it knows whether the content had been handed over
    /// (`Unknown`) or not (`Transient`). If the future is dropped, the attempt is abandoned as far as the protocol allows.
    async fn send(&self, delivery: &Delivery, timeout: Duration) -> Outcome;
}

/// What providers are built from besides their declaration.
#[derive(Debug, Clone)]
pub struct Context {
    /// The mounted Secrets.
    pub credentials: Credentials,
    /// Whether a Channel's `allowPrivateAddresses` counts; if not, no connection leads to a private address.
    pub allow_private_addresses: bool,
    /// Sends in flight at most: how many connections are worth keeping.
    pub concurrency: usize,
}

/// A declared provider that cannot be built: an edit of the Channel must cure it.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not exactly one kind of provider.
    #[error("provider {provider:?} must have exactly one of smtp, webhook and log")]
    ChooseKind {
        /// The provider's name.
        provider: String,
    },
    /// `smtp.from` is not an address.
    #[error(
        "provider {provider:?}: from {from:?} is not a mail address such as \"Shop <orders@shop.example>\""
    )]
    ParseSender {
        /// The provider's name.
        provider: String,
        /// What it says instead.
        from: String,
    },
    /// `webhook.url` is not a URL.
    #[error("provider {provider:?}: url is not an absolute http or https URL: {reason}")]
    ParseUrl {
        /// The provider's name.
        provider: String,
        /// What the parser said.
        reason: String,
    },
    /// A header field of `webhook.headers` that cannot be sent, or that Herald sets itself.
    #[error("provider {provider:?}: header field {header:?} {reason}")]
    CheckHeader {
        /// The provider's name.
        provider: String,
        /// The field's name.
        header: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Makes a declared provider ready to send; given are the channel, `NAMESPACE/NAME`, the provider, and the channel's
/// concurrency.
pub type Providers = Arc<
    dyn Fn(&str, &herald_crds::Provider, usize) -> Result<Arc<dyn Provider>, BuildError>
        + Send
        + Sync,
>;

/// Makes providers with the credentials of a folder, `ROOT/<secret>/<key>`.
pub fn makers(secrets: impl Into<std::path::PathBuf>, allow_private_addresses: bool) -> Providers {
    makers_with(Credentials::new(secrets), allow_private_addresses)
}

/// Makes providers with what each one's Channel has of these credentials.
pub fn makers_with(credentials: Credentials, allow_private_addresses: bool) -> Providers {
    Arc::new(move |channel, declared, concurrency| {
        let context = Context {
            credentials: credentials.of(channel),
            allow_private_addresses,
            concurrency,
        };
        build(declared, &context)
    })
}

/// Makes a declared provider ready to send. No I/O: files, names and connections are had when the first send needs them.
pub fn build(
    provider: &herald_crds::Provider,
    context: &Context,
) -> Result<Arc<dyn Provider>, BuildError> {
    Ok(match provider.spec() {
        Some(ProviderSpec::Smtp(spec)) => Arc::new(smtp::Smtp::new(&provider.name, spec, context)?),
        Some(ProviderSpec::Webhook(spec)) => {
            Arc::new(webhook::Webhook::new(&provider.name, spec, context)?)
        }
        Some(ProviderSpec::Log(spec)) => Arc::new(log::Log::new(spec)),
        None => {
            return Err(BuildError::ChooseKind {
                provider: provider.name.clone(),
            });
        }
    })
}

#[cfg(test)]
pub(crate) mod fixtures;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use herald_crds::{LogSpec, NameRef, SmtpSpec, WebhookSpec};

    use super::*;

    #[test]
    fn every_kind_is_built_without_its_server_its_secrets_or_a_runtime() {
        let context = fixtures::context(Path::new("/nowhere"));
        let provider = herald_crds::Provider {
            name: "main".to_owned(),
            ..Default::default()
        };
        let smtp = SmtpSpec {
            host: "mail.nowhere.example".to_owned(),
            from: "Shop <orders@shop.example>".to_owned(),
            ..SmtpSpec::default()
        };
        for provider in [
            herald_crds::Provider {
                smtp: Some(smtp),
                ..provider.clone()
            },
            herald_crds::Provider {
                webhook: Some(WebhookSpec::default()),
                ..provider.clone()
            },
            herald_crds::Provider {
                log: Some(LogSpec::default()),
                ..provider.clone()
            },
        ] {
            assert!(build(&provider, &context).is_ok(), "{provider:?}");
        }
        let neither = build(&provider, &context).err().unwrap();
        assert!(matches!(neither, BuildError::ChooseKind { provider } if provider == "main"));
    }

    #[tokio::test]
    async fn a_channel_of_another_namespace_sends_nobody_the_credentials_that_are_held() {
        tls::install_crypto();
        let held = Arc::new(credentials::Held::default());
        let secret = ["username", "password"].map(|key| (key.to_owned(), b"hunter2".to_vec()));
        held.put("mail-account".to_owned(), secret.into());
        let providers = makers_with(Credentials::held_in("hello", held), false);
        let provider = herald_crds::Provider {
            name: "main".to_owned(),
            smtp: Some(SmtpSpec {
                // Where nothing is sent: it is private.
                host: "127.0.0.1".to_owned(),
                from: "Shop <orders@shop.example>".to_owned(),
                credentials_ref: Some(NameRef {
                    name: "mail-account".to_owned(),
                }),
                ..SmtpSpec::default()
            }),
            ..Default::default()
        };
        let delivery = fixtures::delivery("alice@shop.example", fixtures::mail());
        for (channel, expected) in [
            ("hello/mail", "refused-address"),
            ("evil/mail", "credentials"),
        ] {
            let built = providers(channel, &provider, 1).unwrap();
            let outcome = built.send(&delivery, Duration::from_secs(20)).await;
            // Tried again: it may be declared where its credentials are, and nothing is lost.
            assert!(
                matches!(&outcome, Outcome::Transient(reason) if &*reason.code == expected),
                "{channel}: {outcome:?}"
            );
        }
    }
}
