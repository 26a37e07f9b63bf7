//! What can go wrong, named for the action that failed.

use std::path::PathBuf;

use reqwest::{StatusCode, Url};

/// An action on a Pulsar cluster that failed. All of them may be tried again.
///
/// The name of the variant is the reason that conditions, events and metrics give.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum AdminError {
    /// The connection cannot be prepared: the URL, the CA file.
    #[error("cannot prepare to speak to Pulsar at {url}: {reason}")]
    PrepareClient {
        /// Where it is said to be.
        url: String,
        /// What is wrong with that.
        reason: String,
    },
    /// Whether the cluster works is unknown.
    #[error("cannot ask Pulsar how it is: {source}")]
    CheckHealth {
        /// Why.
        source: RequestError,
    },
    /// The clusters of the instance are unknown.
    #[error("cannot ask for Pulsar's clusters: {source}")]
    ListClusters {
        /// Why.
        source: RequestError,
    },
    /// A tenant is missing and was not made.
    #[error("cannot create the Pulsar tenant {tenant}: {source}")]
    CreateTenant {
        /// Which one.
        tenant: String,
        /// Why.
        source: RequestError,
    },
    /// A namespace is missing and was not made.
    #[error("cannot create the Pulsar namespace {namespace}: {source}")]
    CreateNamespace {
        /// Which one, as `tenant/namespace`.
        namespace: String,
        /// Why.
        source: RequestError,
    },
    /// A namespace is still there, or that is unknown.
    #[error("cannot delete the Pulsar namespace {namespace}: {source}")]
    DeleteNamespace {
        /// Which one.
        namespace: String,
        /// Why.
        source: RequestError,
    },
    /// To whom a namespace belongs is unknown.
    #[error("cannot read the properties of the Pulsar namespace {namespace}: {source}")]
    ReadProperties {
        /// Which one.
        namespace: String,
        /// Why.
        source: RequestError,
    },
    /// To whom a namespace belongs is not written down.
    #[error("cannot write the properties of the Pulsar namespace {namespace}: {source}")]
    WriteProperties {
        /// Which one.
        namespace: String,
        /// Why.
        source: RequestError,
    },
    /// Who may do what there is unknown.
    #[error("cannot read the permissions of {of}: {source}")]
    ReadPermissions {
        /// Of which namespace or topic.
        of: String,
        /// Why.
        source: RequestError,
    },
    /// A role cannot do its work.
    #[error("cannot grant {role} permissions on {on}: {source}")]
    Grant {
        /// Which one.
        role: String,
        /// On which namespace or topic.
        on: String,
        /// Why.
        source: RequestError,
    },
    /// A role may still do something.
    #[error("cannot revoke the permissions of {role} on {on}: {source}")]
    Revoke {
        /// Which one.
        role: String,
        /// On which namespace or topic.
        on: String,
        /// Why.
        source: RequestError,
    },
    /// Which topics there are is unknown.
    #[error("cannot list the topics of the Pulsar namespace {namespace}: {source}")]
    ListTopics {
        /// Which one.
        namespace: String,
        /// Why.
        source: RequestError,
    },
    /// A topic is missing, or has too few partitions.
    #[error("cannot create the topic {topic}: {source}")]
    CreateTopic {
        /// Which one.
        topic: String,
        /// Why.
        source: RequestError,
    },
    /// A topic is still there, or that is unknown.
    #[error("cannot delete the topic {topic}: {source}")]
    DeleteTopic {
        /// Which one.
        topic: String,
        /// Why.
        source: RequestError,
    },
    /// A topic stays where it is.
    #[error("cannot unload the topic {topic}: {source}")]
    UnloadTopic {
        /// Which one.
        topic: String,
        /// Why.
        source: RequestError,
    },
    /// A topic behaves otherwise than it should.
    #[error("cannot set the {policy} of the topic {topic}: {source}")]
    SetPolicy {
        /// Which one.
        topic: String,
        /// Which policy.
        policy: &'static str,
        /// Why.
        source: RequestError,
    },
    /// How a topic behaves is unknown.
    #[error("cannot read the {policy} of the topic {topic}: {source}")]
    ReadPolicy {
        /// Which one.
        topic: String,
        /// Which policy.
        policy: &'static str,
        /// Why.
        source: RequestError,
    },
    /// Which subscriptions a topic has is unknown.
    #[error("cannot list the subscriptions of the topic {topic}: {source}")]
    ListSubscriptions {
        /// Which one.
        topic: String,
        /// Why.
        source: RequestError,
    },
    /// A subscription is missing: what is published now would be gone for it.
    #[error("cannot create the subscription {subscription} of the topic {topic}: {source}")]
    CreateSubscription {
        /// Which one.
        subscription: String,
        /// Of which topic.
        topic: String,
        /// Why.
        source: RequestError,
    },
    /// How a topic fares is unknown.
    #[error("cannot ask how the topic {topic} fares: {source}")]
    ReadStats {
        /// Which one.
        topic: String,
        /// Why.
        source: RequestError,
    },
}

impl AdminError {
    /// What happened to the request; `None` if there was none.
    pub fn request(&self) -> Option<&RequestError> {
        match self {
            Self::PrepareClient { .. } => None,
            Self::CheckHealth { source }
            | Self::ListClusters { source }
            | Self::CreateTenant { source, .. }
            | Self::CreateNamespace { source, .. }
            | Self::DeleteNamespace { source, .. }
            | Self::ReadProperties { source, .. }
            | Self::WriteProperties { source, .. }
            | Self::ReadPermissions { source, .. }
            | Self::Grant { source, .. }
            | Self::Revoke { source, .. }
            | Self::ListTopics { source, .. }
            | Self::CreateTopic { source, .. }
            | Self::DeleteTopic { source, .. }
            | Self::UnloadTopic { source, .. }
            | Self::SetPolicy { source, .. }
            | Self::ReadPolicy { source, .. }
            | Self::ListSubscriptions { source, .. }
            | Self::CreateSubscription { source, .. }
            | Self::ReadStats { source, .. } => Some(source),
        }
    }

    /// Whether Pulsar was not asked, did not answer, or answered that it cannot now, or that another broker would, which cannot
    /// be asked: nothing is known.
    pub fn is_unreachable(&self) -> bool {
        match self.request() {
            Some(
                RequestError::Send { .. } | RequestError::Redirect { .. } | RequestError::Withheld,
            ) => true,
            Some(RequestError::Refused { status, .. }) => passes(status.as_u16()),
            _ => false,
        }
    }
}

/// Whether an answer with this HTTP status tells of whoever answers, and not of what was asked: it passes.
pub fn passes(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// What happened to one request.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum RequestError {
    /// No answer came.
    #[error("no answer from {url}: {reason}")]
    Send {
        /// Where it went.
        url: Box<Url>,
        /// What the HTTP client said, without the request.
        reason: String,
    },
    /// The answer says no.
    #[error("{}", refusal(*status, reason))]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// What Pulsar said about it.
        reason: String,
    },
    /// The answer is not what it should be.
    #[error("the answer cannot be read: {reason}")]
    Decode {
        /// What is wrong with it.
        reason: String,
    },
    /// The token is in a file that cannot be read.
    #[error("the token in {} cannot be read: {source}", path.display())]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It would change something, and whoever asks may not now.
    #[error("nothing may be changed now: another may be at work")]
    Withheld,
    /// The token would go where it does not belong.
    #[error("a redirect to {to} was not followed: {reason}")]
    Redirect {
        /// Where it leads.
        to: String,
        /// Why not there.
        reason: &'static str,
    },
}

impl RequestError {
    /// Whether it is this status that the answer has.
    pub(super) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

fn refusal(status: StatusCode, reason: &str) -> String {
    let advice = match status {
        StatusCode::UNAUTHORIZED => {
            " (is the token the one of this cluster, and has it not expired?)"
        }
        StatusCode::FORBIDDEN => " (the token's role has to be a superuser or the tenant's admin)",
        _ => "",
    };
    format!("Pulsar answered {status}: {reason}{advice}")
}
