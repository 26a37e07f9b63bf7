//! How much of a channel and class may be out: pure.

use std::time::Duration;

use herald_crds::RateLimit;

use crate::fanout::bundle;

/// Most rows of one chunk.
pub const CHUNK: usize = 500;

/// How many rows may be released now.
///
/// At most `max(one delivery, pace × min(rate limit, drain))` may be out, beginning at one bundle: `drain` is what was
/// settled per second while something was out, `None` if nothing was yet. 0: not now. What is worth less than half a
/// bundle is left until it is worth a message. With a pace of [`Duration::MAX`] nothing is held back.
pub fn allowance(
    out: usize,
    drain: Option<f64>,
    rate: Option<&RateLimit>,
    pace: Duration,
) -> usize {
    if pace == Duration::MAX {
        return CHUNK;
    }
    let bundle = bundle::most(rate);
    let pace = pace.as_secs_f64();
    let per_second = rate.map_or(f64::INFINITY, RateLimit::per_second);
    let most = (pace * per_second).max(1.0);
    let speed = drain.unwrap_or(0.0).min(per_second);
    let allowed = (pace * speed).max(bundle as f64).min(most) as usize;
    let free = allowed.saturating_sub(out);
    if free < bundle.min(allowed).div_ceil(2) {
        return 0;
    }
    free.min(CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Duration = Duration::from_secs(10);

    fn rate(count: i32, per_seconds: i32) -> RateLimit {
        RateLimit {
            count,
            per_seconds: Some(per_seconds),
        }
    }

    #[test]
    fn a_channel_of_which_nothing_is_known_begins_with_one_bundle() {
        assert_eq!(allowance(0, None, None, PACE), 100);
        assert_eq!(allowance(0, None, Some(&rate(10, 1)), PACE), 5);
    }

    #[test]
    fn ten_seconds_of_the_rate_are_out_at_the_most_and_one_delivery_at_the_least() {
        assert_eq!(allowance(0, Some(1e6), Some(&rate(10, 1)), PACE), 100);
        assert_eq!(allowance(98, Some(1e6), Some(&rate(10, 1)), PACE), 0);
        assert_eq!(allowance(97, Some(1e6), Some(&rate(10, 1)), PACE), 3);
        assert_eq!(allowance(0, Some(1e6), Some(&rate(1, 3600)), PACE), 1);
        assert_eq!(allowance(1, Some(1e6), Some(&rate(1, 3600)), PACE), 0);
    }

    #[test]
    fn with_the_pace_lifted_a_chunk_goes_out_whatever_is_out() {
        let slow = rate(1, 3600);
        assert_eq!(
            allowance(1_000_000, None, Some(&slow), Duration::MAX),
            CHUNK
        );
    }

    #[test]
    fn a_slow_provider_gets_no_more_than_it_drains() {
        assert_eq!(allowance(0, Some(3.0), Some(&rate(1000, 1)), PACE), 100);
        assert_eq!(allowance(100, Some(3.0), Some(&rate(1000, 1)), PACE), 0);
        assert_eq!(allowance(0, Some(40.0), Some(&rate(1000, 1)), PACE), 400);
        assert_eq!(allowance(0, Some(4000.0), None, PACE), CHUNK);
    }
}
