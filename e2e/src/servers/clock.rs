//! Clocks that are wrong: of pods and of gateways, ahead and behind by more than H, from the start and from one moment to
//! the next. Nothing comes of it but that it is said.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::story::SCHEDULED;
use super::witness::{length, reads, says_after};
use super::{MAIL, Stage};
use crate::cluster::{Gateway, NAMESPACE};
use crate::server::Api;

/// By how many seconds a clock is wrong: more than H, and than anything here may take.
const STEP: i64 = 600;

/// Within so long what is sent arrives, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// What is due later is due after so long.
const LATER: Duration = Duration::from_secs(15);

/// Who begins with a wrong clock knows the broker's as exactly as it answers fast.
const EXACT: Duration = Duration::from_secs(2);

/// How long SIGTERM may take.
const END: Duration = Duration::from_secs(30);

/// Metrics of clocks are right within so many seconds.
const ABOUT: f64 = 5.0;

pub(super) async fn step(stage: &mut Stage) -> anyhow::Result<()> {
    pods(stage).await?;
    gateways(stage).await
}

/// Waits until a process says by how much its clock is wrong.
async fn is_wrong_by(probes: &Api, seconds: i64) -> anyhow::Result<()> {
    reads(probes, "herald_clock_skew_seconds", seconds as f64, ABOUT).await?;
    reads(probes, "herald_broker_clock_skew_seconds", 0.0, ABOUT).await
}

/// One pod's clock steps while it works, another's was wrong from the start. Both go on, as the third does.
async fn pods(stage: &mut Stage) -> anyhow::Result<()> {
    let begin = Instant::now();
    let stepping = stage.cluster.clock("mail-steps")?;
    let wrong = stage.cluster.clock("mail-wrong")?;
    wrong.ahead(-STEP)?;
    let (mut first, mut second) = tokio::try_join!(
        stage.cluster.pod("mail-steps", MAIL),
        stage.cluster.pod("mail-wrong", MAIL)
    )?;
    is_wrong_by(&first.probes, 0).await?;
    is_wrong_by(&second.probes, -STEP).await?;
    let log = stage.cluster.log("mail-steps");
    for seconds in [STEP, -STEP] {
        let before = length(&log);
        let api = stage.gateway.api.clone();
        let mut sent = stage.story.send(&api, "code-mail", 100).await?;
        stepping.ahead(seconds)?;
        sent.extend(stage.story.send(&api, "note-mail", 100).await?);
        is_wrong_by(&first.probes, seconds).await?;
        says_after(&log, before, &["this machine's clock is wrong"]).await?;
        stage.story.arrive(&sent, SOON).await?;
        all_send(stage, &["mail-steps", "mail-wrong"]).await?;
        let before = length(&log);
        stepping.ahead(0)?;
        is_wrong_by(&first.probes, 0).await?;
        says_after(&log, before, &["this machine's clock is right again"]).await?;
    }
    let sent = stage
        .story
        .send(&stage.gateway.api, "code-mail", 50)
        .await?;
    stage.story.arrive(&sent, SOON).await?;
    first.end(END).await?;
    second.end(END).await?;
    stage.shown(&format!(
        "pods' clocks {STEP} s ahead and behind, from the start and at once: said, and they went on sending ({:.0?})",
        begin.elapsed()
    ));
    Ok(())
}

/// Sends until each of these pods has sent something of it: requests that come together are one message, for one pod.
async fn all_send(stage: &mut Stage, pods: &[&str]) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut sent = Vec::new();
    loop {
        let api = stage.gateway.api.clone();
        sent.extend(stage.story.send(&api, "code-mail", 10).await?);
        stage.story.arrive(&sent, SOON).await?;
        let mut idle = Vec::new();
        for pod in pods {
            if sent_by(stage, pod, &sent)? == 0 {
                idle.push(*pod);
            }
        }
        if idle.is_empty() {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < SOON,
            "while its clock is wrong nothing is sent by {idle:?}"
        );
    }
}

/// How many of these a pod has sent.
fn sent_by(stage: &Stage, pod: &str, addresses: &[String]) -> anyhow::Result<usize> {
    let path = stage.cluster.folder.join(format!("sent/{pod}.jsonl"));
    let text = fs::read_to_string(path).context("cannot read what was sent")?;
    let was_sent = |address: &&String| text.contains(&format!("\"{address}\""));
    Ok(addresses.iter().filter(was_sent).count())
}

/// The clocks of all gateways are wrong, ahead and behind, and change places: whichever leads, fires and sweeps.
async fn gateways(stage: &mut Stage) -> anyhow::Result<()> {
    let begin = Instant::now();
    let declared = Timestamp::now();
    let schedule = stage.cluster.folder.join("declared/every-minute.yaml");
    fs::write(&schedule, every_minute()).context("cannot declare a schedule")?;
    stage.gateway.end(END).await?;
    let names = ["gateway-steps", "gateway-steps-too"];
    let clocks = [
        stage.cluster.clock(names[0])?,
        stage.cluster.clock(names[1])?,
    ];
    clocks[0].ahead(STEP)?;
    clocks[1].ahead(-STEP)?;
    let (first, second) = tokio::try_join!(
        stage.cluster.gateway(names[0]),
        stage.cluster.gateway(names[1])
    )?;
    let ready = Timestamp::now();
    let mut gateways = [first, second];
    for seconds in [STEP, -STEP] {
        clocks[0].ahead(seconds)?;
        clocks[1].ahead(-seconds)?;
        is_wrong_by(&gateways[0].probes, seconds).await?;
        is_wrong_by(&gateways[1].probes, -seconds).await?;
        for name in names {
            let log = stage.cluster.log(name);
            says_after(&log, 0, &["this machine's clock is wrong"]).await?;
        }
        sends_in_time(stage, &gateways).await?;
    }
    let fired = fires_each_minute(stage, declared, ready).await?;
    accepted_in_time(stage, &gateways[0], declared).await?;
    for (index, name) in names.into_iter().enumerate() {
        let log = stage.cluster.log(name);
        let before = length(&log);
        clocks[index].ahead(0)?;
        is_wrong_by(&gateways[index].probes, 0).await?;
        says_after(&log, before, &["this machine's clock is right again"]).await?;
    }
    sends_in_time(stage, &gateways).await?;
    fs::remove_file(&schedule).context("cannot take the schedule back")?;
    for gateway in &mut gateways {
        gateway.end(END).await?;
    }
    stage.cluster.start_gateway(&mut stage.gateway).await?;
    stage.shown(&format!(
        "gateways' clocks {STEP} s ahead and behind, all at once: said; what is due at once, later and each minute ({fired} times) was sent then ({:.0?})",
        begin.elapsed()
    ));
    Ok(())
}

/// What is sent by any of them arrives soon, and what is to be sent later arrives then.
async fn sends_in_time(stage: &mut Stage, gateways: &[Gateway]) -> anyhow::Result<()> {
    let mut sent = Vec::new();
    let mut later = Vec::new();
    let due = Timestamp::now() + LATER;
    for gateway in gateways {
        let api = gateway.api.clone();
        later.extend(stage.story.send_at(&api, "note-mail", 5, Some(due)).await?);
        sent.extend(stage.story.send(&api, "code-mail", 20).await?);
        sent.extend(stage.story.send(&api, "note-mail", 20).await?);
    }
    stage.story.arrive(&sent, SOON).await?;
    stage.story.arrive(&later, LATER + SOON).await?;
    let first = stage.story.first(&later)?;
    ensure!(
        first >= due - EXACT,
        "what was due at {due} was sent at {first}"
    );
    Ok(())
}

fn every_minute() -> String {
    format!(
        "apiVersion: herald.dev/v1alpha1\n\
         kind: Schedule\n\
         metadata: {{name: every-minute, namespace: {NAMESPACE}}}\n\
         spec:\n  \
           schedule: \"* * * * *\"\n  \
           timeZone: UTC\n  \
           template: note-mail\n  \
           recipients: [{{address: {{email: {SCHEDULED}}}}}]\n  \
           parameters: {{number: 0}}\n"
    )
}

/// Full minutes that have begun between two moments.
fn minutes(from: Timestamp, until: Timestamp) -> usize {
    let minutes = until.as_second().div_euclid(60) - from.as_second().div_euclid(60);
    usize::try_from(minutes).unwrap_or(0)
}

/// The schedule has fired once in each minute since it was known; how many times that is.
async fn fires_each_minute(
    stage: &Stage,
    declared: Timestamp,
    known: Timestamp,
) -> anyhow::Result<usize> {
    let begin = Instant::now();
    loop {
        let least = minutes(known, Timestamp::now());
        let fired = stage.story.scheduled()?;
        let most = minutes(declared, Timestamp::now());
        ensure!(
            fired <= most,
            "a schedule fired {fired} times in {most} minutes"
        );
        if fired >= least.max(1) {
            return Ok(fired);
        }
        ensure!(
            begin.elapsed() < SOON * 2,
            "a schedule fired {fired} times in {least} minutes"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What is remembered of when requests were accepted is right.
async fn accepted_in_time(
    stage: &Stage,
    gateway: &Gateway,
    since: Timestamp,
) -> anyhow::Result<()> {
    let path = format!("/v1/namespaces/{NAMESPACE}/notifications");
    let begin = Instant::now();
    let all: Vec<Value> = loop {
        let all: Vec<Value> = gateway.api.all(&path).await?;
        if all.len() >= stage.story.accepted() {
            break all;
        }
        ensure!(begin.elapsed() < SOON, "some are not remembered");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let latest = all
        .iter()
        .filter_map(|one| one["acceptedAt"].as_str()?.parse::<Timestamp>().ok())
        .max();
    let latest = latest.context("nothing was accepted")?;
    let now = Timestamp::now() + Duration::from_secs(ABOUT as u64);
    ensure!(
        latest > since && latest < now,
        "at {now} the last request was said to be accepted at {latest}"
    );
    Ok(())
}
