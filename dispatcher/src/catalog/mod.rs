//! The seam to what is declared: the four resources, ready for use.

pub mod folder;
pub mod yaml;

use std::collections::BTreeMap;
use std::sync::Arc;

use herald_crds::render::Compiled;
use herald_crds::set::NamespaceLabels;
use herald_crds::{Channel, NotificationTemplate, RecipientGroup, Schedule};
use tokio::sync::watch;

pub use crate::id::FullName;
use crate::message::DefinitionHash;

/// A template in force.
#[derive(Debug)]
pub struct TemplateInForce {
    /// The resource.
    pub resource: NotificationTemplate,
    /// Its definition, compiled: everything it includes is in it.
    pub compiled: Arc<Compiled>,
    /// The definition's name.
    pub hash: DefinitionHash,
    /// The definition as it travels: base64 of zstd of its canonical JSON.
    pub packed: Arc<str>,
}

/// What is declared, at one moment: consistent in itself, never changed.
///
/// A resource that is broken is not in it, unless an earlier version of it was in force: then that one is.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Channels, by full name.
    pub channels: BTreeMap<FullName, Arc<Channel>>,
    /// Templates, by full name.
    pub templates: BTreeMap<FullName, Arc<TemplateInForce>>,
    /// Groups, by full name.
    pub groups: BTreeMap<FullName, Arc<RecipientGroup>>,
    /// Schedules, by full name.
    pub schedules: BTreeMap<FullName, Arc<Schedule>>,
    /// Labels of namespaces, which some Channels ask for.
    pub namespace_labels: NamespaceLabels,
    /// What is wrong with what is declared.
    pub problems: Vec<DeclaredProblem>,
}

impl Snapshot {
    /// Whether nothing is in force.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
            && self.templates.is_empty()
            && self.groups.is_empty()
            && self.schedules.is_empty()
    }
}

/// Something wrong with a declared resource.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeclaredProblem {
    /// The file, relative to the folder; `None` in a cluster.
    pub file: Option<String>,
    /// The line, from 1; 0 if it cannot be told.
    pub line: usize,
    /// Kind and full name, such as `Channel shop/mail`; empty if the document could not be read that far.
    pub resource: String,
    /// JSON Pointer into the document.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// What is declared, and that it changed.
pub trait Catalog: Send + Sync + 'static {
    /// What is declared now. Cheap.
    fn current(&self) -> Arc<Snapshot>;

    /// Tells of each change; the value is what is declared now.
    fn changes(&self) -> watch::Receiver<Arc<Snapshot>>;
}
