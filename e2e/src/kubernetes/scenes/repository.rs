//! A Git repository of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// With a working tree, whose branch is `main`.
pub struct Repository {
    folder: PathBuf,
}

impl Repository {
    /// A new one, in a folder that is made.
    pub fn new(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder).context("cannot make a repository's folder")?;
        let repository = Self { folder };
        repository.git(&["init", "--quiet", "--initial-branch", "main"])?;
        Ok(repository)
    }

    /// What programs of this machine call it.
    pub fn url(&self) -> String {
        format!("file://{}", self.folder.display())
    }

    /// A file of the working tree.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Copies a folder, or a file, into the folder `to` of the working tree.
    pub fn copy(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let to = self.folder.join(to);
        fs::create_dir_all(&to).context("cannot make a folder")?;
        let mut command = Command::new("cp");
        command.arg("--recursive").arg(from).arg(to);
        run(&mut command).map(drop)
    }

    /// Replaces words, which are there once, in a file.
    pub fn edit(&self, name: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        let count = text.matches(from).count();
        ensure!(count == 1, "{name} has {count} times {from:?}");
        fs::write(&path, text.replace(from, to)).with_context(|| format!("cannot write {name}"))
    }

    /// Commits all of the working tree.
    pub fn commit(&self, why: &str) -> anyhow::Result<()> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", why]).map(drop)
    }

    /// Gives what was committed last a name.
    pub fn tag(&self, name: &str) -> anyhow::Result<()> {
        self.git(&["tag", name]).map(drop)
    }

    /// What was committed last.
    pub fn revision(&self) -> anyhow::Result<String> {
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("git");
        command
            .current_dir(&self.folder)
            // Nobody's settings count.
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .args(["-c", "user.name=herald-e2e"])
            .args(["-c", "user.email=herald-e2e@shop.example"])
            .args(arguments);
        run(&mut command)
    }
}

/// What a command prints. An error with what it says if it fails.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output();
    let output =
        output.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
