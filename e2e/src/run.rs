//! `run NAME` and `list`: the scenarios, what they are told, and the order in their wake.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

#[cfg(feature = "kubernetes")]
use crate::kubernetes;
use crate::{embedded, faults, image, scaling, servers, soak};

/// What a scenario can be told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Which one.
    pub scenario: Scenario,
    /// Only this part of it, where it has several with names; several with commas between.
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// A smaller size, for every run of the tests.
    #[arg(long)]
    pub small: bool,
    /// Repeat a run: what is sent to whom, and after how much progress the server is killed. Random unless given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keep the folder with the logs and all that arrived even if it went well.
    #[arg(long)]
    pub keep: bool,
}

/// What can be run.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Scenario {
    /// Thousands of people, four priorities, real mail and HTTP servers, SIGKILL on the way: nothing lost, nothing twice without reason
    Embedded,
    /// What a process meets: a port taken, a second one, a folder or a disk it cannot write to, SIGTERM, secrets in logs
    Faults,
    /// Two gateways and three pods over Pulsar and PostgreSQL; each of the four is killed again and again: nothing lost
    Soak,
    /// What a cluster's servers meet: wrong settings, tokens that expire, a broker or a database that is away, full or too new, garbage, pods that hang
    Servers,
    /// A real Kubernetes: the resources' definitions, who pods are to Pulsar, an image and a pod of it
    #[cfg(feature = "kubernetes")]
    Kubernetes,
    /// The container image, built from Debian's packages alone, looked into, and run
    Image,
    /// A Channel's pods from one to four and back under load: the pause, the rate, the order
    Scaling,
}

/// Says what can be run.
pub fn list() {
    for scenario in Scenario::value_variants() {
        if let Some(value) = scenario.to_possible_value() {
            let help = value.get_help().map(ToString::to_string);
            println!("{:<10} {}", value.get_name(), help.unwrap_or_default());
        }
    }
}

/// Runs it, in a folder of its own, which is kept if it fails. Ends with everything it started gone, whatever happens.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("herald-e2e-")
        .tempdir()
        .context("cannot make a folder for the run")?;
    let outcome = tokio::select! {
        outcome = scenario(&options, folder.path()) => outcome,
        stopped = stopped() => stopped,
    };
    if options.keep || outcome.is_err() {
        let kept: PathBuf = folder.keep();
        eprintln!("kept for a look: {}", kept.display());
    }
    outcome
}

async fn scenario(options: &Options, folder: &Path) -> anyhow::Result<()> {
    match options.scenario {
        Scenario::Embedded => embedded::run(options, folder).await,
        Scenario::Faults => faults::run(folder).await,
        #[cfg(feature = "kubernetes")]
        Scenario::Kubernetes => kubernetes::run(options, folder).await,
        Scenario::Image => image::run(folder).await,
        Scenario::Scaling => scaling::run(options, folder).await,
        Scenario::Servers => servers::run(options, folder).await,
        Scenario::Soak => soak::run(options, folder).await,
    }
}

/// Ends with an error once somebody asks this program to stop.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot listen for Ctrl-C")?,
        _ = terminate.recv() => {}
    }
    bail!("stopped before its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_testing_tells_of_every_scenario() {
        let page = herald_e2e::process::repository().join("docs/testing.md");
        let page = std::fs::read_to_string(page).unwrap();
        for scenario in Scenario::value_variants() {
            let name = scenario.to_possible_value().unwrap();
            let name = name.get_name();
            assert!(
                page.contains(&format!("| `{name}` |")) || page.contains(&format!("run {name}`")),
                "{name}"
            );
        }
    }
}
