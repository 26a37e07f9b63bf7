//! Real servers on this machine: Pulsar with authentication on, PostgreSQL, each on free ports of 127.0.0.1. With a
//! Kubernetes cluster they are beside it, in its network.
//!
//! `herald-e2e up` leaves them running for whoever comes; [`Environment::start`] uses these, or starts some that end
//! with this program, however it ends. Given ones are used instead with `HERALD_E2E_PULSAR_URL` (with
//! `HERALD_E2E_PULSAR_ADMIN_URL` and a superuser's `HERALD_E2E_PULSAR_TOKEN`) and `HERALD_E2E_DATABASE_URL`.

mod argocd;
mod group;
pub mod kubernetes;
mod place;
mod postgres;
mod pulsar;
mod token;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub use argocd::ArgoCd;
pub use kubernetes::Kubernetes;
pub use postgres::Postgres;
pub use pulsar::Pulsar;

use crate::process;
use place::Place;

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pulsar.
    pub pulsar: bool,
    /// PostgreSQL.
    pub postgres: bool,
    /// A Kubernetes cluster, with the others beside it.
    pub cluster: Cluster,
    /// Whether Pulsar's receipts and PostgreSQL's commits wait for the disk: where a crash or a figure is published.
    pub sync: bool,
    /// Further lines of Pulsar's configuration.
    pub broker: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pulsar: true,
            postgres: true,
            cluster: Cluster::None,
            sync: true,
            broker: Vec::new(),
        }
    }
}

/// Whether there is a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// None.
    None,
    /// Kubernetes.
    Kubernetes,
    /// Kubernetes, and Argo CD beside it.
    WithArgoCd,
}

/// The servers, and where they are.
#[derive(Debug, Serialize, Deserialize)]
pub struct Environment {
    /// What they keep, and their logs.
    folder: PathBuf,
    kubernetes: Option<Kubernetes>,
    argocd: Option<ArgoCd>,
    pulsar: Option<Pulsar>,
    postgres: Option<Postgres>,
    /// Whether they end with this value.
    #[serde(skip)]
    is_own: bool,
}

impl Environment {
    /// Those that `up` left running, if they are all there; else new ones that end with the value, or with this program.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        if let Some(running) = Self::running()?
            && (!options.pulsar || running.pulsar.is_some())
            && (!options.postgres || running.postgres.is_some())
            // Beside a cluster they are in its network.
            && (options.cluster != Cluster::None) == running.kubernetes.is_some()
            && (options.cluster != Cluster::WithArgoCd || running.argocd.is_some())
            && options.broker.is_empty()
        {
            return Ok(running);
        }
        Self::start_own(options).await
    }

    /// New ones, for whoever kills them: they end with the value, or with this program.
    pub async fn start_own(options: &Options) -> anyhow::Result<Self> {
        Self::begin(options, true).await
    }

    /// New ones that stay, unless there are some: `up`.
    pub async fn up(options: &Options) -> anyhow::Result<Self> {
        if let Some(running) = Self::running()? {
            return Ok(running);
        }
        // Half of one, or one that died, would be in the way.
        Self::down()?;
        let state = state()?;
        let mut environment = Self::begin(options, true).await?;
        environment.leave()?;
        let text = serde_json::to_vec_pretty(&environment)?;
        std::fs::write(&state, text)
            .with_context(|| format!("cannot write {}", state.display()))?;
        environment.is_own = false;
        Ok(environment)
    }

    /// Ends those that `up` left running, also when they, or it, died on the way. Answers whether there were any.
    pub fn down() -> anyhow::Result<bool> {
        let state = state()?;
        let Some(mut environment) = Self::read(&state)? else {
            return Ok(false);
        };
        environment.end();
        std::fs::remove_file(&state)
            .with_context(|| format!("cannot remove {}", state.display()))?;
        Ok(true)
    }

    /// Those that `up` left running; `None` if there are none, or one of them died.
    pub fn running() -> anyhow::Result<Option<Self>> {
        let environment = Self::read(&state()?)?;
        Ok(environment.filter(|environment| {
            environment.pulsar.as_ref().is_none_or(Pulsar::is_alive)
                && environment.postgres.as_ref().is_none_or(Postgres::is_alive)
                && environment
                    .kubernetes
                    .as_ref()
                    .is_none_or(Kubernetes::is_alive)
                && environment.argocd.as_ref().is_none_or(ArgoCd::is_alive)
        }))
    }

    fn read(state: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(state) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is garbage: remove it", state.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", state.display())),
        }
    }

    async fn begin(options: &Options, guarded: bool) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("herald-servers-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .context("cannot make a folder for the servers")?
            .keep();
        // From here on, whatever fails, dropping it cleans up.
        let mut environment = Self {
            folder,
            kubernetes: None,
            argocd: None,
            pulsar: None,
            postgres: None,
            is_own: true,
        };
        if options.cluster != Cluster::None {
            let kubernetes = Kubernetes::start(&environment.folder, guarded);
            environment.kubernetes = Some(kubernetes.await?);
        }
        let Self {
            folder,
            kubernetes,
            argocd,
            pulsar,
            postgres,
            ..
        } = &mut environment;
        let (place, cluster) = match kubernetes {
            Some(kubernetes) => (kubernetes.place(), Some(kubernetes.inner_kubeconfig())),
            None => (Place::here(), None),
        };
        let host = place.host.clone();
        let mut outside = |port: u16| match kubernetes {
            Some(kubernetes) => Ok(kubernetes.reach(&format!("{host}:{port}"))?.port()),
            None => Ok(port),
        };
        if options.postgres {
            let started =
                Postgres::start(folder, options.sync, guarded, place.clone(), &mut outside);
            *postgres = Some(started.await?);
        }
        if options.pulsar {
            let started = Pulsar::start(folder, options, guarded, place, cluster, &mut outside);
            *pulsar = Some(started.await?);
        }
        if let Some(kubernetes) = kubernetes {
            if postgres.as_ref().is_some_and(Postgres::is_own) {
                kubernetes.neighbour("postgres", &[("postgres", 5432)])?;
            }
            if pulsar.as_ref().is_some_and(Pulsar::is_own) {
                kubernetes.neighbour("pulsar", &[("pulsar", 6650), ("http", 8080)])?;
            }
        }
        if options.cluster == Cluster::WithArgoCd {
            let kubernetes = kubernetes.as_ref().context("Argo CD needs a cluster")?;
            *argocd = Some(ArgoCd::start(folder, kubernetes, guarded)?);
        }
        Ok(environment)
    }

    /// Lets the servers outlive this program.
    fn leave(&mut self) -> anyhow::Result<()> {
        if let Some(pulsar) = &mut self.pulsar {
            pulsar.leave()?;
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.leave()?;
        }
        if let Some(argocd) = &mut self.argocd {
            argocd.leave()?;
        }
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.leave()?;
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(pulsar) = &mut self.pulsar {
            pulsar.kill();
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.kill();
        }
        if let Some(argocd) = &mut self.argocd {
            argocd.kill();
        }
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.kill();
        }
        // Nothing of it is of use to anybody; a rest of it in a temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }

    /// Pulsar. An error if it was not asked for.
    pub fn pulsar(&self) -> anyhow::Result<&Pulsar> {
        self.pulsar.as_ref().context("no Pulsar was asked for")
    }

    /// Pulsar, to kill it and start it again.
    pub fn pulsar_mut(&mut self) -> anyhow::Result<&mut Pulsar> {
        self.pulsar.as_mut().context("no Pulsar was asked for")
    }

    /// PostgreSQL. An error if it was not asked for.
    pub fn postgres(&self) -> anyhow::Result<&Postgres> {
        self.postgres
            .as_ref()
            .context("no PostgreSQL was asked for")
    }

    /// PostgreSQL, to kill it and start it again.
    pub fn postgres_mut(&mut self) -> anyhow::Result<&mut Postgres> {
        self.postgres
            .as_mut()
            .context("no PostgreSQL was asked for")
    }

    /// The cluster. An error if none was asked for.
    pub fn kubernetes(&self) -> anyhow::Result<&Kubernetes> {
        self.kubernetes
            .as_ref()
            .context("no Kubernetes was asked for")
    }

    /// The cluster, to reach into it, and to end its servers and start them again.
    pub fn kubernetes_mut(&mut self) -> anyhow::Result<&mut Kubernetes> {
        self.kubernetes
            .as_mut()
            .context("no Kubernetes was asked for")
    }

    /// Where the servers log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One line for each server: where it is, and whether it is there.
    pub fn describe(&self) -> String {
        let mut lines = Vec::new();
        if let Some(kubernetes) = &self.kubernetes {
            lines.push(kubernetes.describe());
        }
        if let Some(argocd) = &self.argocd {
            lines.push(argocd.describe());
        }
        if let Some(pulsar) = &self.pulsar {
            lines.push(pulsar.describe());
        }
        if let Some(postgres) = &self.postgres {
            lines.push(postgres.describe());
        }
        lines.push(format!("files and logs: {}", self.folder.display()));
        lines.join("\n")
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if self.is_own {
            self.end();
        }
    }
}

/// Where `up` writes down what it started.
fn state() -> anyhow::Result<PathBuf> {
    let cache = process::cache();
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache.join("environment.json"))
}

/// One line for each step: these take their time.
fn progress(line: &str) {
    eprintln!("  {line}");
}
