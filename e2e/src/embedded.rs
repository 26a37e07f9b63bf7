//! The main job on real input: everybody gets what was sent to them, once, though the server is killed on the way.
//!
//! # Layout
//!
//! - This file: the run, step by step. [`workload`]: what is sent. [`clients`]: who sends.
//! - [`killer`]: when the server dies. [`verdict`]: what arrived, held against what was accepted.

mod clients;
mod killer;
mod verdict;
mod workload;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};

use crate::process;
use crate::run::Options;
use crate::server::{Api, Server, Setup};
use crate::sinks::{HookSink, MailSink};
use clients::{NAMESPACE, Sent};
use killer::Killer;
use verdict::Evidence;
use workload::{Size, Workload};

/// Signs events: `whsec_` and base64.
const SECRET: &str = "whsec_aGVyYWxkJ3MgZW5kIHRvIGVuZCBzZWNyZXQgMDAx";

/// W: most deliveries that are sent and of which a kill may lose the outcome.
const WINDOW: usize = 64;

/// Channels that share the process and so are killed together; W is a channel's.
const CHANNELS: usize = 2;

/// Requests to the webhook receiver before it is out for a moment.
const OUTAGE_AFTER: usize = 300;

/// After the last was accepted everything must have ended within this: longer than a released delivery may be overdue
/// (10 minutes), so that the sweep would find what got stuck.
const END_WITHIN: Duration = Duration::from_mins(12);

/// The same for the small size, in which nobody waits for the sweep.
const SMALL_END_WITHIN: Duration = Duration::from_secs(150);

/// Questions about deliveries that are asked at a time.
const ASK: usize = 32;

/// A notification as the API shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    id: String,
    status: String,
    accepted_at: jiff::Timestamp,
}

/// A delivery as the API shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    id: String,
    recipient: Option<String>,
    channel: Option<String>,
    endpoint: String,
    state: String,
    reason: Option<String>,
    error: Option<String>,
    attempts: u16,
}

/// Runs it. An error says what was not as it has to be.
pub async fn run(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let size = if options.small {
        Size::SMALL
    } else {
        Size::FULL
    };
    let seed = options.seed.unwrap_or_else(rand::random);
    let begin = Instant::now();
    let say = |words: &str| println!("{:>7.1} s  {words}", begin.elapsed().as_secs_f64());
    println!("seed {seed} (again with --seed {seed})");

    process::need(&["smtp-sink", "python"])?;
    let herald = process::herald()?;
    let workload = Arc::new(Workload::new(size, seed)?);
    let mut setup = Setup::new(&herald, folder)?;
    setup.arguments = vec!["--window".to_owned(), (WINDOW / CHANNELS).to_string()];
    let (mail_port, hooks_port) = (process::free_port()?, process::free_port()?);
    declare(&setup.declared, mail_port, hooks_port)?;
    let mail = if options.small {
        MailSink::parsing(folder, mail_port)?
    } else {
        MailSink::smtp_sink(folder, mail_port)?
    };
    let hooks = HookSink::start(folder, hooks_port, SECRET, OUTAGE_AFTER)?;
    let api = setup.api()?;
    let server = Server::start(setup).await?;
    say(&format!(
        "up: herald, {}, webhook receiver",
        if options.small {
            "aiosmtpd"
        } else {
            "smtp-sink"
        }
    ));

    for (group, readers) in [(None, false), (Some("readers"), true)] {
        import(&api, &workload.import(readers), group).await?;
    }
    say(&format!("{} people imported", size.people));
    check_declared(&api).await?;

    say(&format!(
        "{} notifications ({} deliveries) by {} clients, {} kills on the way",
        size.notifications,
        workload.deliveries(),
        size.clients,
        size.kills
    ));
    let accepted = Arc::new(AtomicUsize::new(0));
    let sending: JoinHandle<anyhow::Result<Sent>> = tokio::spawn({
        let (api, workload, accepted) = (api.clone(), Arc::clone(&workload), Arc::clone(&accepted));
        async move { clients::send(&api, &workload, size.clients, &accepted).await }
    });
    let started = SystemTime::now();
    let mut killer = Killer::new(server, api.clone(), size, workload.deliveries(), seed);
    loop {
        killer.step(accepted.load(Ordering::Relaxed), &say).await?;
        if sending.is_finished() && (killer.is_done() || killer.is_idle()) {
            break;
        }
    }
    let sent = sending.await.context("a client panicked")??;
    say("everything accepted, every kill done");

    let within = if options.small {
        SMALL_END_WITHIN
    } else {
        END_WITHIN
    };
    let shown = until_ended(&api, &mut killer, &sent, within, &say).await?;
    say("asking for every delivery");
    let evidence = Evidence {
        deliveries: deliveries(&api, &sent.ids).await?,
        mails: mail.arrived()?,
        events: hooks.arrived()?,
        kills: killer.kills(),
        wanted_kills: size.kills,
        redriven: killer.redriven(),
        started,
        shown,
        workload,
        sent,
    };
    let verdict = verdict::judge(&evidence);
    say("done");
    println!("\n{verdict}");
    for lost in verdict.lost.iter().take(5) {
        println!("\nlost: {lost}");
        if let Some(delivery) = &lost.delivery {
            print_trail(&api, delivery).await;
        }
    }
    if !verdict.wrong.is_empty() {
        bail!("{}", verdict.wrong.join("; "));
    }
    Ok(())
}

/// Writes what is declared, with the ports of this run.
fn declare(folder: &Path, mail_port: u16, hooks_port: u16) -> anyhow::Result<()> {
    let secret = folder.join("secrets/receiver");
    fs::create_dir_all(&secret).context("cannot make the folder")?;
    fs::write(secret.join("secret"), SECRET)?;
    let files = [
        (
            "channels.yaml",
            include_str!("../scenarios/embedded/channels.yaml"),
        ),
        (
            "templates.yaml",
            include_str!("../scenarios/embedded/templates.yaml"),
        ),
        (
            "groups.yaml",
            include_str!("../scenarios/embedded/groups.yaml"),
        ),
    ];
    for (name, text) in files {
        let text = text
            .replace("2525", &mail_port.to_string())
            .replace("8090", &hooks_port.to_string());
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// Imports people, some of them into a group.
async fn import(api: &Api, lines: &str, group: Option<&str>) -> anyhow::Result<()> {
    let mut request = api
        .post(&format!("/v1/namespaces/{NAMESPACE}/recipients/import"))
        .header("content-type", "application/x-ndjson")
        .body(lines.to_owned());
    if let Some(group) = group {
        request = request.query(&[("group", group)]);
    }
    let answer = request.send().await.context("cannot import")?;
    let status = answer.status();
    let report: Value = answer
        .json()
        .await
        .context("the import's report is not JSON")?;
    let created = report["created"].as_u64().unwrap_or_default();
    ensure!(
        status.is_success() && created == lines.lines().count() as u64,
        "the import of {} people came to {status}: {report}",
        lines.lines().count()
    );
    Ok(())
}

/// Fails unless everything declared is in force.
async fn check_declared(api: &Api) -> anyhow::Result<()> {
    let metrics = api.metrics().await?;
    let problems = metrics.get("herald_declared_problems").copied();
    ensure!(
        problems == Some(0.0),
        "something is wrong with what this scenario declares: herald lint says what"
    );
    Ok(())
}

/// Waits until every accepted notification has ended; what the API says of each by then.
async fn until_ended(
    api: &Api,
    killer: &mut Killer,
    sent: &Sent,
    within: Duration,
    say: &impl Fn(&str),
) -> anyhow::Result<HashMap<String, Shown>> {
    let begin = Instant::now();
    let mut said = None;
    loop {
        let shown: Vec<Shown> = api
            .all(&format!("/v1/namespaces/{NAMESPACE}/notifications"))
            .await?;
        let shown: HashMap<String, Shown> = shown.into_iter().map(|s| (s.id.clone(), s)).collect();
        let ended = |id: &&String| shown.get(*id).is_some_and(|s| s.status == "ended");
        let open = sent.ids.iter().filter(|id| !ended(id)).count();
        if said != Some(open) {
            say(&format!("{open} notifications have not ended"));
            said = Some(open);
        }
        killer.look().await;
        killer.check()?;
        if open == 0 || begin.elapsed() > within {
            return Ok(shown);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Every delivery of these notifications, by notification.
async fn deliveries(api: &Api, ids: &[String]) -> anyhow::Result<HashMap<String, Vec<Delivery>>> {
    let ids: Arc<[String]> = ids.into();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..ASK {
        let (api, ids, next) = (api.clone(), Arc::clone(&ids), Arc::clone(&next));
        tasks.spawn(async move {
            let mut found = Vec::new();
            while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = format!("/v1/namespaces/{NAMESPACE}/notifications/{id}/deliveries");
                found.push((id.clone(), api.all::<Delivery>(&path).await?));
            }
            anyhow::Ok(found)
        });
    }
    let mut all = HashMap::with_capacity(ids.len());
    while let Some(found) = tasks.join_next().await {
        all.extend(found.context("asking panicked")??);
    }
    Ok(all)
}

/// Prints a delivery's audit trail.
async fn print_trail(api: &Api, delivery: &str) {
    let path = format!("/v1/namespaces/{NAMESPACE}/deliveries/{delivery}/events");
    match api.all::<Value>(&path).await {
        Ok(trail) => trail.iter().for_each(|step| println!("  {step}")),
        Err(error) => println!("  {error:#}"),
    }
}
