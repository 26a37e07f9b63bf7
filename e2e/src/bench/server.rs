//! The server under test: the release `herald`, as a process of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::http::Client;
use super::process;

/// The key that may do everything.
const KEY: &str = "bench";

/// A folder of YAML and the state beside it, on the disk that is measured.
pub struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    /// A folder with this YAML.
    pub fn new(yaml: &str) -> Result<Self> {
        let root = tempfile::tempdir_in(super::place()?)?;
        std::fs::create_dir(root.path().join("declared"))?;
        std::fs::create_dir(root.path().join("state"))?;
        std::fs::write(root.path().join("declared/bench.yaml"), yaml)?;
        Ok(Self { root })
    }

    /// Where queue and history are kept.
    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Bytes of queue and history.
    pub fn bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(self.state())? {
            bytes += entry?.metadata()?.len();
        }
        Ok(bytes)
    }
}

/// The program, beside this one.
pub fn program() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("herald");
    ensure!(
        beside.exists(),
        "{} is missing: cargo build --release -p herald-dispatcher",
        beside.display()
    );
    Ok(beside)
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    /// Of the process.
    pub pid: u32,
    /// Where it serves.
    pub address: SocketAddr,
    /// From starting the process to the first 200 of `/readyz`.
    pub start: Duration,
}

impl Server {
    /// Starts it, and waits until it is ready.
    pub async fn start(folder: &Folder, window: Option<usize>) -> Result<Self> {
        let address = free_address()?;
        let log = std::fs::File::create(folder.root.path().join("log"))?;
        let mut command = Command::new(program()?);
        command
            .arg("local")
            .arg(folder.root.path().join("declared"))
            .arg("--state")
            .arg(folder.state())
            .arg("--listen")
            .arg(address.to_string())
            .arg("--allow-private-addresses")
            .env("HERALD_API_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        if let Some(window) = window {
            command.arg("--window").arg(window.to_string());
        }
        let began = Instant::now();
        let mut child = command.spawn().context("cannot start herald")?;
        let pid = child.id().context("herald has no process id")?;
        loop {
            if let Ok(mut client) = Client::connect(address, KEY).await
                && client
                    .get("/readyz")
                    .await
                    .is_ok_and(|answer| answer.status == 200)
            {
                break;
            }
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(folder.root.path().join("log"))?;
                bail!("herald ended with {status}: {log}");
            }
            ensure!(
                began.elapsed() < Duration::from_mins(1),
                "herald is not ready after a minute"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Self {
            child,
            pid,
            address,
            start: began.elapsed(),
        })
    }

    /// A connection of the sender that may do everything.
    pub async fn client(&self) -> Result<Client> {
        Client::connect(self.address, KEY).await
    }

    /// Ends it as a user would, and waits until it has ended.
    pub async fn stop(mut self) -> Result<()> {
        let status = Command::new("kill")
            .args(["-TERM", &self.pid.to_string()])
            .status()
            .await?;
        ensure!(status.success(), "herald could not be told to stop");
        let ended = tokio::time::timeout(Duration::from_mins(1), self.child.wait()).await;
        ended.context("herald did not stop within a minute")??;
        Ok(())
    }

    /// The most bytes that it ever held in memory. The kernel keeps the peak, which misses nothing between two looks.
    pub fn peak(&self) -> Result<u64> {
        process::peak_resident(self.pid)
    }
}

/// A port that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Deliveries of a channel that a provider took so far, from `/metrics`.
pub async fn sent(client: &mut Client, channel: &str) -> Result<u64> {
    let answer = client.get("/metrics").await?;
    ensure!(answer.status == 200, "/metrics answered {}", answer.status);
    let text = String::from_utf8(answer.body)?;
    let mut sum = 0;
    let labelled = format!("channel=\"{channel}\"");
    for line in text.lines() {
        if line.starts_with("herald_sent_total{") && line.contains(&labelled) {
            let number = line.rsplit(' ').next().unwrap_or_default();
            sum += number.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// A notification, once history knows it.
pub async fn notification(client: &mut Client, id: &str) -> Result<Value> {
    loop {
        let answer = client
            .get(&format!("/v1/namespaces/bench/notifications/{id}"))
            .await?;
        if answer.status != 404 {
            return answer.json(200);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Deliveries of a notification that were recorded as sent.
pub fn recorded(notification: &Value) -> u64 {
    notification["counts"]["sent"].as_u64().unwrap_or(0)
}

/// Sends, and answers the id.
pub async fn send(client: &mut Client, request: &Value) -> Result<String> {
    let body = serde_json::to_vec(request)?;
    let answer = client
        .post("/v1/namespaces/bench/notifications", &body)
        .await?
        .json(202)?;
    Ok(answer["id"]
        .as_str()
        .context("an answer without an id")?
        .to_owned())
}
