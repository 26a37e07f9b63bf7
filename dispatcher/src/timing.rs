//! The times that the pipeline keeps: the design's values, which tests shorten.

use std::time::Duration;

use herald_crds::channel::RETRY_DELAYS;

/// The times that the pipeline keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// H: settled ids are remembered this long, and no copy older than this is sent. 15 minutes.
    pub horizon: Duration,
    /// Delays of the two relays, by tries so far. 5 s and 30 s.
    pub relays: [Duration; 2],
    /// Delays of the longer retries, which are rows; the last one repeats. 5 minutes and 1 hour.
    pub returns: [Duration; 2],
    /// How much work may be out for a channel and class. 9 s: what it takes to accept, plan, release and send one more
    /// then still ends within 10 s. [`Duration::MAX`]: as much as there is, whatever becomes of it.
    pub pace: Duration,
    /// How often a deliver pod tells how it is. 1 s.
    pub tick: Duration,
    /// A released delivery of which nothing was heard for this long is overdue. 10 minutes.
    pub overdue: Duration,
    /// How often the sweep looks. 1 minute.
    pub sweep: Duration,
    /// How long accepting waits for the broker before it answers 503. 5 s.
    pub receipt: Duration,
    /// The first pause of a circuit breaker; doubled with each failed probe, up to twelve times this. 5 s.
    pub breaker: Duration,
    /// How long shutting down may take. 25 s.
    pub drain: Duration,
    /// How long history is kept. 90 days.
    pub retention: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        let [first, second, third, last] = RETRY_DELAYS;
        Self {
            horizon: 900 * SECOND,
            relays: [first, second],
            returns: [third, last],
            pace: 9 * SECOND,
            tick: SECOND,
            overdue: 600 * SECOND,
            sweep: 60 * SECOND,
            receipt: 5 * SECOND,
            breaker: 5 * SECOND,
            drain: 25 * SECOND,
            retention: 90 * 86_400 * SECOND,
        }
    }
}
