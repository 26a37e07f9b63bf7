//! The seam to the world: how one provider is spoken to, and nothing else.
//!
//! A provider module knows its protocol; it knows nothing of queues, retries, rates or preferences. A new one is a
//! folder here and a line in [`build`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::message::Delivery;

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
