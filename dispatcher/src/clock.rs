//! What time it is, for all that is kept, compared or sent.
//!
//! The clock of a machine may be wrong, and is set right in one step. One that is ten minutes ahead of the others would have
//! deliveries expire that have not, and let rows go too early; one that is behind would take copies for young that nobody
//! remembers any more. So a server reckons with a time of its own: it passes with the monotonic clock, which never
//! steps, and is compared with the machine's and with the broker's, which everybody has in common. Of the three, two that
//! agree are believed: nothing that one of them does alone has any effect, but that it is said.
//!
//! Where nothing is compared ([`keep`] does not run), such as where everything is one process, it is the machine's time.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use herald_crds::names::Topic;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::broker::Broker;
use crate::metrics::Metrics;

/// How often it is looked whether the machine's clock has stepped.
const LOOK: Duration = Duration::from_secs(1);

/// How often the broker is asked, if it has not.
const ASK: Duration = Duration::from_secs(60);

/// Clocks this close agree. It costs that much, at the most, of what times are compared for.
const TOLERANCE: i64 = 2_000_000_000;

/// From here on the monotonic clock is counted.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What is added to the time since [`ORIGIN`].
static KEPT: AtomicI64 = AtomicI64::new(UNKNOWN);

/// Nothing was compared yet.
const UNKNOWN: i64 = i64::MIN;

/// What time it is. Constant time; never blocks.
pub fn now() -> Timestamp {
    match KEPT.load(Ordering::Relaxed) {
        UNKNOWN => Timestamp::now(),
        kept => at(kept, Instant::now()),
    }
}

/// What a clock says, as nanoseconds from 1970 to [`ORIGIN`]: the same number for as long as it neither steps nor drifts.
type Offset = i64;

fn at(offset: Offset, instant: Instant) -> Timestamp {
    let passed = instant.saturating_duration_since(*ORIGIN).as_nanos() as i128;
    // Nobody can be that far from 1970.
    Timestamp::from_nanosecond(i128::from(offset) + passed).unwrap_or(Timestamp::MAX)
}

fn offset(time: Timestamp, instant: Instant) -> Offset {
    let passed = instant.saturating_duration_since(*ORIGIN).as_nanos() as i128;
    // In nanoseconds, 64 bits last until 2262.
    i64::try_from(time.as_nanosecond() - passed).unwrap_or(i64::MAX)
}

/// What time it was somewhere else, at some moment between two of ours.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// The time there.
    pub time: Timestamp,
    /// Before it was asked.
    pub from: Instant,
    /// After it had answered.
    pub until: Instant,
}

impl Told {
    fn read(self) -> Reading {
        Reading {
            least: offset(self.time, self.until),
            most: offset(self.time, self.from),
        }
    }
}

/// The broker's clock, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    least: Offset,
    most: Offset,
}

impl Reading {
    fn agrees(self, other: Offset) -> bool {
        other >= self.least.saturating_sub(TOLERANCE)
            && other <= self.most.saturating_add(TOLERANCE)
    }

    fn middle(self) -> Offset {
        self.least + (self.most - self.least) / 2
    }
}

fn agree(one: Offset, other: Offset) -> bool {
    one.abs_diff(other) <= TOLERANCE.unsigned_abs()
}

/// The time to go by from now on, of what was kept until now (`None`: nothing), the machine's and the broker's.
fn believed(kept: Option<Offset>, machine: Offset, broker: Reading) -> Offset {
    match kept {
        // Small corrections of it are followed.
        Some(kept) if agree(kept, machine) && broker.agrees(machine) => machine,
        // Also if an answer took so long that it agrees with everybody.
        Some(kept) if agree(kept, machine) || broker.agrees(kept) => kept,
        _ if broker.agrees(machine) => machine,
        // A machine that has just started is wrong more often than a broker, and the others have the same broker.
        _ => broker.middle(),
    }
}

/// Compares the clocks, for ever. `is_known` is true once it is known what time it is.
///
/// `topic` is one that this process may consume.
pub async fn keep(
    broker: &dyn Broker,
    topic: &Topic,
    metrics: &Metrics,
    is_known: &watch::Sender<bool>,
) {
    let mut machine = Watched::new(Whose::Machine);
    let mut others = Watched::new(Whose::Broker);
    let mut seen = machines();
    let mut asked: Option<Instant> = None;
    loop {
        let is_due = asked.is_none_or(|asked| asked.elapsed() >= ASK);
        let before = std::mem::replace(&mut seen, machines());
        if is_due || !agree(before, seen) {
            match broker.time(topic).await {
                Ok(told) => {
                    asked = Some(Instant::now());
                    seen = machines();
                    let kept = Some(KEPT.load(Ordering::Relaxed)).filter(|kept| *kept != UNKNOWN);
                    // Without a clock of its own the broker is on this machine.
                    let broker = told.map_or(
                        Reading {
                            least: seen,
                            most: seen,
                        },
                        Told::read,
                    );
                    let believed = believed(kept, seen, broker);
                    KEPT.store(believed, Ordering::Relaxed);
                    let ahead = seconds(broker.middle(), believed);
                    metrics.broker_clock_skew_seconds.set(ahead);
                    others.note(!broker.agrees(believed), ahead);
                    is_known.send_if_modified(|known| !std::mem::replace(known, true));
                }
                Err(error) => {
                    metrics.broker_failed("time");
                    tracing::warn!(%error, "the broker cannot be asked what time it is, trying again");
                    // Until it is known somebody waits for it; and while the machine's is another, one of the two is wrong.
                    let kept = KEPT.load(Ordering::Relaxed);
                    let is_settled = *is_known.borrow() && agree(kept, seen);
                    asked = is_settled.then(Instant::now);
                }
            }
        }
        let kept = KEPT.load(Ordering::Relaxed);
        if kept != UNKNOWN {
            let ahead = seconds(seen, kept);
            metrics.clock_skew_seconds.set(ahead);
            machine.note(!agree(seen, kept), ahead);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the machine's clock says.
fn machines() -> Offset {
    offset(Timestamp::now(), Instant::now())
}

/// By how many seconds a clock is ahead of another.
fn seconds(one: Offset, other: Offset) -> f64 {
    one.saturating_sub(other) as f64 / 1e9
}

/// Whose clock it is.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Machine,
    Broker,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "this machine's",
            Self::Broker => "the broker's",
        })
    }
}

/// A clock of which it is said when it goes wrong, and when it is right again.
struct Watched {
    whose: Whose,
    is_wrong: bool,
}

impl Watched {
    fn new(whose: Whose) -> Self {
        Self {
            whose,
            is_wrong: false,
        }
    }

    fn note(&mut self, is_wrong: bool, ahead: f64) {
        let whose = self.whose;
        match (std::mem::replace(&mut self.is_wrong, is_wrong), is_wrong) {
            (false, true) => tracing::warn!(
                seconds_ahead = ahead,
                "{whose} clock is wrong: it is not gone by until it agrees with the others, and everything goes on"
            ),
            (true, false) => tracing::info!(seconds_ahead = ahead, "{whose} clock is right again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const TEN_MINUTES: i64 = 600 * SECOND;

    /// The broker's clock, asked within a tenth of a second.
    fn broker(offset: Offset) -> Reading {
        Reading {
            least: offset - SECOND / 20,
            most: offset + SECOND / 20,
        }
    }

    #[test]
    fn one_clock_that_steps_alone_moves_nothing() {
        let right = TEN_MINUTES;
        for wrong in [right - TEN_MINUTES, right + TEN_MINUTES] {
            assert_eq!(
                believed(Some(right), wrong, broker(right)),
                right,
                "the machine's"
            );
            assert_eq!(
                believed(Some(right), right, broker(wrong)),
                right,
                "the broker's"
            );
            // As after a machine has slept, or had begun with a clock that was wrong.
            assert_eq!(
                believed(Some(wrong), right, broker(right)),
                right,
                "the one kept"
            );
        }
    }

    #[test]
    fn who_begins_with_a_wrong_clock_goes_by_the_brokers() {
        assert_eq!(believed(None, TEN_MINUTES, broker(0)), 0);
        assert_eq!(believed(None, -TEN_MINUTES, broker(0)), 0);
        assert_eq!(
            believed(None, SECOND, broker(0)),
            SECOND,
            "as good as right"
        );
    }

    #[test]
    fn small_corrections_of_the_machines_clock_are_followed() {
        assert_eq!(believed(Some(0), SECOND, broker(0)), SECOND);
        assert_eq!(believed(Some(0), -SECOND, broker(0)), -SECOND);
    }

    #[test]
    fn an_answer_that_took_long_says_no_more_than_it_can() {
        let slow = Reading {
            least: -5 * SECOND,
            most: 5 * SECOND,
        };
        assert_eq!(believed(Some(0), 6 * SECOND, slow), 0, "nobody is wrong");
        assert_eq!(believed(Some(0), 8 * SECOND, slow), 0);
        assert_eq!(believed(Some(9 * SECOND), 6 * SECOND, slow), 6 * SECOND);
    }

    #[test]
    fn where_no_two_agree_the_broker_is_believed() {
        assert_eq!(believed(Some(TEN_MINUTES), -TEN_MINUTES, broker(0)), 0);
    }

    #[test]
    fn what_was_told_is_known_as_exactly_as_the_answer_was_fast() {
        let from = *ORIGIN + Duration::from_secs(10);
        let until = from + Duration::from_secs(4);
        let time = Timestamp::from_second(1_000).expect("in range");
        let reading = Told { time, from, until }.read();
        assert_eq!(
            reading,
            Reading {
                least: 986 * SECOND,
                most: 990 * SECOND
            }
        );
        assert_eq!(at(reading.most, from), time);
    }
}
