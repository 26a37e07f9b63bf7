//! Herald in a real Kubernetes: what people apply, what becomes of it, and what happens when parts of it fail.
//!
//! - This file: the order. First the scenes, each in a cluster of its own ([`scenes`]); then what leaves the others alone, some parts at a time, each in namespaces of its own; then
//!   what everybody feels, one after the other.
//! - [`namespace`]: a namespace for a part, and what is in it for a look. [`crds`]: the resources' definitions.
//!   [`identity`]: who pods are to Pulsar. [`neighbours`]: what pods reach. [`herald`]: the chart, installed, and a team
//!   that uses it. [`samples`]: what the team declares becomes mail. [`definition`], [`secret`], [`stalled`], [`drift`],
//!   [`suspend`]: what becomes of it when that is changed, wrong, meddled with or suspended. [`columns`]: what is shown of
//!   it; [`table`]: how that is read. [`senders`]: who may do what. [`quotas`]: how fast. [`shared`]: a Channel of another
//!   namespace. [`scale`]: how many pods a Channel has.
//! - [`size`]: as much as anybody declares. [`servers`]: the cluster's own servers die.
//! - [`desk`]: who sends meanwhile, and which pods there are; [`load`]: what is sent, and that all of it arrived.
//!   [`kills`]: what Herald runs dies.
//!   [`leader`]: one operator leads.
//!   [`broker`]: Pulsar dies.
//!   [`due`]: a Schedule fires once.
//!   [`uninstall`]: Herald goes, and comes again.
//!   [`upgrade`]: from a frozen chart and back.
//!   [`apiserver`]: the API server is away.
//! - [`rights`]: what Herald asked of the API server in all of this, and that its chart allows that and nothing else.

mod apiserver;
mod broker;
mod columns;
mod crds;
mod declared;
mod definition;
mod deletion;
mod desk;
mod doctor;
mod drift;
mod due;
mod herald;
mod identity;
mod kills;
mod leader;
mod load;
mod namespace;
mod neighbours;
mod quotas;
mod restricted;
mod rights;
mod samples;
mod scale;
mod scenes;
mod secret;
mod senders;
mod servers;
mod shared;
mod size;
mod stalled;
mod suspend;
mod table;
mod uninstall;
mod upgrade;

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use herald_e2e::environment::{self, Cluster, Environment, Kubernetes};
use herald_e2e::process;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::run::Options;
use crate::server::Api;
use crate::sinks::MailSink;
use scenes::SCENES;

/// How many parts run at a time while none disturbs another: most of them wait for time to pass, most of the time.
const AT_A_TIME: usize = 4;

/// What a part is doing; in the end, in a line, what it has shown.
type Shown<'a> = Pin<Box<dyn Future<Output = anyhow::Result<String>> + 'a>>;

/// A part that leaves the others alone.
struct Part {
    name: &'static str,
    run: for<'a> fn(&'a Stage) -> Shown<'a>,
}

/// A part that everybody feels.
struct Upheaval {
    name: &'static str,
    run: for<'a> fn(&'a mut Stage) -> Shown<'a>,
}

/// In any order: those that wait for long begin first.
const PARTS: &[Part] = &[
    Part {
        name: "deletion",
        run: |stage| Box::pin(deletion::run(stage)),
    },
    Part {
        name: "crds",
        run: |stage| Box::pin(crds::run(stage)),
    },
    Part {
        name: "identity",
        run: |stage| Box::pin(identity::run(stage)),
    },
    Part {
        name: "neighbours",
        run: |stage| Box::pin(neighbours::run(stage)),
    },
    Part {
        name: "samples",
        run: |stage| Box::pin(samples::run(stage)),
    },
    Part {
        name: "scale",
        run: |stage| Box::pin(scale::run(stage)),
    },
    Part {
        name: "columns",
        run: |stage| Box::pin(columns::run(stage)),
    },
    Part {
        name: "suspend",
        run: |stage| Box::pin(suspend::run(stage)),
    },
    Part {
        name: "mutants",
        run: |stage| Box::pin(crds::mutants(stage)),
    },
    Part {
        name: "senders",
        run: |stage| Box::pin(senders::run(stage)),
    },
    Part {
        name: "definition",
        run: |stage| Box::pin(definition::run(stage)),
    },
    Part {
        name: "secret",
        run: |stage| Box::pin(secret::run(stage)),
    },
    Part {
        name: "stalled",
        run: |stage| Box::pin(stalled::run(stage)),
    },
    Part {
        name: "drift",
        run: |stage| Box::pin(drift::run(stage)),
    },
    Part {
        name: "shared",
        run: |stage| Box::pin(shared::run(stage)),
    },
    Part {
        name: "quotas",
        run: |stage| Box::pin(quotas::run(stage)),
    },
];

/// In this order.
const UPHEAVALS: &[Upheaval] = &[
    Upheaval {
        name: "doctor",
        run: |stage| Box::pin(doctor::run(stage)),
    },
    Upheaval {
        name: "size",
        run: |stage| Box::pin(size::run(stage)),
    },
    Upheaval {
        name: "kills",
        run: |stage| Box::pin(kills::run(stage)),
    },
    Upheaval {
        name: "servers",
        run: |stage| Box::pin(servers::run(stage)),
    },
    Upheaval {
        name: "apiserver",
        run: |stage| Box::pin(apiserver::run(stage)),
    },
    Upheaval {
        name: "broker",
        run: |stage| Box::pin(broker::run(stage)),
    },
    Upheaval {
        name: "leader",
        run: |stage| Box::pin(leader::run(stage)),
    },
    Upheaval {
        name: "schedule",
        run: |stage| Box::pin(due::run(stage)),
    },
    Upheaval {
        name: "restricted",
        run: |stage| Box::pin(restricted::run(stage)),
    },
    Upheaval {
        name: "uninstall",
        run: |stage| Box::pin(uninstall::run(stage)),
    },
    Upheaval {
        name: "upgrade",
        run: |stage| Box::pin(upgrade::run(stage)),
    },
];

/// When all else is over: it looks back, and uninstalls Herald.
const LAST: Part = Part {
    name: "rights",
    run: |stage| Box::pin(rights::run(stage)),
};

/// What the parts share.
struct Stage {
    environment: Environment,
    /// Of somebody who may do everything.
    client: Client,
    /// Herald's API.
    gateways: Api,
    /// What pods reach as `mail.neighbours:2525`.
    mail: MailSink,
    /// Kept if the run fails.
    folder: PathBuf,
    /// Whether nothing may take long.
    small: bool,
    begin: Instant,
}

impl Stage {
    async fn start(folder: &Path, begin: Instant, small: bool) -> anyhow::Result<Self> {
        let mut environment = Environment::start(&environment::Options {
            cluster: Cluster::Kubernetes,
            // Nothing that is shown here hangs on it.
            sync: false,
            ..environment::Options::default()
        })
        .await?;
        let client = client(environment.kubernetes()?).await?;
        say(begin, "up: Kubernetes, Pulsar, PostgreSQL");
        let mail = MailSink::beside(environment.kubernetes()?, folder, 2525)?;
        herald::install(&environment, folder).await?;
        let gateways = herald::gateways(environment.kubernetes_mut()?)?;
        let stage = Self {
            environment,
            client,
            gateways,
            mail,
            folder: folder.to_owned(),
            small,
            begin,
        };
        stage.say("Herald is installed");
        Ok(stage)
    }

    fn kubernetes(&self) -> anyhow::Result<&Kubernetes> {
        self.environment.kubernetes()
    }

    /// What the gateways and operators said until this part failed: later ones may take them away.
    fn keep_logs(&self, part: &str) -> anyhow::Result<()> {
        let whose = ["--selector", "app.kubernetes.io/part-of=herald", "--prefix"];
        let all = ["logs", "--namespace", herald::NAMESPACE, "--tail=-1"];
        let said = self
            .kubernetes()?
            .kubectl(&[&all[..], &whose[..]].concat())?;
        fs::write(self.folder.join(format!("{part}.log")), said).context("cannot keep the logs")
    }

    /// One line of what was shown.
    fn say(&self, words: &str) {
        say(self.begin, words);
    }

    /// Says how a part ended. Answers its name if not well.
    fn ended(&self, name: &'static str, shown: anyhow::Result<String>) -> Option<&'static str> {
        if shown.is_err()
            && let Err(error) = self.keep_logs(name)
        {
            self.say(&format!("{error:#}"));
        }
        ended(self.begin, name, shown)
    }
}

/// A client of the cluster that may do everything.
async fn client(kubernetes: &Kubernetes) -> anyhow::Result<Client> {
    let path = kubernetes.kubeconfig();
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(Client::try_from(config)?)
}

/// Runs all of them, or the one that is asked for. An error names those that were not as they have to be.
pub async fn run(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let wanted = |name: &str| {
        let only = options.only.as_deref();
        only.is_none_or(|only| only.split(',').any(|only| only == name))
    };
    let scenes = SCENES.iter().map(|scene| scene.name);
    let names: Vec<_> = scenes.chain(shared()).collect();
    ensure!(
        names.iter().any(|name| wanted(name)),
        "there is no such part: there are {}",
        names.join(", ")
    );
    process::need(&["python"])?;
    let begin = Instant::now();
    let mut failed = Vec::new();
    for scene in SCENES.iter().filter(|scene| wanted(scene.name)) {
        let shown = scene.run(folder).await;
        failed.extend(ended(begin, scene.name, shown));
    }
    if shared().any(wanted) {
        failed.extend(shared_stage(folder, begin, options.small, wanted).await?);
    }
    if !failed.is_empty() {
        bail!("not as it has to be: {}", failed.join(", "));
    }
    say(begin, "all as it has to be");
    Ok(())
}

/// What shares a stage, by name, in order.
fn shared() -> impl Iterator<Item = &'static str> {
    let parts = PARTS.iter().map(|part| part.name);
    parts
        .chain(UPHEAVALS.iter().map(|part| part.name))
        .chain([LAST.name])
}

/// Runs what shares a stage, of that what is wanted. Answers what failed.
async fn shared_stage(
    folder: &Path,
    begin: Instant,
    small: bool,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<&'static str>> {
    let stage = Arc::new(Stage::start(folder, begin, small).await?);
    let parts = PARTS.iter().filter(|part| wanted(part.name));
    let mut failed = at_a_time(&stage, parts).await;
    let mut stage = Arc::into_inner(stage).context("a part goes on")?;
    for part in UPHEAVALS.iter().filter(|part| wanted(part.name)) {
        let shown = (part.run)(&mut stage).await;
        if shown.is_err() {
            namespace::look(stage.kubernetes()?, folder, desk::NAME)?;
        }
        failed.extend(stage.ended(part.name, shown));
    }
    if wanted(LAST.name) {
        let shown = (LAST.run)(&stage).await;
        failed.extend(stage.ended(LAST.name, shown));
    }
    Ok(failed)
}

/// Runs parts, some at a time, each in a thread of its own, since `kubectl` blocks. Answers what failed.
async fn at_a_time(
    stage: &Arc<Stage>,
    parts: impl Iterator<Item = &'static Part>,
) -> Vec<&'static str> {
    let stop = CancellationToken::new();
    // If nobody waits for them any more, they end.
    let _stop = stop.clone().drop_guard();
    let parts = parts.map(|part| {
        let (stage, begin, stop) = (Arc::clone(stage), stage.begin, stop.clone());
        async move {
            let runtime = Handle::current();
            let run = move || {
                runtime.block_on(async {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => None,
                        shown = (part.run)(&stage) => stage.ended(part.name, shown),
                    }
                })
            };
            let failed = tokio::task::spawn_blocking(run).await;
            failed.unwrap_or_else(|panicked| ended(begin, part.name, Err(panicked.into())))
        }
    });
    let failed = futures::stream::iter(parts).buffer_unordered(AT_A_TIME);
    failed.filter_map(std::future::ready).collect().await
}

/// One line of what was shown.
fn say(begin: Instant, words: &str) {
    println!("{:>7.1} s  {words}", begin.elapsed().as_secs_f64());
}

/// Says how a part ended. Answers its name if not well.
fn ended(
    begin: Instant,
    name: &'static str,
    shown: anyhow::Result<String>,
) -> Option<&'static str> {
    match shown {
        Ok(words) => {
            say(begin, &format!("{name}: {words}"));
            None
        }
        Err(error) => {
            say(begin, &format!("{name} FAILED: {error:#}"));
            Some(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_testing_tells_of_every_part_and_of_no_other() {
        let page = process::repository().join("docs/testing.md");
        let page = fs::read_to_string(page).unwrap();
        let (_, told) = page.split_once("## In Kubernetes").unwrap();
        let (told, _) = told.split_once("\n## ").unwrap();
        let told = told.lines().filter_map(|line| line.strip_prefix("| `"));
        let told: Vec<_> = told
            .filter_map(|line| Some(line.split_once('`')?.0))
            .collect();
        let all = SCENES.iter().map(|scene| scene.name).chain(shared());
        assert_eq!(told, all.collect::<Vec<_>>());
    }
}
