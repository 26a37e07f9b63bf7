//! A resource becomes a file: for the HTTP API of `herald local`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use herald_crds::kind::API_VERSION;
use herald_crds::pattern;
use herald_crds::{Kind, Problem};
use serde_json::{Value, json};

use super::declared::File;
use super::{FolderCatalog, display, gather};
use crate::catalog::assemble::assemble;
use crate::catalog::declared::{Declared, Identity};
use crate::catalog::{Catalog as _, DeclaredProblem, yaml};

/// Why a resource was not written or deleted.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It is not the resource that was named, or something would be wrong with it or with others then.
    #[error("{}", .0.first().map_or("it is not right", |problem| problem.message.as_str()))]
    Refuse(Vec<DeclaredProblem>),
    /// Nothing of that kind and name is declared.
    #[error("there is no {kind} {namespace}/{name} in the folder")]
    Find {
        /// Its kind.
        kind: Kind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The file that declares it holds more than that.
    #[error("{file} declares it on line {line} among other things: edit that file instead")]
    EditShared {
        /// The file, relative to the folder.
        file: String,
        /// The line that it begins on.
        line: usize,
    },
    /// The file that it would go to is there and holds something else.
    #[error("{file} exists and declares something else: edit that file instead")]
    Overwrite {
        /// The file, relative to the folder.
        file: String,
    },
    /// The folder cannot be written.
    #[error(
        "{file} cannot be written, the folder is read-only: edit the YAML where it comes from, or make the folder writable"
    )]
    ReadOnly {
        /// The file, relative to the folder.
        file: String,
    },
    /// Writing failed; what was in force is in force.
    #[error("{file} cannot be written: {source}")]
    WriteFile {
        /// The file, relative to the folder.
        file: String,
        /// Why.
        source: io::Error,
    },
}

impl WriteError {
    pub(super) fn writing(file: String, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly { file }
            }
            _ => Self::WriteFile { file, source },
        }
    }
}

impl FolderCatalog {
    /// Declares a resource; answers whether it is new. Once this returns it is in force, and on disk.
    ///
    /// `document` is the resource as JSON; `apiVersion`, `kind` and the two names may be missing, but not be others.
    /// It replaces the file that declares the resource if that holds nothing else (comments in it are lost); a new one
    /// goes to `KIND/NAME.yaml`. Refused if that would make anything wrong, here or elsewhere, that was not before.
    pub fn put(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        document: Value,
    ) -> Result<bool, WriteError> {
        let document = complete(kind, namespace, name, document)?;
        let identity: Identity = (kind, format!("{namespace}/{name}").into());
        let mut files = self.lock();
        let place = files
            .iter()
            .find_map(|(path, file)| holds(file, &identity).map(|at| (path, file, at)));
        let (path, is_new) = match place {
            Some((path, file, _)) if file.only().is_some() => (path.clone(), false),
            Some((_, file, line)) => {
                let file = file.name.clone();
                return Err(WriteError::EditShared { file, line });
            }
            None => {
                let path = self.path_of(kind, namespace, name);
                if files.contains_key(&path) || self.dir().join(&path).exists() {
                    let file = display(&path);
                    return Err(WriteError::Overwrite { file });
                }
                (path, true)
            }
        };

        let text = yaml::write(&document);
        let before = self.current();
        let file = File::read(display(&path), text.as_bytes(), self.namespace(), None);
        let replaced = files.insert(path.clone(), file);
        let snapshot = assemble(gather(&files), &before);
        let own = display(&path);
        let is_new_problem = |problem: &&DeclaredProblem| {
            problem.file.as_ref() == Some(&own) || !before.problems.contains(problem)
        };
        let new: Vec<_> = (snapshot.problems.iter())
            .filter(is_new_problem)
            .cloned()
            .collect();
        let written = if new.is_empty() {
            write_atomically(&self.dir().join(&path), text.as_bytes())
                .map_err(|source| WriteError::writing(display(&path), source))
        } else {
            Err(WriteError::Refuse(new))
        };
        match written {
            Ok(()) => {
                self.publish(snapshot);
                Ok(is_new)
            }
            Err(error) => {
                match replaced {
                    Some(replaced) => files.insert(path, replaced),
                    None => files.remove(&path),
                };
                Err(error)
            }
        }
    }

    /// Deletes the file that declares a resource, if it declares nothing else. Once this returns it is no longer in
    /// force. What refers to it is then wrong, and stays in force as it was.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), WriteError> {
        let identity: Identity = (kind, format!("{namespace}/{name}").into());
        let mut files = self.lock();
        let place = files
            .iter()
            .find_map(|(path, file)| holds(file, &identity).map(|at| (path, file, at)));
        let Some((path, file, line)) = place else {
            return Err(WriteError::Find {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
        };
        let (path, name) = (path.clone(), file.name.clone());
        if file.only().is_none() {
            return Err(WriteError::EditShared { file: name, line });
        }
        remove(&self.dir().join(&path)).map_err(|source| WriteError::writing(name, source))?;
        files.remove(&path);
        let snapshot = assemble(gather(&files), &self.current());
        self.publish(snapshot);
        Ok(())
    }

    /// Where a resource goes that is not declared yet.
    fn path_of(&self, kind: Kind, namespace: &str, name: &str) -> PathBuf {
        let file = if namespace == self.namespace() {
            format!("{name}.yaml")
        } else {
            format!("{namespace}.{name}.yaml")
        };
        Path::new(kind.plural()).join(file)
    }
}

/// The line on which `file` declares the resource; `None` if it does not.
fn holds(file: &File, identity: &Identity) -> Option<usize> {
    let mut declared = file.declared.iter();
    declared
        .find(|declared| declared.identity.as_ref() == Some(identity))
        .map(Declared::line)
}

/// Fills in what the call has said already, and refuses what contradicts it.
fn complete(
    kind: Kind,
    namespace: &str,
    name: &str,
    mut document: Value,
) -> Result<Value, WriteError> {
    let refuse = |problem: Problem| {
        WriteError::Refuse(vec![DeclaredProblem {
            file: None,
            line: 0,
            resource: format!("{kind} {namespace}/{name}"),
            path: problem.path,
            message: problem.message,
        }])
    };
    // Both become part of a path: nothing but letters, digits and '-' may.
    for (field, given) in [("namespace", namespace), ("name", name)] {
        if let Err(words) = pattern::check(pattern::DNS_LABEL, given) {
            let message = format!("must be {words} (got {given:?})");
            return Err(refuse(Problem::new(format!("/metadata/{field}"), message)));
        }
    }
    let Some(members) = document.as_object_mut() else {
        return Err(refuse(Problem::new("", "must be an object")));
    };
    members.remove("status");
    members.entry("metadata").or_insert_with(|| json!({}));
    for (path, value) in [
        ("/apiVersion", API_VERSION),
        ("/kind", kind.as_str()),
        ("/metadata/namespace", namespace),
        ("/metadata/name", name),
    ] {
        let (parent, field) = path.rsplit_once('/').unwrap_or_default();
        let Some(Value::Object(parent)) = document.pointer_mut(parent) else {
            return Err(refuse(Problem::new(parent, "must be an object")));
        };
        let given = parent.entry(field).or_insert_with(|| json!(value));
        if given != value {
            let message = format!("must be {value:?}, as the call says (got {given})");
            return Err(refuse(Problem::new(path, message)));
        }
    }
    Ok(document)
}

/// Puts a file in place at once: whoever reads it finds the old or the new, also after a power cut.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden, so that no look finds it. Writers take turns, and one process writes to a folder.
    let temporary = folder.join(format!(".{name}.new"));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(folder)
    })();
    if written.is_err() {
        // It may not be there; the error that is told is the first.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes a change of names in a folder last.
fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
