//! Why a notification is not accepted.

use std::time::Duration;

use herald_crds::Problem;

use super::Scope;

/// Why a notification is not accepted. Nothing of it was queued, but for [`Receipt`](Self::Receipt).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    /// No such template is in force.
    #[error(
        "template {template:?} is not in force in namespace {namespace:?}{}",
        suggest(close)
    )]
    FindTemplate {
        /// The namespace.
        namespace: String,
        /// The name that was given.
        template: String,
        /// Names that are in force and look like it, the likeliest first.
        close: Vec<String>,
        /// What else is wrong with the request.
        problems: Vec<Problem>,
    },
    /// The request is wrong, in at least one place.
    #[error("the request is wrong in {} places", problems.len())]
    Check {
        /// Every place, by JSON Pointer into the request.
        problems: Vec<Problem>,
    },
    /// The sender may not ask for this.
    #[error("this needs the scope {}, because of {because}", scope.as_str())]
    Authorize {
        /// What it lacks.
        scope: Scope,
        /// The member of the request that needs it, as a JSON Pointer; empty: the request itself.
        because: String,
    },
    /// The sender sends faster than it may.
    #[error("a sender may send {limit} notifications a second")]
    Limit {
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
            Self::Limit { .. } | Self::AwaitFirst | Self::Queue { .. } | Self::Receipt
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
