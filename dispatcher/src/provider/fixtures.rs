//! What the tests of providers, and of what delivers through them, share.

use std::collections::BTreeMap;
use std::path::Path;

use herald_crds::Priority;
use herald_crds::render::Rendered;
use jiff::Timestamp;

use super::Context;
use super::credentials::Credentials;
use crate::id::{DeliveryId, NotificationId};
use crate::message::Delivery;

/// A context whose Secrets are under `root` and which lets a Channel use private addresses.
pub fn context(root: &Path) -> Context {
    Context {
        credentials: Credentials::new(root),
        allow_private_addresses: true,
        concurrency: 4,
    }
}

/// A delivery of `content` to `endpoint`, the same each time.
pub fn delivery(endpoint: &str, content: Rendered) -> Delivery {
    let notification = NotificationId::from_key("shop", "orders", "1");
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    Delivery {
        id: DeliveryId::new(&notification, "alice", "shop/mail", 0, endpoint, 0),
        notification,
        namespace: "shop".into(),
        template: "order-shipped".into(),
        recipient: "alice".into(),
        endpoint: endpoint.into(),
        priority: Priority::Normal,
        accepted_at: at,
        ready_at: at,
        released_at: at,
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

/// A plain mail.
pub fn mail() -> Rendered {
    Rendered::Email {
        subject: "On its way".to_owned(),
        html: None,
        text: "Your order is on its way.\n".to_owned(),
        reply_to: None,
        headers: BTreeMap::new(),
    }
}
