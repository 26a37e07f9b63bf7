//! A server's processes, which can be found and ended by whoever knows their number, and by nobody by mistake.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

/// Kills a group as soon as this program is gone, whatever became of it, and removes its folder; ends when the group does.
///
/// Those who die with the group may write for another moment.
const GUARD: &str = r#"while kill -s 0 "$1" && kill -s 0 -- "-$2"; do sleep 1; done; kill -s KILL -- "-$2"
kill -s 0 "$1" || for again in 1 2 3 4 5; do rm -rf "$3" && break; sleep 1; done"#;

/// A process group that a server leads.
#[derive(Debug, Serialize, Deserialize)]
pub struct Group {
    /// The leader's process id, which is the group's too.
    id: i32,
    /// When the leader began, in the kernel's ticks since boot: ids are used again, these are not.
    began: u64,
    /// The leader, if it is this program's child.
    #[serde(skip)]
    child: Option<Child>,
    /// What kills the group when this program is gone.
    #[serde(skip)]
    guard: Option<Child>,
}

impl Group {
    /// Starts `command` as the leader of a group; what it prints goes to the file `log`.
    ///
    /// A guarded group dies with this program, and the log's folder with it.
    pub fn start(command: &mut Command, log: &Path, guarded: bool) -> anyhow::Result<Self> {
        Self::start_with(command, Stdio::null(), log, guarded)
    }

    /// The same, with something to read.
    pub fn start_with(
        command: &mut Command,
        input: Stdio,
        log: &Path,
        guarded: bool,
    ) -> anyhow::Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(input)
            .stderr(out.try_clone().context("cannot share the log file")?)
            .stdout(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let id = child.id().cast_signed();
        let guard = log
            .parent()
            .filter(|_| guarded)
            .map(|folder| guard(std::process::id(), id, folder))
            .transpose()?;
        Ok(Self {
            id,
            began: began(id).unwrap_or(0),
            child: Some(child),
            guard,
        })
    }

    /// Lets it outlive this program.
    pub fn leave(&mut self) -> anyhow::Result<()> {
        if let Some(mut guard) = self.guard.take() {
            guard.kill().context("cannot end the guard")?;
            guard.wait().context("cannot wait for the guard")?;
        }
        Ok(())
    }

    /// Whether its leader is there.
    pub fn is_alive(&self) -> bool {
        began(self.id) == Some(self.began)
    }

    /// Sends all of it a signal, unless its number belongs to somebody else by now.
    pub fn signal(&self, signal: Signal) {
        let leader = began(self.id);
        if leader.is_none_or(|began| began == self.began)
            && let Some(group) = Pid::from_raw(self.id)
        {
            // Some have groups of their own, and no parent any more once it is gone.
            let children = children(self.id);
            // The only failure is that there is nobody left.
            let _ = kill_process_group(group, signal);
            for child in children {
                let _ = kill_process(child, signal);
            }
        }
    }

    /// SIGKILL, and waits until its leader is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        let begin = Instant::now();
        while self.is_alive() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }
}

/// A server's processes from one start to the next.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What the server prints goes here.
    pub log: PathBuf,
    /// Whether it dies with this program.
    guarded: bool,
    /// `None` before the first start.
    group: Option<Group>,
}

impl Kept {
    /// Nothing is started yet.
    pub fn new(log: PathBuf, guarded: bool) -> Self {
        Self {
            log,
            guarded,
            group: None,
        }
    }

    /// Starts `command`, in place of what there was.
    pub fn start(&mut self, command: &mut Command) -> anyhow::Result<()> {
        self.group = Some(Group::start(command, &self.log, self.guarded)?);
        Ok(())
    }

    /// The leader's process id; `None`: it was never started.
    pub fn process(&self) -> Option<u32> {
        let group = self.group.as_ref()?;
        u32::try_from(group.id).ok()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(group) = &mut self.group {
            group.kill();
        }
    }

    /// Sends all of it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = &self.group {
            group.signal(signal);
        }
    }

    /// Lets it outlive this program, also when it is started again.
    pub fn leave(&mut self) -> anyhow::Result<()> {
        self.guarded = false;
        self.group.as_mut().map_or(Ok(()), Group::leave)
    }

    /// Whether it is there.
    pub fn is_alive(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_alive)
    }

    /// The process that leads it; `None` before the first start.
    pub fn id(&self) -> Option<i32> {
        self.group.as_ref().map(|group| group.id)
    }
}

/// What kills the group `id` once the process `parent` is gone.
fn guard(parent: u32, id: i32, folder: &Path) -> anyhow::Result<Child> {
    Command::new("sh")
        .args(["-c", GUARD, "guard"])
        .arg(parent.to_string())
        .arg(id.to_string())
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start what ends the servers with this program")
}

/// When a process began; `None` if there is none, or only what its parent has not asked about yet.
fn began(id: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The program's name is in parentheses and may contain anything. After it: the state, then field 4 and so on.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The processes that one has started.
pub fn children(id: i32) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let parent = |stat: &str| -> Option<i32> {
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        fields.nth(1)?.parse().ok()
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let child: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            (parent(&stat)? == id).then(|| Pid::from_raw(child))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_ended_whole_and_by_whoever_knows_it() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo $!; wait"]);
        let group = Group::start(&mut shell, &log, false).unwrap();
        let inner: i32 = loop {
            match std::fs::read_to_string(&log).unwrap().trim().parse() {
                Ok(inner) => break inner,
                Err(_) => std::thread::yield_now(),
            }
        };
        assert!(group.is_alive() && began(inner).is_some());

        let written = serde_json::to_string(&group).unwrap();
        let mut found: Group = serde_json::from_str(&written).unwrap();
        found.kill();
        assert!(!group.is_alive());
        let begin = Instant::now();
        while began(inner).is_some() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_group_dies_with_whoever_started_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut sleep = Command::new("sleep");
        let mut group = Group::start(sleep.arg("1000"), &folder.path().join("log"), false).unwrap();
        let mut parent = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut guard = guard(parent.id(), group.id, folder.path()).unwrap();
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(group.is_alive() && guard.try_wait().unwrap().is_none());
        parent.kill().unwrap();
        parent.wait().unwrap();
        let begin = Instant::now();
        while group.is_alive() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        group.kill();
        guard.wait().unwrap();
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_number_that_belongs_to_somebody_else_is_let_be() {
        let folder = tempfile::tempdir().unwrap();
        let mut sleep = Command::new("sleep");
        let mut group = Group::start(sleep.arg("1000"), &folder.path().join("log"), false).unwrap();
        let stale = Group {
            id: group.id,
            began: group.began - 1,
            child: None,
            guard: None,
        };
        assert!(!stale.is_alive());
        stale.signal(Signal::KILL);
        assert!(group.is_alive());
        group.kill();
        assert!(!group.is_alive());
    }
}
