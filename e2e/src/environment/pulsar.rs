//! Pulsar, standalone, as it runs for users: with tokens, authorization, and no topic made by itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use herald_operator::pulsar_admin::{PulsarAdmin, Settings, Token};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::group::Kept;
use super::place::Place;
use super::{Options, progress, token};
use crate::process::{self, last_lines};

/// How long it may take until it answers, on a busy machine.
const START: Duration = Duration::from_secs(240);

/// The role that may do everything.
const ADMIN: &str = "herald-admin";

/// The version that `scripts/need` fetches.
const VERSION: &str = "4.0.8";

/// For whom a service account's token must be meant.
const AUDIENCE: &str = "pulsar";

/// What is bounded: 2 GB in all at most.
const MEMORY: &str = "-Xms256m -Xmx768m -XX:MaxDirectMemorySize=512m";

/// ZGC, which is its own choice, needs twice the memory for the same objects, and half of two cores when that is little.
const COLLECTOR: &str = "-XX:+UseG1GC -XX:+PerfDisableSharedMem";

/// Pulsar, and where it is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pulsar {
    service_url: String,
    admin_url: String,
    /// A superuser's token.
    admin_token: String,
    server: Option<Server>,
}

/// What is needed to start it again.
#[derive(Debug, Serialize, Deserialize)]
struct Server {
    /// The distribution.
    home: PathBuf,
    folder: PathBuf,
    place: Place,
    /// What tokens are signed with.
    key: Vec<u8>,
    bookie: u16,
    /// Whose service accounts' tokens it believes, too: a kubeconfig of that cluster.
    cluster: Option<PathBuf>,
    kept: Kept,
}

impl Pulsar {
    /// `outside` says at which port of 127.0.0.1 is found what listens on one in the network of `place`. It believes the
    /// service accounts of the cluster that the kubeconfig `cluster` leads to.
    pub(super) async fn start(
        folder: &Path,
        options: &Options,
        guarded: bool,
        place: Place,
        cluster: Option<PathBuf>,
        outside: &mut (dyn FnMut(u16) -> anyhow::Result<u16> + Send),
    ) -> anyhow::Result<Self> {
        if let Ok(service_url) = std::env::var("HERALD_E2E_PULSAR_URL") {
            progress("Pulsar: the one that HERALD_E2E_PULSAR_URL names");
            return Ok(Self {
                service_url,
                admin_url: std::env::var("HERALD_E2E_PULSAR_ADMIN_URL")
                    .context("HERALD_E2E_PULSAR_URL needs HERALD_E2E_PULSAR_ADMIN_URL beside it")?,
                admin_token: std::env::var("HERALD_E2E_PULSAR_TOKEN").unwrap_or_default(),
                server: None,
            });
        }
        process::need(&["pulsar"])?;
        let [service, web, bookie] = [6650, 8080, 3181].map(|usual| place.port(usual));
        let (service, web) = (service?, web?);
        let outer_web = outside(web)?;
        let key: [u8; 32] = rand::random();
        let mut server = Server {
            home: process::cache().join(format!("pulsar-{VERSION}")),
            folder: folder.join("pulsar"),
            place,
            key: key.into(),
            bookie: bookie?,
            cluster,
            kept: Kept::new(folder.join("pulsar.log"), guarded),
        };
        server.configure(service, web, options)?;
        let admin_token = token::token(&server.key, ADMIN, None);
        progress(&format!(
            "Pulsar {VERSION}: starting, which takes half a minute"
        ));
        let begin = Instant::now();
        server.spawn()?;
        let mut pulsar = Self {
            service_url: format!("pulsar://{}:{service}", server.place.host),
            admin_url: format!("http://127.0.0.1:{outer_web}"),
            admin_token,
            server: Some(server),
        };
        if let Err(error) = pulsar.ready().await {
            pulsar.kill();
            return Err(error);
        }
        progress(&format!(
            "{}, after {:.0?}",
            pulsar.describe(),
            begin.elapsed()
        ));
        Ok(pulsar)
    }

    /// Where clients connect: beside a cluster, those in its network.
    pub fn service_url(&self) -> &str {
        &self.service_url
    }

    /// Where it is administered.
    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// A superuser's token.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// A token for `role`, valid for so long; `None`: for ever. A given Pulsar's superuser is all there is.
    pub fn token(&self, role: &str, valid: Option<Duration>) -> String {
        match &self.server {
            Some(server) => token::token(&server.key, role, valid),
            None => self.admin_token.clone(),
        }
    }

    /// Its admin API, as a superuser.
    pub fn admin(&self) -> anyhow::Result<PulsarAdmin> {
        let token = match &*self.admin_token {
            "" => Token::None,
            token => Token::Fixed(token.to_owned()),
        };
        Ok(PulsarAdmin::new(Settings {
            url: self.admin_url.clone(),
            token,
            ca: None,
            timeout: Duration::from_secs(30),
        })?)
    }

    /// Publishes the bytes of a file to a topic by its full name, with Pulsar's own client: as somebody who is no part of
    /// Herald. Takes some seconds.
    pub fn publish(&self, topic: &str, file: &Path) -> anyhow::Result<()> {
        let server = self.server.as_ref().context("not in a given Pulsar")?;
        let client = server.home.join("bin/pulsar-client");
        let output = server
            .place
            .command(client, None)
            .args(["--url", &self.service_url])
            .args([
                "--auth-plugin",
                "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            ])
            .args(["--auth-params", &format!("token:{}", self.admin_token)])
            .args(["produce", topic, "--files"])
            .arg(file)
            .env("PULSAR_LOG_DIR", server.folder.join("logs"))
            .stdin(Stdio::null())
            .output()
            .context("cannot run pulsar-client")?;
        ensure!(
            output.status.success(),
            "nothing could be published to {topic}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(())
    }

    /// SIGKILL. A given one stays.
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

    /// Starts it again where it was, with all it had, and returns when it answers.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.server
            .as_mut()
            .context("it was given: it cannot be restarted")?
            .spawn()?;
        self.ready().await
    }

    /// Waits until a message passes.
    async fn ready(&self) -> anyhow::Result<()> {
        let admin = self.admin()?;
        let begin = Instant::now();
        loop {
            let outcome = admin.check_health().await;
            let Err(error) = outcome else {
                return Ok(());
            };
            if let Some(server) = &self.server
                && (!self.is_alive() || begin.elapsed() > START)
            {
                bail!(
                    "Pulsar did not start ({error}):\n{}",
                    last_lines(&server.kept.log)
                );
            }
            if begin.elapsed() > START {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
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
        format!("Pulsar: {} and {}{how}", self.service_url, self.admin_url)
    }
}

impl Server {
    /// The distribution's own configuration, and what differs.
    fn configure(&self, service: u16, web: u16, options: &Options) -> anyhow::Result<()> {
        std::fs::create_dir(&self.folder).context("cannot make Pulsar's folder")?;
        let key = self.folder.join("key");
        std::fs::write(&key, &self.key).context("cannot write Pulsar's key")?;
        let token = token::token(&self.key, ADMIN, None);
        let key = format!("file://{}", key.display());
        let (service, web) = (service.to_string(), web.to_string());
        let sync = options.sync.to_string();
        let mut changes: Vec<(&str, &str)> = vec![
            ("brokerServicePort", &service),
            ("webServicePort", &web),
            ("bindAddress", &self.place.host),
            ("advertisedAddress", &self.place.host),
            ("webSocketServiceEnabled", "false"),
            ("journalSyncData", &sync),
            ("allowAutoTopicCreation", "false"),
            ("allowAutoSubscriptionCreation", "false"),
            ("brokerDeleteInactiveTopicsEnabled", "false"),
            ("acknowledgmentAtBatchIndexLevelEnabled", "true"),
            // As a broker that is not standalone ships: positions are written down each second, not every ten.
            ("managedLedgerDefaultMarkDeleteRateLimit", "1.0"),
            // A quota that is reached shows within seconds instead of a minute.
            ("backlogQuotaCheckIntervalInSeconds", "2"),
            ("authenticationEnabled", "true"),
            ("authorizationEnabled", "true"),
            ("authenticationProviders", self.believed()),
            ("authenticationRefreshCheckSeconds", "2"),
            ("superUserRoles", ADMIN),
            ("tokenSecretKey", &key),
            (
                "brokerClientAuthenticationPlugin",
                "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            ),
        ];
        if self.cluster.is_some() {
            changes.extend([
                ("openIDAllowedAudiences", AUDIENCE),
                // The API server says whose tokens these are and how they are signed: it cannot be found by its name.
                ("openIDAllowedTokenIssuers", ""),
                (
                    "openIDFallbackDiscoveryMode",
                    "KUBERNETES_DISCOVER_PUBLIC_KEYS",
                ),
            ]);
        }
        let own = format!("token:{token}");
        changes.push(("brokerClientAuthenticationParameters", &own));
        changes.extend(options.broker.iter().map(|(key, value)| (&**key, &**value)));

        let shipped = self.home.join("conf/standalone.conf");
        let shipped = std::fs::read_to_string(&shipped)
            .with_context(|| format!("cannot read {}", shipped.display()))?;
        let is_changed = |line: &&str| {
            line.split_once('=')
                .is_some_and(|(key, _)| changes.iter().any(|(changed, _)| *changed == key.trim()))
        };
        let mut lines: Vec<String> = shipped
            .lines()
            .filter(|line| !is_changed(line))
            .map(str::to_owned)
            .collect();
        lines.extend(changes.iter().map(|(key, value)| format!("{key}={value}")));
        std::fs::write(self.folder.join("standalone.conf"), lines.join("\n"))
            .context("cannot write Pulsar's configuration")
    }

    /// The classes that look at a token, one after the other.
    fn believed(&self) -> &'static str {
        match self.cluster {
            None => "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
            Some(_) => {
                "org.apache.pulsar.broker.authentication.AuthenticationProviderToken,\
                 org.apache.pulsar.broker.authentication.oidc.AuthenticationProviderOpenID"
            }
        }
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = self.place.command(self.home.join("bin/pulsar"), None);
        if let Some(cluster) = &self.cluster {
            command.env("KUBECONFIG", cluster);
        }
        command
            .args(["standalone", "--no-functions-worker", "--no-stream-storage"])
            .args(["--bookkeeper-port", &self.bookie.to_string()])
            .arg("--bookkeeper-dir")
            .arg(self.folder.join("bookkeeper"))
            .arg("--metadata-dir")
            .arg(self.folder.join("metadata"))
            .current_dir(&self.folder)
            .env(
                "PULSAR_STANDALONE_CONF",
                self.folder.join("standalone.conf"),
            )
            .env("PULSAR_LOG_DIR", self.folder.join("logs"))
            .env("PULSAR_MEM", MEMORY)
            .env("PULSAR_GC", COLLECTOR);
        self.kept.start(&mut command)
    }
}
