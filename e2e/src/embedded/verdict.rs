//! What arrived, held against what was accepted and what the API says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::clients::Sent;
use super::workload::{Expected, Planned, Via, Workload};
use super::{Delivery, Shown, WINDOW};
use crate::sinks::{Copies, Copy, Events};
use crate::took::percentiles;

/// What a sink may still have read from its sockets after the sender was killed.
const BUFFERED: Duration = Duration::from_millis(250);

/// Everything that is known after a run.
pub struct Evidence {
    /// What was sent.
    pub workload: Arc<Workload>,
    /// What the clients saw.
    pub sent: Sent,
    /// The notifications as the API shows them, by id.
    pub shown: HashMap<String, Shown>,
    /// Their deliveries, by notification.
    pub deliveries: HashMap<String, Vec<Delivery>>,
    /// The mails that arrived.
    pub mails: Copies,
    /// The events that arrived.
    pub events: Events,
    /// When the server was killed.
    pub kills: Vec<SystemTime>,
    /// So often it should have been.
    pub wanted_kills: usize,
    /// What the sweep found.
    pub redriven: f64,
    /// When the first request was sent.
    pub started: SystemTime,
}

/// A delivery that has to arrive and did not.
#[derive(Debug)]
pub struct Lost {
    /// Its notification.
    pub notification: String,
    /// Its id; `None`: the API knows of no such delivery.
    pub delivery: Option<String>,
    what: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            notification,
            delivery,
            what,
        } = self;
        let delivery = delivery.as_deref().unwrap_or("unknown to the API");
        write!(
            f,
            "notification {notification}, delivery {delivery}: {what}"
        )
    }
}

/// What came out.
pub struct Verdict {
    rows: Vec<(&'static str, String)>,
    /// What did not arrive.
    pub lost: Vec<Lost>,
    /// What is not as it has to be; empty: all is well.
    pub wrong: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.rows {
            writeln!(f, "{name:<34} {value:>12}")?;
        }
        for wrong in &self.wrong {
            writeln!(f, "WRONG: {wrong}")?;
        }
        Ok(())
    }
}

/// What is found by going through every notification.
#[derive(Default)]
struct Found {
    lost: Vec<Lost>,
    delivered: usize,
    duplicates: usize,
    /// Of `duplicates`, those that no kill explains.
    without_kill: usize,
    /// Deliveries that nobody asked for.
    unasked: usize,
    /// Arrived, and the API does not say `sent`.
    not_shown_sent: usize,
    /// Mails that say something else than they should.
    misread: Vec<String>,
    /// From acceptance to arrival, by class.
    took: BTreeMap<&'static str, Vec<Duration>>,
    known: BTreeSet<String>,
}

/// Judges.
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut found = Found::default();
    let planned = evidence.workload.notifications.iter();
    for (planned, id) in planned.zip(&evidence.sent.ids) {
        found.notification(evidence, planned, id);
    }
    let arrived = evidence.mails.keys().chain(evidence.events.copies.keys());
    let strangers = arrived.filter(|id| !found.known.contains(*id)).count();
    let ended = |id: &&String| evidence.shown.get(*id).is_some_and(|s| s.status == "ended");
    let ended = evidence.sent.ids.iter().filter(ended).count();
    let accepted = evidence.sent.ids.len();
    let kills = evidence.kills.len();
    let allowed = kills * WINDOW;

    let mut wrong = Vec::new();
    let mut must = |holds: bool, words: String| {
        if !holds {
            wrong.push(words);
        }
    };
    must(
        kills == evidence.wanted_kills,
        format!(
            "killed {kills} times of {}: too little was left to do",
            evidence.wanted_kills
        ),
    );
    must(
        ended == accepted,
        format!("{} notifications did not end", accepted - ended),
    );
    must(
        found.lost.is_empty(),
        format!("{} deliveries were lost", found.lost.len()),
    );
    must(
        found.duplicates <= allowed,
        format!(
            "{} duplicates, more than {kills} kills × {WINDOW}",
            found.duplicates
        ),
    );
    must(
        found.without_kill == 0,
        format!("{} duplicates that no kill explains", found.without_kill),
    );
    must(
        evidence.redriven == 0.0,
        format!("the sweep found {}", evidence.redriven),
    );
    must(
        evidence.events.forged == 0,
        format!("{} events with a wrong signature", evidence.events.forged),
    );
    must(
        found.unasked == 0,
        format!("{} deliveries that nobody asked for", found.unasked),
    );
    must(
        strangers == 0,
        format!("{strangers} arrived that the API does not know"),
    );
    must(
        found.not_shown_sent == 0,
        format!(
            "{} arrived that the API does not call sent",
            found.not_shown_sent
        ),
    );
    must(
        found.misread.is_empty(),
        format!(
            "{} mails say something else: {}",
            found.misread.len(),
            found.misread.first().map_or("", String::as_str)
        ),
    );
    must(
        evidence.events.refused > 0,
        "the webhook receiver never answered 503".to_owned(),
    );

    let rows = rows(evidence, &mut found, ended, allowed);
    Verdict {
        rows,
        lost: found.lost,
        wrong,
    }
}

fn rows(
    evidence: &Evidence,
    found: &mut Found,
    ended: usize,
    allowed: usize,
) -> Vec<(&'static str, String)> {
    let sent = &evidence.sent;
    let rate = |count: usize, over: Duration| {
        format!("{:.0}/s", count as f64 / over.as_secs_f64().max(0.001))
    };
    let last = evidence
        .mails
        .values()
        .chain(evidence.events.copies.values())
        .flatten()
        .map(|copy| copy.at)
        .max();
    let over = last
        .and_then(|last| last.duration_since(evidence.started).ok())
        .unwrap_or_default();
    let mut took = sent.took.clone();
    let mails: usize = evidence.mails.values().map(Vec::len).sum();
    let events: usize = evidence.events.copies.values().map(Vec::len).sum();
    let mut rows = vec![
        ("notifications accepted", sent.ids.len().to_string()),
        ("ended", ended.to_string()),
        (
            "deliveries expected",
            evidence.workload.deliveries().to_string(),
        ),
        ("delivered", found.delivered.to_string()),
        ("lost", found.lost.len().to_string()),
        ("kills", evidence.kills.len().to_string()),
        ("duplicates", format!("{} (≤ {allowed})", found.duplicates)),
        (
            "duplicates not astride a kill",
            found.without_kill.to_string(),
        ),
        ("found by the sweep", evidence.redriven.to_string()),
        ("mails arrived", mails.to_string()),
        ("events arrived, signature verified", events.to_string()),
        ("events answered 503", evidence.events.refused.to_string()),
        ("signature failures", evidence.events.forged.to_string()),
        (
            "sent again with their key after 202",
            sent.twice.to_string(),
        ),
        (
            "accepting took",
            format!("{:.1} s", sent.over.as_secs_f64()),
        ),
        (
            "accept rate, kills included",
            rate(sent.ids.len(), sent.over),
        ),
        ("accept p50 / p99, kills included", percentiles(&mut took)),
        (
            "until the last arrival",
            format!("{:.1} s", over.as_secs_f64()),
        ),
        ("delivery rate, kills included", rate(mails + events, over)),
    ];
    for (what, count) in &sent.repeated {
        let name = match what.as_str() {
            "not reached" => "requests repeated: not reached",
            "broken off" => "requests repeated: broken off",
            "timeout" => "requests repeated: timeout",
            "409" => "requests repeated: 409",
            "429" => "requests repeated: 429",
            "503" => "requests repeated: 503",
            _ => "requests repeated: other",
        };
        rows.push((name, count.to_string()));
    }
    for (class, name) in [
        ("critical", "critical, accepted to arrived"),
        ("high", "high"),
        ("normal", "normal"),
        ("low", "low"),
    ] {
        if let Some(took) = found.took.get_mut(class) {
            rows.push((name, percentiles(took)));
        }
    }
    rows
}

impl Found {
    fn notification(&mut self, evidence: &Evidence, planned: &Planned, id: &str) {
        let none = Vec::new();
        let deliveries = evidence.deliveries.get(id).unwrap_or(&none);
        let mut rest: Vec<&Delivery> = deliveries.iter().collect();
        self.known.extend(deliveries.iter().map(|d| d.id.clone()));
        for expected in &planned.expected {
            let found = rest.iter().position(|delivery| is_for(delivery, expected));
            let Some(delivery) = found.map(|at| rest.swap_remove(at)) else {
                let status = evidence.shown.get(id).map_or("unknown", |s| &s.status);
                self.lost.push(Lost {
                    notification: id.to_owned(),
                    delivery: None,
                    what: format!(
                        "{:?} to {}; the notification is {status}",
                        expected.via, expected.to
                    ),
                });
                continue;
            };
            self.delivery(evidence, planned, id, expected, delivery);
        }
        self.unasked += rest.len();
    }

    fn delivery(
        &mut self,
        evidence: &Evidence,
        planned: &Planned,
        id: &str,
        expected: &Expected,
        delivery: &Delivery,
    ) {
        let arrived = match expected.via {
            Via::Mail => &evidence.mails,
            Via::Hook => &evidence.events.copies,
        };
        let mut copies: Vec<&Copy> = arrived.get(&delivery.id).into_iter().flatten().collect();
        copies.sort_unstable_by_key(|copy| copy.at);
        let Some(first) = copies.first() else {
            let Delivery {
                state,
                reason,
                error,
                attempts,
                ..
            } = delivery;
            self.lost.push(Lost {
                notification: id.to_owned(),
                delivery: Some(delivery.id.clone()),
                what: format!(
                    "{:?} to {}; it is {state} after {attempts} attempts, {reason:?}, {error:?}",
                    expected.via, expected.to
                ),
            });
            return;
        };
        self.delivered += 1;
        if let Some(shown) = evidence.shown.get(id) {
            let took = first.at.duration_since(SystemTime::from(shown.accepted_at));
            self.took
                .entry(planned.priority)
                .or_default()
                .push(took.unwrap_or_default());
        }
        if delivery.state != "sent" {
            self.not_shown_sent += 1;
        }
        for pair in copies.windows(2) {
            self.duplicates += 1;
            if !is_astride(pair[0].at, pair[1].at, &evidence.kills) {
                self.without_kill += 1;
                println!(
                    "no kill between two copies of {}: {:?} {:?}",
                    delivery.id, pair[0].at, pair[1].at
                );
            }
        }
        if expected.via == Via::Mail {
            for copy in copies {
                self.misread.extend(misread(copy, planned, expected));
            }
        }
    }
}

fn is_for(delivery: &Delivery, expected: &Expected) -> bool {
    let channel = delivery.channel.as_deref();
    match expected.via {
        Via::Mail => channel == Some("load/mail") && delivery.endpoint == *expected.to,
        Via::Hook => {
            channel == Some("load/hooks") && delivery.recipient.as_deref() == Some(&expected.to)
        }
    }
}

/// Whether the server was killed after it sent the first and before it sent the second.
fn is_astride(first: SystemTime, second: SystemTime, kills: &[SystemTime]) -> bool {
    kills
        .iter()
        .any(|kill| first <= *kill + BUFFERED && second >= *kill)
}

/// What a mail says that it should not.
fn misread(copy: &Copy, planned: &Planned, expected: &Expected) -> Option<String> {
    let wrong = |what: &str, got: &str| Some(format!("{what} of {} is {got:?}", planned.key));
    if copy.to != *expected.to {
        return wrong("the envelope's recipient", &copy.to);
    }
    let parsed = copy.parsed.as_ref()?;
    let subject = expected.subject.as_ref().unwrap_or(&planned.subject);
    if parsed.subject != *subject {
        return wrong("the subject", &parsed.subject);
    }
    if parsed.to != *expected.to {
        return wrong("To", &parsed.to);
    }
    if !parsed.parts.iter().any(|part| part == "text/plain") || parsed.text.trim().is_empty() {
        return wrong("the plain text", &parsed.text);
    }
    if !parsed.defects.is_empty() {
        return wrong("the form", &parsed.defects.join(", "));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_astride_a_kill_only_if_the_kill_is_between_them() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let kills = [at(10_000), at(20_000)];
        assert!(is_astride(at(9_000), at(11_000), &kills));
        assert!(is_astride(at(10_100), at(11_000), &kills));
        assert!(!is_astride(at(9_000), at(9_500), &kills));
        assert!(!is_astride(at(10_500), at(19_000), &kills));
        assert!(is_astride(at(10_500), at(21_000), &kills));
    }
}
