//! What is deleted goes, in whatever order, and with its namespace, while deliveries wait: nothing stands in the way.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use herald_crds::names;
use herald_operator::pulsar_admin::TopicName;
use serde_json::json;

use super::Stage;
use super::herald::{TENANT, Team, to_people, until_some};
use super::namespace::with_namespace;
use super::samples::arrived;

/// To how many each notification goes, at one in five seconds: the most of it waits.
const PEOPLE: usize = 20;

/// The four kinds.
const KINDS: [&str; 4] = [
    "channel",
    "notificationtemplate",
    "recipientgroup",
    "schedule",
];

/// In which orders they are deleted while deliveries wait.
const ORDERS: [[&str; 4]; 3] = [
    [
        "channel",
        "notificationtemplate",
        "recipientgroup",
        "schedule",
    ],
    [
        "schedule",
        "recipientgroup",
        "notificationtemplate",
        "channel",
    ],
    [
        "recipientgroup",
        "channel",
        "schedule",
        "notificationtemplate",
    ],
];

/// What is made for a Channel.
const CHILDREN: &str =
    "deployments,pods,poddisruptionbudgets,networkpolicies,serviceaccounts,configmaps";

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    let waiting = with_namespace(stage, "deletion", async |_, namespace| {
        let team = stage.team(&namespace)?;
        let mut ended = 0;
        for order in ORDERS {
            ended += in_order(stage, &team, order)
                .await
                .with_context(|| order.join(", "))?;
        }
        let took = with_everything(stage, &team).await?;
        in_the_next(stage, &namespace).await?;
        Ok(format!(
            "in {} orders {ended} deliveries that waited ended as failed; their namespace was gone in {took:.0} s, with its \
             pods, and of topics what was to go; one of the same name was stalled till it took over the rest",
            ORDERS.len()
        ))
    });
    let every = with_namespace(stage, "orders", async |_, namespace| {
        let orders = in_every_order(stage, &stage.team(&namespace)?).await?;
        Ok(format!("each was gone in {orders} orders"))
    });
    let (every, waiting) = futures::try_join!(every, waiting)?;
    Ok(format!("{every}; {waiting}"))
}

/// The four kinds, two Channels among them: the topics of one go with it, the other's stay. Something waits in both.
async fn declare(stage: &Stage, team: &Team<'_>, key: &str) -> anyhow::Result<[String; 2]> {
    let channel = |name: &str, policy: &str| {
        let mut channel = team.mail(name);
        channel["spec"]["rateLimit"] = json!({"count": 1, "perSeconds": 5});
        channel["spec"]["topics"] = json!({"deletionPolicy": policy});
        channel
    };
    let readers = json!({"members": [{"address": {"email": "reader@people.example"}}]});
    let weekly = json!({
        "schedule": "0 9 * * MON", "template": "brief", "recipients": [{"group": "readers"}],
        "serviceAccountName": "sender",
    });
    team.apply(&[
        channel("brief", "Delete"),
        channel("lasting", "Keep"),
        team.template("brief", "brief", &["brief"]),
        team.template("lasting", "lasting", &["lasting"]),
        team.resource("RecipientGroup", "readers", readers),
        team.resource("Schedule", "weekly", weekly),
    ])?;
    let named = [
        "channel/brief",
        "channel/lasting",
        "notificationtemplate/brief",
    ];
    for what in named.into_iter().chain([
        "notificationtemplate/lasting",
        "recipientgroup/readers",
        "schedule/weekly",
    ]) {
        team.ready(what).await?;
    }
    let mut ids = Vec::new();
    for template in ["brief", "lasting"] {
        let key = format!("{key}-{template}");
        let id = team.send(&key, &to_people(template, PEOPLE)).await?;
        until_some("the first mail", async || {
            Ok((arrived(&stage.mail, team, &id).await? > 0).then_some(()))
        })
        .await?;
        ids.push(id);
    }
    ids.try_into().ok().context("there are two")
}

/// Deletes kind after kind, and looks what is left. Answers how many deliveries ended as failed.
async fn in_order(stage: &Stage, team: &Team<'_>, order: [&str; 4]) -> anyhow::Result<usize> {
    let ids = declare(stage, team, &order.join("-")).await?;
    for kind in order {
        team.kubectl(&["delete", kind, "--all", "--wait=false"])?;
        gone(team, &[kind]).await.with_context(|| kind.to_owned())?;
    }
    until_some("an end of what was made for Channels", async || {
        let left = ["get", CHILDREN, "--selector", names::CHILDREN_SELECTOR];
        let left = team.kubectl(&[&left[..], &["--output", "name"]].concat())?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await?;
    topics(stage, &team.namespace).await?;
    let mut failed = 0;
    for id in &ids {
        let ended = team.ended(id).await?;
        let count = |state: &str| ended["counts"][state].as_u64().unwrap_or(0) as usize;
        ensure!(
            count("sent") + count("failed") == PEOPLE && count("failed") > 0,
            "of {PEOPLE}: {}",
            ended["counts"]
        );
        let failures = team.deliveries(id).await?;
        let mut failures = failures.iter().filter(|one| one["state"] == "failed");
        ensure!(
            failures.all(|one| one["reason"] == "channel-deleted"),
            "they failed for another reason than that their Channel was deleted"
        );
        failed += count("failed");
    }
    Ok(failed)
}

/// The four kinds once for each order there is, and each is deleted in another: all that comes first at the same time, then
/// what comes second. Answers how many orders these are.
async fn in_every_order(stage: &Stage, team: &Team<'_>) -> anyhow::Result<usize> {
    let orders = orders();
    let mut declared = Vec::new();
    for number in 0..orders.len() {
        let name = format!("set-{number}");
        let mut channel = team.mail(&name);
        channel["spec"]["topics"] = json!({"deletionPolicy": "Delete"});
        // It has topics and no pods.
        channel["spec"]["suspend"] = true.into();
        let members = json!({"members": [{"address": {"email": "reader@people.example"}}]});
        let weekly = json!({
            "schedule": "0 9 * * MON", "template": name, "recipients": [{"group": name}],
            "serviceAccountName": "sender",
        });
        declared.extend([
            channel,
            team.template(&name, "brief", &[&name]),
            team.resource("RecipientGroup", &name, members),
            team.resource("Schedule", &name, weekly),
        ]);
    }
    team.apply(&declared)?;
    for kind in KINDS {
        for number in 0..orders.len() {
            team.ready(&format!("{kind}/set-{number}")).await?;
        }
    }
    for step in 0..KINDS.len() {
        let named = orders.iter().enumerate();
        let named = named.map(|(number, order)| format!("{}/set-{number}", order[step]));
        let named: Vec<_> = named.collect();
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        team.kubectl(&[&["delete", "--wait=false"], &*named].concat())?;
        let gone = gone(team, &named).await;
        gone.with_context(|| format!("step {step} of every order"))?;
    }
    let admin = stage.environment.pulsar()?.admin()?;
    let there = admin
        .topics(&format!("{TENANT}/{}", team.namespace))
        .await?;
    let left: Vec<_> = (0..orders.len())
        .flat_map(|number| names::of(&format!("{}/set-{number}", team.namespace)))
        .filter(|topic| there.iter().any(|name| name == topic.name()))
        .collect();
    ensure!(left.is_empty(), "still there: {left:?}");
    Ok(orders.len())
}

/// Every order of the four kinds.
fn orders() -> Vec<[&'static str; 4]> {
    let mut orders = Vec::new();
    for first in KINDS {
        for second in KINDS {
            for third in KINDS {
                for fourth in KINDS {
                    let order = [first, second, third, fourth];
                    if KINDS.iter().all(|kind| order.contains(kind)) {
                        orders.push(order);
                    }
                }
            }
        }
    }
    orders
}

/// Waits until nothing of this is there any more, without being in the way of what else runs.
async fn gone(team: &Team<'_>, what: &[&str]) -> anyhow::Result<()> {
    let asked = ["get", "--ignore-not-found", "--output", "name"];
    let asked = [&asked[..], what].concat();
    until_some("an end of what was deleted", async || {
        let left = team.kubectl(&asked)?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await
}

/// Of the Channel that was to take its topics with it there are none, and nobody may use them; the other's are all there,
/// and its pods, if it comes again, may use them.
async fn topics(stage: &Stage, namespace: &str) -> anyhow::Result<()> {
    let admin = stage.environment.pulsar()?.admin()?;
    let there = admin.topics(&format!("{TENANT}/{namespace}")).await?;
    let role = |channel: &str| {
        let account = names::child(channel);
        format!("system:serviceaccount:{namespace}:{account}")
    };
    for topic in names::of(&format!("{namespace}/brief")) {
        ensure!(
            !there.iter().any(|name| name == topic.name()),
            "{topic} is still there"
        );
    }
    // What may be done with a topic goes with it; in the whole namespace a pod may do nothing.
    let may = admin.permissions(&format!("{TENANT}/{namespace}")).await?;
    ensure!(
        !may.contains_key(&role("brief")) && !may.contains_key(&role("lasting")),
        "what may be done in the whole namespace: {may:?}"
    );
    for topic in names::of(&format!("{namespace}/lasting")) {
        ensure!(
            there.iter().any(|name| name == topic.name()),
            "{topic} is gone"
        );
        let name = TopicName::new(TENANT, &topic);
        let may = admin.topic_permissions(&name).await?;
        ensure!(
            may.contains_key(&role("lasting")),
            "what may be done with {topic}: {may:?}"
        );
    }
    Ok(())
}

/// Deletes the namespace, with everything in it. Answers how many seconds it took.
async fn with_everything(stage: &Stage, team: &Team<'_>) -> anyhow::Result<f64> {
    declare(stage, team, "namespace").await?;
    let begin = Instant::now();
    let kubernetes = stage.kubernetes()?;
    let own = format!("namespace/{}", team.namespace);
    kubernetes.kubectl(&["delete", &own, "--wait=false"])?;
    gone(team, &[&own]).await?;
    let took = begin.elapsed().as_secs_f64();
    topics(stage, &team.namespace).await?;
    Ok(took)
}

/// What stayed in Pulsar belongs to the namespace that is gone: one of the same name has it when it says so.
async fn in_the_next(stage: &Stage, namespace: &str) -> anyhow::Result<()> {
    stage
        .kubernetes()?
        .kubectl(&["create", "namespace", namespace])?;
    let team = stage.team(namespace)?;
    let mut channel = team.mail("lasting");
    team.apply(&[
        channel.clone(),
        team.template("lasting", "again", &["lasting"]),
    ])?;
    let why = team.stalled("channel/lasting").await?;
    ensure!(
        why.contains("belongs to an earlier namespace") && why.contains(names::ADOPT),
        "it is told: {why}"
    );
    channel["metadata"]["annotations"] = json!({names::ADOPT: "true"});
    team.apply(&[channel])?;
    team.ready("channel/lasting").await?;
    team.ready("notificationtemplate/lasting").await?;
    let id = team.send("again", &to_people("lasting", 2)).await?;
    team.ended(&id).await?;
    stage.mails(&team, &id, 2).await?;
    Ok(())
}
