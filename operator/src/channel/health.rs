//! Conditions that wait a minute before they turn, so that a moment is not told of. Pure: the time is handed in.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::time::Instant;

use crate::gateway::ChannelState;
use crate::status::{Because, Part};

/// `Backlogged`: what waits has waited for long.
const BACKLOGGED: &str = "Backlogged";
/// `ProviderDegraded`: a provider is out of order.
const DEGRADED: &str = "ProviderDegraded";

/// `DeadLetters`: deliveries were given up, and nobody has decided about them.
const DEAD: &str = "DeadLetters";

/// It has to be so for so long.
const HYSTERESIS: Duration = Duration::from_mins(1);

/// For so long something may wait: the lowest class is promised its share after as long.
const LONG: Duration = Duration::from_mins(1);

/// Since when it is otherwise than it was told.
#[derive(Debug, Clone, Default)]
pub struct Health {
    backlogged: Option<Instant>,
    degraded: Option<Instant>,
    dead: Option<Instant>,
}

impl Health {
    /// What to tell of how a Channel fares; what is not known (`None`) is told as it was `before`.
    pub fn conditions(
        &mut self,
        state: Option<&ChannelState>,
        suspended: bool,
        before: &[Condition],
        now: Instant,
    ) -> Vec<Part> {
        let told = |kind: &str| {
            let condition = before.iter().find(|condition| condition.type_ == kind)?;
            Some(condition.status == "True")
        };
        let is_backlogged = state.map(|state| !suspended && state.oldest() > LONG);
        let is_degraded = state.map(|state| state.providers.iter().any(|p| p.state < 1.0));
        let backlogged = settle(told(BACKLOGGED), is_backlogged, &mut self.backlogged, now);
        let degraded = settle(told(DEGRADED), is_degraded, &mut self.degraded, now);
        let has_dead = state.and_then(|state| state.dead_letters);
        let dead = settle(told(DEAD), has_dead, &mut self.dead, now);
        let part =
            |kind, holds: Option<bool>, good: (&'static str, &str), bad: (&'static str, &str)| {
                holds.map(|holds| {
                    let (reason, message) = if holds { bad } else { good };
                    Part::new(kind, holds, Because::new(reason, message))
                })
            };
        let backlogged = part(
            BACKLOGGED,
            backlogged,
            ("KeepsUp", "nothing has waited for long"),
            (
                "WaitsLong",
                "something has waited for more than a minute: the gateway tells by class what waits, and what holds it back",
            ),
        );
        let degraded = part(
            DEGRADED,
            degraded,
            ("ProvidersWork", "every provider is in use"),
            (
                "ProviderFails",
                "a provider is out of order, or only being tried: the gateway and the metrics tell which",
            ),
        );
        let dead = part(
            DEAD,
            dead,
            (
                "NoDeadLetters",
                "no delivery that was given up waits for a decision",
            ),
            (
                "HasDeadLetters",
                "deliveries were given up: the gateway lists them as dead-letters, and replays or discards them when told to",
            ),
        );
        [backlogged, degraded, dead].into_iter().flatten().collect()
    }
}

/// What to tell: as before, until it has been otherwise for a minute.
fn settle(
    told: Option<bool>,
    is: Option<bool>,
    otherwise: &mut Option<Instant>,
    now: Instant,
) -> Option<bool> {
    match (told, is) {
        (None, is) => is,
        (told, None) => told,
        (Some(told), Some(is)) if told == is => {
            *otherwise = None;
            Some(told)
        }
        (Some(told), Some(is)) => {
            let since = *otherwise.get_or_insert(now);
            if now.duration_since(since) < HYSTERESIS {
                return Some(told);
            }
            *otherwise = None;
            Some(is)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_turns_when_it_has_been_otherwise_for_a_minute() {
        let begun = Instant::now();
        let mut since = None;
        let mut told = None;
        let mut at = |second, is| {
            told = settle(told, is, &mut since, begun + Duration::from_secs(second));
            told
        };
        assert_eq!(at(0, None), None);
        assert_eq!(at(0, Some(false)), Some(false));
        assert_eq!(at(10, Some(true)), Some(false));
        assert_eq!(at(69, Some(true)), Some(false));
        assert_eq!(at(70, Some(true)), Some(true));
        // A moment in between begins the minute anew; not knowing changes nothing.
        assert_eq!(at(80, Some(false)), Some(true));
        assert_eq!(at(90, Some(true)), Some(true));
        assert_eq!(at(100, Some(false)), Some(true));
        assert_eq!(at(120, None), Some(true));
        assert_eq!(at(159, Some(false)), Some(true));
        assert_eq!(at(160, Some(false)), Some(false));
    }

    #[test]
    fn dead_letters_are_told_of_unless_the_gateway_is_too_old_to_know() {
        let told = |state: serde_json::Value| {
            let state: ChannelState = serde_json::from_value(state).unwrap();
            let parts = Health::default().conditions(Some(&state), false, &[], Instant::now());
            let parts = parts.into_iter().map(|part| format!("{part:?}"));
            parts.filter(|part| part.contains(DEAD)).collect::<Vec<_>>()
        };
        assert!(told(serde_json::json!({})).is_empty());
        let none = told(serde_json::json!({"deadLetters": false}));
        assert!(none[0].contains("NoDeadLetters"), "{none:?}");
        let some = told(serde_json::json!({"deadLetters": true}));
        assert!(some[0].contains("HasDeadLetters"), "{some:?}");
    }

    #[test]
    fn what_is_suspended_is_not_backlogged_and_what_nobody_tells_is_not_told() {
        let state: ChannelState = serde_json::from_value(
            serde_json::json!({"classes": {"low": {"oldestAgeSeconds": 900.0}}}),
        )
        .unwrap();
        let now = Instant::now();
        let told = |state: Option<&ChannelState>, suspended| {
            Health::default().conditions(state, suspended, &[], now)
        };
        assert!(told(None, false).is_empty());
        assert_ne!(told(Some(&state), false), told(Some(&state), true));
    }
}
