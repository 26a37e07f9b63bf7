//! When the next send may begin.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use herald_crds::RateLimit;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::share::{self, Share, Turns, Wants};
use crate::clock;

/// Sends are spread evenly; this much of the rate may be caught up in one go.
const BURST: Duration = Duration::from_millis(100);

/// A rate limit at work; without one nothing ever waits.
#[derive(Debug)]
pub struct Rate {
    limiter: Limiter,
    per_second: f64,
}

#[derive(Debug)]
enum Limiter {
    /// Nothing ever waits.
    Unlimited,
    /// The whole rate is this process's.
    Whole(Box<DefaultDirectRateLimiter>, DefaultClock),
    /// Part of it is, by [`Rate::divide`]; at first nothing.
    Divided {
        pacer: Mutex<Pacer>,
        /// Rings when the part is another.
        changed: Notify,
    },
}

impl Rate {
    /// For a declared limit that is this process's alone; `None`: unlimited.
    pub fn new(limit: Option<&RateLimit>) -> Self {
        let limiter = limit.and_then(|limit| {
            let interval = Duration::from_secs_f64(1.0 / limit.per_second());
            let burst = NonZeroU32::new((limit.per_second() * BURST.as_secs_f64()) as u32)
                .unwrap_or(NonZeroU32::MIN);
            let quota = Quota::with_period(interval)?.allow_burst(burst);
            let limiter = Box::new(RateLimiter::direct(quota));
            Some(Limiter::Whole(limiter, DefaultClock::default()))
        });
        Self {
            limiter: limiter.unwrap_or(Limiter::Unlimited),
            per_second: limit.map_or(f64::INFINITY, RateLimit::per_second),
        }
    }

    /// For a declared limit of which others have their parts; `None`: unlimited. Until it is divided nothing may begin.
    pub fn divided(limit: Option<&RateLimit>) -> Self {
        let Some(limit) = limit else {
            return Self::new(None);
        };
        Self {
            limiter: Limiter::Divided {
                pacer: Mutex::new(Pacer {
                    share: Share::Nothing,
                    next: Instant::now(),
                    last: None,
                }),
                changed: Notify::new(),
            },
            per_second: limit.per_second(),
        }
    }

    /// Sends per second, of everybody together; infinite if unlimited.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Takes the part of `pod` by what all want; nothing happens to a limit that is this process's alone.
    pub fn divide(&self, pods: &[Wants], pod: &str) {
        if let Limiter::Divided { pacer, changed } = &self.limiter {
            lock(pacer).set(share::divide(self.per_second, pods, pod), Instant::now());
            changed.notify_waiters();
        }
    }

    /// Resolves when something of it is this process's.
    pub async fn shared(&self) {
        let Limiter::Divided { pacer, changed } = &self.limiter else {
            return;
        };
        loop {
            // Registered before looking, so that no change in between is missed.
            let change = changed.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            if lock(pacer).share != Share::Nothing {
                return;
            }
            change.await;
        }
    }

    /// Resolves when one more send may begin, and counts it. Cancel safe: a send that was not counted takes nothing.
    pub async fn ready(&self) {
        match &self.limiter {
            Limiter::Unlimited => {}
            Limiter::Whole(limiter, clock) => {
                while let Err(not_yet) = limiter.check() {
                    tokio::time::sleep(not_yet.wait_time_from(clock.now())).await;
                }
            }
            Limiter::Divided { pacer, changed } => loop {
                // Registered before looking, so that no change in between is missed.
                let change = changed.notified();
                tokio::pin!(change);
                change.as_mut().enable();
                let begun = lock(pacer).begin(Instant::now(), since_1970());
                match begun {
                    Ok(()) => return,
                    Err(Some(wait)) => {
                        let _ = tokio::time::timeout(wait, change).await;
                    }
                    Err(None) => change.await,
                }
            },
        }
    }

    /// Counts one more send if it may begin now; else answers how long until one may.
    ///
    /// # Errors
    ///
    /// The time until the next send may begin; somebody else may take its place.
    pub fn try_now(&self) -> Result<(), Duration> {
        match &self.limiter {
            Limiter::Unlimited => Ok(()),
            Limiter::Whole(limiter, clock) => {
                let now = clock.now();
                limiter
                    .check()
                    .map_err(|not_yet| not_yet.wait_time_from(now))
            }
            Limiter::Divided { pacer, .. } => {
                let begun = lock(pacer).begin(Instant::now(), since_1970());
                begun.map_err(|wait| wait.unwrap_or(UNKNOWN))
            }
        }
    }
}

/// How long it may be until there is a part, while there is none.
const UNKNOWN: Duration = Duration::from_secs(1);

fn lock(pacer: &Mutex<Pacer>) -> MutexGuard<'_, Pacer> {
    // No section under this lock can leave its value half changed.
    pacer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn since_1970() -> Duration {
    let now = clock::now().as_nanosecond();
    Duration::from_nanos(u64::try_from(now).unwrap_or_default())
}

/// One pod's part of a rate, at work.
#[derive(Debug)]
struct Pacer {
    share: Share,
    /// When the next send would begin if all were evenly spread.
    next: Instant,
    /// The last turn that was taken.
    last: Option<u64>,
}

impl Pacer {
    fn set(&mut self, share: Share, now: Instant) {
        // What was sent early is made up for at the new pace: whoever has more by now need not wait out what it had
        // before, and whoever has as much as before gets nothing on top.
        if let (Share::PerSecond(rate), Share::PerSecond(before)) = (share, self.share) {
            let early = self.next.saturating_duration_since(now);
            let early = Duration::try_from_secs_f64(early.as_secs_f64() * before / rate);
            self.next = now + early.unwrap_or(Duration::ZERO);
        }
        self.share = share;
    }

    /// Counts a send, or answers how long to wait; `None`: until the part is another.
    fn begin(&mut self, now: Instant, since_1970: Duration) -> Result<(), Option<Duration>> {
        match self.share {
            Share::Nothing => Err(None),
            Share::PerSecond(rate) => self.spread(rate, now),
            Share::Turns(turns) => self.take_turn(turns, since_1970),
        }
    }

    fn spread(&mut self, rate: f64, now: Instant) -> Result<(), Option<Duration>> {
        let Ok(interval) = Duration::try_from_secs_f64(1.0 / rate) else {
            return Err(None);
        };
        let early = BURST.saturating_sub(interval);
        let next = self.next.max(now);
        if next > now + early {
            return Err(Some(next - (now + early)));
        }
        self.next = next + interval;
        Ok(())
    }

    fn take_turn(&mut self, turns: Turns, since_1970: Duration) -> Result<(), Option<Duration>> {
        let turn = turns.at(since_1970);
        if turns.is_mine(turn) && self.last != Some(turn) {
            self.last = Some(turn);
            return Ok(());
        }
        Err(Some(turns.until_mine(since_1970)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn limit(count: i32, per_seconds: i32) -> RateLimit {
        RateLimit {
            count,
            per_seconds: Some(per_seconds),
        }
    }

    fn wants(pod: &str, low: f64) -> Wants {
        Wants {
            pod: Arc::from(pod),
            per_second: [0.0, 0.0, 0.0, low],
        }
    }

    #[tokio::test]
    async fn nothing_begins_before_a_part_is_there_nor_after_it_is_gone() {
        let rate = Rate::divided(Some(&limit(100, 1)));
        assert!(rate.try_now().is_err());
        let pods = [wants("a", 10.0)];
        let (began, ()) = futures::join!(
            tokio::time::timeout(Duration::from_secs(60), rate.ready()),
            async { rate.divide(&pods, "a") }
        );
        assert!(began.is_ok(), "whoever waits hears that there is a part");
        rate.divide(&[], "a");
        assert!(rate.try_now().is_err());
    }

    #[test]
    fn two_pods_together_keep_to_the_rate() {
        let pods = [wants("a", 1e6), wants("b", 1e6)];
        let begin = Instant::now();
        let mut sent = 0;
        for pod in ["a", "b"] {
            let mut pacer = Pacer {
                share: Share::Nothing,
                next: begin,
                last: None,
            };
            pacer.set(share::divide(100.0, &pods, pod), begin);
            let mut now = begin;
            while now < begin + Duration::from_secs(10) {
                match pacer.begin(now, Duration::ZERO) {
                    Ok(()) => sent += 1,
                    Err(wait) => now += wait.unwrap(),
                }
            }
        }
        // 100 a second for 10 s, and what may be caught up in one go.
        assert!((1_000..=1_020).contains(&sent), "{sent}");
    }

    #[test]
    fn to_hear_of_the_same_share_again_and_again_adds_nothing_to_it() {
        let begin = Instant::now();
        let mut pacer = Pacer {
            share: Share::Nothing,
            next: begin,
            last: None,
        };
        let (mut now, mut told, mut sent) = (begin, begin, 0);
        while now < begin + Duration::from_secs(10) {
            if now >= told {
                pacer.set(Share::PerSecond(200.0), now);
                told += Duration::from_millis(100);
            }
            match pacer.begin(now, Duration::ZERO) {
                Ok(()) => sent += 1,
                Err(wait) => now += wait.unwrap(),
            }
        }
        // 200 a second for 10 s, and what may be caught up in one go.
        assert!((2_000..=2_021).contains(&sent), "{sent}");
    }

    #[test]
    fn one_turn_is_one_send() {
        let turns = Turns {
            every: Duration::from_secs(10),
            of: 2,
            mine: 1,
        };
        let now = Instant::now();
        let mut pacer = Pacer {
            share: Share::Turns(turns),
            next: now,
            last: None,
        };
        let mut at = |seconds| pacer.begin(now, Duration::from_secs(seconds));
        assert_eq!(at(3), Err(Some(Duration::from_secs(7))));
        assert_eq!(at(10), Ok(()));
        assert_eq!(at(11), Err(Some(Duration::from_secs(19))));
        assert_eq!(at(30), Ok(()));
    }

    #[test]
    fn who_gets_more_does_not_wait_out_what_it_had() {
        let now = Instant::now();
        let mut pacer = Pacer {
            share: Share::PerSecond(0.1),
            next: now,
            last: None,
        };
        pacer.begin(now, Duration::ZERO).unwrap();
        assert!(pacer.begin(now, Duration::ZERO).unwrap_err() > Some(Duration::from_secs(9)));
        pacer.set(Share::PerSecond(100.0), now);
        assert_eq!(pacer.begin(now, Duration::ZERO), Ok(()));
    }
}
