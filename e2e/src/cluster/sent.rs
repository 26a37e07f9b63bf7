//! What the pods say that they sent.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;

/// One send, as its pod wrote it down.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// When it was over.
    pub at: Timestamp,
    /// Which delivery.
    pub delivery: Box<str>,
    /// The template's name, `namespace/name`.
    pub template: Box<str>,
    /// To which address.
    pub endpoint: Box<str>,
    /// Its class.
    pub priority: Box<str>,
    /// When it was handed to the broker, from where a pod took it.
    pub released_at: Timestamp,
    /// By which pod.
    #[serde(skip)]
    pub pod: u16,
}

/// Every send, by all pods that ever were, in the order in which they were over.
pub fn read(folder: &Path) -> anyhow::Result<Vec<Sent>> {
    let mut all = Vec::new();
    for (pod, file) in files(folder)?.iter().enumerate() {
        let lines = BufReader::new(fs::File::open(file).context("cannot open what was sent")?);
        for line in lines.lines() {
            // What a pod was writing when it was killed was not sent.
            if let Ok(mut sent) = serde_json::from_str::<Sent>(&line?) {
                sent.pod = pod as u16;
                all.push(sent);
            }
        }
    }
    all.sort_by_key(|sent| sent.at);
    Ok(all)
}

/// How many sends there were until now.
pub fn count(folder: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for file in files(folder)? {
        let text = fs::read(file).context("cannot read what was sent")?;
        count += text.split(|byte| *byte == b'\n').count() - 1;
    }
    Ok(count)
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder.join("sent")).context("cannot list what was sent")?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.context("cannot list what was sent")?;
        // Not what a pod is made to hang on.
        if entry.metadata().is_ok_and(|entry| entry.is_file()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
