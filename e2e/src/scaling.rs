//! A Channel's pods, from one to four and back to one under load: nothing twice, no more than the rate in all, soon
//! shared again, and how often a lower class goes first because a higher one waits in another pod.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use jiff::{SignedDuration, Timestamp};

use crate::cluster::load::{self, Load};
use crate::cluster::sent::{self, Sent};
use crate::cluster::{Channel, Cluster, Setup};
use crate::run::Options;

/// W of each pod.
const WINDOW: usize = 64;

/// Pods at the most.
const PODS: usize = 4;

/// The rate of the Channel.
const RATE: u32 = 200;

/// Half of it is urgent, the rest is a bulk.
const SINGLES: u32 = 100;

const CHANNELS: &[Channel] = &[Channel {
    name: "mail",
    rate: Some(RATE),
    latency: Duration::from_millis(20),
    slots: 16,
    kept: true,
}];

/// Longer than this a higher class must not wait in another pod, or on its way there, while a lower one goes.
const READY: SignedDuration = SignedDuration::from_millis(500);

/// The most of the lower classes' sends of which that may be.
const INVERSIONS: f64 = 0.05;

/// The same where the pods are unoptimized and the phases short: the first seconds, in which they divide the work anew, are
/// much of it. Pods that take what they may not send yet come to 0.19.
const INVERSIONS_SMALL: f64 = 0.12;

/// What the rate of a window is held against.
const WINDOW_OF_RATE: SignedDuration = SignedDuration::from_secs(1);

/// Longer than it takes to hear what the pods tell: three ticks.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs it. An error says what was not as it has to be.
pub async fn run(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let phase = Duration::from_secs(if options.small { 12 } else { 60 });
    // The bulk lasts as long as the load.
    let over = phase * 3 + SETTLE * 2;
    let people = (over.as_secs() * u64::from(RATE - SINGLES)) as usize;
    let begin = Instant::now();
    let say = move |words: &str| println!("{:>7.1} s  {words}", begin.elapsed().as_secs_f64());
    let cluster = Cluster::start(
        Setup {
            channels: CHANNELS,
            templates: load::templates(CHANNELS),
            horizon: Duration::from_mins(2),
            window: WINDOW,
            sync: true,
            broker: Vec::new(),
        },
        folder,
    )
    .await?;
    let gateway = cluster.gateway("gateway").await?;
    let apis = [gateway.api.clone()].into();
    cluster.import(&gateway.api, load::GROUP, people).await?;
    let mut pods = vec![cluster.pod("mail-0", CHANNELS[0]).await?];
    say("up: a gateway, a pod");

    let load = Load::start(&apis, CHANNELS, SINGLES, over);
    tokio::time::sleep(phase).await;
    let grow = Timestamp::now();
    let (two, three, four) = tokio::try_join!(
        cluster.pod("mail-1", CHANNELS[0]),
        cluster.pod("mail-2", CHANNELS[0]),
        cluster.pod("mail-3", CHANNELS[0]),
    )?;
    pods.extend([two, three, four]);
    let grown = Timestamp::now();
    say(&format!("{} pods", pods.len()));
    tokio::time::sleep(SETTLE + phase).await;
    let shrink = Timestamp::now();
    for mut pod in pods.drain(1..) {
        pod.end(Duration::from_secs(30)).await?;
    }
    let shrunk = Timestamp::now();
    say("one pod again");
    tokio::time::sleep(SETTLE + phase).await;
    let accepted = load.finish().await?;
    let expected = accepted.singles.len() + people;
    let patience = Instant::now();
    while sent::count(&cluster.folder)? < expected && patience.elapsed() < Duration::from_mins(3) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What comes twice may come late.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let all = sent::read(&cluster.folder)?;

    let ids: HashSet<&str> = all.iter().map(|sent| &*sent.delivery).collect();
    let twice = all.len() - ids.len();
    let busiest = busiest(&all);
    let (lower, inverted) = inversions(&all);
    let share = inverted as f64 / lower.max(1) as f64;
    let pauses = [("1 → 4", grow, grown), ("4 → 1", shrink, shrunk)]
        .map(|(name, from, to)| (name, pause(&all, from, to + SignedDuration::from_secs(5))));
    let shared = shared(&all, grown, shrink);
    let alone = alone(&all, shrunk);
    // A machine that is busy shares late, and the small size does not wait for it.
    ensure!(
        options.small || shared.is_some() && alone.is_some(),
        "the rate was never shared by four pods, or never one pod's again"
    );
    let seconds = |seconds: Option<f64>| {
        seconds.map_or("not within the time".to_owned(), |s| format!("{s:.1} s"))
    };
    println!();
    let row = |name: &str, value: String| println!("{name:<58} {value:>16}");
    row("deliveries expected", expected.to_string());
    row("sent", ids.len().to_string());
    row("duplicates", twice.to_string());
    row("rate of the channel", format!("{RATE}/s"));
    row("most in a second", busiest.to_string());
    for (name, pause) in &pauses {
        row(&format!("longest pause, {name}"), format!("{pause:.3} s"));
    }
    row(
        "until four pods share the rate, since the last was ready",
        seconds(shared),
    );
    row(
        "until one has all of it, since the last ended",
        seconds(alone),
    );
    row(
        "lower classes sent while a higher waited in another pod",
        format!("{inverted} of {lower}, {:.2} %", share * 100.0),
    );
    ensure!(
        ids.len() == expected,
        "{} of {expected} were sent",
        ids.len()
    );
    ensure!(
        twice == 0,
        "{twice} were sent twice, though every pod ended in order"
    );
    ensure!(
        busiest <= 2 * RATE as usize,
        "{busiest} in a second: more than one interval's worth over {RATE}"
    );
    let most = if options.small {
        INVERSIONS_SMALL
    } else {
        INVERSIONS
    };
    ensure!(
        share <= most,
        "{:.1} % of the lower classes' sends went before a higher one",
        share * 100.0
    );
    drop(pods);
    Ok(())
}

/// The most sends that began within a second.
fn busiest(all: &[Sent]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (k, sent) in all.iter().enumerate() {
        while sent.at.duration_since(all[first].at) > WINDOW_OF_RATE {
            first += 1;
        }
        most = most.max(k - first + 1);
    }
    most
}

/// The longest time in seconds in which nothing was sent.
fn pause(all: &[Sent], from: Timestamp, to: Timestamp) -> f64 {
    let within: Vec<Timestamp> = all
        .iter()
        .map(|sent| sent.at)
        .filter(|at| (from..to).contains(at))
        .collect();
    let pauses = within
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]));
    pauses
        .max()
        .unwrap_or(to.duration_since(from))
        .as_secs_f64()
}

/// Sends of each pod in each half second since then.
fn by_pod(all: &[Sent], from: Timestamp) -> BTreeMap<i64, BTreeMap<u16, usize>> {
    let mut counts: BTreeMap<i64, BTreeMap<u16, usize>> = BTreeMap::new();
    for sent in all.iter().filter(|sent| sent.at >= from) {
        let part = sent.at.duration_since(from).as_millis() as i64 / 500;
        *counts.entry(part).or_default().entry(sent.pod).or_default() += 1;
    }
    counts
}

/// Seconds until all pods send in the same half second, and together at least nine tenths of the rate.
fn shared(all: &[Sent], from: Timestamp, to: Timestamp) -> Option<f64> {
    let all: Vec<Sent> = all.iter().filter(|sent| sent.at < to).cloned().collect();
    let counts = by_pod(&all, from);
    let mut parts = counts.iter();
    let found = parts.find(|(_, pods)| {
        let sum: usize = pods.values().sum();
        pods.len() == PODS && sum * 20 >= RATE as usize * 9
    })?;
    Some(*found.0 as f64 / 2.0)
}

/// Seconds until nine tenths of the rate are sent.
fn alone(all: &[Sent], from: Timestamp) -> Option<f64> {
    let counts = by_pod(all, from);
    let mut parts = counts.iter();
    let found = parts.find(|(_, pods)| pods.values().sum::<usize>() * 20 >= RATE as usize * 9)?;
    Some(*found.0 as f64 / 2.0)
}

/// Sends of lower classes, and how many of these began while a higher one, ready for long enough, waited in another pod.
fn inversions(all: &[Sent]) -> (usize, usize) {
    let rank = |sent: &Sent| match &*sent.priority {
        "critical" => 0,
        "high" => 1,
        "normal" => 2,
        _ => 3,
    };
    let latency = SignedDuration::try_from(CHANNELS[0].latency).unwrap_or_default();
    let begun = |sent: &Sent| sent.at - latency;
    let waited: Vec<&Sent> = all
        .iter()
        .filter(|sent| rank(sent) < 3 && begun(sent) > sent.released_at + READY)
        .collect();
    let lower: Vec<&Sent> = all.iter().filter(|sent| rank(sent) > 0).collect();
    let inverted = lower.iter().filter(|low| {
        let at = begun(low);
        waited.iter().any(|high| {
            rank(high) < rank(low)
                && high.pod != low.pod
                && high.released_at + READY < at
                && at < begun(high)
        })
    });
    (lower.len(), inverted.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(pod: u16, priority: &str, ready: i64, at: i64) -> Sent {
        Sent {
            at: Timestamp::from_millisecond(at).unwrap(),
            delivery: format!("{pod}-{at}").into(),
            template: "load/note".into(),
            endpoint: "a@b.example".into(),
            priority: priority.into(),
            released_at: Timestamp::from_millisecond(ready).unwrap(),
            pod,
        }
    }

    #[test]
    fn only_what_waits_for_long_in_another_pod_is_gone_before() {
        let waits = sent(0, "critical", 0, 2_000);
        let passes = |pod, at| inversions(&[waits.clone(), sent(pod, "low", 0, at)]).1;
        assert_eq!(passes(1, 1_000), 1);
        assert_eq!(
            passes(0, 1_000),
            0,
            "in the same pod that is another matter"
        );
        assert_eq!(passes(1, 400), 0, "it was not ready for long");
        assert_eq!(passes(1, 3_000), 0, "it had gone");
    }

    #[test]
    fn the_busiest_second_is_found_wherever_it_begins() {
        let at = [0, 900, 950, 1_850, 3_000].map(|at| sent(0, "low", 0, at));
        assert_eq!(busiest(&at), 3);
    }
}
