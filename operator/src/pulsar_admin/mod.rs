//! Pulsar's admin REST API (v2), as far as Herald needs it: who may use which topics, and how these behave.
//!
//! Everything may be asked for again: what exists already is done. Knows nothing of Kubernetes.
//!
//! # Layout
//!
//! - `client`: how a request is sent, redirected and answered ([`PulsarAdmin`]).
//! - `error`: what can go wrong, named for the action that failed ([`AdminError`]).
//! - `namespaces`, `topics`, `stats`: what is asked for.
//! - `provision`: all of it that Herald needs before anything moves.

mod client;
mod error;
mod namespaces;
mod provision;
mod stats;
#[cfg(test)]
mod tests;
mod topics;

pub use client::{Health, PulsarAdmin, Settings, Token};
pub use error::{AdminError, RequestError, passes};
pub use namespaces::{Action, Permissions};
pub use provision::{partitions_of, policy};
pub use stats::{SubscriptionStats, TopicStats};
pub use topics::{BacklogQuota, Retention, TopicName, TopicPolicy};

/// Whether something had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It is new.
    New,
    /// It was there already, and is as it was.
    Existed,
}
