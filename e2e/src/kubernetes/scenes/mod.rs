//! Scenes: what needs a cluster of its own, with nothing beside it, where Herald is as `values-dev.yaml` has it.
//!
//! [`quickstart`]: the tutorial, word for word. [`renderings`]: whatever the chart can be made to say. [`argocd`]: Herald and
//! a team's resources from Git.

mod argocd;
mod quickstart;
mod renderings;
mod repository;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use herald_e2e::environment::{self, Cluster, Environment, Kubernetes};
use herald_e2e::process;
use serde_json::Value;

use super::{Shown, herald, namespace};

/// What pods call the image by the values for looking around.
const IMAGE: &str = "localhost/herald:dev";

/// A scene.
pub struct Scene {
    /// What it is chosen by.
    pub name: &'static str,
    cluster: Cluster,
    /// What is looked at if it fails.
    namespaces: &'static [&'static str],
    play: for<'a> fn(&'a mut Set) -> Shown<'a>,
}

/// In this order.
pub const SCENES: &[Scene] = &[
    Scene {
        name: "quickstart",
        cluster: Cluster::Kubernetes,
        namespaces: &["hello", "shop"],
        play: |set| Box::pin(quickstart::play(set)),
    },
    Scene {
        name: "renderings",
        cluster: Cluster::Kubernetes,
        namespaces: &["herald"],
        play: |set| Box::pin(std::future::ready(renderings::play(set))),
    },
    Scene {
        name: "argocd",
        cluster: Cluster::WithArgoCd,
        namespaces: &["argocd", "herald", "shop"],
        play: |set| Box::pin(argocd::play(set)),
    },
];

impl Scene {
    /// Plays it in a cluster that comes and goes with it. Answers what was shown.
    pub async fn run(&self, folder: &Path) -> anyhow::Result<String> {
        let folder = folder.join(self.name);
        fs::create_dir(&folder).context("cannot make the scene's folder")?;
        let options = environment::Options {
            pulsar: false,
            postgres: false,
            cluster: self.cluster,
            ..environment::Options::default()
        };
        let environment = Environment::start_own(&options).await?;
        let mut set = Set {
            environment,
            folder,
        };
        let shown = (self.play)(&mut set).await;
        if shown.is_err() {
            set.look(self.namespaces)?;
        }
        shown
    }
}

/// Where a scene is played.
struct Set {
    environment: Environment,
    /// Kept if the run fails.
    folder: PathBuf,
}

impl Set {
    fn kubernetes(&self) -> anyhow::Result<&Kubernetes> {
        self.environment.kubernetes()
    }

    /// Makes the image known to the cluster that the values for looking around name.
    fn load(&self) -> anyhow::Result<()> {
        herald::load_as(self.kubernetes()?, &self.folder, IMAGE)
    }

    /// What the API server has of something in a namespace.
    fn get(&self, namespace: &str, what: &str) -> anyhow::Result<Value> {
        let arguments = ["get", what, "--namespace", namespace, "--output", "json"];
        let text = self.kubernetes()?.kubectl(&arguments)?;
        serde_json::from_str(&text).with_context(|| format!("{what} is no JSON"))
    }

    /// Writes down what a failure may be understood by.
    fn look(&self, namespaces: &[&str]) -> anyhow::Result<()> {
        for name in namespaces {
            namespace::look(self.kubernetes()?, &self.folder, name)?;
        }
        for entry in fs::read_dir(self.environment.folder())?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let copy = self.folder.join(entry.file_name());
                fs::copy(&path, copy).with_context(|| format!("cannot copy {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Where the documentation is.
fn docs() -> PathBuf {
    process::repository().join("docs")
}
