//! Kubernetes with one node, in a machine within this machine: real servers, real pods, and neighbours that pods reach.
//!
//! - [`node`]: the machine; [`certificates`]: who is who; [`servers`]: what runs in it.
//! - [`image`]: images without a container engine; [`forward`]: the way in.
//!
//! Its programs are built once from the Go modules in `e2e/cluster/`: `scripts/need kubernetes`.

mod certificates;
pub mod forward;
pub mod image;
mod node;
mod servers;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::group::Kept;
use super::place::Place;
use super::progress;
use crate::process;
use certificates::Authority;
use forward::Forward;
use image::Image;
use node::Node;

pub use node::ADDRESS;
pub use servers::Server;

/// How long each step of the start may take, on a busy machine.
const START: Duration = Duration::from_mins(3);

/// The namespace of the Services that lead to what runs beside the cluster.
pub const NEIGHBOURS: &str = "neighbours";

/// Where the programs take their configuration from, and what it is.
const CONFIGURATION: [(&str, &str); 6] = [
    (
        "audit-policy.yaml",
        include_str!("../../../cluster/config/audit-policy.yaml"),
    ),
    (
        "containerd.toml",
        include_str!("../../../cluster/config/containerd.toml"),
    ),
    (
        "cni/pods.conflist",
        include_str!("../../../cluster/config/pods.conflist"),
    ),
    (
        "kubelet.yaml",
        include_str!("../../../cluster/config/kubelet.yaml"),
    ),
    (
        "kube-proxy.yaml",
        include_str!("../../../cluster/config/kube-proxy.yaml"),
    ),
    ("Corefile", include_str!("../../../cluster/config/Corefile")),
];

/// The cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kubernetes {
    /// How it is reached from this machine.
    kubeconfig: PathBuf,
    /// Where `kubectl` and `helm` are.
    programs: PathBuf,
    node: Node,
    servers: BTreeMap<Server, Kept>,
    forwards: BTreeMap<String, Forward>,
}

impl Kubernetes {
    pub(super) async fn start(folder: &Path, guarded: bool) -> anyhow::Result<Self> {
        process::need(&["kubernetes"])?;
        let programs = fs::canonicalize(process::cache().join("cluster/bin"))
            .context("the cluster's programs are not where scripts/need puts them")?;
        progress("Kubernetes: starting, which takes some seconds");
        let begin = Instant::now();
        let kubernetes = match Self::try_start(folder, "kubernetes", &programs, guarded).await {
            Ok(kubernetes) => kubernetes,
            // On a machine that does much else, one of the eight servers may give up on another.
            Err(error) => {
                progress(&format!("Kubernetes: once more, since {error:#}"));
                Self::try_start(folder, "kubernetes-again", &programs, guarded).await?
            }
        };
        progress(&format!(
            "{}, after {:.0?}",
            kubernetes.describe(),
            begin.elapsed()
        ));
        Ok(kubernetes)
    }

    async fn try_start(
        folder: &Path,
        own: &str,
        programs: &Path,
        guarded: bool,
    ) -> anyhow::Result<Self> {
        let log = folder.join("node.log");
        let node = Node::start(&folder.join(own), programs, log, guarded).await?;
        let mut kubernetes = Self {
            kubeconfig: folder.join("kubeconfig"),
            programs: programs.to_owned(),
            node,
            servers: BTreeMap::new(),
            forwards: BTreeMap::new(),
        };
        if let Err(error) = kubernetes.bring_up().await {
            kubernetes.kill();
            return Err(error);
        }
        Ok(kubernetes)
    }

    async fn bring_up(&mut self) -> anyhow::Result<()> {
        for (name, content) in CONFIGURATION {
            let path = self.node.lib("cluster").join(name);
            let folder = path.parent().context("it is in no folder")?;
            fs::create_dir_all(folder).context("cannot make the cluster's folder")?;
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        // Pods ask CoreDNS, which asks nobody.
        fs::write(self.node.lib("cluster/resolv.conf"), "")?;
        let pki = self.node.lib("cluster/pki");
        let authority = Authority::establish(&pki)?;
        let pause = self.node.lib("pause.tar");
        let image = Image {
            name: "herald.test/pause:1",
            entrypoint: "/pause",
            programs: &[(self.programs.join("pause"), "/pause")],
            files: &[],
        };
        image.write(&pause)?;
        self.launch(Server::Etcd)?;
        self.launch(Server::Containerd)?;
        self.until_ready(Server::Etcd).await?;
        self.launch(Server::ApiServer)?;
        let api = self.reach(&format!("{ADDRESS}:6443"))?;
        authority.kubeconfig("admin", &format!("https://{api}"), &self.kubeconfig)?;
        self.until_ready(Server::ApiServer).await?;
        self.until_ready(Server::Containerd).await?;
        // The controllers give up where they find no API server, the kubelet where nothing runs containers.
        for server in Server::ALL {
            if !self.servers.contains_key(&server) {
                self.launch(server)?;
            }
        }
        self.import(&pause)?;
        self.apply(include_str!("../../../cluster/config/names.yaml"))?;
        self.until_ready(Server::Names).await?;
        self.until("create", "node/node1").await?;
        self.until("create", "serviceaccount/default").await?;
        self.until("condition=Ready", "node/node1").await?;
        self.until_ready(Server::Proxy).await
    }

    /// Waits for an object as `kubectl wait` does, and sees to it that its servers are there.
    async fn until(&mut self, condition: &str, what: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        let condition = format!("--for={condition}");
        while let Err(error) = self.kubectl(&["wait", &condition, what, "--timeout=5s"]) {
            if begin.elapsed() > START {
                bail!("{error:#}\n{}", self.last_words());
            }
            for server in Server::ALL {
                self.check(server, Instant::now()).await?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// The end of what each of its servers said.
    fn last_words(&self) -> String {
        let servers = self.servers.iter();
        let said: Vec<_> = servers.map(|(&server, kept)| said(server, kept)).collect();
        said.join("\n")
    }

    /// What reaches it from this machine: a file for `KUBECONFIG`.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `kubectl`, `helm` (of Helm 3) or `helm4`, for this cluster.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        self.tell(&mut command);
        command
    }

    /// A program of this machine that finds `kubectl`, `helm` and `helm4`, and with them this cluster.
    pub fn user(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        self.tell(&mut command).env("PATH", self.path()?);
        Ok(command)
    }

    /// Where programs are found, the cluster's first.
    pub(super) fn path(&self) -> anyhow::Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        Ok(std::env::join_paths(folders)?)
    }

    fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            // What it remembers of another cluster that had this address would be wrong.
            .env("KUBECACHEDIR", self.kubeconfig.with_extension("cache"))
    }

    /// What `kubectl` prints.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.program("kubectl").args(arguments), None)
    }

    /// Waits until definitions are in force: `-f FILE`, or `crd/NAME`s.
    pub fn established(&self, what: &[&str]) -> anyhow::Result<()> {
        let begin = Instant::now();
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        while let Err(error) = self.kubectl(&[&wait[..], what].concat()) {
            // It cannot wait for one that is too new to have conditions.
            let too_new = error.to_string().contains("accessor error");
            if !too_new || begin.elapsed() > START {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Applies documents, YAML or JSON, on the server's side.
    pub fn apply(&self, documents: &str) -> anyhow::Result<String> {
        let mut command = self.program("kubectl");
        command.args([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager",
        ]);
        run(command.args(["herald-e2e", "-f", "-"]), Some(documents))
    }

    /// Makes an image known to the cluster.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        let mut command = self.ctr();
        run(command.args(["images", "import"]).arg(archive), None)?;
        Ok(())
    }

    /// Makes an image known by another name, too.
    pub fn tag(&self, image: &str, name: &str) -> anyhow::Result<()> {
        let mut command = self.ctr();
        run(
            command.args(["images", "tag", "--force", image, name]),
            None,
        )?;
        Ok(())
    }

    /// A signal for the first process of a container, by what the kubelet calls it: `containerd://…`.
    pub fn signal_container(&self, container: &str, signal: Signal) -> anyhow::Result<()> {
        let id = container.strip_prefix("containerd://");
        let id = id.with_context(|| format!("{container:?} is no container of containerd"))?;
        let signal = signal.as_raw().to_string();
        let mut command = self.ctr();
        command.args(["tasks", "kill", "--signal", &signal, id]);
        run(&mut command, None)?;
        Ok(())
    }

    /// Lets pods reach what listens at [`ADDRESS`]: as `NAME.neighbours`, on these ports with these names.
    pub fn neighbour(&self, name: &str, ports: &[(&str, u16)]) -> anyhow::Result<()> {
        let ports: Vec<_> = ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port}))
            .collect();
        let metadata = json!({
            "name": name,
            "namespace": NEIGHBOURS,
            "labels": {"kubernetes.io/service-name": name},
        });
        let documents = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NEIGHBOURS}},
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}},
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": metadata,
                "addressType": "IPv4",
                "endpoints": [{"addresses": [ADDRESS]}],
                "ports": ports,
            },
        ]});
        self.apply(&documents.to_string())?;
        Ok(())
    }

    /// A port of this machine that leads to an address in the cluster's network: a Service's, say.
    pub fn reach(&mut self, to: &str) -> anyhow::Result<SocketAddr> {
        if let Some(forward) = self.forwards.get(to) {
            return Ok(forward.address);
        }
        let forward = Forward::start(&self.node, to)?;
        let address = forward.address;
        self.forwards.insert(to.to_owned(), forward);
        Ok(address)
    }

    /// A program of this machine in the cluster's network, where it may listen at [`ADDRESS`].
    pub fn beside(&self, program: impl AsRef<OsStr>) -> Command {
        self.place().command(program, None)
    }

    /// The cluster's network, for servers.
    pub(super) fn place(&self) -> Place {
        self.node.beside()
    }

    /// A kubeconfig for programs in its network, with which they may do everything.
    pub(super) fn inner_kubeconfig(&self) -> PathBuf {
        self.node.lib("cluster/pki/admin.kubeconfig")
    }

    /// SIGKILL for one of its servers.
    pub fn kill_server(&mut self, server: Server) -> anyhow::Result<()> {
        self.servers
            .get_mut(&server)
            .context("it was not started")?
            .kill();
        Ok(())
    }

    /// Stops a server in its tracks (`Signal::STOP`), or lets it go on (`Signal::CONT`).
    pub fn signal_server(&self, server: Server, signal: Signal) -> anyhow::Result<()> {
        let kept = self.servers.get(&server);
        kept.context("it was not started")?.signal(signal);
        Ok(())
    }

    /// Starts a server, in place of what there was of it.
    pub fn launch(&mut self, server: Server) -> anyhow::Result<()> {
        let log = self.node.log(&format!("{}.log", server.name()));
        let mut command = server.command(&self.node);
        let kept = self.servers.entry(server);
        kept.or_insert_with(|| Kept::new(log, false))
            .start(&mut command)
    }

    /// Waits until a server that was started says that it is ready, if it has a way to say so.
    pub async fn until_ready(&mut self, server: Server) -> anyhow::Result<()> {
        let begin = Instant::now();
        let Some((scheme, address, path)) = server.probe() else {
            while server == Server::Containerd && run(self.ctr().arg("version"), None).is_err() {
                self.check(server, begin).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            return Ok(());
        };
        let url = format!("{scheme}://{}{path}", self.reach(address)?);
        let authority = fs::read(self.node.lib("cluster/pki/ca.crt"))?;
        // Another part of the program may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .add_root_certificate(reqwest::Certificate::from_pem(&authority)?)
            .timeout(Duration::from_secs(5))
            .build()?;
        loop {
            let answer = client.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            self.check(server, begin).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What pods asked of the API server, and what it answered: lines of JSON, in no order.
    pub fn audited(&self) -> anyhow::Result<String> {
        let log = self.node.log(servers::AUDIT_LOG);
        let failed = || format!("cannot read {}", log.display());
        let size = fs::metadata(&log).with_context(failed)?.len();
        let begun_anew = log.parent().map(fs::read_dir).transpose()?;
        let files = begun_anew.into_iter().flatten().flatten();
        let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with("audit"));
        ensure!(
            logs.count() == 1,
            "{} is not all that was asked: there was more than it may hold, {size} bytes are in it",
            log.display()
        );
        fs::read_to_string(&log).with_context(failed)
    }

    pub(super) fn leave(&mut self) -> anyhow::Result<()> {
        self.node.leave()
    }

    /// SIGKILL, all of it.
    pub(super) fn kill(&mut self) {
        for forward in self.forwards.values_mut() {
            forward.kill();
        }
        self.node.kill();
        // Each was the parent of something in there.
        self.servers.values_mut().for_each(Kept::kill);
    }

    pub(super) fn is_alive(&self) -> bool {
        self.node.is_alive() && self.servers.values().all(Kept::is_alive)
    }

    pub(super) fn describe(&self) -> String {
        let dead = self.servers.iter();
        let dead = dead.filter_map(|(server, kept)| (!kept.is_alive()).then_some(server.name()));
        let dead: Vec<_> = dead.collect();
        let how = if dead.is_empty() {
            String::new()
        } else {
            format!(" (dead: {})", dead.join(", "))
        };
        format!("Kubernetes: KUBECONFIG={}{how}", self.kubeconfig.display())
    }

    fn ctr(&self) -> Command {
        let mut command = self.node.inside("ctr");
        command.args(["--namespace", "k8s.io"]);
        command
    }

    /// Starts a server that has ended again. An error if it was not ready in time, or is one of the two that all others
    /// rest on.
    ///
    /// Most end where they find something that is not there yet, and count on who starts them again.
    async fn check(&mut self, server: Server, begin: Instant) -> anyhow::Result<()> {
        let kept = self.servers.get(&server).context("it was not started")?;
        let in_time = begin.elapsed() <= START;
        if in_time && kept.is_alive() {
            return Ok(());
        }
        if in_time && !matches!(server, Server::Etcd | Server::Containerd) {
            progress(&format!("{}\nit is started again", said(server, kept)));
            // Its parent takes note of its end.
            self.kill_server(server)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            return self.launch(server);
        }
        bail!(
            "a server of the cluster is not ready: {}",
            said(server, kept)
        );
    }
}

/// The end of what a server said: its log goes with the cluster.
fn said(server: Server, kept: &Kept) -> String {
    let how = if kept.is_alive() {
        "is there"
    } else {
        "has ended"
    };
    let lines = process::last_lines(&kept.log);
    format!("{} {how}; the end of what it said:\n{lines}", server.name())
}

/// What a command prints, given this to read. An error with what it says if it fails.
fn run(command: &mut Command, input: Option<&str>) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let failed = || format!("cannot run {}", Path::new(&program).display());
    let mut child = command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(failed)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        use std::io::Write as _;
        // One that reads nothing of it says why when it ends.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(failed)?;
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    ensure!(
        output.status.success(),
        "{} {} failed: {}",
        Path::new(&program).display(),
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
