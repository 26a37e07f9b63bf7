//! What is wrong with a resource, and where.

use std::fmt;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
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
    fn validate_change(&self, old: &Self) -> Vec<Problem>;
}

/// A reference token of a JSON Pointer, escaped (RFC 6901, section 3).
pub fn escape(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}
