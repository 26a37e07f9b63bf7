//! How many pods: by the age of what waits, if more pods would help. Pure: the time is handed in.

use std::time::Duration;

use herald_crds::Autoscaling;
use tokio::time::Instant;

/// After a change the pods have so long to show what they do.
const SETTLE: Duration = Duration::from_secs(15);

/// How a Channel fares, as far as the number of its pods goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// Pods that are wanted now.
    pub replicas: u32,
    /// Pods that are heard.
    pub heard: u32,
    /// For how long the oldest has waited.
    pub oldest: Duration,
    /// Whether it is slots that hold it back: more pods have more of them. More of a rate or of a provider they have not.
    pub by_slots: bool,
}

/// Since when what would change the number of pods.
#[derive(Debug, Clone, Default)]
pub struct Scaler {
    /// When it was changed last.
    changed: Option<Instant>,
    /// Since when nothing waits too long.
    calm: Option<Instant>,
}

impl Scaler {
    /// How many pods there should be.
    ///
    /// Half as many again (one at the least) when something waits for longer than the target, slots are what holds it
    /// back, and all pods that are wanted have been heard. One less when nothing has waited too long for as long as `calm`,
    /// as far as pods are heard that tell.
    pub fn decide(
        &mut self,
        scaling: &Autoscaling,
        observed: Observed,
        calm: Duration,
        now: Instant,
    ) -> u32 {
        let Observed {
            replicas,
            heard,
            oldest,
            by_slots,
        } = observed;
        let least = scaling.min_replicas();
        let most = scaling.max_replicas.max(1) as u32;
        let within = replicas.clamp(least, most.max(least));
        if within != replicas {
            *self = Self {
                changed: Some(now),
                calm: None,
            };
            return within;
        }
        if oldest > scaling.target_age() {
            self.calm = None;
            let is_settled = self
                .changed
                .is_none_or(|changed| now.duration_since(changed) >= SETTLE);
            if by_slots && heard >= replicas && is_settled && replicas < most {
                self.changed = Some(now);
                return (replicas + (replicas / 2).max(1)).min(most);
            }
            return replicas;
        }
        if heard == 0 && replicas > 0 {
            // Nobody tells what waits in front of them: that is no calm.
            self.calm = None;
            return replicas;
        }
        let since = *self.calm.get_or_insert(now);
        if replicas > least && now.duration_since(since) >= calm {
            *self = Self {
                changed: Some(now),
                calm: Some(now),
            };
            return replicas - 1;
        }
        replicas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Duration = Duration::from_mins(5);

    struct Test {
        scaler: Scaler,
        scaling: Autoscaling,
        replicas: u32,
        begun: Instant,
    }

    impl Test {
        fn new(replicas: u32) -> Self {
            Self {
                scaler: Scaler::default(),
                scaling: Autoscaling {
                    min_replicas: Some(1),
                    max_replicas: 10,
                    target_age_seconds: Some(5),
                },
                replicas,
                begun: Instant::now(),
            }
        }

        /// Observes at a second; all pods are heard at once.
        fn at(&mut self, second: u64, oldest: u64, by_slots: bool) -> u32 {
            let heard = self.replicas;
            self.heard(second, oldest, by_slots, heard)
        }

        fn heard(&mut self, second: u64, oldest: u64, by_slots: bool, heard: u32) -> u32 {
            let observed = Observed {
                replicas: self.replicas,
                heard,
                oldest: Duration::from_secs(oldest),
                by_slots,
            };
            let now = self.begun + Duration::from_secs(second);
            self.replicas = self.scaler.decide(&self.scaling, observed, CALM, now);
            self.replicas
        }
    }

    #[test]
    fn it_grows_while_something_waits_too_long_for_a_slot() {
        let mut test = Test::new(1);
        assert_eq!(test.at(0, 4, true), 1);
        assert_eq!(test.at(4, 6, true), 2);
        // The new one has to show what it does first.
        assert_eq!(test.at(8, 6, true), 2);
        let grown: Vec<_> = (1..9).map(|n| test.at(4 + n * 15, 60, true)).collect();
        assert_eq!(grown, [3, 4, 6, 9, 10, 10, 10, 10]);
    }

    #[test]
    fn more_pods_do_not_help_against_a_rate_or_a_provider() {
        let mut test = Test::new(2);
        for minute in 0..20 {
            assert_eq!(test.at(minute * 60, 600, false), 2);
        }
    }

    #[test]
    fn it_waits_for_the_pods_that_it_asked_for() {
        let mut test = Test::new(2);
        assert_eq!(test.heard(0, 60, true, 1), 2);
        assert_eq!(test.heard(60, 60, true, 1), 2);
        assert_eq!(test.heard(61, 60, true, 2), 3);
    }

    #[test]
    fn it_shrinks_by_one_in_five_calm_minutes() {
        let mut test = Test::new(3);
        let mut seen = Vec::new();
        for second in (0..1200).step_by(60) {
            let replicas = test.at(second, 0, false);
            if seen.last().map(|(_, last)| *last) != Some(replicas) {
                seen.push((second, replicas));
            }
        }
        assert_eq!(seen, [(0, 3), (300, 2), (600, 1)]);
    }

    #[test]
    fn one_moment_that_is_not_calm_begins_the_five_minutes_anew() {
        let mut test = Test::new(2);
        test.at(0, 0, false);
        test.at(240, 6, false);
        assert_eq!(test.at(300, 0, false), 2);
        assert_eq!(test.at(599, 0, false), 2);
        assert_eq!(test.at(600, 0, false), 1);
    }

    #[test]
    fn it_stays_as_it_is_while_no_pod_is_heard() {
        let mut test = Test::new(3);
        for minute in 0..20 {
            assert_eq!(test.heard(minute * 60, 0, false, 0), 3);
        }
        // Five calm minutes begin when they are heard again.
        assert_eq!(test.at(1200, 0, false), 3);
        assert_eq!(test.at(1499, 0, false), 3);
        assert_eq!(test.at(1500, 0, false), 2);
    }

    #[test]
    fn the_bounds_hold_at_once() {
        assert_eq!(Test::new(0).at(0, 0, false), 1);
        assert_eq!(Test::new(30).at(0, 60, true), 10);
    }
}
