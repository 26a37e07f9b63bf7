//! Real servers on this machine: Pulsar with authentication on, PostgreSQL, each on free ports of 127.0.0.1.
//!
//! `herald-e2e up` leaves them running for whoever comes; [`Environment::start`] uses these, or starts some that end
//! with this program, however it ends. Given ones are used instead with `HERALD_E2E_PULSAR_URL` (with
//! `HERALD_E2E_PULSAR_ADMIN_URL` and a superuser's `HERALD_E2E_PULSAR_TOKEN`) and `HERALD_E2E_DATABASE_URL`.

mod group;
mod postgres;
mod pulsar;
mod token;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub use postgres::Postgres;
pub use pulsar::Pulsar;

use crate::process;

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pulsar.
    pub pulsar: bool,
    /// PostgreSQL.
    pub postgres: bool,
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
            sync: true,
            broker: Vec::new(),
        }
    }
}

/// The servers, and where they are.
#[derive(Debug, Serialize, Deserialize)]
pub struct Environment {
    /// What they keep, and their logs.
    folder: PathBuf,
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
            pulsar: None,
            postgres: None,
            is_own: true,
        };
        if options.postgres {
            let postgres = Postgres::start(&environment.folder, options.sync, guarded).await?;
            environment.postgres = Some(postgres);
        }
        if options.pulsar {
            let pulsar = Pulsar::start(&environment.folder, options, guarded);
            environment.pulsar = Some(pulsar.await?);
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
        Ok(())
    }

    fn end(&mut self) {
        if let Some(pulsar) = &mut self.pulsar {
            pulsar.kill();
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.kill();
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

    /// Where the servers log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One line for each server: where it is, and whether it is there.
    pub fn describe(&self) -> String {
        let mut lines = Vec::new();
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
