//! What is in an image: the archive that engines load, read without one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

/// Of a file that is looked into at most so much is kept, in bytes: lists of authorities and records of packages are smaller.
const LOOKED_INTO: u64 = 1 << 20;

/// A file as containers see it.
#[derive(Debug)]
pub struct Entry {
    /// Its permissions.
    pub mode: u32,
    /// Whose it is, by number.
    pub owner: u64,
    /// In bytes.
    pub size: u64,
    begin: Vec<u8>,
}

impl Entry {
    /// Whether its first bytes are these.
    pub fn begins_with(&self, bytes: &[u8]) -> bool {
        self.begin.starts_with(bytes)
    }
}

/// An image's files, and what it says of itself.
#[derive(Debug)]
pub struct Content {
    /// As the OCI's image specification describes it.
    pub config: Value,
    files: BTreeMap<String, Entry>,
}

/// What is first in the archive's list: the only image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    config: String,
    layers: Vec<String>,
}

impl Content {
    /// Reads the archive at `path`.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let manifest: Vec<Manifest> = serde_json::from_slice(&blob(path, "manifest.json")?)?;
        let manifest = manifest.first().context("the archive has no image")?;
        let mut files = BTreeMap::new();
        for name in &manifest.layers {
            find(path, name, |layer| add(layer, &mut files))
                .with_context(|| format!("cannot read the layer {name}"))?;
        }
        Ok(Self {
            config: serde_json::from_slice(&blob(path, &manifest.config)?)?,
            files,
        })
    }

    /// All files, without folders and links, by their paths from the root, without a slash before it.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// One of them.
    pub fn file(&self, path: &str) -> anyhow::Result<&Entry> {
        let file = self.files.get(path);
        file.with_context(|| format!("the image has no {path}"))
    }

    /// What one of them says.
    pub fn text(&self, path: &str) -> anyhow::Result<&str> {
        let file = self.file(path)?;
        ensure!(file.size <= LOOKED_INTO, "{path} is too long");
        std::str::from_utf8(&file.begin).with_context(|| format!("{path} is no text"))
    }

    /// What all of them take, in bytes.
    pub fn size(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }
}

/// Adds a layer's files to those of the layers below it.
fn add(layer: &mut dyn Read, files: &mut BTreeMap<String, Entry>) -> anyhow::Result<()> {
    for entry in tar::Archive::new(layer).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let path = path.trim_start_matches("./").to_owned();
        ensure!(!path.contains(".wh."), "{path} takes something away again");
        let kind = entry.header().entry_type();
        if kind.is_hard_link() {
            // Its permissions are those of the other name.
            continue;
        }
        if !kind.is_file() {
            files.remove(&path);
            continue;
        }
        let header = entry.header();
        let (mode, owner, size) = (header.mode()?, header.uid()?, entry.size());
        let mut begin = Vec::new();
        entry.by_ref().take(LOOKED_INTO).read_to_end(&mut begin)?;
        if size > LOOKED_INTO {
            begin.truncate(8);
        }
        let file = Entry {
            mode,
            owner,
            size,
            begin,
        };
        files.insert(path, file);
    }
    Ok(())
}

/// What a file of the archive holds.
fn blob(path: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    find(path, name, |blob| {
        blob.read_to_end(&mut content)?;
        Ok(())
    })
    .with_context(|| format!("cannot read {name}"))?;
    Ok(content)
}

/// Finds a file of the archive and hands it to `read`.
fn find(
    path: &Path,
    name: &str,
    read: impl FnOnce(&mut dyn Read) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let archive = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    for entry in tar::Archive::new(BufReader::new(archive)).entries_with_seek()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() && entry.path()? == Path::new(name) {
            return read(&mut entry);
        }
    }
    anyhow::bail!("the archive has no {name}")
}
