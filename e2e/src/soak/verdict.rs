//! What arrived, held against what was accepted.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::faults::{Faults, Victim};
use crate::cluster::load::Accepted;
use crate::cluster::sent::Sent;
use crate::cluster::{Channel, NAMESPACE};
use crate::took::percentiles;

/// How long after a fault what it held up is still counted with it.
const AFTER: SignedDuration = SignedDuration::from_secs(10);

/// Everything that is known after a run.
pub struct Evidence<'a> {
    /// What was accepted.
    pub accepted: &'a Accepted,
    /// How many of the notifications have ended.
    pub ended: usize,
    /// What was sent.
    pub sent: &'a [Sent],
    /// Members of the group.
    pub people: usize,
    /// The Channels, each with its pods.
    pub channels: &'a [Channel],
    /// What was killed.
    pub faults: &'a Faults,
    /// W of each pod.
    pub window: usize,
}

/// What came out.
pub struct Verdict {
    rows: Vec<(String, String)>,
    /// What is not as it has to be; empty: all is well.
    pub wrong: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.rows {
            writeln!(f, "{name:<44} {value:>16}")?;
        }
        for wrong in &self.wrong {
            writeln!(f, "WRONG: {wrong}")?;
        }
        Ok(())
    }
}

/// Pods in all: a broker's restart touches every one.
const PODS: usize = 3;

/// Judges.
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let accepted = evidence.accepted;
    let mut copies: HashMap<(&str, &str), Vec<&Sent>> = HashMap::new();
    let prefix = format!("{NAMESPACE}/");
    for sent in evidence.sent {
        let template = sent
            .template
            .strip_prefix(&prefix)
            .unwrap_or(&sent.template);
        let key = (template, &*sent.endpoint);
        copies.entry(key).or_default().push(sent);
    }
    let mut lost = Vec::new();
    let mut quiet = Vec::new();
    let mut faulty = Vec::new();
    let mut delivered = 0;
    for (address, (template, at)) in &accepted.singles {
        let Some(first) = copies
            .get(&(&**template, &**address))
            .and_then(|c| c.first())
        else {
            lost.push(format!("{template} to {address}, accepted at {at}"));
            continue;
        };
        delivered += 1;
        if template.starts_with("code") {
            let took = Duration::try_from(first.at.duration_since(*at)).unwrap_or_default();
            if evidence.is_near_a_fault(*at) {
                faulty.push(took);
            } else {
                quiet.push(took);
            }
        }
    }
    for template in &accepted.bulk {
        for i in 0..evidence.people {
            let address = format!("p{i:06}@people.example");
            if copies.contains_key(&(&**template, &*address)) {
                delivered += 1;
            } else {
                lost.push(format!("{template} to {address}"));
            }
        }
    }
    let expected = accepted.singles.len() + accepted.bulk.len() * evidence.people;
    let unasked = copies.len() - delivered;
    let duplicates = evidence.sent.len() - copies.len();
    let touched: usize = evidence.faults.were.iter().map(|(v, ..)| touched(*v)).sum();
    let allowed = touched * evidence.window;

    let mut wrong = Vec::new();
    let mut must = |holds: bool, words: String| {
        if !holds {
            wrong.push(words);
        }
    };
    let first = lost.first().cloned().unwrap_or_default();
    must(
        lost.is_empty(),
        format!("{} were lost: {first}", lost.len()),
    );
    must(
        duplicates <= allowed,
        format!("{duplicates} duplicates, more than {allowed}"),
    );
    must(unasked == 0, format!("{unasked} that nobody asked for"));
    let open = accepted.ids.len() - evidence.ended;
    must(open == 0, format!("{open} notifications did not end"));
    let redriven = evidence.faults.redriven();
    must(redriven == 0.0, format!("the sweep found {redriven}"));

    let mut rows = vec![
        (
            "notifications accepted".to_owned(),
            accepted.ids.len().to_string(),
        ),
        ("ended".to_owned(), evidence.ended.to_string()),
        ("deliveries expected".to_owned(), expected.to_string()),
        ("delivered".to_owned(), delivered.to_string()),
        ("lost".to_owned(), lost.len().to_string()),
        (
            "duplicates".to_owned(),
            format!("{duplicates} (≤ {allowed})"),
        ),
        ("found by the sweep".to_owned(), redriven.to_string()),
        ("pods, touched by faults".to_owned(), touched.to_string()),
    ];
    for (victim, name) in [
        (Victim::Gateway, "a gateway killed"),
        (Victim::Pod, "a pod killed"),
        (Victim::Broker, "the broker killed"),
        (Victim::Database, "the database killed"),
    ] {
        let times = evidence.faults.were.iter().filter(|(v, ..)| *v == victim);
        rows.push((name.to_owned(), times.count().to_string()));
    }
    let rate: u32 = evidence.channels.iter().filter_map(|c| c.rate).sum();
    rows.push(("rate of both channels".to_owned(), format!("{rate}/s")));
    if let (Some(first), Some(last)) = (evidence.sent.first(), evidence.sent.last()) {
        let over = last.at.duration_since(first.at).as_secs_f64().max(0.001);
        let rate = evidence.sent.len() as f64 / over;
        rows.push(("sent, faults included".to_owned(), format!("{rate:.0}/s")));
    }
    rows.push((
        "critical, accepted to sent, quiet: p50 / p99".to_owned(),
        percentiles(&mut quiet),
    ));
    rows.push((
        "the same around faults".to_owned(),
        percentiles(&mut faulty),
    ));
    rows.push((
        "accepting, faults included: p50 / p99".to_owned(),
        percentiles(&mut accepted.took.clone()),
    ));
    for (what, count) in &accepted.repeated {
        rows.push((format!("requests repeated: {what}"), count.to_string()));
    }
    Verdict { rows, wrong }
}

impl Evidence<'_> {
    /// Whether something was away then, or had just come back.
    fn is_near_a_fault(&self, at: Timestamp) -> bool {
        let mut were = self.faults.were.iter();
        were.any(|(_, from, until)| *from <= at && at <= *until + AFTER)
    }
}

/// How many pods had something under way that a fault touched.
fn touched(victim: Victim) -> usize {
    match victim {
        Victim::Pod => 1,
        Victim::Broker => PODS,
        Victim::Gateway | Victim::Database => 0,
    }
}
