//! `herald local` as a child process that is killed and restarted, and what is asked of it over HTTP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use reqwest::{Client, RequestBuilder};
use serde::de::DeserializeOwned;

use crate::process::{self, Running};

/// How long it may take until it answers: after a kill it reads what it had, and the servers that it needs may be starting,
/// too, on a machine with other things to do.
const START: Duration = Duration::from_mins(2);

/// How long what is read may take: not everybody repeats it.
const READ: Duration = Duration::from_secs(45);

/// The API key that the scenarios use.
pub const KEY: &str = "hk_end_to_end";

/// How a server is started, the same each time.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub herald: PathBuf,
    /// The folder of YAML.
    pub declared: PathBuf,
    /// Where its files are.
    pub state: PathBuf,
    /// Where it logs.
    pub log: PathBuf,
    /// Its port.
    pub port: u16,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Setup {
    /// In a folder of its own below `folder`, on a free port.
    pub fn new(herald: &Path, folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            herald: herald.to_owned(),
            declared: folder.join("declared"),
            state: folder.join("state"),
            log: folder.join("herald.log"),
            port: process::free_port()?,
            arguments: Vec::new(),
        })
    }

    /// The command line.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.herald);
        command
            .arg("local")
            .arg(&self.declared)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--state")
            .arg(&self.state)
            .arg("--allow-private-addresses")
            .args(&self.arguments)
            .env("HERALD_API_KEY", KEY);
        command
    }

    /// Starts it. It may not answer yet.
    pub fn start(&self) -> anyhow::Result<Running> {
        Running::start("herald", &mut self.command(), &self.log)
    }

    /// Where its API is.
    pub fn api(&self) -> anyhow::Result<Api> {
        Api::new(self.port)
    }
}

/// A server that is killed and restarted.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    running: Option<Running>,
    /// When it was killed.
    pub kills: Vec<SystemTime>,
}

impl Server {
    /// Starts it, and waits until it is ready.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let api = setup.api()?;
        let mut server = Self {
            setup,
            running: None,
            kills: Vec::new(),
        };
        server.begin()?;
        server.ready(&api).await?;
        Ok(server)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        self.running = Some(self.setup.start()?);
        Ok(())
    }

    /// SIGKILL, and started again at once.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(running) = self.running.take() {
            self.kills.push(SystemTime::now());
            running.kill();
        }
        self.begin()
    }

    /// Waits until it answers that it is ready.
    pub async fn ready(&mut self, api: &Api) -> anyhow::Result<()> {
        let log = &self.setup.log;
        let running = self.running.as_mut().context("it does not run")?;
        ready(running, api)
            .await
            .with_context(|| format!("{} may say why", log.display()))
    }

    /// Fails if it ended without being asked to.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(running) = &mut self.running
            && let Some(status) = running.ended()?
        {
            bail!(
                "herald ended by itself ({status}): {} may say why",
                self.setup.log.display()
            );
        }
        Ok(())
    }
}

/// Waits until `running` answers that it is ready.
pub async fn ready(running: &mut Running, api: &Api) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        if let Some(status) = running.ended()? {
            bail!("herald did not start ({status})");
        }
        let answer = api.client.get(api.url("/readyz")).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        if begin.elapsed() > START {
            bail!("herald was not ready within {START:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The API of a server.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    base: String,
    key: String,
}

/// One page of a list.
#[derive(Debug, serde::Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next: Option<String>,
}

impl Api {
    /// Of the server at `port` of this machine.
    pub fn new(port: u16) -> anyhow::Result<Self> {
        herald_dispatcher::provider::tls::install_crypto();
        let client = Client::builder()
            .timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(256)
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self {
            client,
            base: format!("http://127.0.0.1:{port}"),
            key: KEY.to_owned(),
        })
    }

    /// The same, of the server at another port of this machine.
    #[cfg(feature = "kubernetes")]
    pub fn at(&self, port: u16) -> Self {
        Self {
            base: format!("http://127.0.0.1:{port}"),
            ..self.clone()
        }
    }

    /// The same, for whoever has this API key or token.
    #[cfg(feature = "kubernetes")]
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// An authenticated GET.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path)).bearer_auth(&self.key)
    }

    /// An authenticated POST.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.url(path)).bearer_auth(&self.key)
    }

    /// Any authenticated call.
    #[cfg(feature = "kubernetes")]
    pub fn call(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, self.url(path))
            .bearer_auth(&self.key)
    }

    /// The answer to a GET that must succeed.
    pub async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let request = self.get(path).query(query).timeout(READ);
        let answer = request.send().await;
        let answer = answer.with_context(|| format!("cannot ask {path}"))?;
        let status = answer.status();
        let body = answer.bytes().await.unwrap_or_default();
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("{path}: another answer than expected"))
    }

    /// Every item of a list, page after page.
    pub async fn all<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        let mut items = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut query = vec![("limit", "1000")];
            query.extend(next.as_deref().map(|cursor| ("cursor", cursor)));
            let page: Page<T> = self.read(path, &query).await?;
            items.extend(page.items);
            next = page.next;
            if next.is_none() {
                return Ok(items);
            }
        }
    }

    /// What it counts: the sum over all labels, by name.
    pub async fn metrics(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let answer = self.client.get(self.url("/metrics")).send().await;
        let text = answer
            .and_then(reqwest::Response::error_for_status)
            .context("cannot ask for the metrics")?
            .text()
            .await
            .context("the metrics broke off")?;
        Ok(sums(&text))
    }
}

fn sums(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = series.split('{').next().unwrap_or(series);
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "# TYPE herald_sent counter\nherald_sent_total{channel=\"a b\"} 2\nherald_sent_total{channel=\"c\"} 3\nherald_overdue 1\n# EOF\n";
        let expected = [("herald_overdue", 1.0), ("herald_sent_total", 5.0)];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(sums(text), BTreeMap::from(expected));
    }
}
