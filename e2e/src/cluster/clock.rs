//! Clocks that can be set while a process runs: what Debian's `libfaketime` does for those that begin with it.
//!
//! Only the time of day is another, as after a step of a real clock: the monotonic one goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// What is loaded before everything else.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The clock of one process.
#[derive(Debug)]
pub struct Clock {
    /// What it says; without it the clock is the machine's.
    file: PathBuf,
}

impl Clock {
    /// The clock of a process by its name.
    pub(super) fn of(folder: &Path, name: &str) -> Self {
        Self {
            file: folder.join(format!("{name}.clock")),
        }
    }

    /// Sets it so many seconds ahead of the machine's, or behind if negative. It is noticed within a second.
    pub fn ahead(&self, seconds: i64) -> anyhow::Result<()> {
        // Never half written for whoever reads it meanwhile.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}")).context("cannot set a clock")?;
        fs::rename(&new, &self.file).context("cannot set a clock")
    }

    /// Has `command` run by this clock, if it was ever set.
    pub(super) fn put_before(&self, command: &mut Command) -> anyhow::Result<()> {
        if self.file.exists() {
            command
                .env("LD_PRELOAD", library()?)
                .env("FAKETIME_TIMESTAMP_FILE", &self.file)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1")
                .env("NO_FAKE_STAT", "1");
        }
        Ok(())
    }
}

/// Where Debian puts it: in a folder for each architecture.
fn library() -> anyhow::Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib").context("cannot list /usr/lib")?;
    folders
        .filter_map(|folder| Some(folder.ok()?.path().join(LIBRARY)))
        .find(|path| path.exists())
        .context("libfaketime is missing: scripts/need faketime")
}
