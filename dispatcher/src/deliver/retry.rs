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

/// Why a provider may not be asked now, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotYet {
    /// Its breaker is open.
    OutOfOrder(Duration),
    /// Its own rate is used up.
    Rate(Duration),
}

/// Puts a delivery off without an attempt, since the provider chosen for it may not be asked yet: round the
/// shortest relay that is long enough, if that provider alone may send it, else the longer one; round the shorter one if
/// any provider may, since another may be asked at any time.
pub fn put_off(delivery: &Delivery, not_yet: NotYet, timing: &Timing, now: Timestamp) -> Next {
    let (wait, reason, detail) = match not_yet {
        NotYet::OutOfOrder(wait) => (
            wait,
            "provider-out-of-order",
            "the provider is given a pause",
        ),
        NotYet::Rate(wait) => (wait, "provider-rate", "the provider's own rate is used up"),
    };
    let relay = match delivery.provider {
        Some(_) => usize::from(wait > timing.relays[0]),
        None => 0,
    };
    let due = now + timing.relays[relay];
    let again = Delivery {
        attempt: delivery.attempt + 1,
        ready_at: due,
        released_at: due,
        ..delivery.clone()
    };
    let error = Failure {
        reason: Arc::from(reason),
        detail: detail.to_owned(),
        provider: delivery.provider.clone(),
    };
    Next {
        step: Step::Retrying { error, due },
        relay: Some((relay, Box::new(again))),
        tried: delivery.tried,
    }
}

/// Gives a delivery back to the waiting room without an attempt: it is older than the horizon, or the channel or its
/// template is suspended.
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

#[cfg(test)]
mod tests {
    use herald_crds::render::Rendered;
    use herald_crds::{Medium, Priority};

    use super::*;
    use crate::id::{DeliveryId, NotificationId};

    fn delivery(tried: u16) -> Delivery {
        let notification = NotificationId::from_key("shop", "test", "1");
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        Delivery {
            id: DeliveryId::new(&notification, "alice", "shop/mail", 0, "a@b.example", 0),
            notification,
            namespace: Arc::from("shop"),
            template: Arc::from("order"),
            recipient: Arc::from("alice"),
            endpoint: Arc::from("a@b.example"),
            priority: Priority::Normal,
            accepted_at: now,
            ready_at: now,
            released_at: now,
            expires_at: None,
            round: 0,
            attempt: tried + 1,
            tried,
            provider: None,
            content: Rendered::Sms {
                text: "hello".to_owned(),
            },
            sensitive: false,
            traceparent: None,
        }
    }

    fn reason() -> Reason {
        Reason {
            code: Arc::from("smtp-451"),
            detail: "busy".to_owned(),
        }
    }

    fn after(outcome: Outcome, tried: u16, spec: &ChannelSpec) -> Next {
        let provider = Arc::from("first");
        let attempt = Attempt {
            provider: &provider,
            outcome,
            took: Duration::from_millis(7),
            counts: true,
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        next(attempt, &delivery(tried), spec, &Timing::default(), now)
    }

    fn spec() -> ChannelSpec {
        ChannelSpec::new(Medium::Email, Vec::new())
    }

    /// Seconds until the next attempt, and whether it waits in SQL.
    fn delay(next: &Next) -> (i64, bool) {
        let from = Timestamp::from_second(1_800_000_000).unwrap();
        match &next.step {
            Step::Retrying { due, .. } => (due.duration_since(from).as_secs(), false),
            Step::Returned { due, .. } => (due.duration_since(from).as_secs(), true),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn retries_take_5_s_30_s_5_min_and_then_an_hour_each() {
        let spec = spec();
        let delays = [0, 1, 2, 3, 4, 6]
            .map(|tried| delay(&after(Outcome::Transient(reason()), tried, &spec)));
        assert_eq!(
            delays,
            [
                (5, false),
                (30, false),
                (300, true),
                (3600, true),
                (3600, true),
                (3600, true)
            ]
        );
    }

    #[test]
    fn the_last_attempt_makes_a_dead_letter_that_can_be_replayed() {
        let next = after(Outcome::Transient(reason()), 7, &spec());
        assert_eq!(next.tried, 8);
        let Step::Failed {
            delivery: Some(_),
            address_gone: false,
            ..
        } = next.step
        else {
            panic!("{:?}", next.step)
        };
    }

    #[test]
    fn what_a_provider_asks_for_is_kept_and_a_relay_has_one_delay() {
        let throttled = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            delay(&after(
                Outcome::Throttled {
                    reason: reason(),
                    retry_after,
                },
                0,
                &spec(),
            ))
        };
        assert_eq!(throttled(2), (5, false));
        assert_eq!(throttled(7), (30, false));
        assert_eq!(throttled(90), (90, true));
    }

    #[test]
    fn what_a_breaker_stops_is_put_off_for_no_longer_than_its_pause_and_no_attempt_counts() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let put_off = |provider: Option<&str>, wait| {
            let delivery = Delivery {
                provider: provider.map(Arc::from),
                ..delivery(1)
            };
            let next = put_off(
                &delivery,
                NotYet::OutOfOrder(Duration::from_secs(wait)),
                &Timing::default(),
                now,
            );
            let (relay, again) = next.relay.as_ref().unwrap();
            assert_eq!((next.tried, again.tried, again.attempt), (1, 1, 3));
            assert_eq!(again.provider, delivery.provider);
            (*relay, delay(&next))
        };
        assert_eq!(put_off(None, 5), (0, (5, false)));
        assert_eq!(put_off(None, 60), (0, (5, false)));
        assert_eq!(put_off(Some("first"), 5), (0, (5, false)));
        assert_eq!(put_off(Some("first"), 6), (1, (30, false)));
        assert_eq!(put_off(Some("first"), 60), (1, (30, false)));
    }

    #[test]
    fn an_unknown_outcome_stays_with_its_provider_unless_the_channel_says_otherwise() {
        use herald_crds::OnUnknown;
        let mut spec = spec();
        let bound = |next: Next| {
            next.relay
                .map(|(_, delivery)| delivery.provider.as_deref().map(str::to_owned))
        };
        assert_eq!(
            bound(after(Outcome::Unknown(reason()), 0, &spec)),
            Some(Some("first".to_owned()))
        );
        spec.retry = serde_json::from_value(serde_json::json!({"onUnknown": "Resend"})).unwrap();
        assert_eq!(spec.on_unknown(), OnUnknown::Resend);
        assert_eq!(
            bound(after(Outcome::Unknown(reason()), 0, &spec)),
            Some(None)
        );
        spec.retry = serde_json::from_value(serde_json::json!({"onUnknown": "Drop"})).unwrap();
        assert!(matches!(
            after(Outcome::Unknown(reason()), 0, &spec).step,
            Step::Unknown { .. }
        ));
    }

    #[test]
    fn a_retry_is_a_successor_and_a_delivery_given_back_was_not_tried() {
        let next = after(Outcome::Transient(reason()), 0, &spec());
        let (_, again) = next.relay.unwrap();
        assert_eq!((again.round, again.attempt, again.tried), (0, 2, 1));
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let back = give_back(&delivery(0), "horizon", "old", now);
        let Step::Returned { delivery, .. } = back.step else {
            panic!()
        };
        assert_eq!((delivery.attempt, delivery.tried, back.tried), (2, 0, 0));
    }

    #[test]
    fn a_failed_probe_while_nothing_works_is_no_attempt() {
        let provider = Arc::from("first");
        let outcome = Outcome::Transient(reason());
        let attempt = Attempt {
            provider: &provider,
            outcome,
            took: Duration::ZERO,
            counts: false,
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(
            next(attempt, &delivery(3), &spec(), &Timing::default(), now).tried,
            3
        );
    }
}
