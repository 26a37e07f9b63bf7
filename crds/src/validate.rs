//! What is wrong with a resource, and where.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

use crate::crd::quote;
use crate::{Kind, crd, pattern};

/// At most this many bytes of JSON in one free object: parameters, their schema.
pub const FREE_OBJECT_BYTES: usize = 64 * 1024;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// JSON Pointer (RFC 6901) from the root of the document, such as `/spec/providers/0/smtp/port`.
    pub path: String,
    /// What is wrong and what to do about it, as a sentence part that follows the path.
    pub message: String,
}

impl Problem {
    /// A problem at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Says everything that is wrong with a resource by itself; what it refers to is [`crate::ResourceSet`]'s matter.
///
/// Pure, and the authority: whatever the schema or a CEL rule refuses, this reports too, and it reports more.
pub trait Validate {
    /// Every problem, ordered by path; empty when the resource is good.
    fn validate(&self) -> Vec<Problem>;

    /// Every problem with this resource taking the place of `old`: what must not change, changed.
    ///
    /// Nothing by default.
    fn validate_change(&self, old: &Self) -> Vec<Problem> {
        let _ = old;
        Vec::new()
    }
}

/// A reference token of a JSON Pointer, escaped (RFC 6901, section 3).
pub fn escape(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

/// Gathers what the schema, then `rules`, say about a resource.
pub(crate) fn validate<S: Serialize>(
    kind: Kind,
    metadata: &ObjectMeta,
    spec: &S,
    rules: impl FnOnce(&mut Problems),
) -> Vec<Problem> {
    let mut schema = Vec::new();
    let spec = serde_json::to_value(spec).unwrap_or_default();
    crd::check(kind, &spec, &mut schema);
    let mut problems = Problems(Vec::new());
    check_metadata(metadata, &mut problems);
    rules(&mut problems);
    merge(schema, problems.0)
}

/// Both, ordered by path; of a place that the schema has spoken about, rules need not speak again.
pub(crate) fn merge(schema: Vec<Problem>, rules: Vec<Problem>) -> Vec<Problem> {
    let mut all = schema;
    all.sort();
    let spoken = all.len();
    for problem in rules {
        if all[..spoken]
            .binary_search_by(|known| known.path.cmp(&problem.path))
            .is_err()
        {
            all.push(problem);
        }
    }
    all.sort();
    all.dedup();
    all
}

/// What rules find.
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem.
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem::new(path, message));
    }

    /// Adds a problem unless all is well.
    pub fn check<E: fmt::Display>(&mut self, path: impl Into<String>, result: Result<(), E>) {
        if let Err(message) = result {
            self.add(path, message.to_string());
        }
    }

    /// Adds what others found.
    pub fn extend(&mut self, problems: Vec<Problem>) {
        self.0.extend(problems);
    }

    /// Adds a problem if `text` is not what `pattern` describes.
    pub fn pattern(&mut self, path: impl Into<String>, pattern: &str, text: &str) {
        let words = pattern::check(pattern, text);
        self.check(
            path,
            words.map_err(|w| format!("must be {w} (got {})", quote(text))),
        );
    }

    /// Adds a problem if a free object is larger than `most` bytes of JSON.
    pub fn size<T: Serialize>(&mut self, path: impl Into<String>, free: &T, most: usize) {
        let size = serde_json::to_vec(free).map_or(usize::MAX, |json| json.len());
        if size > most {
            self.add(
                path,
                format!("may have at most {most} bytes as JSON (got {size})"),
            );
        }
    }

    /// Adds a problem for every label or annotation that Kubernetes would refuse or that is Herald's to set.
    pub fn labels(
        &mut self,
        path: &str,
        labels: &BTreeMap<String, String>,
        values: bool,
        taken: &[&str],
    ) {
        for (key, value) in labels {
            let at = format!("{path}/{}", escape(key));
            let name = key.rsplit('/').next().unwrap_or_default();
            if name.len() > 63 || key.len() > 317 {
                self.add(
                    at,
                    "a key may have at most 63 characters, and 253 before its slash",
                );
            } else if let Some(taken) = taken.iter().find(|taken| key.starts_with(*taken)) {
                self.add(
                    at,
                    format!("{taken} is the operator's: choose another prefix"),
                );
            } else if pattern::check(pattern::LABEL_KEY, key).is_err() {
                self.pattern(at, pattern::LABEL_KEY, key);
            } else if values && value.len() > 63 {
                self.add(at, "a label's value may have at most 63 characters");
            } else if values {
                self.pattern(at, pattern::LABEL_VALUE, value);
            }
        }
    }

    /// Adds a problem for every header field that could not be sent or that is not the author's to set.
    pub fn headers(&mut self, path: &str, headers: &BTreeMap<String, String>, taken: &[&str]) {
        for (name, value) in headers {
            let at = format!("{path}/{}", escape(name));
            if name.len() > 64 {
                self.add(at, "a header field's name may have at most 64 characters");
            } else if let Some(taken) = taken.iter().find(|taken| taken.eq_ignore_ascii_case(name))
            {
                self.add(at, format!("{taken} is set by Herald: remove it"));
            } else if pattern::check(pattern::HEADER_NAME, name).is_err() {
                self.pattern(at, pattern::HEADER_NAME, name);
            } else {
                self.pattern(at, pattern::LINE, value);
            }
        }
    }
}

fn check_metadata(metadata: &ObjectMeta, problems: &mut Problems) {
    match metadata.name.as_deref() {
        None => problems.add("/metadata/name", "is missing"),
        Some(name) if name.len() > 40 || pattern::check(pattern::DNS_LABEL, name).is_err() => {
            let message =
                "must be a DNS label of at most 40 characters: lower-case letters, digits and '-'";
            problems.add("/metadata/name", format!("{message} (got {})", quote(name)));
        }
        Some(_) => {}
    }
    if let Some(namespace) = metadata.namespace.as_deref() {
        if namespace.len() > 63 {
            problems.add("/metadata/namespace", "may have at most 63 characters");
        }
        problems.pattern("/metadata/namespace", pattern::DNS_LABEL, namespace);
    }
    if let Some(labels) = &metadata.labels {
        problems.labels("/metadata/labels", labels, true, &[]);
    }
}
