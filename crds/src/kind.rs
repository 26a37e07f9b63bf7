//! The four kinds, and a resource of any of them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::validate::{self, Problem, Validate, escape};
use crate::{Channel, NotificationTemplate, RecipientGroup, Schedule, crd};

/// `apiVersion` of every resource of Herald.
pub const API_VERSION: &str = "herald.dev/v1alpha1";

/// Which of the four kinds.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
pub enum Kind {
    /// A way out, and how it is worked off.
    Channel,
    /// What is said.
    NotificationTemplate,
    /// Who gets it.
    RecipientGroup,
    /// When.
    Schedule,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::Channel,
        Self::NotificationTemplate,
        Self::RecipientGroup,
        Self::Schedule,
    ];

    /// Its name in YAML.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Its plural, lower case: its name in URLs of the API server and in RBAC.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Channel => "channels",
            Self::NotificationTemplate => "notificationtemplates",
            Self::RecipientGroup => "recipientgroups",
            Self::Schedule => "schedules",
        }
    }
}

/// A resource of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// A way out, and how it is worked off.
    Channel(Box<Channel>),
    /// What is said.
    NotificationTemplate(Box<NotificationTemplate>),
    /// Who gets it.
    RecipientGroup(Box<RecipientGroup>),
    /// When.
    Schedule(Box<Schedule>),
}

impl Resource {
    /// Whether a document claims to be a resource of Herald, of whatever version; others share folders with them.
    pub fn is_one(document: &Value) -> bool {
        document["apiVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("herald.dev/"))
    }

    /// Takes a document for a resource.
    ///
    /// Fails with every problem that it has by itself: unknown fields, missing and mistyped ones, bounds, rules.
    /// `status` is ignored, as the API server ignores it.
    pub fn parse(document: &Value) -> Result<Self, Vec<Problem>> {
        let (resource, problems) = Self::parse_leniently(document);
        match resource {
            Some(resource) if problems.is_empty() => Ok(resource),
            _ => Err(problems),
        }
    }

    /// As [`Resource::parse`], but also gives the resource when it could be read in spite of its problems, so that
    /// others that refer to it are not blamed. `None` if it could not.
    pub fn parse_leniently(document: &Value) -> (Option<Self>, Vec<Problem>) {
        let kind = match kind_of(document) {
            Ok(kind) => kind,
            Err(problem) => return (None, vec![problem]),
        };
        let mut problems = envelope(document);
        crd::check(kind, &document["spec"], &mut problems);
        let read = match kind {
            Kind::Channel => read(document, Self::Channel),
            Kind::NotificationTemplate => read(document, Self::NotificationTemplate),
            Kind::RecipientGroup => read(document, Self::RecipientGroup),
            Kind::Schedule => read(document, Self::Schedule),
        };
        match read {
            Ok(resource) => {
                let found = resource.validate();
                (Some(resource), validate::merge(problems, found))
            }
            Err(problem) => {
                if problems.is_empty() {
                    problems.push(problem);
                }
                (None, validate::merge(problems, Vec::new()))
            }
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Channel(_) => Kind::Channel,
            Self::NotificationTemplate(_) => Kind::NotificationTemplate,
            Self::RecipientGroup(_) => Kind::RecipientGroup,
            Self::Schedule(_) => Kind::Schedule,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Channel(r) => &r.metadata,
            Self::NotificationTemplate(r) => &r.metadata,
            Self::RecipientGroup(r) => &r.metadata,
            Self::Schedule(r) => &r.metadata,
        }
    }

    /// Its metadata, to be changed: a folder gives its namespace to resources that name none.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Channel(r) => &mut r.metadata,
            Self::NotificationTemplate(r) => &mut r.metadata,
            Self::RecipientGroup(r) => &mut r.metadata,
            Self::Schedule(r) => &mut r.metadata,
        }
    }

    /// Its name; empty if it has none, which is a problem.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its namespace; `None` if it names none.
    pub fn namespace(&self) -> Option<&str> {
        self.metadata().namespace.as_deref()
    }

    /// Its labels; empty if it has none.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.metadata().labels.clone().unwrap_or_default()
    }

    /// Every problem that it has by itself.
    pub fn validate(&self) -> Vec<Problem> {
        match self {
            Self::Channel(r) => r.validate(),
            Self::NotificationTemplate(r) => r.validate(),
            Self::RecipientGroup(r) => r.validate(),
            Self::Schedule(r) => r.validate(),
        }
    }
}

fn kind_of(document: &Value) -> Result<Kind, Problem> {
    if !document.is_object() {
        return Err(Problem::new(
            "",
            "must be an object with apiVersion, kind, metadata and spec",
        ));
    }
    if document["apiVersion"] != API_VERSION {
        let message = format!("must be {API_VERSION}");
        return Err(Problem::new("/apiVersion", message));
    }
    document["kind"]
        .as_str()
        .and_then(|kind| kind.parse().ok())
        .ok_or_else(|| {
            let message =
                "must be one of Channel, NotificationTemplate, RecipientGroup and Schedule";
            Problem::new("/kind", message)
        })
}

/// What the schema of `spec` does not see: the top level.
fn envelope(document: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    for key in document.as_object().into_iter().flat_map(|o| o.keys()) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&key.as_str()) {
            let message = "unknown field; expected one of apiVersion, kind, metadata, spec";
            problems.push(Problem::new(format!("/{}", escape(key)), message));
        }
    }
    if !document["metadata"].is_object() {
        problems.push(Problem::new("/metadata", "is missing"));
    }
    problems
}

fn read<T: DeserializeOwned>(
    document: &Value,
    wrap: fn(Box<T>) -> Resource,
) -> Result<Resource, Problem> {
    let mut document = document.clone();
    if let Some(document) = document.as_object_mut() {
        document.remove("status");
    }
    serde_path_to_error::deserialize(document)
        .map(|resource| wrap(Box::new(resource)))
        .map_err(|error| {
            let path = pointer(error.path());
            Problem::new(path, error.into_inner().to_string())
        })
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{}", escape(key)),
            Segment::Enum { .. } | Segment::Unknown => String::new(),
        })
        .collect()
}
