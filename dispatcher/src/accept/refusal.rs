//! Why a notification is not accepted.

use std::time::Duration;

use herald_crds::Problem;

use crate::access::Denied;

/// Why a notification is not accepted. Nothing of it was queued, but for [`Receipt`](Self::Receipt).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    /// No such template is in force.
    #[error(
        "template {template:?} is not in force in namespace {namespace:?}{}",
        wrong.as_ref().map_or_else(|| suggest(close), |wrong| format!(": it is declared, but {wrong}"))
    )]
    FindTemplate {
        /// The namespace.
        namespace: String,
        /// The name that was given.
        template: String,
        /// What is wrong with it, if it is declared and never was in force.
        wrong: Option<String>,
        /// Names that are in force and look like it, the likeliest first.
        close: Vec<String>,
        /// What else is wrong with the request.
        problems: Vec<Problem>,
    },
    /// What is declared cannot be read there: whether there is what it names cannot be told.
    #[error("what is declared in namespace {namespace:?} cannot be read at the moment")]
    Read {
        /// The namespace.
        namespace: String,
    },
    /// The request is wrong, in at least one place.
    #[error("the request is wrong in {} places", problems.len())]
    Check {
        /// Every place, by JSON Pointer into the request.
        problems: Vec<Problem>,
    },
    /// The sender may not ask for this.
    #[error("{denied}{}", if because.is_empty() { String::new() } else { format!(" (because of {because})") })]
    Authorize {
        /// What it lacks.
        denied: Denied,
        /// The member of the request that needs it, as a JSON Pointer; empty: the request itself.
        because: String,
    },
    /// The sender, or its namespace, sends faster than it may.
    #[error("{of} may send {limit} notifications a second")]
    Limit {
        /// Whose limit it is: `a sender` or `a namespace`.
        of: &'static str,
        /// So many a second.
        limit: u32,
        /// How long to wait until the next one passes.
        wait: Duration,
    },
    /// The Idempotency-Key was used before, for a different body.
    #[error("this Idempotency-Key was used before, for a different body")]
    ReuseKey,
    /// The first request with this Idempotency-Key has no answer yet.
    #[error("the first request with this Idempotency-Key is still under way")]
    AwaitFirst,
    /// Nothing more can be queued; nothing was.
    #[error("nothing more can be queued for now: {reason}")]
    Queue {
        /// Which bound was reached.
        reason: String,
    },
    /// The broker gave no receipt in time: it may have been accepted.
    #[error("the broker gave no receipt in time")]
    Receipt,
}

impl Refusal {
    /// Whether the same request may be accepted a little later.
    pub const fn passes(&self) -> bool {
        matches!(
            self,
            Self::Limit { .. }
                | Self::AwaitFirst
                | Self::Read { .. }
                | Self::Queue { .. }
                | Self::Receipt
                | Self::Authorize {
                    denied: Denied::Ask { .. } | Denied::AskTooMuch,
                    ..
                }
        )
    }
}

/// The end of a sentence about a name that is not there, given those that look like it.
pub(super) fn suggest(close: &[String]) -> String {
    match close {
        [] => String::new(),
        [one] => format!(": did you mean {one:?}?"),
        many => format!(": did you mean one of {}?", many.join(", ")),
    }
}
