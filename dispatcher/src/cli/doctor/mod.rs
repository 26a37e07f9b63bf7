//! `herald doctor`: what is wrong with Herald in a cluster, and why.
//!
//! - This file: the examination, and how it reads. `permissions`: what gateways and the operator must be allowed. [`pulsar`]:
//!   the brokers, and who may use them. `pods`: what runs.
//! - `bundle`: all of it in a folder, for those who help, without what is secret.

mod bundle;
mod permissions;
mod pods;
mod pulsar;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use herald_crds::{Channel, Kind, NotificationTemplate, RecipientGroup, Schedule};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::permissions::Who;
use super::{BAD, BOLD, CliError, DIM, GOOD, count, harmless, paint};
use crate::catalog::Catalog as _;
use crate::catalog::kubernetes::KubernetesCatalog;
use crate::cluster::{self, Cluster};

/// What its help says.
pub(super) const HELP: &str = "\
Says what is wrong with Herald in a cluster, and why: versions, what gateways and the operator must be allowed and are \
not, in Kubernetes and in Pulsar, which resources are not Ready or would not come into force. It asks as whoever runs it: in a pod as its \
ServiceAccount, else as your kubeconfig says; that one should have herald-viewer, and may list namespaces. It changes \
nothing, and reads no Secret. Ends with 1 if something is wrong.\n\n\
With --bundle, what was found is also written to a folder, with the resources, events and pods that matter, for \
whoever helps you. URLs, header fields, addresses and parameters are left out.\n\n\
Examples:
  herald doctor
  kubectl exec deploy/herald-gateway -- herald doctor --gateway
  kubectl exec deploy/herald-operator -- herald doctor --operator
  herald doctor --watch-namespaces shop --bundle herald-report";

/// How long any question may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Most resources of a kind that are looked at.
const MOST: u32 = 5_000;

/// Most events and pods of a namespace.
const MOST_BESIDE: u32 = 1_000;

/// Says what is wrong with Herald in a cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The namespaces whose resources count [default: all]
    #[arg(
        long,
        env = "HERALD_WATCH_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    watch_namespaces: Vec<String>,
    /// Ask for what a gateway must be allowed, too: to be run in the pod of one.
    #[arg(long)]
    gateway: bool,
    /// Ask for what the operator must be allowed, too: to be run in the pod of one.
    #[arg(long, conflicts_with = "gateway")]
    operator: bool,
    /// What the operator speaks to: of `embedded` it makes nothing, and needs less.
    #[arg(long, env = "HERALD_BROKER", value_name = "BROKER", hide = true)]
    broker: Option<String>,
    /// Where a gateway listens: asked for its version.
    #[arg(long, env = "HERALD_URL", value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    pulsar: pulsar::Place,
    /// Write all of it to this folder, too.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    Bad,
    /// Not looked at, or neither.
    Neither,
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    state: State,
    text: String,
}

impl Found {
    fn good(text: impl Into<String>) -> Self {
        Self::new(State::Good, text)
    }

    fn bad(text: impl Into<String>) -> Self {
        Self::new(State::Bad, text)
    }

    fn neither(text: impl Into<String>) -> Self {
        Self::new(State::Neither, text)
    }

    fn new(state: State, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { state, text }
    }
}

/// What was found out about things of one sort.
#[derive(Debug)]
struct Section {
    title: &'static str,
    found: Vec<Found>,
}

/// Looks at everything, and writes what it found to `out`.
pub(super) async fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let cluster = Cluster::connect(cluster::Options::default()).await;
    let cluster = cluster.map_err(CliError::Connect)?;
    examine(cluster.client(), args, out).await
}

async fn examine(client: &Client, args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let Args {
        watch_namespaces: namespaces,
        gateway,
        operator,
        broker,
        server,
        pulsar,
        bundle,
    } = args;
    let resources = Resources::list(client, &namespaces).await;
    let who = match (gateway, operator) {
        (true, _) => Some(Who::Gateway),
        (_, true) if broker.as_deref() == Some("embedded") => Some(Who::OperatorOfOnePod),
        (_, true) => Some(Who::Operator),
        _ => None,
    };
    let sections = [
        Section {
            title: "Versions",
            found: versions(client, server.as_deref()).await,
        },
        Section {
            title: "What runs",
            found: match who {
                // It may not list pods.
                Some(Who::Gateway) => vec![Found::neither("not looked at in the pod of a gateway")],
                _ => pods::check(client, &namespaces).await,
            },
        },
        Section {
            title: "What must be allowed",
            found: match who {
                Some(who) => permissions::check(client, who, &namespaces).await,
                None => vec![Found::neither(
                    "not looked at: --gateway asks in the pod of a gateway, --operator in that of an operator",
                )],
            },
        },
        Section {
            title: "Pulsar",
            found: pulsar::check(&pulsar, client, &resources.namespaces()).await,
        },
        Section {
            title: "Resources",
            found: resources.check(),
        },
        Section {
            title: "What is declared, as a gateway sees it",
            found: declared(client, &namespaces).await,
        },
    ];
    let report = report(&sections);
    out.write_all(report.as_bytes()).map_err(CliError::Print)?;
    if let Some(folder) = bundle {
        bundle::write(&folder, &report, &resources, client, &namespaces).await?;
        let told = format!("written to {}", harmless(&folder.display().to_string()));
        writeln!(out, "{}", paint(DIM, &told)).map_err(CliError::Print)?;
    }
    let is_bad = |section: &Section| section.found.iter().any(|found| found.state == State::Bad);
    Ok(ExitCode::from(u8::from(sections.iter().any(is_bad))))
}

fn report(sections: &[Section]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for Section { title, found } in sections {
        let _ = writeln!(text, "{}", paint(BOLD, title));
        for Found { state, text: said } in found {
            let mark = match state {
                State::Good => paint(GOOD, "ok "),
                State::Bad => paint(BAD, "BAD"),
                State::Neither => paint(DIM, " - "),
            };
            let said = harmless(said).replace('\n', "\n      ");
            let _ = writeln!(text, "  {mark} {said}");
        }
    }
    text
}

async fn versions(client: &Client, server: Option<&str>) -> Vec<Found> {
    let mut found = vec![Found::good(concat!(
        "this program ",
        env!("CARGO_PKG_VERSION")
    ))];
    found.push(match in_time(client.apiserver_version()).await {
        Ok(version) => Found::good(format!("Kubernetes {}", version.git_version)),
        Err(reason) => Found::bad(format!("the API server does not say its version: {reason}")),
    });
    if let Some(server) = server {
        found.push(match gateway_version(server).await {
            Ok(version) if version == env!("CARGO_PKG_VERSION") => {
                Found::good(format!("gateway {version}"))
            }
            Ok(version) => Found::neither(format!(
                "gateway {version}: another version than this program's"
            )),
            Err(error) => Found::bad(format!("the gateway at {server} does not answer: {error}")),
        });
    }
    found
}

async fn gateway_version(server: &str) -> reqwest::Result<String> {
    let client = reqwest::Client::builder().timeout(ANSWER).build()?;
    let url = format!("{}/openapi.json", server.trim_end_matches('/'));
    let answer = client.get(url).send().await?.error_for_status()?;
    let described: Value = answer.json().await?;
    let version = described["info"]["version"].as_str().unwrap_or("unknown");
    Ok(version.to_owned())
}

/// What a question answers, or why it does not.
async fn in_time<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

/// Every resource there is, by kind; or why they cannot be listed.
struct Resources(Vec<(Kind, Result<Vec<DynamicObject>, String>)>);

impl Resources {
    async fn list(client: &Client, namespaces: &[String]) -> Self {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            all.push((kind, list(client, kind, namespaces).await));
        }
        Self(all)
    }

    /// The namespaces with Channels.
    fn namespaces(&self) -> BTreeSet<String> {
        let channels = self.0.iter().filter(|(kind, _)| *kind == Kind::Channel);
        let channels = channels.filter_map(|(_, listed)| listed.as_ref().ok());
        channels
            .flatten()
            .filter_map(kube::ResourceExt::namespace)
            .collect()
    }

    /// Which are not Ready, and why.
    fn check(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (kind, listed) in &self.0 {
            match listed {
                Ok(resources) => {
                    let not_ready: Vec<_> = resources.iter().filter_map(not_ready).collect();
                    let ready = count(resources.len() - not_ready.len(), "resource");
                    found.push(Found::good(format!("{kind}: {ready} ready")));
                    found.extend(
                        not_ready
                            .into_iter()
                            .map(|why| Found::bad(format!("{kind} {why}"))),
                    );
                }
                Err(reason) => found.push(Found::bad(format!(
                    "{} cannot be listed: {reason}; are the CRDs of the chart installed?",
                    kind.plural()
                ))),
            }
        }
        found
    }
}

async fn list(
    client: &Client,
    kind: Kind,
    namespaces: &[String],
) -> Result<Vec<DynamicObject>, String> {
    let resource = match kind {
        Kind::Channel => ApiResource::erase::<Channel>(&()),
        Kind::NotificationTemplate => ApiResource::erase::<NotificationTemplate>(&()),
        Kind::RecipientGroup => ApiResource::erase::<RecipientGroup>(&()),
        Kind::Schedule => ApiResource::erase::<Schedule>(&()),
    };
    let bounded = ListParams::default().limit(MOST);
    if namespaces.is_empty() {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        return Ok(in_time(api.list(&bounded)).await?.items);
    }
    let mut all = Vec::new();
    for namespace in namespaces {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        all.extend(in_time(api.list(&bounded)).await?.items);
    }
    Ok(all)
}

/// All objects of a kind in the namespaces that count.
async fn of_all<K>(
    client: &Client,
    namespaces: &[String],
    wanted: &ListParams,
) -> Result<Vec<K>, String>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    if namespaces.is_empty() {
        return Ok(in_time(Api::<K>::all(client.clone()).list(wanted))
            .await?
            .items);
    }
    let mut all = Vec::new();
    for namespace in namespaces {
        let api: Api<K> = Api::namespaced(client.clone(), namespace);
        all.extend(in_time(api.list(wanted)).await?.items);
    }
    Ok(all)
}

/// Its full name and why it is not Ready; `None`: it is.
fn not_ready(resource: &DynamicObject) -> Option<String> {
    let name = format!(
        "{}/{}",
        resource.namespace().unwrap_or_default(),
        resource.name_any()
    );
    let status = &resource.data["status"];
    let conditions = status["conditions"].as_array();
    let of = |kind: &str| conditions.into_iter().flatten().find(|c| c["type"] == kind);
    let text =
        |condition: &Value, member: &str| condition[member].as_str().unwrap_or("").to_owned();
    let Some(ready) = of("Ready") else {
        return Some(format!(
            "{name}: the operator has not looked at it: is it running?"
        ));
    };
    let seen = status["observedGeneration"].as_i64();
    if seen.is_some() && seen < resource.metadata.generation {
        return Some(format!(
            "{name}: the operator has not looked at its last change yet"
        ));
    }
    if ready["status"] == "True" {
        return None;
    }
    let stalled = of("Stalled").filter(|condition| condition["status"] == "True");
    let condition = stalled.unwrap_or(ready);
    let (reason, message) = (text(condition, "reason"), text(condition, "message"));
    let what = if stalled.is_some() {
        "Stalled, an edit must cure it"
    } else {
        "not Ready"
    };
    Some(format!("{name} is {what}: {reason}: {message}"))
}

/// What a gateway would not put in force, and why.
async fn declared(client: &Client, namespaces: &[String]) -> Vec<Found> {
    let catalog = KubernetesCatalog::watch(client, namespaces);
    if tokio::time::timeout(ANSWER, catalog.listed())
        .await
        .is_err()
    {
        return vec![Found::bad("it cannot be listed: see above")];
    }
    let snapshot = catalog.current();
    let in_force = [
        count(snapshot.channels.len(), "channel"),
        count(snapshot.templates.len(), "template"),
        count(snapshot.groups.len(), "group"),
        count(snapshot.schedules.len(), "schedule"),
    ];
    let mut found = vec![Found::good(format!("{} in force", in_force.join(", ")))];
    found.extend(snapshot.problems.iter().map(|problem| {
        Found::bad(format!(
            "{} {}: {}",
            problem.resource, problem.path, problem.message
        ))
    }));
    found
}
