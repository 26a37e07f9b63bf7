//! What providers prove themselves with: files in the shape of a mounted Secret, `ROOT/<secret>/<key>`.
//!
//! Files are read when they are needed and again when they have changed, so that a rotated Secret needs no restart. A
//! `ConfigMap` with certificates is mounted beside the Secrets, in the same shape.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Most bytes of one value: more than any bundle of certificates, as much as a Secret can hold.
const MAX_BYTES: u64 = 1024 * 1024;

/// A value that is not for eyes: its `Debug` says nothing, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(Arc<str>);

impl Hidden {
    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A value that could not be had. Names the Secret and the key, never the value.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A name that would lead out of the folder.
    #[error(
        "{name:?} cannot be the name of a Secret or of a key: letters, digits, '.', '_' and '-' only, not '.' first"
    )]
    CheckName {
        /// The name.
        name: String,
    },
    /// The file is not there, or may not be read.
    #[error("cannot read key {key:?} of Secret or ConfigMap {secret:?}: {source}")]
    Read {
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is far larger than any credential.
    #[error("key {key:?} of Secret or ConfigMap {secret:?} is larger than 1 MiB")]
    Bound {
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
    },
    /// The file is empty or not UTF-8.
    #[error("key {key:?} of Secret or ConfigMap {secret:?} is empty or not UTF-8 text")]
    Decode {
        /// The Secret's name.
        secret: String,
        /// The key.
        key: String,
    },
}

/// The folder of Secrets. Cheap to clone; the clones share what they have read.
#[derive(Debug, Clone)]
pub struct Credentials {
    root: Arc<Path>,
    read: Arc<Mutex<HashMap<PathBuf, Remembered>>>,
}

/// A value, and what its file looked like when it was read.
#[derive(Debug, Clone)]
struct Remembered {
    mark: Mark,
    value: Hidden,
}

/// What changes when a file does: a Secret's mount replaces files, an editor may write in place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Credentials {
    /// The Secrets under `root`. Reads nothing yet: the folder may still be missing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into().into(),
            read: Arc::default(),
        }
    }

    /// The value of `key` of `secret` as it is now, without one line break at its end (editors add one).
    ///
    /// Looks at the file each time (microseconds) and reads it only if it has changed.
    pub fn get(&self, secret: &str, key: &str) -> Result<Hidden, CredentialError> {
        for name in [secret, key] {
            if !is_name(name) {
                return Err(CredentialError::CheckName {
                    name: name.to_owned(),
                });
            }
        }
        let unreadable = |source| CredentialError::Read {
            secret: secret.to_owned(),
            key: key.to_owned(),
            source,
        };
        let path = self.root.join(secret).join(key);
        let found = fs::metadata(&path).map_err(unreadable)?;
        if !found.is_file() {
            return Err(unreadable(io::Error::other("not a file")));
        }
        let mark = mark(&found);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.get(&path)
            && known.mark == mark
        {
            return Ok(known.value.clone());
        }
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(CredentialError::Bound {
                secret: secret.to_owned(),
                key: key.to_owned(),
            });
        }
        let value = match str::from_utf8(&bytes) {
            Ok(text) => {
                let text = text.strip_suffix('\n').unwrap_or(text);
                text.strip_suffix('\r').unwrap_or(text)
            }
            Err(_) => "",
        };
        if value.is_empty() {
            return Err(CredentialError::Decode {
                secret: secret.to_owned(),
                key: key.to_owned(),
            });
        }
        let value = Hidden(value.into());
        read.insert(
            path,
            Remembered {
                mark,
                value: value.clone(),
            },
        );
        Ok(value)
    }
}

fn mark(found: &fs::Metadata) -> Mark {
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(found);
    #[cfg(not(unix))]
    let inode = 0;
    Mark {
        modified: found.modified().ok(),
        bytes: found.len(),
        inode,
    }
}

/// Whether `name` is a name and not a path.
fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(value: &str) -> (tempfile::TempDir, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("ses")).unwrap();
        fs::write(folder.path().join("ses/password"), value).unwrap();
        let credentials = Credentials::new(folder.path());
        (folder, credentials)
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (folder, credentials) = folder("first\n");
        let get = || credentials.get("ses", "password").unwrap();
        assert_eq!(get().expose(), "first");
        // As a mount does it: a new file takes the place of the old one.
        fs::write(folder.path().join("ses/new"), "other").unwrap();
        fs::rename(
            folder.path().join("ses/new"),
            folder.path().join("ses/password"),
        )
        .unwrap();
        assert_eq!(get().expose(), "other");
    }

    #[test]
    fn names_do_not_lead_out_of_the_folder() {
        let (folder, credentials) = folder("x");
        fs::write(folder.path().join("outside"), "x").unwrap();
        for (secret, key) in [
            ("ses", "../outside"),
            ("..", "outside"),
            (".", "outside"),
            ("", "outside"),
            ("ses/..", "outside"),
            ("ses", "/etc/hostname"),
            ("ses", ""),
        ] {
            assert!(
                matches!(
                    credentials.get(secret, key),
                    Err(CredentialError::CheckName { .. })
                ),
                "{secret} {key}"
            );
        }
    }

    #[test]
    fn errors_name_secret_and_key_and_nothing_shows_the_value() {
        let (folder, credentials) = folder("hunter2");
        let value = credentials.get("ses", "password").unwrap();
        assert!(!format!("{value:?} {credentials:?}").contains("hunter2"));
        let missing = credentials.get("ses", "username").unwrap_err().to_string();
        assert!(missing.contains("ses") && missing.contains("username"));
        fs::write(folder.path().join("ses/empty"), "\n").unwrap();
        fs::write(folder.path().join("ses/binary"), [0xff, 0xfe]).unwrap();
        for key in ["empty", "binary"] {
            assert!(matches!(
                credentials.get("ses", key),
                Err(CredentialError::Decode { .. })
            ));
        }
        fs::write(folder.path().join("ses/huge"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(
            credentials.get("ses", "huge"),
            Err(CredentialError::Bound { .. })
        ));
    }
}
