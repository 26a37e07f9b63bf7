//! Who calls, and what it may do: the seam between API keys and Kubernetes.
//!
//! # Layout
//!
//! - This file: the seam. [`rights`]: everything that anybody may be asked for.
//! - [`keys`]: API keys with scopes, of the store: one machine.
//! - `kubernetes`: tokens and RBAC of a cluster. [`shares`]: who may ask how much of it at a time.

pub mod keys;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod rights;
pub mod shares;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use self::keys::Keys;
pub use self::rights::{Right, Verb};
use crate::accept::{Scope, Scopes};

/// Who asks, once it has shown who it is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sender {
    /// Its name: the API key's, the Kubernetes user's, or `schedule:<name>`.
    pub name: Arc<str>,
    /// What it may do.
    pub rights: Rights,
}

impl Sender {
    /// Refuses unless it may do this in `namespace` to the thing called `name`; an empty name is no name.
    pub async fn require(&self, right: &Right, namespace: &str, name: &str) -> Result<(), Denied> {
        let reviewer = match &self.rights {
            Rights::Scopes(scopes) if scopes.allow(right.scope) => return Ok(()),
            Rights::Scopes(_) => return Err(Denied::LackScope { scope: right.scope }),
            Rights::Reviewed(reviewer) => reviewer,
        };
        match reviewer.allows(right, namespace, name).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Denied::LackPermission {
                sender: Arc::clone(&self.name),
                right: *right,
                namespace: namespace.into(),
                name: name.into(),
            }),
            Err(CannotTell::Away { reason }) => Err(Denied::Ask { reason }),
            Err(CannotTell::TooMany) => Err(Denied::AskTooMuch),
        }
    }
}

/// What somebody may do.
#[derive(Clone)]
pub enum Rights {
    /// What an API key says, in every namespace.
    Scopes(Scopes),
    /// Somebody else is asked each time.
    Reviewed(Arc<dyn Review>),
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scopes(scopes) => scopes.fmt(f),
            Self::Reviewed(_) => f.write_str("Reviewed"),
        }
    }
}

/// Says what one user may do.
#[async_trait]
pub trait Review: Send + Sync {
    /// Whether it may do this in `namespace` to the thing called `name`; an empty name is no name.
    async fn allows(&self, right: &Right, namespace: &str, name: &str) -> Result<bool, CannotTell>;
}

/// Why it cannot be told what somebody may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotTell {
    /// Whoever decides does not answer, and what it said last is too old.
    #[error("{reason}")]
    Away {
        /// Why.
        reason: Arc<str>,
    },
    /// Too much is asked about this one already. It is its own doing, so what was said last does not count.
    #[error("too much is asked about this caller at a time")]
    TooMany,
}

/// Why somebody may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// An API key does not have the scope.
    #[error("this needs the scope {:?}, which the API key does not have", scope.as_str())]
    LackScope {
        /// The scope.
        scope: Scope,
    },
    /// RBAC does not allow it.
    #[error(
        "{sender} may not {right} in namespace {namespace}{}: whoever administers the namespace can allow it by a \
         RoleBinding, see docs/permissions.md",
        named(name)
    )]
    LackPermission {
        /// Who.
        sender: Arc<str>,
        /// What.
        right: Right,
        /// Where.
        namespace: Box<str>,
        /// To what; empty: it has no name.
        name: Box<str>,
    },
    /// It cannot be told at the moment.
    #[error("whether this is allowed cannot be told at the moment: {reason}")]
    Ask {
        /// Why.
        reason: Arc<str>,
    },
    /// It cannot be told since the sender makes too many different calls at a time.
    #[error(
        "whether this is allowed was not asked: calls of the same sender wait for so many other answers of the API server \
         already; make fewer at a time that need different rights"
    )]
    AskTooMuch,
}

impl Denied {
    /// What is missing, in few words.
    pub fn needs(&self) -> String {
        match self {
            Self::LackScope { scope } => format!("needs {scope}"),
            Self::LackPermission { right, name, .. } if name.is_empty() => format!("needs {right}"),
            Self::LackPermission { right, name, .. } => format!("needs {right} {name:?}"),
            Self::Ask { reason } => reason.to_string(),
            Self::AskTooMuch => CannotTell::TooMany.to_string(),
        }
    }
}

fn named(name: &str) -> String {
    if name.is_empty() {
        String::new()
    } else {
        format!(" for {name:?}")
    }
}

/// Why it is not known who calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// What was shown is not good. Says what to do.
    #[error("{reason}")]
    Reject {
        /// Why.
        reason: Arc<str>,
    },
    /// Whoever would know does not answer.
    #[error("who calls cannot be told at the moment: {reason}")]
    Ask {
        /// Why.
        reason: Arc<str>,
    },
}

/// By what callers show who they are.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Callers {
    /// API keys, which have scopes.
    Keys,
    /// Tokens of the cluster, whose RBAC says what they may do.
    Kubernetes,
}

/// Says who calls, and what that may do.
#[async_trait]
pub trait Access: Send + Sync {
    /// Who shows this bearer token.
    async fn sender(&self, token: &str) -> Result<Sender, Unknown>;

    /// What a Schedule of `namespace` may do that names this ServiceAccount.
    fn service_account(&self, namespace: &str, name: &str) -> Rights;
}
