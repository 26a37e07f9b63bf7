//! A file becomes resources, each with what is wrong with it by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use herald_crds::set::NamespaceLabels;
use herald_crds::validate::escape;
use herald_crds::{Problem, Resource};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::scan::Fingerprint;
use crate::catalog::DeclaredProblem;
use crate::catalog::declared::{Declared, Identity, kind};
use crate::catalog::yaml::{self, Lines};

/// A file as it was read.
#[derive(Debug)]
pub(super) struct File {
    /// Its path in the folder, for people.
    pub name: String,
    /// By what a change is noticed; `None`: by reading it.
    pub fingerprint: Option<Fingerprint>,
    /// Of its content.
    pub digest: [u8; 32],
    /// The resources in it, in their order.
    pub declared: Vec<Declared>,
    /// The labels of the namespaces (`kind: Namespace`) in it.
    pub namespace_labels: NamespaceLabels,
    /// How many YAML documents it has, those included that are not Herald's.
    pub documents: usize,
    /// Why it could not be read at all; then `declared` is empty.
    pub problem: Option<DeclaredProblem>,
    /// What it declared before and may still be meant to declare: it, or a document in it, cannot be read so far that
    /// one could tell.
    pub kept: BTreeSet<Identity>,
}

impl File {
    /// Takes `bytes` for the file `name`, which said `before`.
    pub fn read(name: String, bytes: &[u8], namespace: &str, before: Option<&Self>) -> Self {
        let mut file = Self::named(name);
        file.digest = Sha256::digest(bytes).into();
        match yaml::read(bytes) {
            Ok(documents) => {
                file.documents = documents.len();
                for document in documents {
                    let lines = Arc::new(document.lines);
                    file.take(document.value, &lines, namespace, before);
                }
                let unclear = |declared: &Declared| declared.identity.is_none();
                if file.declared.iter().any(unclear) {
                    file.keep(before);
                }
            }
            Err(error) => {
                let message = error.to_string();
                file.refuse(error.line, error.path, message, before);
            }
        }
        file
    }

    /// The file `name`, which said `before` and cannot be read now.
    pub fn unreadable(name: String, error: &std::io::Error, before: Option<&Self>) -> Self {
        let mut file = Self::named(name);
        let message = format!("the file cannot be read: {error}");
        file.refuse(0, String::new(), message, before);
        file
    }

    /// Whether it says what `other` says.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.problem == other.problem
    }

    /// The only resource in it, if it has nothing else.
    pub fn only(&self) -> Option<&Declared> {
        match &self.declared[..] {
            [declared] if declared.alone && self.documents == 1 => Some(declared),
            _ => None,
        }
    }

    fn named(name: String) -> Self {
        Self {
            name,
            fingerprint: None,
            digest: [0; 32],
            declared: Vec::new(),
            namespace_labels: NamespaceLabels::new(),
            documents: 0,
            problem: None,
            kept: BTreeSet::new(),
        }
    }

    fn refuse(&mut self, line: usize, path: String, message: String, before: Option<&Self>) {
        self.problem = Some(DeclaredProblem {
            file: Some(self.name.clone()),
            line,
            resource: String::new(),
            path,
            message,
        });
        self.keep(before);
        if let Some(before) = before {
            self.namespace_labels.clone_from(&before.namespace_labels);
        }
    }

    /// Takes a document apart: a resource, a namespace, a List of them, or something that is not Herald's matter.
    fn take(
        &mut self,
        document: Value,
        lines: &Arc<Lines>,
        namespace: &str,
        before: Option<&Self>,
    ) {
        if document["apiVersion"] == "v1" && document["kind"] == "List" {
            let Value::Object(mut members) = document else {
                return;
            };
            if let Some(Value::Array(items)) = members.remove("items") {
                for (index, item) in items.into_iter().enumerate() {
                    self.take_one(&item, format!("/items/{index}"), lines, namespace, before);
                }
            }
        } else {
            self.take_one(&document, String::new(), lines, namespace, before);
        }
    }

    fn take_one(
        &mut self,
        document: &Value,
        base: String,
        lines: &Arc<Lines>,
        namespace: &str,
        before: Option<&Self>,
    ) {
        if is_ours(document) {
            let lines = Some(Arc::clone(lines));
            let mut declared = Declared::read(document, base, lines, namespace);
            if let Some(resource) = &mut declared.resource {
                // Of one that was exported from a cluster. Here it is another, which nobody has seen yet.
                let metadata = resource.metadata_mut();
                (metadata.uid, metadata.creation_timestamp) = (None, None);
            }
            self.declared.push(declared);
        } else if document["apiVersion"] == "v1" && document["kind"] == "Namespace" {
            match namespace_labels(document) {
                Ok((name, labels)) => self.label(name, labels),
                Err(problem) => {
                    if let Some(before) = before {
                        self.keep_labels(document["metadata"]["name"].as_str(), before);
                    }
                    self.declared.push(Declared {
                        identity: None,
                        resource: None,
                        problems: vec![problem],
                        alone: base.is_empty(),
                        base,
                        lines: Some(Arc::clone(lines)),
                    });
                }
            }
        }
    }

    fn label(&mut self, namespace: String, labels: BTreeMap<String, String>) {
        let known = self.namespace_labels.entry(namespace).or_default();
        known.extend(labels);
    }

    /// Keeps the labels that a namespace had before; of every one, if it cannot be told which is meant.
    fn keep_labels(&mut self, namespace: Option<&str>, before: &Self) {
        let namespace = namespace.filter(|name| !name.is_empty());
        let kept = before.namespace_labels.iter();
        for (name, labels) in kept.filter(|(name, _)| namespace.is_none_or(|only| *name == only)) {
            let known = self.namespace_labels.entry(name.clone()).or_default();
            for (key, value) in labels {
                known.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }

    fn keep(&mut self, before: Option<&Self>) {
        let Some(before) = before else { return };
        let declared = before.declared.iter().filter_map(|d| d.identity.clone());
        self.kept = declared.chain(before.kept.iter().cloned()).collect();
    }
}

/// The name and the labels of a namespace.
fn namespace_labels(document: &Value) -> Result<(String, BTreeMap<String, String>), Problem> {
    let metadata = &document["metadata"];
    let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
        return Err(Problem::new(
            "/metadata/name",
            "is missing: a namespace has a name",
        ));
    };
    let mut labels = BTreeMap::new();
    match metadata.get("labels") {
        None | Some(Value::Null) => {}
        Some(Value::Object(given)) => {
            for (key, value) in given {
                let Some(value) = value.as_str() else {
                    let path = format!("/metadata/labels/{}", escape(key));
                    return Err(Problem::new(path, "must be a string: put it in quotes"));
                };
                labels.insert(key.clone(), value.to_owned());
            }
        }
        Some(_) => return Err(Problem::new("/metadata/labels", "must be an object")),
    }
    Ok((name.to_owned(), labels))
}

/// Whether a document is, or is surely meant to be, one of Herald's.
fn is_ours(document: &Value) -> bool {
    let meant = || document.get("apiVersion").is_none() && kind(document).is_some();
    Resource::is_one(document) || meant()
}
