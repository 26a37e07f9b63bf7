//! What providers prove themselves with: files in the shape of a mounted Secret, `ROOT/<secret>/<key>`.
//!
//! Files are read when they are needed and again when they have changed, so that a rotated Secret needs no restart. A
//! `ConfigMap` with certificates is mounted beside the Secrets, in the same shape.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
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
    /// The Channel is not in the namespace whose Secrets are held.
    #[error(
        "Secret or ConfigMap {secret:?} is not read: with broker: embedded, credentials are read in namespace {namespace} alone: declare the Channel there, or run Herald over Pulsar, where its pods are in its own namespace"
    )]
    Withhold {
        /// The Secret's name.
        secret: String,
        /// Whose Secrets are held.
        namespace: Arc<str>,
    },
}

/// Secrets: a folder of them, or those that somebody holds. Cheap to clone; the clones share what they have read.
#[derive(Debug, Clone)]
pub struct Credentials(Place);

#[derive(Debug, Clone)]
enum Place {
    Folder {
        root: Arc<Path>,
        read: Arc<Mutex<HashMap<PathBuf, Remembered>>>,
    },
    Held {
        held: Arc<Held>,
        /// Whose they are; `None`: everybody's.
        namespace: Option<Arc<str>>,
    },
    /// Those of this namespace are held, and whoever asks is of another.
    Withheld { namespace: Arc<str> },
}

/// Secrets in memory, by name and key.
#[derive(Default)]
pub struct Held(RwLock<BTreeMap<String, BTreeMap<String, Vec<u8>>>>);

impl Held {
    /// Holds these and no others.
    pub fn replace(&self, secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = secrets;
    }

    /// Holds these values as those of the Secret `name`.
    pub fn put(&self, name: String, values: BTreeMap<String, Vec<u8>>) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        held.insert(name, values);
    }

    /// Holds the Secret `name` no longer.
    pub fn remove(&self, name: &str) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        held.remove(name);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
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
        Self(Place::Folder {
            root: root.into().into(),
            read: Arc::default(),
        })
    }

    /// The Secrets that are held, whatever they are at the time.
    pub fn held(held: Arc<Held>) -> Self {
        let namespace = None;
        Self(Place::Held { held, namespace })
    }

    /// The Secrets of a namespace that are held, for Channels of that namespace alone: see [`Self::of`].
    pub fn held_in(namespace: &str, held: Arc<Held>) -> Self {
        let namespace = Some(namespace.into());
        Self(Place::Held { held, namespace })
    }

    /// What a Channel, `NAMESPACE/NAME`, has of them. Secrets go by bare names: without this whoever may declare a Channel
    /// in any namespace could send another's credentials to a server of their choice.
    #[must_use]
    pub fn of(&self, channel: &str) -> Self {
        let of = channel
            .split_once('/')
            .map_or("", |(namespace, _)| namespace);
        match &self.0 {
            Place::Held {
                namespace: Some(namespace),
                ..
            } if **namespace != *of => Self(Place::Withheld {
                namespace: Arc::clone(namespace),
            }),
            _ => self.clone(),
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
        let (root, read) = match &self.0 {
            Place::Folder { root, read } => (root, read),
            Place::Withheld { namespace } => {
                return Err(CredentialError::Withhold {
                    secret: secret.to_owned(),
                    namespace: Arc::clone(namespace),
                });
            }
            Place::Held { held, .. } => {
                let held = held.0.read().unwrap_or_else(PoisonError::into_inner);
                let found = held.get(secret).and_then(|values| values.get(key));
                let missing = || {
                    let why = "there is no such Secret with the label herald.dev/credentials=true and this key";
                    unreadable(io::Error::new(io::ErrorKind::NotFound, why))
                };
                return decode(secret, key, found.ok_or_else(missing)?);
            }
        };
        let path = root.join(secret).join(key);
        let found = fs::metadata(&path).map_err(unreadable)?;
        if !found.is_file() {
            return Err(unreadable(io::Error::other("not a file")));
        }
        let mark = mark(&found);
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
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
        let value = decode(secret, key, &bytes)?;
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

/// The text of a value, without one line break at its end.
fn decode(secret: &str, key: &str, bytes: &[u8]) -> Result<Hidden, CredentialError> {
    let text = str::from_utf8(bytes).unwrap_or_default();
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(CredentialError::Decode {
            secret: secret.to_owned(),
            key: key.to_owned(),
        });
    }
    Ok(Hidden(text.into()))
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
    fn what_is_held_is_given_as_it_is_now_and_nothing_shows_it() {
        let held = Arc::new(Held::default());
        let credentials = Credentials::held(Arc::clone(&held));
        let get = || credentials.get("ses", "password");
        assert!(matches!(get(), Err(CredentialError::Read { .. })));
        let secret = |value: &str| [("password".to_owned(), value.as_bytes().to_vec())].into();
        held.put("ses".to_owned(), secret("hunter2\n"));
        assert_eq!(get().unwrap().expose(), "hunter2");
        assert!(!format!("{credentials:?}").contains("hunter2"));
        held.replace([("ses".to_owned(), secret("other"))].into());
        assert_eq!(get().unwrap().expose(), "other");
        held.remove("ses");
        assert!(get().is_err());
    }

    #[test]
    fn what_is_held_of_a_namespace_is_for_its_channels_alone_and_a_folder_for_all() {
        let held = Arc::new(Held::default());
        let secret = [("password".to_owned(), b"hunter2".to_vec())];
        held.put("ses".to_owned(), secret.into());
        let credentials = Credentials::held_in("hello", Arc::clone(&held));
        let own = credentials.of("hello/mail").get("ses", "password");
        assert_eq!(own.unwrap().expose(), "hunter2");
        for channel in ["evil/mail", "hello-2/mail", "evil/hello", "hello", "/mail"] {
            let other = credentials.of(channel).get("ses", "password");
            let error = other.unwrap_err();
            assert!(
                matches!(&error, CredentialError::Withhold { .. })
                    && error.to_string().contains("namespace hello alone"),
                "{channel}: {error}"
            );
        }
        let (_folder, credentials) = folder("hunter2");
        for credentials in [Credentials::held(held), credentials] {
            assert!(credentials.of("any/mail").get("ses", "password").is_ok());
        }
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
