//! What runs beside this program: children that do not outlive it, free ports, and what a machine must have.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// Lines of a log that are shown when what wrote it failed.
const LAST_LINES: usize = 15;

/// A program in a process group of its own, which is killed when this is dropped: on success, failure, panic and Ctrl-C.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts `command`; what it prints is appended to the file `log`. Its standard input stays open as long as this.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let out = append(log)?;
        let error = out.try_clone().context("cannot share the log file")?;
        command.stdout(out).stderr(error);
        Self::spawn(name, command)
    }

    /// The same, and waits until it has printed a line, which is answered; what it prints to stderr goes to `log`.
    pub fn start_until_line(
        name: &str,
        command: &mut Command,
        log: &Path,
    ) -> anyhow::Result<(Self, String)> {
        command.stdout(Stdio::piped()).stderr(append(log)?);
        let mut running = Self::spawn(name, command)?;
        let mut line = String::new();
        let out = running.child.stdout.take().context("it has no output")?;
        BufReader::new(out)
            .read_line(&mut line)
            .with_context(|| format!("cannot read what {name} prints"))?;
        ensure!(
            !line.is_empty(),
            "{name} ended at once; {} says why",
            log.display()
        );
        Ok((running, line))
    }

    fn spawn(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({command:?})"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to its process group. One that has ended already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // The only failure is that there is nobody left.
            let _ = kill_process_group(group, signal);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Whether it is still there, and how it ended if not.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let name = &self.name;
        self.child
            .try_wait()
            .with_context(|| format!("cannot ask how {name} is"))
    }

    /// Waits for its end; an error if that takes longer than `most`.
    pub async fn wait(&mut self, most: Duration) -> anyhow::Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if begin.elapsed() > most {
                bail!("{} did not end within {most:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn end(&mut self) {
        // Once waited for, its id may belong to somebody else.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn append(log: &Path) -> anyhow::Result<std::fs::File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))
}

/// The end of what is in a log, for where the log itself goes with what failed.
pub fn last_lines(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// A port of this machine that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// The folder of the whole repository.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Installs what this machine lacks of `what`: `scripts/need` knows how.
pub fn need<S: AsRef<OsStr>>(what: &[S]) -> anyhow::Result<()> {
    let status = Command::new(repository().join("scripts/need"))
        .args(what)
        .stdin(Stdio::null())
        .status()
        .context("cannot run scripts/need")?;
    ensure!(
        status.success(),
        "this machine lacks something, and it could not be installed"
    );
    Ok(())
}

/// Where what was fetched or built once is kept.
pub fn cache() -> PathBuf {
    std::env::var_os("HERALD_CACHE").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
            cache
                .unwrap_or_else(|| home().join(".cache"))
                .join("herald")
        },
        PathBuf::from,
    )
}

/// The Python that has what the sinks import.
pub fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("HERALD_PYTHON") {
        return python.into();
    }
    cache().join("python/bin/python")
}

/// The program `herald`, of the profile that this one was built with. Under `cargo run` it is built first.
pub fn herald() -> anyhow::Result<PathBuf> {
    program("herald", "herald-dispatcher", &[])
}

/// The servers, `herald-dispatcher`, likewise.
pub fn dispatcher() -> anyhow::Result<PathBuf> {
    let features = ["--features", "pulsar,postgres"];
    program("herald-dispatcher", "herald-dispatcher", &features)
}

/// The operator, `herald-operator`, likewise.
pub fn operator() -> anyhow::Result<PathBuf> {
    program(
        "herald-operator",
        "herald-operator",
        &["--features", "kubernetes"],
    )
}

/// This program, `herald-e2e`, to start it again for another task.
pub fn own() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the own program")?;
    if own.ends_with("herald-e2e") {
        return Ok(own);
    }
    // A test is in the folder `deps` beside it.
    let folder = own.parent().and_then(Path::parent);
    let program = folder.map(|folder| folder.join("herald-e2e"));
    program
        .filter(|program| program.exists())
        .context("herald-e2e is missing: cargo build -p herald-e2e")
}

fn program(name: &str, package: &str, features: &[&str]) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the own program")?;
    let folder = own.parent().context("the own program is in no folder")?;
    let herald = folder.join(name);
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command
            .args(["build", "--quiet", "-p", package, "--bin", name])
            .args(features)
            .current_dir(repository());
        if folder.ends_with("release") {
            command.arg("--release");
        }
        let status = command.status().context("cannot run cargo")?;
        ensure!(status.success(), "{name} does not build");
    }
    ensure!(
        herald.exists(),
        "{} is missing: cargo build -p {package}",
        herald.display()
    );
    Ok(herald)
}
