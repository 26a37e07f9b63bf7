//! What runs in a cluster, as processes on this machine: gateways and deliver pods over Pulsar and PostgreSQL.
//!
//! - This file: starting them, and what they all know. [`clock`]: clocks that can be set. [`load`]: what is sent,
//!   and when it was accepted. [`sent`]: what the pods say that they sent.

mod clock;
pub mod load;
pub mod sent;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use herald_e2e::environment::{self, Environment};
use herald_e2e::process::{self, Running};
use rustix::process::Signal;
use serde_json::{Value, json};

pub use self::clock::Clock;
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
    /// Further lines of Pulsar's configuration.
    pub broker: Vec<(String, String)>,
}

/// How a process comes to the servers.
#[derive(Debug, Clone)]
pub struct Access {
    /// Pulsar's address.
    pub pulsar: String,
    /// The tenant.
    pub tenant: String,
    /// The file with the token.
    pub token: PathBuf,
    /// The database's address.
    pub database: String,
}

/// The servers, and what is needed to start another gateway or pod.
pub struct Cluster {
    /// Pulsar and PostgreSQL.
    pub environment: Environment,
    /// What the processes keep, and their logs.
    pub folder: PathBuf,
    setup: Setup,
    program: PathBuf,
    access: Access,
}

/// A gateway.
pub struct Gateway {
    /// Its API.
    pub api: Api,
    /// Its metrics and probes.
    pub probes: Api,
    /// What it is called.
    pub name: String,
    ports: [u16; 2],
    access: Access,
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
    access: Access,
    running: Option<Running>,
}

impl Cluster {
    /// Starts the servers, and makes the topics.
    pub async fn start(setup: Setup, folder: &Path) -> anyhow::Result<Self> {
        let program = process::dispatcher()?;
        let environment = Environment::start_own(&environment::Options {
            sync: setup.sync,
            broker: setup.broker.clone(),
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
        let access = Access {
            pulsar: environment.pulsar()?.service_url().to_owned(),
            tenant,
            token: folder.join("token"),
            database: environment.postgres()?.url().to_owned(),
        };
        Ok(Self {
            environment,
            folder: folder.to_owned(),
            setup,
            program,
            access,
        })
    }

    /// The tenant of this run's topics.
    #[cfg(feature = "pulsar")]
    pub fn tenant(&self) -> &str {
        &self.access.tenant
    }

    /// How everything comes to the servers unless told otherwise.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The program that is started.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn command(
        &self,
        role: &str,
        name: &str,
        probes: u16,
        access: &Access,
    ) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.program);
        let horizon = self.setup.horizon.as_secs();
        command
            .arg(role)
            .args(["--pulsar-url", &access.pulsar])
            .args(["--pulsar-tenant", &access.tenant])
            .arg("--pulsar-token-file")
            .arg(&access.token)
            .args(["--probes", &format!("127.0.0.1:{probes}")])
            .args(["--window", &self.setup.window.to_string()])
            .args(["--horizon-seconds", &horizon.to_string()]);
        Clock::of(&self.folder, name).put_before(&mut command)?;
        Ok(command)
    }

    /// The clock of a process by its name, which can be set from its next start on.
    pub fn clock(&self, name: &str) -> anyhow::Result<Clock> {
        process::need(&["faketime"])?;
        let clock = Clock::of(&self.folder, name);
        clock.ahead(0)?;
        Ok(clock)
    }

    /// A gateway, once it is ready.
    pub async fn gateway(&self, name: &str) -> anyhow::Result<Gateway> {
        let mut gateway = self.begin_gateway(name, &self.access)?;
        self.until_ready(name, gateway.running.as_mut(), &gateway.probes)
            .await?;
        Ok(gateway)
    }

    /// A gateway that comes to the servers in this way, if it does.
    pub fn begin_gateway(&self, name: &str, access: &Access) -> anyhow::Result<Gateway> {
        let ports = [process::free_port()?, process::free_port()?];
        let mut gateway = Gateway {
            api: Api::new(ports[0])?,
            probes: Api::new(ports[1])?,
            ports,
            name: name.to_owned(),
            access: access.clone(),
            running: None,
        };
        self.spawn_gateway(&mut gateway)?;
        Ok(gateway)
    }

    /// Starts a gateway again, and waits until it is ready.
    pub async fn start_gateway(&self, gateway: &mut Gateway) -> anyhow::Result<()> {
        self.spawn_gateway(gateway)?;
        self.until_ready(&gateway.name, gateway.running.as_mut(), &gateway.probes)
            .await
    }

    fn spawn_gateway(&self, gateway: &mut Gateway) -> anyhow::Result<()> {
        let mut command =
            self.command("gateway", &gateway.name, gateway.ports[1], &gateway.access)?;
        command
            .arg("--catalog")
            .arg(self.folder.join("declared"))
            .args(["--listen", &format!("127.0.0.1:{}", gateway.ports[0])])
            .args(["--database-url", &gateway.access.database])
            .env("HERALD_API_KEY", KEY);
        let log = self.log(&gateway.name);
        gateway.running = Some(Running::start(&gateway.name, &mut command, &log)?);
        Ok(())
    }

    /// A pod, once it is ready.
    pub async fn pod(&self, name: &str, channel: Channel) -> anyhow::Result<Pod> {
        let mut pod = self.begin_pod(name, channel, &self.access)?;
        self.until_ready(name, pod.running.as_mut(), &pod.probes)
            .await?;
        Ok(pod)
    }

    /// A pod that comes to the servers in this way, if it does.
    pub fn begin_pod(&self, name: &str, channel: Channel, access: &Access) -> anyhow::Result<Pod> {
        let port = process::free_port()?;
        let mut pod = Pod {
            probes: Api::new(port)?,
            name: name.to_owned(),
            channel,
            port,
            access: access.clone(),
            running: None,
        };
        self.spawn_pod(&mut pod)?;
        Ok(pod)
    }

    /// Starts a pod again, and waits until it is ready.
    pub async fn start_pod(&self, pod: &mut Pod) -> anyhow::Result<()> {
        self.spawn_pod(pod)?;
        self.until_ready(&pod.name, pod.running.as_mut(), &pod.probes)
            .await
    }

    fn spawn_pod(&self, pod: &mut Pod) -> anyhow::Result<()> {
        let file = self.folder.join(format!("{}.yaml", pod.name));
        let sent = self.folder.join(format!("sent/{}.jsonl", pod.name));
        fs::write(&file, pod.channel.declaration(&sent)).context("cannot write the Channel")?;
        let mut command = self.command("deliver", &pod.name, pod.port, &pod.access)?;
        command
            .args(["--pod", &pod.name])
            .arg("--channel")
            .arg(file)
            .arg("--credentials")
            .arg(self.folder.join("credentials"));
        let log = self.log(&pod.name);
        pod.running = Some(Running::start(&pod.name, &mut command, &log)?);
        Ok(())
    }

    /// Where a process logs, by its name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    async fn until_ready(
        &self,
        name: &str,
        running: Option<&mut Running>,
        probes: &Api,
    ) -> anyhow::Result<()> {
        let running = running.context("it does not run")?;
        ready(running, probes)
            .await
            .with_context(|| format!("{} may say why", self.log(name).display()))
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

    /// SIGTERM; an error unless it ends well, within so long.
    pub async fn end(&mut self, most: Duration) -> anyhow::Result<()> {
        end(&self.name, self.running.take(), most).await
    }

    /// How it ended by itself, within so long.
    pub async fn ended(&mut self, most: Duration) -> anyhow::Result<ExitStatus> {
        let running = self.running.as_mut().context("it does not run")?;
        running.wait(most).await
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

    /// SIGTERM; an error unless it ends well, within so long.
    pub async fn end(&mut self, most: Duration) -> anyhow::Result<()> {
        end(&self.name, self.running.take(), most).await
    }

    /// How it ended by itself, within so long.
    pub async fn ended(&mut self, most: Duration) -> anyhow::Result<ExitStatus> {
        let running = self.running.as_mut().context("it does not run")?;
        running.wait(most).await
    }

    /// Stops it in its tracks, or lets it go on.
    pub fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }
}

async fn end(name: &str, running: Option<Running>, most: Duration) -> anyhow::Result<()> {
    let mut running = running.context("it does not run")?;
    running.signal(Signal::TERM);
    let status = running.wait(most).await?;
    ensure!(status.success(), "SIGTERM ended {name} with {status}");
    Ok(())
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
