//! When a Schedule is due: cron or once, in a time zone.
//!
//! Due times are found on the local clock, then placed on the time line. So a local time that daylight saving skips
//! is due at the instant when the clock jumps, and one that it repeats is due the first time only; several that fall
//! on one instant are one due time.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// Due times counted one by one after an outage; of a longer one the count is a lower bound.
const COUNTED: u64 = 100_000;

/// Why a schedule cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParseTiming {
    /// Neither or both of `schedule` and `at`.
    #[error("give exactly one of schedule (cron, again and again) and at (once)")]
    ChooseOne,
    /// `schedule` is not a cron expression.
    #[error(
        "must be a cron expression of five fields (minute, hour, day of month, month, day of week), such as 0 9 * * MON: {reason}"
    )]
    ReadCron {
        /// What is wrong with it.
        reason: String,
    },
    /// `schedule` is one, but of a day that never comes.
    #[error("never comes: there is no such day")]
    FindOccurrence,
    /// `at` is not a local date and time.
    #[error("must be a local date and time such as 2026-12-24T18:00: {source}")]
    ReadTime {
        /// What is wrong with it.
        source: jiff::Error,
    },
    /// There is no such time zone.
    #[error("must be an IANA time zone such as Asia/Seoul")]
    FindTimeZone {
        /// What the database says.
        source: jiff::Error,
    },
}

/// When a Schedule is due.
#[derive(Debug, Clone)]
pub struct Due {
    timing: Timing,
    time_zone: TimeZone,
}

#[derive(Debug, Clone)]
enum Timing {
    Cron(Box<Cron>),
    Once(DateTime),
}

/// What was due while nobody looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// The latest due time, if it is not too late for it; fires now.
    pub due: Option<Timestamp>,
    /// How many others were due: skipped. A lower bound beyond 100 000.
    pub skipped: u64,
}

impl Due {
    /// Again and again, by a cron expression of five fields.
    pub fn cron(expression: &str, time_zone: &str) -> Result<Self, ParseTiming> {
        let reason = |reason: String| ParseTiming::ReadCron { reason };
        let fields = expression.split_whitespace().count();
        if fields != 5 {
            return Err(reason(format!("there are {fields} fields")));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser
            .parse(expression)
            .map_err(|source| reason(source.to_string()))?;
        let due = Self {
            timing: Timing::Cron(Box::new(cron)),
            time_zone: zone(time_zone)?,
        };
        // The calendar repeats within 28 years, but for the leap days that centuries leave out.
        let probe = DateTime::constant(2024, 1, 1, 0, 0, 0, 0);
        due.next_local(probe).ok_or(ParseTiming::FindOccurrence)?;
        Ok(due)
    }

    /// Once, at a local date and time.
    pub fn once(at: &str, time_zone: &str) -> Result<Self, ParseTiming> {
        let at = at
            .parse()
            .map_err(|source| ParseTiming::ReadTime { source })?;
        Ok(Self {
            timing: Timing::Once(at),
            time_zone: zone(time_zone)?,
        })
    }

    /// The first due time after `last`; `None` if none comes any more.
    pub fn next_after(&self, last: Timestamp) -> Option<Timestamp> {
        match &self.timing {
            Timing::Once(at) => self.instant(*at).filter(|due| *due > last),
            Timing::Cron(_) => {
                // The local clock may stand later than some due times that are still to come: never by more than a
                // day's shift, and those that are not to come are passed over below.
                let mut local = self.time_zone.to_datetime(last);
                loop {
                    local = self.next_local(local)?;
                    let due = self.instant(local)?;
                    if due > last {
                        return Some(due);
                    }
                }
            }
        }
    }

    /// What was due after `last` and until `now`: the latest fires if it is at most `starting_deadline` late, the
    /// others are skipped.
    pub fn latest_missed(
        &self,
        last: Timestamp,
        now: Timestamp,
        starting_deadline: Duration,
    ) -> Missed {
        let deadline = now.checked_sub(starting_deadline).unwrap_or(Timestamp::MIN);
        let mut count = 0;
        let mut latest = None;
        let mut cursor = last;
        while let Some(due) = self.next_after(cursor).filter(|due| *due <= now) {
            count += 1;
            latest = Some(due);
            cursor = due;
            if count == COUNTED && cursor < deadline {
                cursor = deadline;
            }
        }
        let due = latest.filter(|due| *due >= deadline);
        Missed {
            due,
            skipped: count - u64::from(due.is_some()),
        }
    }

    /// The next local time of the expression after `local`, which is exclusive.
    fn next_local(&self, local: DateTime) -> Option<DateTime> {
        let Timing::Cron(cron) = &self.timing else {
            return None;
        };
        // UTC has no jumps: croner only searches the calendar here.
        let start = local.to_zoned(TimeZone::UTC).ok()?;
        let next = cron.find_next_occurrence(&start, false).ok()?;
        Some(next.datetime())
    }

    /// The instant of a local time: the jump if it is skipped, the first if it is repeated.
    fn instant(&self, local: DateTime) -> Option<Timestamp> {
        let ambiguous = self.time_zone.to_ambiguous_timestamp(local);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
            AmbiguousOffset::Gap { after, .. } => {
                let before_jump = after.to_timestamp(local).ok()?;
                let mut jumps = self.time_zone.following(before_jump);
                jumps.next().map(|jump| jump.timestamp())
            }
        }
    }
}

fn zone(name: &str) -> Result<TimeZone, ParseTiming> {
    TimeZone::get(name).map_err(|source| ParseTiming::FindTimeZone { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The due times after `last`, as many as `expected`.
    fn assert_due(due: &Due, last: &str, expected: &[&str]) {
        let mut cursor = at(last);
        for expected in expected {
            cursor = due.next_after(cursor).unwrap();
            assert_eq!(cursor, at(expected));
        }
    }

    #[test]
    fn monday_at_nine_in_seoul_is_monday_at_midnight_utc() {
        let due = Due::cron("0 9 * * MON", "Asia/Seoul").unwrap();
        assert_due(
            &due,
            "2026-03-27T12:00:00Z",
            &["2026-03-30T00:00:00Z", "2026-04-06T00:00:00Z"],
        );
    }

    #[test]
    fn a_time_that_berlin_skips_is_due_when_its_clock_jumps() {
        // 29 March 2026: 02:00 becomes 03:00 at 01:00 UTC.
        let due = Due::cron("30 2 * * *", "Europe/Berlin").unwrap();
        assert_due(
            &due,
            "2026-03-28T00:00:00Z",
            &[
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z",
            ],
        );
    }

    #[test]
    fn several_times_that_berlin_skips_are_one_due_time() {
        let due = Due::cron("*/20 * * * *", "Europe/Berlin").unwrap();
        assert_due(
            &due,
            "2026-03-29T00:20:00Z",
            &[
                "2026-03-29T00:40:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T01:20:00Z",
            ],
        );
    }

    #[test]
    fn a_time_that_berlin_repeats_is_due_the_first_time_only() {
        // 25 October 2026: 03:00 becomes 02:00 at 01:00 UTC.
        let due = Due::cron("30 2 * * *", "Europe/Berlin").unwrap();
        assert_due(
            &due,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        // Also when the question is asked within the repetition.
        assert_eq!(
            due.next_after(at("2026-10-25T01:10:00Z")),
            Some(at("2026-10-26T01:30:00Z"))
        );
    }

    #[test]
    fn new_york_jumps_on_the_second_sunday_of_march_and_back_in_november() {
        // 8 March 2026, 02:00 EST becomes 03:00 EDT at 07:00 UTC; 1 November, 02:00 EDT becomes 01:00 EST at 06:00 UTC.
        let skipped = Due::cron("15 2 * * SUN", "America/New_York").unwrap();
        assert_due(
            &skipped,
            "2026-03-02T00:00:00Z",
            &["2026-03-08T07:00:00Z", "2026-03-15T06:15:00Z"],
        );
        let repeated = Due::cron("30 1 * * *", "America/New_York").unwrap();
        assert_due(
            &repeated,
            "2026-10-31T12:00:00Z",
            &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"],
        );
    }

    #[test]
    fn lord_howe_shifts_by_half_an_hour() {
        // 4 October 2026, 02:00 (+10:30) becomes 02:30 (+11) at 15:30 UTC the day before.
        let skipped = Due::cron("15 2 * * *", "Australia/Lord_Howe").unwrap();
        assert_due(
            &skipped,
            "2026-10-02T16:00:00Z",
            &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"],
        );
        // 5 April 2026, 02:00 (+11) becomes 01:30 (+10:30) at 15:00 UTC the day before.
        let repeated = Due::cron("45 1 * * *", "Australia/Lord_Howe").unwrap();
        assert_due(
            &repeated,
            "2026-04-03T20:00:00Z",
            &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"],
        );
    }

    #[test]
    fn once_is_once_also_where_the_clock_jumps() {
        let due = Due::once("2026-12-24T18:00", "Europe/Berlin").unwrap();
        assert_eq!(
            due.next_after(at("2026-11-01T00:00:00Z")),
            Some(at("2026-12-24T17:00:00Z"))
        );
        assert_eq!(due.next_after(at("2026-12-24T17:00:00Z")), None);
        let skipped = Due::once("2026-03-29T02:30", "Europe/Berlin").unwrap();
        assert_eq!(
            skipped.next_after(at("2026-01-01T00:00:00Z")),
            Some(at("2026-03-29T01:00:00Z"))
        );
    }

    #[test]
    fn after_an_outage_only_the_latest_fires_and_the_others_are_counted() {
        let due = Due::cron("0 * * * *", "UTC").unwrap();
        let missed = due.latest_missed(
            at("2026-01-01T00:00:00Z"),
            at("2026-01-01T05:30:00Z"),
            Duration::from_hours(1),
        );
        assert_eq!(
            missed,
            Missed {
                due: Some(at("2026-01-01T05:00:00Z")),
                skipped: 4
            }
        );
    }

    #[test]
    fn what_is_later_than_the_deadline_is_skipped_too() {
        let due = Due::cron("0 9 * * *", "UTC").unwrap();
        let last = at("2026-01-01T09:00:00Z");
        let deadline = Duration::from_hours(1);
        let missed = due.latest_missed(last, at("2026-01-02T10:00:01Z"), deadline);
        assert_eq!(
            missed,
            Missed {
                due: None,
                skipped: 1
            }
        );
        let missed = due.latest_missed(last, at("2026-01-02T10:00:00Z"), deadline);
        assert_eq!(missed.due, Some(at("2026-01-02T09:00:00Z")));
        let missed = due.latest_missed(last, at("2026-01-02T08:59:59Z"), deadline);
        assert_eq!(
            missed,
            Missed {
                due: None,
                skipped: 0
            }
        );
    }

    #[test]
    fn years_of_minutes_are_passed_over_without_counting_each() {
        let due = Due::cron("* * * * *", "UTC").unwrap();
        let now = at("2026-01-01T00:00:30Z");
        let missed = due.latest_missed(at("2016-01-01T00:00:00Z"), now, Duration::from_mins(1));
        assert_eq!(missed.due, Some(at("2026-01-01T00:00:00Z")));
        assert!(missed.skipped >= COUNTED);
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_place_of_the_mistake() {
        use ParseTiming::{FindOccurrence, FindTimeZone, ReadCron, ReadTime};
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "0 9 * * FOO",
            "@daily",
            "0 0 L * 2026 *",
        ] {
            assert!(
                matches!(Due::cron(bad, "UTC"), Err(ReadCron { .. })),
                "{bad}"
            );
        }
        assert!(matches!(
            Due::cron("0 0 30 2 *", "UTC"),
            Err(FindOccurrence)
        ));
        assert!(Due::cron("0 0 29 2 *", "UTC").is_ok());
        assert!(matches!(
            Due::cron("0 9 * * *", "Mars/Base"),
            Err(FindTimeZone { .. })
        ));
        assert!(matches!(
            Due::once("2026-02-30T10:00", "UTC"),
            Err(ReadTime { .. })
        ));
    }
}
