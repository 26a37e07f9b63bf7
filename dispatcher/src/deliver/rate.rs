//! When the next send may begin.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use herald_crds::RateLimit;

/// Sends are spread evenly; this much of the rate may be caught up in one go.
const BURST: Duration = Duration::from_millis(100);

/// A rate limit at work; without one nothing ever waits.
#[derive(Debug)]
pub struct Rate {
    limiter: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    per_second: f64,
}

impl Rate {
    /// For a declared limit; `None`: unlimited.
    pub fn new(limit: Option<&RateLimit>) -> Self {
        let per_second = limit.map_or(f64::INFINITY, RateLimit::per_second);
        let limiter = limit.and_then(|limit| {
            let interval = Duration::from_secs_f64(1.0 / limit.per_second());
            let burst = NonZeroU32::new((limit.per_second() * BURST.as_secs_f64()) as u32)
                .unwrap_or(NonZeroU32::MIN);
            Some(RateLimiter::direct(
                Quota::with_period(interval)?.allow_burst(burst),
            ))
        });
        Self {
            limiter,
            clock: DefaultClock::default(),
            per_second,
        }
    }

    /// Sends per second; infinite if unlimited.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Resolves when one more send may begin, and counts it. Cancel safe: a send that was not counted takes nothing.
    pub async fn ready(&self) {
        let Some(limiter) = &self.limiter else { return };
        while let Err(not_yet) = limiter.check() {
            tokio::time::sleep(not_yet.wait_time_from(self.clock.now())).await;
        }
    }

    /// Counts one more send if it may begin now; else answers how long until one may.
    ///
    /// # Errors
    ///
    /// The time until the next send may begin; somebody else may take its place.
    pub fn try_now(&self) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else {
            return Ok(());
        };
        let now = self.clock.now();
        limiter
            .check()
            .map_err(|not_yet| not_yet.wait_time_from(now))
    }
}
