//! What runs in a cluster, as processes on this machine: gateways and deliver pods over Pulsar and PostgreSQL.
//!
//! - This file: starting them, and what they all know. [`load`]: what is sent,
//!   and when it was accepted. [`sent`]: what the pods say that they sent.

pub mod load;
pub mod sent;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use herald_e2e::environment::{self, Environment};
use herald_e2e::process::{self, Running};
use serde_json::{Value, json};

use crate::server::{Api, KEY, ready};

/// The role that Herald has with Pulsar.
const ROLE: &str = "herald";

/// The namespace that everything is in.
pub const NAMESPACE: &str = "load";

/// Partitions of the topics of requests: one gateway works at each.
const PARTITIONS: u32 = 4;

/// A Channel whose provider writes down what it was told to send.
#[derive(Debug, Clone, Copy)]
pub struct Channel {
    /// Its name.
    pub name: &'static str,
    /// Sends a second; `None`: as many as there are.
    pub rate: Option<u32>,
    /// What a send takes.
    pub latency: Duration,
    /// Sends at a time, of each pod.
    pub slots: u32,
    /// Whether what was sent is written down; else it is gone.
    pub kept: bool,
}

/// What all processes are started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The Channels.
    pub channels: &'static [Channel],
    /// The templates, in YAML.
    pub templates: String,
    /// H.
    pub horizon: Duration,
    /// W.
    pub window: usize,
    /// Whether the servers wait for the disk.
    pub sync: bool,
}

/// The servers, and what is needed to start another gateway or pod.
pub struct Cluster {
    /// Pulsar and PostgreSQL.
    pub environment: Environment,
    /// What the processes keep, and their logs.
    pub folder: PathBuf,
    setup: Setup,
    program: PathBuf,
    tenant: String,
    database: String,
}

/// A gateway.
pub struct Gateway {
    /// Its API.
    pub api: Api,
    /// Its metrics and probes.
    pub probes: Api,
    ports: [u16; 2],
    name: String,
    running: Option<Running>,
}

/// A pod that delivers for a Channel.
pub struct Pod {
    /// Its metrics and probes.
    pub probes: Api,
    /// What it is called.
    pub name: String,
    channel: Channel,
    port: u16,
    running: Option<Running>,
}

impl Cluster {
    /// Starts the servers, and makes the topics.
    pub async fn start(setup: Setup, folder: &Path) -> anyhow::Result<Self> {
        let program = process::dispatcher()?;
        let environment = Environment::start_own(&environment::Options {
            sync: setup.sync,
            ..environment::Options::default()
        })
        .await?;
        let pulsar = environment.pulsar()?;
        let tenant = format!("herald-{:08x}", rand::random::<u32>());
        let admin = pulsar.admin()?;
        let clusters = admin.clusters().await?;
        admin.create_tenant(&tenant, &clusters).await?;
        admin
            .provide_requests(&tenant, &clusters, PARTITIONS, Some(ROLE))
            .await?;
        for channel in setup.channels {
            let name = format!("{NAMESPACE}/{}", channel.name);
            admin
                .provide_channel(&tenant, &clusters, &name, 1, setup.horizon, Some(ROLE))
                .await?;
        }
        for name in ["declared", "credentials", "sent"] {
            fs::create_dir_all(folder.join(name)).context("cannot make a folder")?;
        }
        fs::write(folder.join("token"), pulsar.token(ROLE, None))?;
        fs::write(folder.join("declared/templates.yaml"), &setup.templates)?;
        for channel in setup.channels {
            let path = folder.join(format!("declared/{}.yaml", channel.name));
            fs::write(
                path,
                channel.declaration(&folder.join("sent/gateway.jsonl")),
            )?;
        }
        Ok(Self {
            database: environment.postgres()?.url().to_owned(),
            environment,
            folder: folder.to_owned(),
            setup,
            program,
            tenant,
        })
    }

    /// The tenant of this run's topics.
    #[cfg(feature = "pulsar")]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    fn command(&self, role: &str, probes: u16) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.program);
        let horizon = self.setup.horizon.as_secs();
        command
            .arg(role)
            .args(["--pulsar-url", self.environment.pulsar()?.service_url()])
            .args(["--pulsar-tenant", &self.tenant])
            .arg("--pulsar-token-file")
            .arg(self.folder.join("token"))
            .args(["--probes", &format!("127.0.0.1:{probes}")])
            .args(["--window", &self.setup.window.to_string()])
            .args(["--horizon-seconds", &horizon.to_string()]);
        Ok(command)
    }

    /// A gateway, once it is ready.
    pub async fn gateway(&self, name: &str) -> anyhow::Result<Gateway> {
        let ports = [process::free_port()?, process::free_port()?];
        let mut gateway = Gateway {
            api: Api::new(ports[0])?,
            probes: Api::new(ports[1])?,
            ports,
            name: name.to_owned(),
            running: None,
        };
        self.start_gateway(&mut gateway).await?;
        Ok(gateway)
    }

    /// Starts a gateway again, and waits until it is ready.
    pub async fn start_gateway(&self, gateway: &mut Gateway) -> anyhow::Result<()> {
        let mut command = self.command("gateway", gateway.ports[1])?;
        command
            .arg("--declared")
            .arg(self.folder.join("declared"))
            .args(["--listen", &format!("127.0.0.1:{}", gateway.ports[0])])
            .args(["--database-url", &self.database])
            .env("HERALD_API_KEY", KEY);
        let running = self
            .begin(&gateway.name, &mut command, &gateway.probes)
            .await?;
        gateway.running = Some(running);
        Ok(())
    }

    /// A pod, once it is ready.
    pub async fn pod(&self, name: &str, channel: Channel) -> anyhow::Result<Pod> {
        let port = process::free_port()?;
        let mut pod = Pod {
            probes: Api::new(port)?,
            name: name.to_owned(),
            channel,
            port,
            running: None,
        };
        self.start_pod(&mut pod).await?;
        Ok(pod)
    }

    /// Starts a pod again, and waits until it is ready.
    pub async fn start_pod(&self, pod: &mut Pod) -> anyhow::Result<()> {
        let file = self.folder.join(format!("{}.yaml", pod.name));
        let sent = self.folder.join(format!("sent/{}.jsonl", pod.name));
        fs::write(&file, pod.channel.declaration(&sent)).context("cannot write the Channel")?;
        let mut command = self.command("deliver", pod.port)?;
        command
            .args(["--pod", &pod.name])
            .arg("--channel")
            .arg(file)
            .arg("--credentials")
            .arg(self.folder.join("credentials"));
        pod.running = Some(self.begin(&pod.name, &mut command, &pod.probes).await?);
        Ok(())
    }

    async fn begin(
        &self,
        name: &str,
        command: &mut Command,
        probes: &Api,
    ) -> anyhow::Result<Running> {
        let log = self.folder.join(format!("{name}.log"));
        let mut running = Running::start(name, command, &log)?;
        ready(&mut running, probes)
            .await
            .with_context(|| format!("{} may say why", log.display()))?;
        Ok(running)
    }

    /// Imports `count` people, `p<number>@people.example`, into a group.
    pub async fn import(&self, api: &Api, group: &str, count: usize) -> anyhow::Result<()> {
        const AT_A_TIME: usize = 10_000;
        for from in (0..count).step_by(AT_A_TIME) {
            let mut lines = String::new();
            for i in from..(from + AT_A_TIME).min(count) {
                let (id, address) = (format!("p{i:06}"), format!("p{i:06}@people.example"));
                let person = json!({"id": id, "addresses": {"email": address}});
                lines.push_str(&person.to_string());
                lines.push('\n');
            }
            let answer = api
                .post(&format!("/v1/namespaces/{NAMESPACE}/recipients/import"))
                .query(&[("group", group)])
                .header("content-type", "application/x-ndjson")
                .body(lines)
                .send()
                .await
                .context("cannot import")?;
            let status = answer.status();
            let report: Value = answer.json().await.context("the report is not JSON")?;
            ensure!(status.is_success(), "the import came to {status}: {report}");
        }
        Ok(())
    }
}

impl Gateway {
    /// Its process id.
    #[cfg(feature = "pulsar")]
    pub fn process(&self) -> anyhow::Result<u32> {
        Ok(self.running.as_ref().context("it does not run")?.id())
    }

    /// Where its API is.
    #[cfg(feature = "pulsar")]
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }
}

impl Pod {
    /// Its process id.
    #[cfg(feature = "pulsar")]
    pub fn process(&self) -> anyhow::Result<u32> {
        Ok(self.running.as_ref().context("it does not run")?.id())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// SIGTERM; how it ended.
    pub async fn end(&mut self, most: Duration) -> anyhow::Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        running.signal(rustix::process::Signal::TERM);
        let status = running.wait(most).await?;
        ensure!(
            status.success(),
            "SIGTERM ended {} with {status}",
            self.name
        );
        Ok(())
    }
}

impl Channel {
    fn declaration(&self, sent: &Path) -> String {
        let rate = self.rate.map_or(String::new(), |count| {
            format!("  rateLimit: {{count: {count}, perSeconds: 1}}\n")
        });
        format!(
            "apiVersion: herald.dev/v1alpha1\n\
             kind: Channel\n\
             metadata: {{name: {}, namespace: {NAMESPACE}}}\n\
             spec:\n  \
               medium: email\n  \
               concurrency: {}\n\
             {rate}  \
               providers:\n  \
               - name: rehearsal\n    \
                 log: {{path: {}, latencyMilliseconds: {}}}\n",
            self.name,
            self.slots,
            if self.kept {
                sent
            } else {
                Path::new("/dev/null")
            }
            .display(),
            self.latency.as_millis(),
        )
    }
}
