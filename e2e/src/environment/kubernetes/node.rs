//! A machine within this one: process ids, network and mounts of its own, all gone with its first process.
//!
//! Whoever kills that one, and however this program ends, the kernel leaves nothing behind but empty control groups and
//! a folder. Nothing outside is changed, and there can be several of them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::super::group::{Kept, children};
use super::super::place::Place;
use crate::process::last_lines;

/// The node's own address; servers listen here.
pub const ADDRESS: &str = "10.88.0.1";

/// What the node calls its programs' folder.
pub const PROGRAMS: &str = "/var/lib/cluster/bin";

/// How long it may take to set up.
const START: Duration = Duration::from_secs(60);

/// Where the kernel shows control groups.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// What control groups of nodes are called; the id of the node's leader follows.
const CONTROL_GROUP: &str = "herald-node-";

/// What the first process does before it becomes `pause`: `$1` is the node's folder, `$2` the programs.
///
/// The programs have default places below `/run`, `/var/lib` and `/var/log`, and find their own there. What servers say
/// to a Service needs a route, whatever becomes of the address afterwards.
const SETUP: &str = r#"set -e
mount --make-rshared /
mount --bind "$2" "$1/lib/cluster/bin"
mount --rbind "$1/lib" /var/lib
mount --bind "$1/log" /var/log
mount -t tmpfs -o mode=755 run /run
ip link set lo up
ip link add node0 type bridge
ip address add 10.88.0.1/24 dev node0
ip link set node0 up
ip route add 10.96.0.0/16 dev node0
sysctl -qw net.ipv4.ip_forward=1
touch "$1/ready"
exec /var/lib/cluster/bin/pause"#;

/// The machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Node {
    folder: PathBuf,
    /// What holds the first process, and is its parent outside.
    leader: Kept,
    /// The first process, by its id outside.
    first: i32,
    control_group: String,
}

impl Node {
    /// Starts it on a new folder, `folder`, with the programs in another.
    ///
    /// If it is guarded, it dies with this program, and the folder that `log` is in with it.
    pub async fn start(
        folder: &Path,
        programs: &Path,
        log: PathBuf,
        guarded: bool,
    ) -> anyhow::Result<Self> {
        for inner in ["lib/cluster/bin", "log"] {
            fs::create_dir_all(folder.join(inner)).context("cannot make the node's folder")?;
        }
        sweep();
        let mut leader = Kept::new(log, guarded);
        let mut command = Command::new("unshare");
        command
            .args(["--fork", "--kill-child", "--pid", "--net", "--mount-proc"])
            .args(["sh", "-c", SETUP, "node"])
            .args([folder, programs])
            .env("PATH", path());
        leader.start(&mut command)?;
        let begin = Instant::now();
        let ready = folder.join("ready");
        while !ready.exists() {
            if !leader.is_alive() || begin.elapsed() > START {
                leader.kill();
                bail!(
                    "this machine allows none within it:\n{}",
                    last_lines(&leader.log)
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let first = leader.id().and_then(|id| children(id).first().copied());
        let first = first.context("the node has no first process")?;
        let control_group = format!("{CONTROL_GROUP}{}", leader.id().unwrap_or_default());
        for hierarchy in hierarchies() {
            let group = hierarchy.join(&control_group);
            fs::create_dir_all(&group)
                .with_context(|| format!("cannot make {}", group.display()))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            leader,
            first: first.as_raw_nonzero().get(),
            control_group,
        })
    }

    /// A program of the node: it sees the node's processes, network and files, and starts in its root.
    ///
    /// The process that this makes waits for the program, and ends as it does.
    pub fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(["--pid", "--mount", "--net", "--"])
            .arg(program)
            .env("PATH", path());
        command
    }

    /// A program of this machine that is in the node's network and ends with the node.
    pub fn within(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(["--pid", "--net", "--"])
            .arg(program);
        command
    }

    /// For programs of this machine that have only their network in common with the node.
    pub(in crate::environment) fn beside(&self) -> Place {
        Place::node(self.first, ADDRESS)
    }

    /// What the node has below `/var/lib`, as it is called outside.
    pub fn lib(&self, path: &str) -> PathBuf {
        self.folder.join("lib").join(path)
    }

    /// What is logged where the node has `/var/log`, as it is called outside.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("log").join(name)
    }

    /// What the kubelet shall take for the root of all control groups.
    pub fn control_group(&self) -> &str {
        &self.control_group
    }

    /// Whether it is there.
    pub fn is_alive(&self) -> bool {
        self.leader.is_alive()
    }

    /// Lets it outlive this program.
    pub fn leave(&mut self) -> anyhow::Result<()> {
        self.leader.leave()
    }

    /// Ends it with all its processes.
    pub fn kill(&mut self) {
        self.leader.kill();
        let begin = Instant::now();
        // Its pods are a moment later to go than the first process's parent.
        while !remove(&self.control_group) && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where programs are found, inside and beside: also what an ordinary user does not search.
fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{PROGRAMS}:{path}:/usr/sbin:/sbin")
}

/// The folders in which there are control groups: one, or one for each resource with the first version.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(CONTROL_GROUPS);
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the control groups of nodes that died without this program.
fn sweep() {
    for hierarchy in hierarchies() {
        let Ok(entries) = fs::read_dir(hierarchy) else {
            continue;
        };
        for name in entries.flatten().map(|entry| entry.file_name()) {
            let name = name.to_string_lossy();
            if let Some(leader) = name.strip_prefix(CONTROL_GROUP)
                && !Path::new("/proc").join(leader).exists()
            {
                remove(&name);
            }
        }
    }
}

/// Removes a node's control groups. Answers whether all are gone: one with processes stays.
fn remove(name: &str) -> bool {
    let mut gone = true;
    for hierarchy in hierarchies() {
        gone &= remove_tree(&hierarchy.join(name));
    }
    gone
}

fn remove_tree(group: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(group) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path());
            }
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}
