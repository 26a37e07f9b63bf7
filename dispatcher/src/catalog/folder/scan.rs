//! Which files there are, and whether they changed.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::catalog::yaml;

/// The most YAML files that a folder may have.
pub const MAX_FILES: usize = 10_000;

/// The most entries of any kind that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// The deepest folder that is looked into.
const MAX_DEPTH: usize = 16;

/// The folder whose files are credentials, not declarations.
const SECRETS: &str = "secrets";

/// A file changed less than this before it was read may change again without showing it: clocks of file systems are
/// coarse.
const COARSEST_CLOCK: Duration = Duration::from_secs(2);

/// Why a folder cannot be looked through.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The folder, or one inside it, cannot be listed.
    #[error("the folder {} cannot be read: {source}", path.display())]
    ListFolder {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than [`MAX_FILES`] YAML files, or far too many of any kind.
    #[error("the folder {} has more than {MAX_FILES} YAML files, or {MAX_ENTRIES} of any kind: is it the right one?", .0.display())]
    TooManyFiles(PathBuf),
    /// Folders in folders without end.
    #[error("the folder {} is more than {MAX_DEPTH} deep", .0.display())]
    TooDeep(PathBuf),
}

/// By what a change of a file is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    modified: Option<SystemTime>,
    length: u64,
    /// Inode, and the time of its last change with nanoseconds: a file put in the place of another has another one.
    inode: (u64, i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt as _;
            (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
        };
        #[cfg(not(unix))]
        let inode = (0, 0, 0);
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode,
        }
    }

    /// Whether a change after `now` is sure to show.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        self.modified
            .and_then(|modified| now.duration_since(modified).ok())
            .is_some_and(|age| age > COARSEST_CLOCK)
    }
}

/// The YAML files of a folder by their path in it: what is hidden is not looked at, nor are `secrets/` and folders that
/// are symbolic links.
pub(super) fn look(dir: &Path) -> Result<BTreeMap<PathBuf, Fingerprint>, ScanError> {
    let mut found = BTreeMap::new();
    let mut entries = 0;
    let mut folders = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let path = if depth == 0 {
            dir.to_owned()
        } else {
            dir.join(&folder)
        };
        let list = |source| ScanError::ListFolder {
            path: path.clone(),
            source,
        };
        for entry in fs::read_dir(&path).map_err(list)? {
            let entry = entry.map_err(list)?;
            entries += 1;
            if entries > MAX_ENTRIES || found.len() > MAX_FILES {
                return Err(ScanError::TooManyFiles(dir.to_owned()));
            }
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") || (depth == 0 && name == SECRETS) {
                continue;
            }
            let relative = folder.join(&name);
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && depth == MAX_DEPTH {
                return Err(ScanError::TooDeep(path));
            }
            if is_folder {
                folders.push((relative, depth + 1));
                continue;
            }
            let is_yaml = relative
                .extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml");
            if !is_yaml {
                continue;
            }
            // It may be gone by now, or be a link that leads nowhere: then it is not there.
            if let Ok(metadata) = fs::metadata(entry.path())
                && metadata.is_file()
            {
                found.insert(relative, Fingerprint::of(&metadata));
            }
        }
    }
    Ok(found)
}

/// Reads a file, but not more than one byte beyond what YAML may have.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    file.take(yaml::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
