//! What the API needs of the other stages, and of whoever can change what is declared.

use async_trait::async_trait;
use herald_crds::{Address, Priority};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::broker::MessageId;
use crate::id::NotificationId;
use crate::waiting::control::{ControlError, Reached};

/// What the API needs of the other stages.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// What has not gone out of a notification does not go out.
    async fn cancel(&self, notification: &NotificationId) -> Result<Reached, ControlError>;

    /// The same for everything of a template.
    async fn cancel_template(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Reached, ControlError>;

    /// What has not gone out of a notification goes out in another class.
    async fn prioritize(
        &self,
        notification: &NotificationId,
        priority: Priority,
    ) -> Result<Reached, ControlError>;

    /// The API has changed rows (confirmed a notification, replayed dead letters): whoever works them off looks again.
    fn rows_changed(&self);

    /// How far a channel's events are recorded by this program; `None`: that is not known here.
    fn recorded(&self, _channel: &str) -> Option<watch::Receiver<Option<MessageId>>> {
        None
    }

    /// Sends a short test over a channel (`namespace/name`), past the queue, with its first provider. `None`: nothing
    /// delivers for this channel here.
    async fn test(&self, channel: &str, address: &Address) -> Option<ChannelTest>;
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChannelTest {
    /// `sent`, `transient`, `permanent`, `throttled` or `unknown`.
    pub outcome: String,
    /// The provider that was asked.
    pub provider: String,
    /// What the provider calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// Why it was not sent: a stable code such as `smtp-550`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the provider said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long it took.
    pub milliseconds: u64,
}

/// Why what is declared was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is declared where the editor does not write (a file with several resources, perhaps).
    #[error("{reason}")]
    Write {
        /// Where it is, and what to do.
        reason: String,
    },
    /// With it, what is declared would be wrong.
    #[error("what is declared would be wrong in {} places", problems.len())]
    Check {
        /// Every place, by JSON Pointer into the resource.
        problems: Vec<herald_crds::Problem>,
    },
    /// There is no such resource.
    #[error("there is no such resource")]
    Find,
}

/// Changes what is declared: in `local`, the folder.
#[async_trait]
pub trait Editor: Send + Sync + 'static {
    /// Writes a resource, which is right by itself and has its namespace; answers whether it is new. Once this returns
    /// the catalog has it.
    async fn put(&self, resource: herald_crds::Resource) -> Result<bool, EditError>;

    /// Removes a resource.
    async fn delete(
        &self,
        kind: herald_crds::Kind,
        namespace: &str,
        name: &str,
    ) -> Result<(), EditError>;
}
