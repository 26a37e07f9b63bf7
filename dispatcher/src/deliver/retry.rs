//! What follows an attempt: pure.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::{ChannelSpec, OnUnknown};
use jiff::Timestamp;

use crate::message::{Delivery, Failure, Step};
use crate::provider::{Outcome, Reason};
use crate::timing::Timing;

/// What follows an attempt.
#[derive(Debug, PartialEq)]
pub struct Next {
    /// What the events topic is told.
    pub step: Step,
    /// What goes to a relay (0 or 1) first.
    pub relay: Option<(usize, Box<Delivery>)>,
    /// Attempts of the round that have reached a provider by now.
    pub tried: u16,
}

/// How an attempt went.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// Which provider was asked.
    pub provider: &'a Arc<str>,
    /// What it said.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// Whether it counts: a failed probe while every breaker is open does not.
    pub counts: bool,
}

/// Decides what follows an attempt, from what the Channel wants and how often it was tried.
pub fn next(
    attempt: Attempt<'_>,
    delivery: &Delivery,
    spec: &ChannelSpec,
    timing: &Timing,
    now: Timestamp,
) -> Next {
    let Attempt {
        provider,
        outcome,
        took,
        counts,
    } = attempt;
    let tried = delivery.tried + u16::from(counts || matches!(outcome, Outcome::Sent { .. }));
    let failure = |reason: Reason| Failure {
        reason: reason.code,
        detail: reason.detail,
        provider: Some(Arc::clone(provider)),
    };
    let end = |step| Next {
        step,
        relay: None,
        tried,
    };
    let (error, pin, at_least) = match outcome {
        Outcome::Sent { provider_id } => {
            return end(Step::Sent {
                provider: Arc::clone(provider),
                provider_id,
                milliseconds: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            });
        }
        Outcome::Permanent {
            reason,
            address_gone,
        } => {
            return end(Step::Failed {
                error: failure(reason),
                delivery: Some(Box::new(delivery.clone())),
                address_gone,
            });
        }
        Outcome::Unknown(reason) => match spec.on_unknown() {
            OnUnknown::Drop => {
                return end(Step::Unknown {
                    error: failure(reason),
                });
            }
            OnUnknown::Retry => (failure(reason), Some(Arc::clone(provider)), Duration::ZERO),
            OnUnknown::Resend => (failure(reason), None, Duration::ZERO),
        },
        Outcome::Transient(reason) => (failure(reason), delivery.provider.clone(), Duration::ZERO),
        Outcome::Throttled {
            reason,
            retry_after,
        } => (
            failure(reason),
            delivery.provider.clone(),
            retry_after.unwrap_or_default(),
        ),
    };
    if u32::from(tried) >= spec.max_attempts() {
        return end(Step::Failed {
            error,
            delivery: Some(Box::new(delivery.clone())),
            address_gone: false,
        });
    }
    let wanted = delay(tried, timing).max(at_least);
    let relay = timing.relays.iter().position(|relay| wanted <= *relay);
    // A relay has one delay for all, so that it stays in order.
    let due = now + relay.map_or(wanted, |relay| timing.relays[relay]);
    let again = Box::new(Delivery {
        attempt: delivery.attempt + 1,
        tried,
        provider: pin,
        ready_at: due,
        released_at: due,
        ..delivery.clone()
    });
    match relay {
        Some(relay) => Next {
            step: Step::Retrying { error, due },
            relay: Some((relay, again)),
            tried,
        },
        None => Next {
            step: Step::Returned {
                error,
                due,
                delivery: again,
            },
            relay: None,
            tried,
        },
    }
}

/// Gives a delivery back to the waiting room without an attempt: it is older than the horizon, or the channel is suspended.
pub fn give_back(delivery: &Delivery, reason: &'static str, detail: &str, due: Timestamp) -> Next {
    let again = Box::new(Delivery {
        attempt: delivery.attempt + 1,
        ..delivery.clone()
    });
    let error = Failure {
        reason: Arc::from(reason),
        detail: detail.to_owned(),
        provider: None,
    };
    Next {
        step: Step::Returned {
            error,
            due,
            delivery: again,
        },
        relay: None,
        tried: delivery.tried,
    }
}

/// The pause after so many attempts: two short ones over the relays, then those that are rows; the last repeats.
fn delay(tried: u16, timing: &Timing) -> Duration {
    match tried {
        0 | 1 => timing.relays[0],
        2 => timing.relays[1],
        3 => timing.returns[0],
        _ => timing.returns[1],
    }
}
