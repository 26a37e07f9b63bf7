//! The seam to what is declared: the four resources, ready for use.

mod assemble;
#[cfg(test)]
mod contract;
mod declared;
pub mod folder;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use herald_crds::render::Compiled;
use herald_crds::set::{NamespaceLabels, labels_of};
use herald_crds::{Channel, ChannelSpec, Kind, NotificationTemplate, RecipientGroup, Schedule};
use tokio::sync::watch;

pub use self::assemble::MAX_PACKED;
pub use crate::id::FullName;
use crate::message::DefinitionHash;

/// Where what is declared comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Place {
    /// The API server of a cluster: `kubernetes`.
    Kubernetes,
    /// A folder of YAML: anything else (`./kubernetes` is a folder).
    Folder(PathBuf),
}

impl From<String> for Place {
    fn from(text: String) -> Self {
        if text == "kubernetes" {
            Self::Kubernetes
        } else {
            Self::Folder(text.into())
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        match place {
            Place::Kubernetes => "kubernetes".to_owned(),
            Place::Folder(folder) => folder.to_string_lossy().into_owned(),
        }
    }
}

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

impl TemplateInForce {
    /// The same definition of another version of the resource.
    fn of(&self, resource: NotificationTemplate) -> Self {
        Self {
            resource,
            compiled: Arc::clone(&self.compiled),
            hash: Arc::clone(&self.hash),
            packed: Arc::clone(&self.packed),
        }
    }
}

/// What is declared, at one moment: consistent in itself, never changed.
///
/// A resource that is broken is not in it, unless an earlier version of it was in force: then that one is, suspended if
/// the broken one is.
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
    /// Where it does not tell what is declared.
    pub untold: Untold,
}

/// Of what a snapshot does not tell whether it is declared: nothing may be taken for deleted there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Untold {
    /// The namespaces that count; empty: all do.
    pub counted: BTreeSet<String>,
    /// Kinds that could not be read so far in one of these.
    pub unread: BTreeSet<(Kind, String)>,
}

impl Snapshot {
    /// Whether a resource that is not in it is not declared. Else that cannot be told: its namespace does not count, or
    /// could not be read so far.
    pub fn tells(&self, kind: Kind, name: &str) -> bool {
        let namespace = name
            .split_once('/')
            .map_or(name, |(namespace, _)| namespace);
        let counted = &self.untold.counted;
        (counted.is_empty() || counted.contains(namespace)) && !self.is_unread(kind, namespace)
    }

    /// Whether nothing of a template may leave: it is suspended, or might be for all one can tell.
    pub fn is_suspended(&self, template: &str) -> bool {
        match self.templates.get(template) {
            Some(template) => template.resource.spec.suspend,
            None => !self.tells(Kind::NotificationTemplate, template),
        }
    }

    /// Whether templates of `namespace` may route to a Channel that is in `own`, by the labels that are known.
    pub fn allows(&self, own: &str, channel: &ChannelSpec, namespace: &str) -> bool {
        own == namespace
            || channel.allows(
                own,
                namespace,
                &labels_of(&self.namespace_labels, namespace),
            )
    }

    /// Whether resources of a kind could not be read so far in a namespace that counts.
    pub fn is_unread(&self, kind: Kind, namespace: &str) -> bool {
        let mut unread = self.untold.unread.iter();
        unread.any(|(of, within)| *of == kind && within == namespace)
    }

    /// Whether nothing is in force.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
            && self.templates.is_empty()
            && self.groups.is_empty()
            && self.schedules.is_empty()
    }

    /// Logs what is in force now, and what is newly wrong; `known` was in force before.
    fn tell(&self, known: &Self) {
        let stays = if known.is_empty() {
            ""
        } else {
            "; what was in force before stays"
        };
        // A field without a value says nothing and is left out.
        let filled = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        for problem in &self.problems {
            if !known.problems.contains(problem) {
                tracing::warn!(
                    file = problem.file,
                    line = Some(problem.line).filter(|line| *line > 0),
                    resource = filled(&problem.resource),
                    path = filled(&problem.path),
                    "{}{stays}",
                    problem.message
                );
            }
        }
        tracing::info!(
            channels = self.channels.len(),
            templates = self.templates.len(),
            groups = self.groups.len(),
            schedules = self.schedules.len(),
            problems = self.problems.len(),
            "declarations in force"
        );
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
