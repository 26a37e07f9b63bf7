//! How long something that failed is left alone: each resource by itself, longer each time, never all at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;

/// After the first failure, about.
const FIRST: Duration = Duration::from_secs(1);

/// At most.
const LONGEST: Duration = Duration::from_mins(5);

/// How often each resource failed in a row. One entry for each that fails now.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// It failed again: how long to leave it alone.
    pub fn failed(&self, name: &str) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(name.to_owned()).or_default();
        *count = count.saturating_add(1);
        jittered(delay(*count))
    }

    /// It worked, or is gone. Answers whether it had failed before.
    pub fn worked(&self, name: &str) -> bool {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(name).is_some()
    }

    /// How many fail now.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none fails now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// 1 s, 2 s, 4 s, … five minutes.
fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST * 2_u32.pow(doublings)).min(LONGEST)
}

/// A duration between three quarters and five quarters of `usual`: what begins together does not stay together.
pub fn jittered(usual: Duration) -> Duration {
    usual.mul_f64(rand::rng().random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_pause_up_to_five_minutes() {
        let seconds: Vec<_> = [1, 2, 3, 8, 9, 10, 100].map(|n| delay(n).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 128, 256, 300, 300]);
    }

    #[test]
    fn what_worked_begins_anew_and_each_counts_by_itself() {
        let backoff = Backoff::default();
        for _ in 0..8 {
            backoff.failed("a");
        }
        assert!(backoff.failed("a") > Duration::from_secs(100));
        assert!(backoff.failed("b") < Duration::from_secs(2));
        assert_eq!(backoff.len(), 2);
        assert!(backoff.worked("a"));
        assert!(!backoff.worked("a"));
        assert!(backoff.failed("a") < Duration::from_secs(2));
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        for _ in 0..1000 {
            let jittered = jittered(Duration::from_secs(100)).as_secs_f64();
            assert!((75.0..=125.0).contains(&jittered), "{jittered}");
        }
    }
}
