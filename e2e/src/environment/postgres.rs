//! PostgreSQL on a temporary folder.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::group::Kept;
use super::place::Place;
use super::progress;
use crate::process::{self, last_lines};

/// How long it may take until it answers.
const START: Duration = Duration::from_secs(60);

/// PostgreSQL, and where it is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Postgres {
    url: String,
    server: Option<Server>,
}

/// What is needed to start it again.
#[derive(Debug, Serialize, Deserialize)]
struct Server {
    /// Its programs.
    programs: PathBuf,
    /// Its own folder.
    folder: PathBuf,
    place: Place,
    /// Where it listens.
    port: u16,
    /// Where it is found at 127.0.0.1.
    outer: u16,
    /// Whether a commit waits for the disk.
    sync: bool,
    kept: Kept,
}

impl Postgres {
    /// `outside` says at which port of 127.0.0.1 is found what listens on one in the network of `place`.
    pub(super) async fn start(
        folder: &Path,
        sync: bool,
        guarded: bool,
        place: Place,
        outside: &mut (dyn FnMut(u16) -> anyhow::Result<u16> + Send),
    ) -> anyhow::Result<Self> {
        if let Ok(url) = std::env::var("HERALD_E2E_DATABASE_URL") {
            progress("PostgreSQL: the one that HERALD_E2E_DATABASE_URL names");
            return Ok(Self { url, server: None });
        }
        process::need(&["postgresql"])?;
        let programs = programs()?;
        let port = place.port(5432)?;
        let outer = outside(port)?;
        let own = folder.join("postgres");
        std::fs::create_dir(&own).context("cannot make PostgreSQL's folder")?;
        if let Some((user, group)) = other_user()? {
            std::os::unix::fs::chown(&own, Some(user), Some(group))
                .context("cannot hand PostgreSQL its folder")?;
        }
        progress("PostgreSQL: a new database cluster");
        let mut server = Server {
            programs,
            folder: own,
            place,
            port,
            outer,
            sync,
            kept: Kept::new(folder.join("postgres.log"), guarded),
        };
        server.initialize()?;
        server.start().await?;
        server.create_database("herald")?;
        let postgres = Self {
            url: format!("postgres://herald@127.0.0.1:{outer}/herald"),
            server: Some(server),
        };
        progress(&postgres.describe());
        Ok(postgres)
    }

    /// The database `herald`, for whoever may do everything in it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A new, empty database in the same server.
    pub fn database(&self, name: &str) -> anyhow::Result<String> {
        let server = self.server.as_ref().context("not in a given server")?;
        server.create_database(name)?;
        Ok(format!(
            "postgres://herald@127.0.0.1:{}/{name}",
            server.outer
        ))
    }

    /// What one of its databases, by its address, answers to SQL: a line for each row.
    pub fn ask(&self, url: &str, sql: &str) -> anyhow::Result<String> {
        let server = self.server.as_ref().context("not in a given server")?;
        let output = Command::new(server.programs.join("psql"))
            .args([
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--command",
                sql,
                url,
            ])
            .stdin(Stdio::null())
            .output()
            .context("cannot run psql")?;
        ensure!(
            output.status.success(),
            "psql failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// SIGKILL, all of it. A given server stays.
    pub fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            server.kept.kill();
        }
    }

    /// Stops it in its tracks: its connections stay, and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// The process that leads it; `None`: it was given.
    pub fn process(&self) -> Option<u32> {
        self.server.as_ref()?.kept.process()
    }

    fn signal(&self, signal: Signal) {
        if let Some(server) = &self.server {
            server.kept.signal(signal);
        }
    }

    /// Starts it again, with all it had.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let server = self
            .server
            .as_mut()
            .context("it was given: it cannot be restarted")?;
        server.start().await
    }

    /// Whether it was started here.
    pub(super) fn is_own(&self) -> bool {
        self.server.is_some()
    }

    pub(super) fn leave(&mut self) -> anyhow::Result<()> {
        match &mut self.server {
            Some(server) => server.kept.leave(),
            None => Ok(()),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        let server = self.server.as_ref();
        server.is_none_or(|server| server.kept.is_alive())
    }

    pub(super) fn describe(&self) -> String {
        let how = if self.is_alive() { "" } else { " (dead)" };
        format!("PostgreSQL: {}{how}", self.url)
    }
}

impl Server {
    /// One of its programs, as a user who may run it.
    fn program(&self, place: &Place, name: &str) -> anyhow::Result<Command> {
        let program = self.programs.join(name);
        let mut command = place.command(program, other_user()?);
        command.current_dir(&self.folder).env("LC_ALL", "C.UTF-8");
        Ok(command)
    }

    fn initialize(&self) -> anyhow::Result<()> {
        let mut command = self.program(&Place::here(), "initdb")?;
        command
            .args([
                "--username",
                "herald",
                "--auth",
                "trust",
                "--encoding",
                "UTF8",
                "--no-sync",
            ])
            .arg("--pgdata")
            .arg(self.folder.join("data"));
        run(&mut command)?;
        if self.place.is_here() {
            return Ok(());
        }
        // Pods have addresses of their own, and so has whoever comes from outside.
        File::options()
            .append(true)
            .open(self.folder.join("data/pg_hba.conf"))
            .and_then(|mut rules| rules.write_all(b"host all all 10.0.0.0/8 trust\n"))
            .context("cannot tell PostgreSQL whom to let in")
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        let port = self.port.to_string();
        let mut command = self.program(&self.place, "postgres")?;
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-k")
            .arg(&self.folder)
            .args([
                "-p",
                &port,
                "-c",
                &format!("listen_addresses={}", self.place.host),
                "-c",
                "max_connections=300",
            ]);
        if !self.sync {
            command.args(["-c", "fsync=off", "-c", "synchronous_commit=off"]);
        }
        self.kept.start(&mut command)?;
        let begin = Instant::now();
        loop {
            let ready = Command::new(self.programs.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.outer.to_string()])
                .status()
                .context("cannot run pg_isready")?;
            if ready.success() {
                return Ok(());
            }
            if !self.kept.is_alive() || begin.elapsed() > START {
                let log = last_lines(&self.kept.log);
                bail!("PostgreSQL did not start:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let mut command = self.program(&Place::here(), "createdb")?;
        command
            .args(["-h", "127.0.0.1", "-U", "herald", "-p"])
            .args([&self.outer.to_string(), name]);
        run(&mut command)
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The newest PostgreSQL of this machine.
fn programs() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not where Debian puts it")?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    let (_, newest) = versions.pop().context("there is no PostgreSQL")?;
    Ok(newest)
}

/// Who runs PostgreSQL when this program is root, whom it refuses: user and group. `None`: this program's own user.
fn other_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let find = |wanted: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(wanted)).then_some(())?;
            let user = fields.nth(1)?.parse().ok()?;
            Some((user, fields.next()?.parse().ok()?))
        })
    };
    let user = find("postgres").or_else(|| find("nobody"));
    user.map(Some)
        .context("root has nobody else to run PostgreSQL as")
}
