//! Buildah, with images, layers and caches in a folder of their own, and mounts that end with it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::process::Running;

/// How long another run may keep what both would use.
const TURN: Duration = Duration::from_mins(40);

/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(200);

/// What the caches that a `Dockerfile` mounts are kept in, below the folder for what is temporary.
const CACHES: &str = "buildah-cache";

/// What they may take, in bytes. Cargo keeps what it built for each version of whatever it depends on, and tidies nothing.
const MOST_CACHED: u64 = 6 << 30;

/// Buildah, used by one run at a time.
#[derive(Debug)]
pub struct Buildah {
    folder: PathBuf,
    /// What is mounted now: of no use to the next run.
    mounts: PathBuf,
    log: PathBuf,
    /// Held as long as this.
    _turn: File,
}

impl Buildah {
    /// On the folder `folder`, which is kept, for a run in another folder. Waits until no other run uses it.
    pub async fn open(folder: &Path, run: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("tmp")).context("cannot make the images' folder")?;
        let buildah = Self {
            folder: folder.to_owned(),
            mounts: run.join("mounts"),
            log: run.join("buildah.log"),
            _turn: turn(&folder.join("lock")).await?,
        };
        // A run that was killed did not.
        buildah.tidy()?;
        let caches = buildah.temporary().join(CACHES);
        if caches.exists() && size(&caches)? > MOST_CACHED {
            remove(&caches)?;
        }
        Ok(buildah)
    }

    /// Removes what is of no use to the next run: containers, and files half written.
    fn tidy(&self) -> anyhow::Result<()> {
        self.ask(&["rm", "--all"])?;
        for entry in fs::read_dir(self.temporary())?.flatten() {
            if entry.file_name() != CACHES {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Where large things may be for a while.
    pub fn temporary(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    /// Buildah, in mounts and process ids of its own: however it ends, the kernel leaves nothing of either.
    pub fn command(&self) -> Command {
        let mut command = isolated("buildah");
        command
            .arg("--root")
            .arg(self.folder.join("images"))
            .arg("--runroot")
            .arg(&self.mounts)
            .env("TMPDIR", self.temporary())
            .stdin(Stdio::null());
        command
    }

    /// Runs something short. Answers what it printed.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command().args(arguments).output();
        let output = output.context("cannot run buildah")?;
        ensure!(
            output.status.success(),
            "buildah {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether there is an image of this name.
    pub fn has(&self, name: &str) -> anyhow::Result<bool> {
        let listed = self.ask(&["images", "--format", "{{.Name}}:{{.Tag}}"])?;
        Ok(listed.lines().any(|listed| listed == name))
    }

    /// Starts one of its commands, or another program that works for it; what it prints goes to the log.
    pub fn start(&self, name: &str, command: &mut Command) -> anyhow::Result<Running> {
        Running::start(name, command, &self.log)
    }

    /// The same, and waits for its end, at most so long.
    pub async fn run(
        &self,
        name: &str,
        command: &mut Command,
        most: Duration,
    ) -> anyhow::Result<()> {
        let status = self.start(name, command)?.wait(most).await?;
        ensure!(
            status.success(),
            "{name} failed ({status}); {} says why",
            self.log.display()
        );
        Ok(())
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        if let Err(error) = self.tidy() {
            eprintln!("{} is not tidy: {error:#}", self.folder.display());
        }
    }
}

/// A program in mounts and process ids of its own, which end with it.
pub fn isolated(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program);
    command
}

/// Removes a file, or a folder with everything in it.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// What the files in a folder take, in bytes.
fn size(folder: &Path) -> anyhow::Result<u64> {
    let failed = || format!("cannot read {}", folder.display());
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let kind = entry.metadata().with_context(failed)?;
        sum += if kind.is_dir() {
            size(&entry.path())?
        } else {
            kind.len()
        };
    }
    Ok(sum)
}

/// Waits for the right to use what the file at `path` stands for. Whoever dies gives it back.
async fn turn(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begin.elapsed() < TURN => {
                tokio::time::sleep(LOOK).await;
            }
            Err(TryLockError::WouldBlock) => bail!("another run has {} since", path.display()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}
