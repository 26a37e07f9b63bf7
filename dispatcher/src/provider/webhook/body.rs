//! What is posted, and the knowledge of whether it has been.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use herald_crds::render::Rendered;
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::message::Delivery;

/// A body and its media type.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// Its bytes: JSON.
    pub bytes: Bytes,
    /// `Content-Type`.
    pub content_type: &'static str,
}

/// `CloudEvents` 1.0 in structured mode, with the distributed tracing extension.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    /// The specification forbids an empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    datacontenttype: &'static str,
    data: &'a Value,
}

/// What is posted for `delivery`, the same at each attempt; `None` if it is not for a webhook.
pub fn payload(delivery: &Delivery) -> Option<Payload> {
    let Rendered::Webhook { body, parameters } = &delivery.content else {
        return None;
    };
    if let Some(body) = body {
        return Some(Payload {
            bytes: Bytes::copy_from_slice(body.as_bytes()),
            content_type: "application/json",
        });
    }
    let event = CloudEvent {
        specversion: "1.0",
        id: delivery.id.to_string(),
        source: format!(
            "/v1/namespaces/{}/notifications/{}",
            delivery.namespace, delivery.notification
        ),
        kind: format!("herald.dev.notification.{}", delivery.template),
        subject: Some(&*delivery.recipient).filter(|recipient| !recipient.is_empty()),
        time: delivery.accepted_at,
        traceparent: delivery.traceparent.as_deref(),
        datacontenttype: "application/json",
        data: parameters.as_deref().unwrap_or(&Value::Null),
    };
    Some(Payload {
        bytes: serde_json::to_vec(&event).ok()?.into(),
        content_type: "application/cloudevents+json",
    })
}

/// The texts of `delivery`'s content, which an answer might repeat and a history must not.
pub fn texts(delivery: &Delivery) -> Vec<String> {
    let mut texts = Vec::new();
    match &delivery.content {
        Rendered::Webhook {
            parameters: Some(parameters),
            ..
        } => collect(parameters, &mut texts),
        Rendered::Webhook {
            body: Some(body), ..
        } => match serde_json::from_str(body) {
            Ok(body) => collect(&body, &mut texts),
            Err(_) => texts.push(body.clone()),
        },
        _ => {}
    }
    // Longest first: a short text inside a long one must not break it up before it is found.
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    texts
}

fn collect(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Number(number) => texts.push(number.to_string()),
        Value::Array(values) => values.iter().for_each(|v| collect(v, texts)),
        Value::Object(members) => members.values().for_each(|v| collect(v, texts)),
        Value::Null | Value::Bool(_) => {}
    }
}

/// A body that notes when it is taken: from then on the receiver may have it.
///
/// The HTTP client asks for it only after the connection stands, so that a failure before is known to be harmless.
#[derive(Debug)]
pub struct Handover {
    bytes: Option<Bytes>,
    taken: Arc<AtomicBool>,
}

impl Handover {
    /// A body of `bytes` that sets `taken`.
    pub fn new(bytes: Bytes, taken: Arc<AtomicBool>) -> Self {
        Self {
            bytes: Some(bytes),
            taken,
        }
    }
}

impl http_body::Body for Handover {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.taken.store(true, Ordering::Release);
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
