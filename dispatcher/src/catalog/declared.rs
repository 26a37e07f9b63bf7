//! A resource as it is declared, with what is wrong with it by itself.

use std::sync::Arc;

use herald_crds::kind::API_VERSION;
use herald_crds::{Kind, Problem, Resource};
use serde_json::Value;

use super::yaml::Lines;
use super::{DeclaredProblem, FullName};

/// Which resource.
pub(super) type Identity = (Kind, FullName);

/// One resource as somebody declared it.
#[derive(Debug)]
pub(super) struct Declared {
    /// Which one; `None` if its kind or its name cannot be told.
    pub identity: Option<Identity>,
    /// It, with its namespace; `None` if it could not be read. There may be problems either way.
    pub resource: Option<Resource>,
    /// What is wrong with it by itself.
    pub problems: Vec<Problem>,
    /// JSON Pointer to it in its document: empty unless it is in a List.
    pub base: String,
    /// Where its document says what; `None`: it comes from no file.
    pub lines: Option<Arc<Lines>>,
    /// Whether it has a document to itself.
    pub alone: bool,
}

impl Declared {
    /// Takes a document for a resource; one that names no namespace is of `namespace`.
    ///
    /// `base` is the JSON Pointer to it, if it is one of a List; `lines` are those of its document.
    pub fn read(
        document: &Value,
        base: String,
        lines: Option<Arc<Lines>>,
        namespace: &str,
    ) -> Self {
        let (mut resource, mut problems) = Resource::parse_leniently(document);
        if document.get("apiVersion").is_none() {
            let message = format!("is missing: write apiVersion: {API_VERSION}");
            problems = vec![Problem::new("/apiVersion", message)];
        }
        let identity = identify(document, namespace);
        if identity.is_none() {
            resource = None;
        }
        if let Some(resource) = &mut resource {
            let own = &mut resource.metadata_mut().namespace;
            own.get_or_insert_with(|| namespace.to_owned());
        }
        Self {
            identity,
            resource,
            problems,
            alone: base.is_empty(),
            base,
            lines,
        }
    }

    /// Whether it is declared as `other` is.
    #[cfg(feature = "kubernetes")]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.resource == other.resource && self.problems == other.problems
    }

    /// `problem` with its place; `file` is `None` in a cluster.
    pub fn locate(&self, file: Option<&str>, problem: &Problem) -> DeclaredProblem {
        let path = format!("{}{}", self.base, problem.path);
        DeclaredProblem {
            file: file.map(str::to_owned),
            line: self.line_of(&path),
            resource: self.identity.as_ref().map(label).unwrap_or_default(),
            path,
            message: problem.message.clone(),
        }
    }

    /// The line it begins on; 0 if it comes from no file.
    pub fn line(&self) -> usize {
        self.line_of(&self.base)
    }

    fn line_of(&self, path: &str) -> usize {
        self.lines.as_ref().map_or(0, |lines| lines.line_of(path))
    }
}

/// Kind and full name, for people.
pub(super) fn label((kind, name): &Identity) -> String {
    format!("{kind} {name}")
}

/// The kind that a document names, if it is one of Herald's.
pub(super) fn kind(document: &Value) -> Option<Kind> {
    document["kind"].as_str()?.parse().ok()
}

/// Which resource a document is; `None` if that cannot be told.
fn identify(document: &Value, namespace: &str) -> Option<Identity> {
    let kind = kind(document)?;
    let metadata = &document["metadata"];
    let name = metadata["name"].as_str().filter(|name| !name.is_empty())?;
    let namespace = match metadata.get("namespace") {
        None | Some(Value::Null) => namespace,
        Some(given) => given.as_str()?,
    };
    Some((kind, format!("{namespace}/{name}").into()))
}
