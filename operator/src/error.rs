//! What can go wrong while a resource is looked at. All of it is tried again.

use crate::pulsar_admin::{AdminError, passes};

/// An action that failed. Its name is the reason that conditions, Events and metrics give.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum Error {
    /// A topic, its namespace, or something of it is not as it should be.
    #[error("{source}")]
    ArrangeTopics {
        /// What.
        source: AdminError,
    },
    /// An object is not as it should be.
    #[error("cannot apply {kind} {name}: {}", reason(source))]
    Apply {
        /// Of which kind.
        kind: String,
        /// Which one.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// An object of the name that one of ours would have is somebody else's.
    #[error(
        "{kind} {name} is somebody else's, and stays as it is: give this Channel another name, or delete that one if nobody needs it"
    )]
    NameTaken {
        /// Of which kind.
        kind: String,
        /// Which one.
        name: String,
    },
    /// An object is still there.
    #[error("cannot delete {kind} {name}: {}", reason(source))]
    Delete {
        /// Of which kind.
        kind: String,
        /// Which one.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Whether objects exist is unknown.
    #[error("cannot read {kind}: {}", reason(source))]
    Read {
        /// Of which kind, and which.
        kind: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// What was found is not written down.
    #[error("cannot write the status of {name}: {}", reason(source))]
    WriteStatus {
        /// Of which resource.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A Channel would go without its topics, or stays for ever.
    #[error("cannot change the finalizers of {name}: {}", reason(source))]
    WriteFinalizers {
        /// Of which resource.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// It came to no end.
    #[error("cannot look at {name}: {how}")]
    Look {
        /// At which resource.
        name: String,
        /// What happened.
        how: &'static str,
    },
}

impl Error {
    /// The reason that conditions, Events and metrics give: the name of the action that failed.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ArrangeTopics { source } => source.into(),
            error => error.into(),
        }
    }

    /// Whether nobody answered, so that nothing is known: what was good may still be.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::ArrangeTopics { source } => source.is_unreachable(),
            Self::Look { .. } | Self::NameTaken { .. } => false,
            Self::Apply { source, .. }
            | Self::Delete { source, .. }
            | Self::Read { source, .. }
            | Self::WriteStatus { source, .. }
            | Self::WriteFinalizers { source, .. } => match &**source {
                // Somebody else wrote meanwhile.
                kube::Error::Api(status) => status.code == 409 || passes(status.code),
                _ => true,
            },
        }
    }
}

/// What the API server said, without the structure around it.
fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}
