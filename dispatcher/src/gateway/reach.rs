//! What the API needs of the pipeline.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use herald_crds::render::Rendered;
use herald_crds::{Address, Medium, Priority};
use tokio::sync::watch;

use crate::api::{ChannelTest, Control};
use crate::broker::MessageId;
use crate::catalog::Catalog;
use crate::clock;
use crate::id::{DeliveryId, NotificationId};
use crate::message::Delivery;
use crate::pipeline::{Pipeline, Providers};
use crate::provider::{Outcome, Reason};
use crate::waiting::control::{ControlError, Reached};

/// Reaches the other stages.
pub(super) struct Reach {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) providers: Providers,
}

#[async_trait]
impl Control for Reach {
    async fn cancel(&self, notification: &NotificationId) -> Result<Reached, ControlError> {
        self.pipeline.orders.cancel(notification).await
    }

    async fn cancel_template(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Reached, ControlError> {
        self.pipeline
            .orders
            .cancel_template(namespace, template)
            .await
    }

    async fn prioritize(
        &self,
        notification: &NotificationId,
        priority: Priority,
    ) -> Result<Reached, ControlError> {
        self.pipeline
            .orders
            .prioritize(notification, priority)
            .await
    }

    fn rows_changed(&self) {
        self.pipeline.plan.wake();
        self.pipeline.lanes.ready_everywhere();
        self.pipeline.lanes.scheduled();
    }

    fn recorded(&self, channel: &str) -> Option<watch::Receiver<Option<MessageId>>> {
        self.pipeline.recorded(channel)
    }

    async fn test(&self, channel: &str, address: &Address) -> Option<ChannelTest> {
        let declared = self.catalog.current();
        let declared = declared.channels.get(channel)?;
        let first = declared.spec.providers.first()?;
        let began = Instant::now();
        let outcome = match (
            declared.spec.endpoint(address),
            (self.providers)(channel, first, 1),
        ) {
            (Some(endpoint), Ok(provider)) => {
                let delivery = test_delivery(channel, declared.spec.medium, endpoint);
                provider.send(&delivery, first.timeout()).await
            }
            (None, _) => Outcome::Transient(Reason {
                code: Arc::from("no-address"),
                detail: format!("the address has nothing for {}", declared.spec.medium),
            }),
            (_, Err(error)) => Outcome::Transient(Reason {
                code: Arc::from("provider"),
                detail: error.to_string(),
            }),
        };
        let (name, provider_id, reason) = match outcome {
            Outcome::Sent { provider_id } => ("sent", provider_id, None),
            Outcome::Transient(reason) => ("transient", None, Some(reason)),
            Outcome::Permanent { reason, .. } => ("permanent", None, Some(reason)),
            Outcome::Throttled { reason, .. } => ("throttled", None, Some(reason)),
            Outcome::Unknown(reason) => ("unknown", None, Some(reason)),
        };
        Some(ChannelTest {
            outcome: name.to_owned(),
            provider: first.name.clone(),
            provider_id,
            reason: reason.as_ref().map(|reason| reason.code.to_string()),
            detail: reason.map(|reason| reason.detail),
            milliseconds: began.elapsed().as_millis() as u64,
        })
    }
}

fn test_delivery(channel: &str, medium: Medium, endpoint: &str) -> Delivery {
    const TEXT: &str =
        "This is a test of the channel, sent by hand. Nothing is wrong and nothing is to be done.";
    let notification = NotificationId::random();
    let now = clock::now();
    let content = match medium {
        Medium::Email => Rendered::Email {
            subject: format!("Test of {channel}"),
            html: None,
            text: TEXT.to_owned(),
            reply_to: None,
            headers: std::collections::BTreeMap::new(),
        },
        Medium::Webhook => Rendered::Webhook {
            body: None,
            parameters: Some(Arc::new(serde_json::json!({"test": true, "text": TEXT}))),
        },
        _ => Rendered::Sms {
            text: TEXT.to_owned(),
        },
    };
    Delivery {
        id: DeliveryId::new(&notification, "", channel, 0, endpoint, 0),
        notification,
        namespace: Arc::from(
            channel
                .split_once('/')
                .map_or("", |(namespace, _)| namespace),
        ),
        template: Arc::from("channel-test"),
        recipient: Arc::from(""),
        endpoint: Arc::from(endpoint),
        priority: Priority::Normal,
        accepted_at: now,
        ready_at: now,
        released_at: now,
        expires_at: None,
        round: 0,
        attempt: 1,
        tried: 0,
        provider: None,
        content,
        sensitive: false,
        traceparent: None,
    }
}
