//! The catalog of `herald local`: a folder of YAML, looked at again whenever a file changes.
//!
//! # Layout
//!
//! - `scan`: which files there are, and whether they changed.
//! - `declared`: a file becomes resources, each with what is wrong with it by itself.
//! - `write`: a resource becomes a file, for the HTTP API.

mod declared;
mod scan;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::assemble::{Everything, assemble};
use super::{Catalog, DeclaredProblem, Snapshot};
use declared::File;
use scan::Fingerprint;

pub use scan::{MAX_FILES, ScanError};
pub use write::WriteError;

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A look may take this share of the time: large folders are looked at less often, up to [`LONGEST_PAUSE`].
const LOOK_SHARE: u32 = 200;

/// The longest pause between two looks, however long one takes: an edit counts within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After so many looks that each found another state of things, they are taken as they are.
const MOST_UNQUIET_LOOKS: u32 = 5;

/// A folder of YAML files and what is in force of it.
///
/// Everything here blocks on the file system, but for [`Catalog`]'s two calls and [`FolderCatalog::keep_current`].
#[derive(Debug)]
pub struct FolderCatalog {
    dir: PathBuf,
    namespace: String,
    /// What was read; locked while the folder is read or written.
    files: Mutex<BTreeMap<PathBuf, File>>,
    current: watch::Sender<Arc<Snapshot>>,
}

/// How much there is in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Extent {
    /// YAML files.
    pub files: usize,
    /// Resources of Herald in them, broken ones included.
    pub resources: usize,
}

/// The state of a folder, by the look of it.
type Look = BTreeMap<PathBuf, Fingerprint>;

impl FolderCatalog {
    /// Reads the folder `dir`; a resource that names no namespace is of `namespace`.
    ///
    /// What is wrong with what is declared is no error, but in [`Snapshot::problems`].
    pub fn open(dir: impl Into<PathBuf>, namespace: impl Into<String>) -> Result<Self, ScanError> {
        let (current, _) = watch::channel(Arc::default());
        let catalog = Self {
            dir: dir.into(),
            namespace: namespace.into(),
            files: Mutex::default(),
            current,
        };
        let look = scan::look(&catalog.dir)?;
        catalog.read(&mut catalog.lock(), &look);
        Ok(catalog)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The namespace of resources that name none.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How much there is in it.
    pub fn extent(&self) -> Extent {
        let files = self.lock();
        Extent {
            files: files.len(),
            resources: files.values().map(|file| file.declared.len()).sum(),
        }
    }

    /// Reads what changed, and answers what is in force then.
    ///
    /// If the folder cannot be looked through, everything stays in force and a problem says so.
    pub fn reload_now(&self) -> Arc<Snapshot> {
        let mut files = self.lock();
        match scan::look(&self.dir) {
            Ok(look) => self.read(&mut files, &look),
            Err(error) => self.stay(&error),
        }
        self.current()
    }

    /// Looks at the folder every second, and reads what changed once it has stopped changing. Never ends; can be
    /// dropped at any time.
    pub async fn keep_current(self: Arc<Self>) {
        self.keep_looking(LOOK_EVERY).await;
    }

    async fn keep_looking(self: Arc<Self>, every: Duration) {
        let mut unquiet = Unquiet::default();
        let mut pause = every;
        loop {
            tokio::time::sleep(pause).await;
            let catalog = Arc::clone(&self);
            let looking = tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                unquiet = catalog.look_again(&unquiet);
                (unquiet, began.elapsed())
            });
            match looking.await {
                Ok((after, took)) => {
                    unquiet = after;
                    pause = pause_after(&unquiet, took, every);
                }
                Err(error) => {
                    tracing::error!(%error, "looking at the folder failed");
                    unquiet = Unquiet::default();
                }
            }
        }
    }

    /// Looks at the folder once; reads what changed if it looks as it did the last time.
    ///
    /// Editors and version control replace files step by step: half of a change must not come into force.
    fn look_again(&self, before: &Unquiet) -> Unquiet {
        let mut files = self.lock();
        let look = match scan::look(&self.dir) {
            Ok(look) => look,
            Err(error) => {
                self.stay(&error);
                return Unquiet::default();
            }
        };
        if !differs(&files, &look) {
            return Unquiet::default();
        }
        if before.look.as_ref() != Some(&look) && before.looks < MOST_UNQUIET_LOOKS {
            return Unquiet {
                look: Some(look),
                looks: before.looks + 1,
            };
        }
        self.read(&mut files, &look);
        Unquiet::default()
    }

    /// Reads the files that look different from when they were read; publishes if that changed anything.
    fn read(&self, files: &mut BTreeMap<PathBuf, File>, look: &Look) {
        let mut changed = self.could_not_look();
        let gone = files.len();
        files.retain(|path, _| look.contains_key(path));
        changed |= files.len() != gone;
        for (path, fingerprint) in look {
            let before = files.get_mut(path);
            if before
                .as_ref()
                .is_some_and(|file| file.fingerprint == Some(*fingerprint))
            {
                continue;
            }
            let fingerprint = Some(*fingerprint).filter(|f| f.is_settled(SystemTime::now()));
            let name = display(path);
            let mut file = match scan::read(&self.dir.join(path)) {
                Ok(bytes) => File::read(name, &bytes, &self.namespace, before.as_deref()),
                Err(error) => File::unreadable(name, &error, before.as_deref()),
            };
            file.fingerprint = fingerprint;
            match before {
                Some(before) if before.says_the_same(&file) => before.fingerprint = fingerprint,
                _ => {
                    files.insert(path.clone(), file);
                    changed = true;
                }
            }
        }
        if changed {
            self.publish(assemble(gather(files), &self.current()));
        }
    }

    /// Whether the folder could not be looked through the last time.
    fn could_not_look(&self) -> bool {
        let current = self.current.borrow();
        current
            .problems
            .iter()
            .any(|problem| problem.file.is_none())
    }

    /// Leaves everything in force, and says that the folder cannot be looked through.
    fn stay(&self, error: &ScanError) {
        let problem = DeclaredProblem {
            file: None,
            line: 0,
            resource: String::new(),
            path: String::new(),
            message: error.to_string(),
        };
        let current = self.current();
        if !current.problems.contains(&problem) {
            let mut snapshot = Snapshot {
                channels: current.channels.clone(),
                templates: current.templates.clone(),
                groups: current.groups.clone(),
                schedules: current.schedules.clone(),
                namespace_labels: current.namespace_labels.clone(),
                problems: vec![problem],
                untold: current.untold.clone(),
            };
            let known = current.problems.iter().filter(|known| known.file.is_some());
            snapshot.problems.extend(known.cloned());
            self.publish(snapshot);
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        snapshot.tell(&self.current());
        self.current.send_replace(Arc::new(snapshot));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, File>> {
        // A panic while it was held left at worst a file unread, which the next look finds.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for FolderCatalog {
    fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow())
    }

    fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }
}

/// What the files declare, together.
fn gather(files: &BTreeMap<PathBuf, File>) -> Everything<'_> {
    let mut everything = Everything::default();
    for file in files.values() {
        let name = Some(file.name.as_str());
        everything.problems.extend(file.problem.clone());
        for (namespace, labels) in &file.namespace_labels {
            let known = everything.namespace_labels.entry(namespace.clone());
            known.or_default().extend(labels.clone());
        }
        let declared = file.declared.iter().map(|declared| (name, declared));
        everything.declared.extend(declared);
        everything.kept.extend(&file.kept);
    }
    everything
}

/// A folder that is changing.
#[derive(Debug, Default)]
struct Unquiet {
    /// How it looked the last time; `None`: as it was read.
    look: Option<Look>,
    /// How many looks in succession found it different from how it was read.
    looks: u32,
}

/// How long to wait before the next look, after one that took so long.
fn pause_after(unquiet: &Unquiet, took: Duration, every: Duration) -> Duration {
    // Somebody waits for a change that was seen to come into force.
    if unquiet.look.is_some() {
        return every;
    }
    every.max((took * LOOK_SHARE).min(LONGEST_PAUSE))
}

/// Whether a folder looks different from when it was read, or might be.
fn differs(files: &BTreeMap<PathBuf, File>, look: &Look) -> bool {
    files.len() != look.len()
        || look.iter().any(|(path, fingerprint)| {
            let read = files.get(path).and_then(|file| file.fingerprint);
            read.as_ref() != Some(fingerprint)
        })
}

/// The name of a file for people: its path in the folder, with slashes.
fn display(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}
