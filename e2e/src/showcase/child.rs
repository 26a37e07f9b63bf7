//! Herald as a process of its own, that ends with this one.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use herald_e2e::process::last_lines;

/// How long Herald may take to be ready.
const START: Duration = Duration::from_secs(30);

/// How long Herald may take to shut down before it is killed.
const STOP: Duration = Duration::from_secs(15);

/// How often it is asked whether it is ready.
const ASK: Duration = Duration::from_millis(20);

/// How Herald is started.
#[derive(Debug)]
pub struct Start<'a> {
    /// The program.
    pub program: &'a Path,
    /// The folder of YAML.
    pub folder: &'a Path,
    /// The namespace of resources that name none.
    pub namespace: &'a str,
    /// Where it keeps what it must not lose.
    pub state: &'a Path,
    /// Where its log goes.
    pub log: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The API key that it takes.
    pub key: &'a str,
}

/// Herald, running. Dropped, it is killed.
#[derive(Debug)]
pub struct Herald {
    child: Child,
    log: PathBuf,
}

impl Herald {
    /// Starts it, and waits until it answers.
    pub async fn start(start: Start<'_>) -> anyhow::Result<Self> {
        let Start {
            program,
            folder,
            namespace,
            state,
            log,
            listen,
            key,
        } = start;
        ensure!(
            program.is_file(),
            "{} is not there: `cargo build -p herald-dispatcher` builds it",
            program.display()
        );
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // If this process is killed the kernel ends the other. Without setpriv (util-linux) only a kill leaves it behind.
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let child = command
            .arg("local")
            .arg(folder)
            .args(["--listen", &listen.to_string(), "--namespace", namespace])
            .arg("--state")
            .arg(state)
            .arg("--allow-private-addresses")
            .env("HERALD_API_KEY", key)
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share the log")?)
            .stderr(file)
            // Ctrl-C is for this process, which then stops the other in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut herald = Self { child, log };
        herald.until_ready(listen).await?;
        Ok(herald)
    }

    async fn until_ready(&mut self, listen: SocketAddr) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{listen}/openapi.json");
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "Herald ended ({status}) while it started:\n{}",
                    last_lines(&self.log)
                );
            }
            let asked = http.get(&url).timeout(Duration::from_secs(1)).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < START,
                "Herald was not ready after {START:?}:\n{}",
                last_lines(&self.log)
            );
            sleep(ASK).await;
        }
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow::anyhow!("Herald ended ({status}):\n{}", last_lines(&self.log)),
            Err(error) => anyhow::Error::new(error).context("cannot wait for Herald"),
        }
    }

    /// Asks it to shut down, and waits; kills it if it does not.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        let Some(pid) = pid else {
            return Ok(());
        };
        kill_process(pid, Signal::TERM).context("cannot ask Herald to shut down")?;
        let Ok(status) = timeout(STOP, self.child.wait()).await else {
            self.child.kill().await.context("cannot kill Herald")?;
            bail!(
                "Herald had not shut down after {STOP:?} and was killed:\n{}",
                last_lines(&self.log)
            );
        };
        let status: ExitStatus = status?;
        ensure!(
            status.success(),
            "Herald ended with {status}:\n{}",
            last_lines(&self.log)
        );
        Ok(())
    }
}

/// A program of the `PATH`.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
    places.find(|place| place.is_file())
}
