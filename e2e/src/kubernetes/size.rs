//! A thousand templates and all that goes with them: ready in two minutes, quiet from then on, and a change is seen at once.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use herald_crds::Kind;
use herald_operator::pulsar_admin::PulsarAdmin;
use kube::Client;
use kube::api::{Api as KubeApi, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use serde_json::{Value, json};

use super::Stage;
use super::desk::Who;
use super::herald::{self, PATIENCE};
use super::rights::{self, judged};
use crate::server::Api;

/// Namespaces, and in each so many templates, groups, Channels and Schedules: ten times that is what there is in all.
const NAMESPACES: usize = 10;
const TEMPLATES: usize = 100;
const GROUPS: usize = 20;
const CHANNELS: usize = 10;
const SCHEDULES: usize = 20;
const ALL: usize = NAMESPACES * (TEMPLATES + GROUPS + CHANNELS + SCHEDULES);

/// Everything has to be ready after so long, in the full size.
const READY: Duration = Duration::from_mins(2);

/// What an operator may have in memory.
const MOST_MEMORY: u64 = 100 << 20;

/// How long nobody changes anything.
const QUIET: Duration = Duration::from_mins(10);
/// The same in every run of the tests.
const QUIET_SMALL: Duration = Duration::from_secs(90);

/// How often it is looked for so long a time in which nothing is written: what began before may end late.
const QUIET_TIMES: usize = 2;

/// A change has to be seen after so long, at the best.
const SEEN: Duration = Duration::from_secs(1);

/// Partial topics made at a time by whoever makes them without Herald: as many as the operator.
const RAW_AT_A_TIME: usize = 16;

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let operators = operators(stage).await?;
    let raw = raw(stage).await?;
    let outcome = grow(stage, &operators, raw).await;
    for number in 0..NAMESPACES {
        let name = namespace(number);
        let delete = [
            "delete",
            "namespace",
            &name,
            "--wait=false",
            "--ignore-not-found",
        ];
        stage.kubernetes()?.kubectl(&delete)?;
    }
    outcome
}

fn namespace(number: usize) -> String {
    format!("size-{number}")
}

async fn grow(stage: &Stage, operators: &[Operator], raw: Duration) -> anyhow::Result<String> {
    let kubernetes = stage.kubernetes()?;
    let mut documents = String::new();
    for number in 0..NAMESPACES {
        let name = namespace(number);
        let own = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        kubernetes.apply(&own.to_string())?;
        for document in declared(&name) {
            let _ = writeln!(documents, "---\n{document}");
        }
    }
    let file = stage.folder.join("size.yaml");
    fs::write(&file, documents).context("cannot write what is declared")?;

    let begin = Instant::now();
    let file = file.display().to_string();
    kubernetes.kubectl(&["create", "--filename", &file])?;
    let created = begin.elapsed();
    let patience = if stage.small { PATIENCE } else { READY };
    loop {
        let (ready, example) = ready(&stage.client).await?;
        if ready == ALL {
            break;
        }
        ensure!(
            begin.elapsed() < patience,
            "{ready} of {ALL} are ready after {patience:?}; one that is not: {example}"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let took = begin.elapsed();
    let memory = memory(operators)?;
    ensure!(
        memory <= MOST_MEMORY,
        "an operator has {} MiB",
        memory >> 20
    );

    let quiet = if stage.small { QUIET_SMALL } else { QUIET };
    let mut looked = 1;
    while let Err(error) = nothing_is_written(stage, operators, quiet).await {
        ensure!(looked < QUIET_TIMES, "{looked} times: {error:#}");
        stage.say(&format!("size: once more, since {error:#}"));
        looked += 1;
    }

    let mut seen = change(stage, 7).await?;
    for template in [8, 9] {
        seen = seen.min(change(stage, template).await?);
    }
    ensure!(seen <= SEEN, "a change was seen after {seen:?}");
    Ok(format!(
        "{ALL} resources ready {:.1} s after the first was created (the last was after {:.1} s; the same topics by raw admin \
         calls: {:.1} s), {} MiB at the most; {} s without a write; a change was seen after {} ms",
        took.as_secs_f64(),
        created.as_secs_f64(),
        raw.as_secs_f64(),
        memory >> 20,
        quiet.as_secs(),
        seen.as_millis()
    ))
}

/// What is declared in a namespace.
fn declared(namespace: &str) -> Vec<Value> {
    let one = |kind: &str, name: String, spec: Value| {
        json!({
            "apiVersion": "herald.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        })
    };
    let channels = (0..CHANNELS).map(|number| {
        let spec =
            json!({"medium": "email", "suspend": true, "providers": [{"name": "log", "log": {}}]});
        one("Channel", format!("channel-{number}"), spec)
    });
    let templates = (0..TEMPLATES).map(|number| {
        let spec = json!({
            "routing": {"channels": [{"name": format!("channel-{}", number % CHANNELS)}]},
            "content": {"email": {"subject": "{{ title }}", "html": "<h1>{{ title }}</h1>"}},
            "parameters": {"type": "object", "properties": {"title": {"type": "string"}}},
        });
        one("NotificationTemplate", format!("template-{number}"), spec)
    });
    let groups = (0..GROUPS).map(|number| {
        let address = format!("person-{number}@{namespace}.example");
        let spec = json!({"members": [{"address": {"email": address}}]});
        one("RecipientGroup", format!("group-{number}"), spec)
    });
    let schedules = (0..SCHEDULES).map(|number| {
        // Not on a day on which anybody runs this.
        let spec = json!({
            "schedule": "0 0 29 2 *", "template": format!("template-{number}"),
            "recipients": [{"group": format!("group-{number}")}], "parameters": {"title": "a leap year"},
        });
        one("Schedule", format!("schedule-{number}"), spec)
    });
    channels
        .chain(templates)
        .chain(groups)
        .chain(schedules)
        .collect()
}

/// How many are ready as they were declared last, and one that is not.
async fn ready(client: &Client) -> anyhow::Result<(usize, String)> {
    let mut count = 0;
    let mut example = "not there yet".to_owned();
    for kind in Kind::ALL {
        let known = GroupVersionKind::gvk("herald.dev", "v1alpha1", kind.as_str());
        let resource = ApiResource::from_gvk_with_plural(&known, kind.plural());
        let all: KubeApi<DynamicObject> = KubeApi::all_with(client.clone(), &resource);
        for one in all.list(&ListParams::default()).await?.items {
            let namespace = one.metadata.namespace.as_deref().unwrap_or_default();
            if !namespace.starts_with("size-") {
                continue;
            }
            let (name, declared) = (one.metadata.name.as_deref(), one.metadata.generation);
            let status = &one.data["status"];
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            if status["observedGeneration"].as_i64() == declared
                && ready.any(|condition| condition["status"] == "True")
            {
                count += 1;
            } else {
                let name = name.unwrap_or_default();
                example = format!("{} {namespace}/{name}: {status}", kind.as_str());
            }
        }
    }
    Ok((count, example))
}

/// In so long a time nobody changes anything, and the operator writes nothing.
async fn nothing_is_written(
    stage: &Stage,
    operators: &[Operator],
    quiet: Duration,
) -> anyhow::Result<()> {
    let before = settled(operators).await?;
    let asked = changes(stage)?;
    ensure!(
        before > 0 && asked.len() >= ALL,
        "nobody counts what the operator writes: {before} times, {} calls",
        asked.len()
    );
    tokio::time::sleep(quiet).await;
    let after = writes(operators).await?;
    let meanwhile = changes(stage)?.split_off(asked.len());
    ensure!(
        before == after && meanwhile.is_empty(),
        "in {quiet:?} in which nothing was changed the operator's writes went from {before} to {after}: {meanwhile:?}",
    );
    Ok(())
}

/// How long a change of a template takes until it is seen.
async fn change(stage: &Stage, template: usize) -> anyhow::Result<Duration> {
    let team = stage.team(&namespace(0))?;
    let template = &*format!("notificationtemplate/template-{template}");
    let patch = r#"{"spec": {"description": "changed"}}"#;
    team.kubectl(&["patch", template, "--type", "merge", "--patch", patch])?;
    let begin = Instant::now();
    loop {
        let found = herald::look(&stage.client, &namespace(0), template).await?;
        if herald::is(&found, "Ready", "True") {
            return Ok(begin.elapsed());
        }
        ensure!(begin.elapsed() < PATIENCE, "a change was never seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How long it takes to make the same topics without Herald.
async fn raw(stage: &Stage) -> anyhow::Result<Duration> {
    const TENANT: &str = "raw";
    let admin: PulsarAdmin = stage.environment.pulsar()?.admin()?;
    let clusters = admin.clusters().await?;
    admin.create_tenant(TENANT, &clusters).await?;
    let names: Vec<_> = (0..NAMESPACES)
        .flat_map(|at| (0..CHANNELS).map(move |number| format!("size-{at}/channel-{number}")))
        .collect();
    let begin = Instant::now();
    let horizon = Duration::from_mins(15);
    let (admin, clusters) = (&admin, &*clusters);
    futures::stream::iter(names)
        .map(|name| async move {
            let made = admin.provide_channel(TENANT, clusters, &name, 1, horizon, Some("raw"));
            made.await
        })
        .buffer_unordered(RAW_AT_A_TIME)
        .try_collect::<()>()
        .await?;
    Ok(begin.elapsed())
}

/// A pod of the operator.
struct Operator {
    /// Where it says what it counts.
    probes: Api,
    /// Its name.
    pod: String,
}

async fn operators(stage: &mut Stage) -> anyhow::Result<Vec<Operator>> {
    let pods = stage.running(Who::Operator, &[]).await?;
    let kubernetes = stage.environment.kubernetes_mut()?;
    pods.into_iter()
        .map(|pod| {
            let address = kubernetes.reach(&format!("{}:9090", pod.address))?;
            Ok(Operator {
                probes: Api::new(address.port())?,
                pod: pod.name,
            })
        })
        .collect()
}

/// How often the operators have written anything anywhere, Leases left out.
async fn writes(operators: &[Operator]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for operator in operators {
        let counted = operator.probes.metrics().await?;
        for name in [
            "herald_operator_writes_total",
            "herald_operator_pulsar_writes_total",
        ] {
            // A counter has no fractions.
            sum += counted.get(name).copied().unwrap_or_default() as u64;
        }
    }
    Ok(sum)
}

/// What the API server was asked to change by operators, Leases left out.
fn changes(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let operator = rights::account("operator");
    let calls = judged::calls(&stage.kubernetes()?.audited()?)?;
    let changes = calls
        .iter()
        .filter(|call| call.account == operator && call.changes());
    Ok(changes.map(ToString::to_string).collect())
}

/// The same, once what went before is over.
async fn settled(operators: &[Operator]) -> anyhow::Result<u64> {
    let begin = Instant::now();
    loop {
        let before = writes(operators).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        if writes(operators).await? == before {
            return Ok(before);
        }
        ensure!(begin.elapsed() < PATIENCE, "the operator writes on and on");
    }
}

/// The most that one of them ever had in memory, in bytes. They run on this machine, as everything in the cluster.
fn memory(operators: &[Operator]) -> anyhow::Result<u64> {
    let mut most = 0;
    let mut found = 0;
    for entry in fs::read_dir("/proc").context("cannot list processes")? {
        let process = entry.context("cannot list processes")?.path();
        // One that ends meanwhile is none of ours.
        let Ok(environment) = fs::read(process.join("environ")) else {
            continue;
        };
        let is_one = |operator: &Operator| {
            let name = format!("HERALD_POD={}", operator.pod);
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == name.as_bytes())
        };
        if !operators.iter().any(is_one) {
            continue;
        }
        let status = fs::read_to_string(process.join("status")).context("an operator ended")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
        let kibibytes: u64 = kibibytes.context("a process without memory")?.parse()?;
        most = most.max(kibibytes << 10);
        found += 1;
    }
    ensure!(
        found == operators.len(),
        "{found} of {} operators run here",
        operators.len()
    );
    Ok(most)
}
