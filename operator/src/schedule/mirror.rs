//! Where a Schedule stands, and when to look again. Pure.

use std::time::Duration;

use herald_crds::{Schedule, ScheduleStatus};
use jiff::{SignedDuration, Timestamp};

use crate::gateway::{Refused, ScheduleState};
use crate::status::{Because, READY, STALLED, Verdict, whole_second};

/// Gateways fire within a moment: they are asked so long after a due time.
const AFTER_DUE: SignedDuration = SignedDuration::from_secs(2);

/// A due time that has not fired is asked about again after so long, and later twice, four times, … as long.
const UNFIRED: Duration = Duration::from_secs(5);

/// At most: gateways try until the deadline.
const LONGEST: Duration = Duration::from_mins(1);

/// The reason of one whose latest due time is not sent.
const REFUSED: &str = "SendRefused";

/// Where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Stand {
    /// What to tell, without conditions.
    pub status: ScheduleStatus,
    /// When to ask again; `None`: nothing is due any more, or nobody can be asked.
    pub look_again: Option<Duration>,
    /// Why its latest due time is not sent, and what comes of it; `None`: it was, or nobody said no.
    pub refused: Option<Verdict>,
}

/// Takes what the gateway told over what was told `before`.
///
/// `told` is `None` if it did not answer, and `Some(None)` if it knows nothing, or nobody is asked: the next due time
/// then follows from what was last, or from the Schedule's creation, as the gateway's does.
pub fn stand(
    schedule: &Schedule,
    before: ScheduleStatus,
    told: Option<&Option<ScheduleState>>,
    now: Timestamp,
) -> Stand {
    let refused = match told {
        Some(told) => told
            .as_ref()
            .and_then(|told| told.refused.as_ref())
            .map(|refused| why(schedule, refused, now)),
        None => why_before(&before),
    };
    let mut status = before;
    if let Some(Some(told)) = told {
        let ScheduleStatus {
            observed_generation: _,
            conditions: _,
            last_schedule_time,
            next_schedule_time,
            last_notification,
            missed,
        } = told.status.clone();
        status.last_schedule_time = last_schedule_time.map(|time| whole_second(time.0));
        status.next_schedule_time = next_schedule_time.map(|time| whole_second(time.0));
        status.last_notification = last_notification;
        status.missed = missed;
    } else {
        let created = schedule.metadata.creation_timestamp.as_ref();
        let last = status.last_schedule_time.as_ref().or(created);
        let from = last.map_or(now, |last| last.0).max(now);
        let due = schedule.spec.due().ok();
        let next = due.and_then(|due| due.next_after(from));
        status.next_schedule_time = next.map(whole_second);
    }
    if schedule.spec.suspend {
        // It would not fire then.
        status.next_schedule_time = None;
    }
    let look_again = status
        .next_schedule_time
        .as_ref()
        .map(|next| until(next.0, now))
        .into_iter()
        .chain(unfired(schedule, &status, now))
        // An edit that cures it is seen here before the gateway has it, and nothing tells when it does.
        .chain(refused.is_some().then_some(LONGEST))
        .min();
    Stand {
        status,
        look_again,
        refused,
    }
}

fn why(schedule: &Schedule, refused: &Refused, now: Timestamp) -> Verdict {
    let Refused {
        schedule_time,
        message,
    } = refused;
    let spec = &schedule.spec;
    let is_over = schedule_time
        .checked_add(spec.starting_deadline())
        .is_ok_and(|deadline| deadline < now);
    let next = spec.due().ok().and_then(|due| due.next_after(now));
    let (is, then) = match (is_over, next.is_some()) {
        (false, true) => (
            "is",
            "It is tried until startingDeadlineSeconds have passed, and the next one when it is due",
        ),
        (false, false) => (
            "is",
            "It is tried until startingDeadlineSeconds have passed",
        ),
        (true, true) => (
            "was",
            "startingDeadlineSeconds have passed since; the next one is tried when it is due",
        ),
        (true, false) => (
            "was",
            "startingDeadlineSeconds have passed since, and nothing is due any more: once what is wrong is mended, give it another time",
        ),
    };
    let message = format!("what was due at {schedule_time} {is} not sent: {message}. {then}");
    let because = Because::new(REFUSED, message);
    if is_over && next.is_none() {
        Verdict::Stalled(because)
    } else {
        Verdict::Waiting(because)
    }
}

/// As it was told: who does not answer has not changed their mind.
fn why_before(before: &ScheduleStatus) -> Option<Verdict> {
    let told = |kind| {
        let mut conditions = before.conditions.iter();
        conditions.find(|one| one.type_ == kind && one.reason == REFUSED)
    };
    let because = Because::new(REFUSED, told(READY)?.message.clone());
    Some(match told(STALLED) {
        Some(_) => Verdict::Stalled(because),
        None => Verdict::Waiting(because),
    })
}

fn until(next: Timestamp, now: Timestamp) -> Duration {
    let rest = next.duration_since(now).saturating_add(AFTER_DUE);
    // A clock that jumps is noticed within the hour.
    Duration::try_from(rest)
        .unwrap_or(UNFIRED)
        .clamp(Duration::from_secs(1), crate::queue::RESYNC)
}

/// A due time has passed within the deadline and has not fired: asked about again, ever slower.
fn unfired(schedule: &Schedule, status: &ScheduleStatus, now: Timestamp) -> Option<Duration> {
    let spec = &schedule.spec;
    let created = schedule.metadata.creation_timestamp.as_ref()?.0;
    let last = status
        .last_schedule_time
        .as_ref()
        .map_or(created, |last| last.0);
    let deadline = spec.starting_deadline();
    // What is older does not count any more, however much it is.
    let from = now.checked_sub(deadline).ok()?.max(last);
    let due = spec.due().ok()?.latest_missed(from, now, deadline).due?;
    let late = Duration::try_from(now.duration_since(due)).ok()?;
    (!spec.suspend).then(|| late.clamp(UNFIRED, LONGEST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn schedule(cron: &str) -> Schedule {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop", "creationTimestamp": "2026-03-01T00:00:00Z"},
            "spec": {"schedule": cron, "template": "t", "recipients": [{"recipient": "x"}]},
        }))
        .unwrap()
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn time(time: &str) -> Time {
        Time(at(time))
    }

    #[test]
    fn what_the_gateway_tells_is_mirrored_to_the_second() {
        let told: ScheduleState = serde_json::from_value(json!({
            "lastScheduleTime": "2026-03-02T09:00:00Z",
            "nextScheduleTime": "2026-03-03T09:00:00Z",
            "lastNotification": {"id": "n1", "accepted": true},
            "missed": 2,
        }))
        .unwrap();
        let before = ScheduleStatus {
            missed: Some(1),
            ..ScheduleStatus::default()
        };
        let now = at("2026-03-02T09:00:02.5Z");
        let stand = stand(
            &schedule("0 9 * * *"),
            before,
            Some(&Some(told.clone())),
            now,
        );
        assert_eq!(stand.status, told.status);
        // Not before the hour is over: a clock that jumps should be noticed.
        assert_eq!(stand.look_again, Some(Duration::from_hours(1)));
    }

    #[test]
    fn what_was_told_stays_while_the_gateway_is_away() {
        let before = ScheduleStatus {
            last_schedule_time: Some(time("2026-03-02T09:00:00Z")),
            missed: Some(3),
            ..ScheduleStatus::default()
        };
        let stand = stand(
            &schedule("0 9 * * *"),
            before.clone(),
            None,
            at("2026-03-02T12:00:00Z"),
        );
        assert_eq!(stand.status.last_schedule_time, before.last_schedule_time);
        assert_eq!(stand.status.missed, Some(3));
        assert_eq!(
            stand.status.next_schedule_time,
            Some(time("2026-03-03T09:00:00Z"))
        );
    }

    #[test]
    fn it_is_asked_soon_after_a_due_time_and_slower_while_that_has_not_fired() {
        let look_again = |now| {
            let status = ScheduleStatus {
                last_schedule_time: Some(time("2026-03-02T09:00:00Z")),
                next_schedule_time: Some(time("2026-03-04T09:00:00Z")),
                ..ScheduleStatus::default()
            };
            let told = ScheduleState {
                status,
                refused: None,
            };
            stand(
                &schedule("0 9 * * *"),
                ScheduleStatus::default(),
                Some(&Some(told)),
                at(now),
            )
            .look_again
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(look_again("2026-03-03T09:00:02Z"), seconds(5));
        assert_eq!(look_again("2026-03-03T09:00:20Z"), seconds(20));
        assert_eq!(look_again("2026-03-03T09:30:00Z"), seconds(60));
        assert_eq!(look_again("2026-03-04T08:59:30Z"), seconds(32));
    }

    #[test]
    fn a_due_time_is_waited_for_also_when_nothing_has_fired_for_long() {
        let told = ScheduleState::default();
        let look_again = stand(
            &schedule("0 9 * * *"),
            ScheduleStatus::default(),
            Some(&Some(told)),
            at("2026-03-20T09:00:20Z"),
        )
        .look_again;
        assert_eq!(look_again, Some(Duration::from_secs(20)));
    }

    #[test]
    fn what_is_suspended_has_no_next_time() {
        let mut schedule = schedule("0 9 * * *");
        schedule.spec.suspend = true;
        let stand = stand(
            &schedule,
            ScheduleStatus::default(),
            Some(&None),
            at("2026-03-02T08:00:00Z"),
        );
        assert_eq!(stand.status.next_schedule_time, None);
        assert_eq!(stand.look_again, None);
    }

    #[test]
    fn a_schedule_that_fired_for_good_is_left_alone() {
        let mut once = schedule("0 9 * * *");
        once.spec.schedule = None;
        once.spec.at = Some("2026-03-02T18:00".to_owned());
        let status = ScheduleStatus {
            last_schedule_time: Some(time("2026-03-02T18:00:00Z")),
            ..ScheduleStatus::default()
        };
        let told = ScheduleState {
            status,
            refused: None,
        };
        let stand = stand(
            &once,
            ScheduleStatus::default(),
            Some(&Some(told)),
            at("2026-03-02T18:10:00Z"),
        );
        assert_eq!(stand.look_again, None);
    }
    fn refused(due: &str) -> ScheduleState {
        ScheduleState {
            refused: Some(Refused {
                schedule_time: at(due),
                message: "it may not".to_owned(),
            }),
            ..ScheduleState::default()
        }
    }

    #[test]
    fn what_was_refused_is_asked_about_though_nothing_is_due_for_long() {
        // Its deadline is over, and the next due time is a day away; or nothing is due at all.
        let mut schedule = schedule("0 9 * * *");
        for suspend in [false, true] {
            schedule.spec.suspend = suspend;
            let mut told = refused("2026-03-02T09:00:00Z");
            told.status.next_schedule_time = (!suspend).then(|| time("2026-03-03T09:00:00Z"));
            let look_again = |told| {
                let now = at("2026-03-02T11:00:00Z");
                stand(&schedule, ScheduleStatus::default(), Some(&Some(told)), now).look_again
            };
            assert_eq!(look_again(told.clone()), Some(LONGEST), "{suspend}");
            told.refused = None;
            assert!(
                look_again(told).is_none_or(|rest| rest > LONGEST),
                "{suspend}"
            );
        }
    }

    #[test]
    fn what_is_refused_waits_while_it_is_tried_and_a_time_that_comes_once_is_lost_with_its_deadline()
     {
        let due = "2026-03-02T09:00:00Z";
        let again = schedule("0 9 * * *");
        let mut once = schedule("0 9 * * *");
        once.spec.schedule = None;
        once.spec.at = Some("2026-03-02T09:00".to_owned());
        let verdict = |schedule: &Schedule, now| {
            let told = Some(refused(due));
            let stand = stand(schedule, ScheduleStatus::default(), Some(&told), at(now));
            stand.refused.unwrap()
        };
        let (soon, late) = ("2026-03-02T10:00:00Z", "2026-03-02T10:00:01Z");
        let begin = format!("what was due at {due}");
        for (schedule, now, tense, end) in [
            (&again, soon, "is", "the next one when it is due"),
            (
                &once,
                soon,
                "is",
                "until startingDeadlineSeconds have passed",
            ),
            (&again, late, "was", "the next one is tried when it is due"),
        ] {
            let Verdict::Waiting(Because { message, .. }) = verdict(schedule, now) else {
                panic!("{now}: {end}")
            };
            let begin = format!("{begin} {tense} not sent: it may not.");
            assert!(
                message.starts_with(&begin) && message.ends_with(end),
                "{message}"
            );
        }
        let Verdict::Stalled(Because { reason, message }) = verdict(&once, late) else {
            panic!("it never fires any more")
        };
        assert_eq!(reason, REFUSED);
        assert!(
            message.contains("was not sent") && message.ends_with("another time"),
            "{message}"
        );
    }
}
