//! A provider's circuit breaker: after failures in a row nothing is attempted for a while, then one delivery is a probe.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open it.
const THRESHOLD: u32 = 5;

/// The pause grows to so many times the first one.
const LONGEST: u32 = 12;

/// A provider's circuit breaker. Pure: time is given.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    failures: u32,
    first_pause: Duration,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing { until: Instant },
}

/// Whether a provider may be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Yes.
    Yes,
    /// Yes, once: what becomes of this one decides about the others.
    Probe,
    /// Not before this instant.
    NotBefore(Instant),
}

impl Breaker {
    /// A closed breaker whose first pause is this long.
    pub fn new(first_pause: Duration) -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            first_pause,
            pause: first_pause,
        }
    }

    /// Whether the provider may be asked, without asking: a [`Permit::Probe`] must be taken with [`Self::take`].
    pub fn permits(&self, now: Instant) -> Permit {
        match self.state {
            State::Closed => Permit::Yes,
            State::Open { until } | State::Probing { until } if until > now => {
                Permit::NotBefore(until)
            }
            State::Open { .. } | State::Probing { .. } => Permit::Probe,
        }
    }

    /// Takes what [`Self::permits`] offered. A probe of which nothing is heard is replaced after another pause.
    pub fn take(&mut self, now: Instant) -> Permit {
        let permit = self.permits(now);
        if permit == Permit::Probe {
            self.state = State::Probing {
                until: now + self.pause,
            };
        }
        permit
    }

    /// The provider answered, whatever it thought of the message.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.pause = self.first_pause;
        self.state = State::Closed;
    }

    /// The provider did not answer, or not well.
    pub fn failed(&mut self, now: Instant) {
        match self.state {
            State::Closed => {
                self.failures += 1;
                if self.failures >= THRESHOLD {
                    self.state = State::Open {
                        until: now + self.pause,
                    };
                }
            }
            State::Probing { .. } => {
                self.pause = (self.pause * 2).min(self.first_pause * LONGEST);
                self.state = State::Open {
                    until: now + self.pause,
                };
            }
            // An attempt that was under way when it opened: nothing new.
            State::Open { .. } => {}
        }
    }

    /// The provider asked for a pause of its own choice.
    pub fn throttled(&mut self, now: Instant, pause: Duration) {
        self.state = State::Open {
            until: now + pause.min(self.first_pause * LONGEST),
        };
    }

    /// 1 closed, 0.5 half-open, 0 open: the metric.
    pub fn level(&self, now: Instant) -> f64 {
        match self.permits(now) {
            Permit::Yes => 1.0,
            Permit::Probe => 0.5,
            Permit::NotBefore(_) if matches!(self.state, State::Probing { .. }) => 0.5,
            Permit::NotBefore(_) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(PAUSE);
        for _ in 0..THRESHOLD {
            assert_eq!(breaker.take(now), Permit::Yes);
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_starts_the_count_again() {
        let now = Instant::now();
        let mut breaker = Breaker::new(PAUSE);
        for _ in 1..THRESHOLD {
            breaker.failed(now);
        }
        breaker.succeeded();
        for _ in 1..THRESHOLD {
            breaker.failed(now);
        }
        assert_eq!(breaker.permits(now), Permit::Yes);
        breaker.failed(now);
        assert_eq!(breaker.permits(now), Permit::NotBefore(now + PAUSE));
    }

    #[test]
    fn after_the_pause_one_probe_decides() {
        let now = Instant::now();
        let mut breaker = open(now);
        let later = now + PAUSE;
        assert_eq!(breaker.take(later), Permit::Probe);
        assert!(matches!(breaker.take(later), Permit::NotBefore(_)));
        breaker.failed(later);
        assert_eq!(breaker.permits(later), Permit::NotBefore(later + PAUSE * 2));
        let later = later + PAUSE * 2;
        assert_eq!(breaker.take(later), Permit::Probe);
        breaker.succeeded();
        assert_eq!(breaker.permits(later), Permit::Yes);
    }

    #[test]
    fn a_probe_that_is_never_heard_of_is_replaced() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert_eq!(breaker.take(now + PAUSE), Permit::Probe);
        assert_eq!(breaker.take(now + PAUSE * 2), Permit::Probe);
    }

    #[test]
    fn the_pause_stays_within_its_bound() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        for _ in 0..20 {
            let Permit::NotBefore(until) = breaker.permits(now) else {
                panic!("open")
            };
            assert!(until - now <= PAUSE * LONGEST);
            now = until;
            breaker.take(now);
            breaker.failed(now);
        }
    }
}
