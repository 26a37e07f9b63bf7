//! What travels through the broker: requests, deliveries, events.
//!
//! Every message is an envelope: one byte of version (0), one byte that says which format follows, then the body. A
//! reader that meets a format it does not know leaves the message unchanged for one that does.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use herald_crds::Priority;
use herald_crds::names::Topic;
use jiff::Timestamp;
use jiff::fmt::serde::timestamp::millisecond;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::broker::{MessageId, Outgoing};
use crate::clock;
use crate::deliver::load::{Limit, ProviderLoad};
use crate::id::{DeliveryId, FullName, NotificationId};

/// The envelope's version: the layout of its two leading bytes.
pub const ENVELOPE_VERSION: u8 = 0;

/// The body is JSON.
pub const FORMAT_JSON: u8 = 1;

/// A message that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer program: to be left for one that can read it.
    #[error(
        "the message is of version {version}, format {format}, which this program does not read"
    )]
    Newer {
        /// The envelope's version.
        version: u8,
        /// The envelope's format.
        format: u8,
    },
    /// Not a message of Herald's at all.
    #[error("the message cannot be read: {reason}")]
    Garbage {
        /// What the parser said.
        reason: String,
    },
}

/// Puts a body into an envelope.
///
/// # Panics
/// Never: the message types have string keys only, so that they always have a JSON form.
pub fn encode<T: Serialize>(body: &T) -> Bytes {
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(&[ENVELOPE_VERSION, FORMAT_JSON]);
    if let Err(error) = serde_json::to_writer(&mut bytes, body) {
        unreachable!("a message type without a JSON form: {error}");
    }
    Bytes::from(bytes)
}

/// Looks at an envelope, and answers the body in it.
pub fn check(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes {
        [ENVELOPE_VERSION, FORMAT_JSON, body @ ..] => Ok(body),
        [version, format, ..] if *version < 32 && *format < 32 => Err(DecodeError::Newer {
            version: *version,
            format: *format,
        }),
        _ => Err(DecodeError::Garbage {
            reason: "no envelope".to_owned(),
        }),
    }
}

/// Reads a body out of its envelope.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(check(bytes)?).map_err(|error| DecodeError::Garbage {
        reason: error.to_string(),
    })
}

/// The name of a definition: `sha256:` and 64 hexadecimal digits of its canonical JSON.
pub type DefinitionHash = Arc<str>;

/// Requests that were accepted together, with the definitions they need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Requests {
    /// Each definition once: base64 of its zstd-compressed canonical JSON.
    pub definitions: BTreeMap<DefinitionHash, Arc<str>>,
    /// The requests, in the order of acceptance.
    pub requests: Vec<Request>,
}

/// One accepted notification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: NotificationId,
    /// The Kubernetes namespace (in `local`: the folder's) it was sent in.
    pub namespace: Arc<str>,
    /// Who sent it: the name of the API key.
    pub sender: Arc<str>,
    /// A digest of what was asked, by which a repeat is told from a conflict.
    pub body: Arc<str>,
    /// The name of the template.
    pub template: Arc<str>,
    /// The template's definition as it was at acceptance.
    pub definition: DefinitionHash,
    /// The groups' definition as it was at acceptance; `None` if no group was named.
    pub groups: Option<DefinitionHash>,
    /// Its class.
    pub priority: Priority,
    /// To whom.
    pub recipients: Vec<To>,
    /// The template's parameters: a JSON object.
    pub parameters: Box<RawValue>,
    /// Some of the parameters are sensitive: none of them are kept once it has ended.
    #[serde(default)]
    pub sensitive: bool,
    /// Channels (`namespace/name`) that the sender named instead of the template's routing; empty if none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Arc<str>>,
    /// When it was accepted.
    #[serde(with = "millisecond::required")]
    pub accepted_at: Timestamp,
    /// Not before this; `None`: at once.
    #[serde(
        default,
        with = "millisecond::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub send_at: Option<Timestamp>,
    /// Not after this; `None`: never too late.
    #[serde(
        default,
        with = "millisecond::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub expires_at: Option<Timestamp>,
    /// Released evenly over so many seconds; 0: as fast as the channel goes.
    #[serde(default)]
    pub spread_over_seconds: u32,
    /// More recipients than the template's `maxRecipients` are meant, up to so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_recipients: Option<u64>,
    /// The sender's own words about it, for search.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// W3C trace context of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Arc<str>>,
    /// How Herald was when it accepted this.
    #[serde(default)]
    pub system: SystemState,
}

/// One recipient of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum To {
    /// Somebody in the directory, by id.
    Recipient(Arc<str>),
    /// A group (`namespace/name`).
    Group(Arc<str>),
    /// Somebody outside the directory.
    Address(Box<herald_crds::Address>),
}

/// The system's state when a notification was accepted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SystemState {
    /// Herald's version.
    pub version: String,
    /// Deliveries of its class that waited in front of its first channel's provider.
    pub backlog: u64,
    /// Age of the oldest of them, in milliseconds.
    pub oldest_age_milliseconds: u64,
    /// The provider that was in charge, if one was.
    pub provider: Option<String>,
    /// Pods that delivered for the channel.
    pub replicas: u32,
}

/// Deliveries of one chunk that travel together; acknowledged once, when the last is settled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bundle {
    /// At most [`Bundle::MAX_DELIVERIES`].
    pub deliveries: Vec<Delivery>,
}

impl Bundle {
    /// Most deliveries in one bundle.
    pub const MAX_DELIVERIES: usize = 100;
    /// Most bytes of one bundle, unless it is a single delivery.
    pub const MAX_BYTES: usize = 512 * 1024;
}

/// One message to one recipient on one channel, complete in itself: whoever holds it can send it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The notification it belongs to.
    pub notification: NotificationId,
    /// The notification's namespace.
    pub namespace: Arc<str>,
    /// The template's name.
    pub template: Arc<str>,
    /// The recipient's id in the directory; empty for a bare address.
    pub recipient: Arc<str>,
    /// The address on this medium.
    pub endpoint: Arc<str>,
    /// Its class.
    pub priority: Priority,
    /// When the notification was accepted.
    #[serde(with = "millisecond::required")]
    pub accepted_at: Timestamp,
    /// Since when it could have been sent: acceptance, `sendAt` or the retry's due time, whichever is latest.
    #[serde(with = "millisecond::required")]
    pub ready_at: Timestamp,
    /// When it was handed to the broker; the horizon H is measured from here.
    #[serde(with = "millisecond::required")]
    pub released_at: Timestamp,
    /// Not after this; `None`: never too late.
    #[serde(
        default,
        with = "millisecond::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub expires_at: Option<Timestamp>,
    /// Which life of the delivery this is: 0, and one more with each replay of a dead letter.
    pub round: u16,
    /// The number of this hand-out within the round, from 1; with `round` it tells a copy from a successor.
    pub attempt: u16,
    /// How many attempts of this round reached a provider before this one.
    #[serde(default)]
    pub tried: u16,
    /// The only provider that may send it (the one of an attempt whose outcome is unknown); `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Arc<str>>,
    /// What is said.
    pub content: herald_crds::render::Rendered,
    /// The content has parts that must not be stored once it has ended.
    #[serde(default)]
    pub sensitive: bool,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Arc<str>>,
}

/// One message of a Channel's events topic.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Events {
    /// Notifications that were fanned out without SQL, with the rows they would have had; before their outcomes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<Direct>,
    /// What became of deliveries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<Event>,
    /// Orders about what is already out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
    /// Messages that nobody can read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub garbage: Vec<Garbage>,
    /// How a pod is that delivers for the Channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick: Option<Tick>,
}

/// How a pod is that delivers for a Channel: told each second. Whoever is concerned reads it here, and nowhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tick {
    /// The pod's name, which no other has or had.
    pub pod: Arc<str>,
    /// Deliveries that it holds and has not begun, by class.
    pub waiting: [usize; Priority::COUNT],
    /// Age of the oldest of them in milliseconds, by class.
    pub oldest: [Option<u64>; Priority::COUNT],
    /// When the one of them was released that was released first.
    #[serde(
        default,
        with = "millisecond::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub held_since: Option<Timestamp>,
    /// Sends per second that came to an end since the last tick, by class.
    pub drain: [f64; Priority::COUNT],
    /// Sends that it reckons with in the next second, beyond what waits, by class.
    pub expects: [f64; Priority::COUNT],
    /// What holds it back.
    pub limit: Limit,
    /// Its view of the providers, in order of preference.
    pub providers: Vec<ProviderLoad>,
    /// The formats that it can read.
    pub formats: Vec<u8>,
    /// How far it has read the Channel's events.
    pub read: Option<MessageId>,
    /// It is the last one: the pod ends, and needs nothing any more.
    #[serde(default)]
    pub leaves: bool,
}

impl Events {
    /// Outcomes in one message at the most: as many as a bundle has deliveries.
    const MOST_OUTCOMES: usize = Bundle::MAX_DELIVERIES;

    /// Outcomes that carry no delivery, in as few messages as may be.
    pub fn of_outcomes(outcomes: &[Event]) -> Vec<Self> {
        let some = |some: &[Event]| Self {
            outcomes: some.to_vec(),
            ..Self::default()
        };
        outcomes.chunks(Self::MOST_OUTCOMES).map(some).collect()
    }
}

/// A message that is none of Herald's, or was damaged: kept, so that somebody may find out what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// The topic it came from.
    pub topic: Arc<str>,
    /// Where it stood there.
    pub message: MessageId,
    /// When it was found.
    #[serde(with = "millisecond::required")]
    pub at: Timestamp,
    /// What the parser said.
    pub reason: String,
    /// How many bytes it had.
    pub length: usize,
    /// Base64 of its first [`Garbage::MOST_BYTES`] bytes.
    pub bytes: Arc<str>,
}

impl Garbage {
    /// Most bytes kept of a message.
    pub const MOST_BYTES: usize = 64 * 1024;

    /// What is kept of a message, given where it stood and why it cannot be read.
    pub fn new(topic: &Topic, message: MessageId, payload: &[u8], error: &DecodeError) -> Self {
        let kept = &payload[..payload.len().min(Self::MOST_BYTES)];
        Self {
            topic: Arc::from(topic.as_str()),
            message,
            at: clock::now(),
            reason: error.to_string(),
            length: payload.len(),
            bytes: Arc::from(BASE64_STANDARD.encode(kept)),
        }
    }

    /// The message that tells of it.
    pub fn told(self) -> Outgoing {
        Outgoing::at_once(encode(&Events {
            garbage: vec![self],
            ..Events::default()
        }))
    }
}

/// A notification that was fanned out without SQL.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Direct {
    /// What was asked.
    pub request: Request,
    /// Base64 of the zstd-compressed definition, as in [`Requests::definitions`].
    pub definition: Arc<str>,
    /// The deliveries of this channel, without contents.
    pub deliveries: Vec<DirectDelivery>,
}

/// One delivery of a [`Direct`] notification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DirectDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its channel, `namespace/name`.
    pub channel: Arc<str>,
    /// Its address.
    pub endpoint: Arc<str>,
    /// Its recipient's locale.
    pub locale: Arc<str>,
}

/// One step in the life of a delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Which delivery.
    pub delivery: DeliveryId,
    /// Its notification.
    pub notification: NotificationId,
    /// When it happened.
    #[serde(with = "millisecond::required")]
    pub at: Timestamp,
    /// Round of the copy that this is about.
    pub round: u16,
    /// Attempt of the copy that this is about.
    pub attempt: u16,
    /// Attempts of this round that have reached a provider by now.
    pub tried: u16,
    /// Its class.
    pub priority: Priority,
    /// What happened.
    #[serde(flatten)]
    pub step: Step,
}

/// What happened to a delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// A provider took it.
    Sent {
        /// Which.
        provider: Arc<str>,
        /// What the provider calls it, if it says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider_id: Option<String>,
        /// How long the provider took.
        milliseconds: u32,
    },
    /// Handed to a relay: tried again within seconds.
    Retrying {
        /// Why.
        error: Failure,
        /// When.
        #[serde(with = "millisecond::required")]
        due: Timestamp,
    },
    /// Given back to the waiting room, whole.
    Returned {
        /// Why.
        error: Failure,
        /// When it is due again.
        #[serde(with = "millisecond::required")]
        due: Timestamp,
        /// The delivery, with the attempt number that its next release must carry.
        delivery: Box<Delivery>,
    },
    /// A dead letter: attempts used up, or refused for good.
    Failed {
        /// Why.
        error: Failure,
        /// The delivery, for a replay; `None` if it was never rendered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delivery: Option<Box<Delivery>>,
        /// The address itself is gone: it goes on the suppression list.
        #[serde(default)]
        address_gone: bool,
    },
    /// Perhaps sent, and by the Channel's wish not tried again.
    Unknown {
        /// What happened after the content was handed over.
        error: Failure,
    },
    /// Too late to be sent.
    Expired,
    /// Called back before it went out.
    Cancelled,
    /// Not sent for a reason that is nobody's fault.
    Suppressed {
        /// Why.
        reason: Suppression,
    },
}

impl Step {
    /// Whether the round is over with this step.
    pub const fn ends(&self) -> bool {
        !matches!(self, Self::Retrying { .. } | Self::Returned { .. })
    }
}

/// Why a delivery was not sent although nothing failed.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::IntoStaticStr,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Suppression {
    /// The address is on the suppression list, by somebody's will.
    OptedOut,
    /// The address is on the suppression list, since a provider refused it for good.
    AddressGone,
    /// The same business event was told to this recipient already.
    Duplicate,
    /// No channel of the routing has an address of this recipient.
    NoAddress,
    /// The recipient is not in the directory.
    UnknownRecipient,
}

impl Suppression {
    /// What an entry of the suppression list means, given its reason, which may be in anybody's words.
    pub fn of_list(reason: &str) -> Self {
        match reason.parse() {
            Ok(Self::AddressGone) => Self::AddressGone,
            _ => Self::OptedOut,
        }
    }
}

/// Why an attempt did not succeed, in a form that can be counted and read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable, short reason: metrics and searches use it (`smtp-550`, `http-503`, `timeout`, `horizon`).
    pub reason: Arc<str>,
    /// What the provider said, cut at 500 characters. Never an address or a secret of ours.
    pub detail: String,
    /// Which provider said so; `None` if it never came to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Arc<str>>,
}

/// An order about deliveries that are already out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Control {
    /// Do not send what is not yet sent of this notification.
    Cancel(NotificationId),
    /// Serve what is not yet sent of this notification in another class.
    Prioritize(NotificationId, Priority),
    /// These templates (`namespace/name`) and no others are suspended: give back what is not yet sent of them.
    Suspend(Vec<FullName>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_told_from_garbage() {
        assert!(matches!(
            decode::<Events>(&[1, 1, 0]),
            Err(DecodeError::Newer {
                version: 1,
                format: 1
            })
        ));
        assert!(matches!(
            decode::<Events>(&[0, 7, 0]),
            Err(DecodeError::Newer {
                version: 0,
                format: 7
            })
        ));
        for garbage in [&b""[..], b"x", b"hello", &[0, 1, b'{']] {
            assert!(matches!(
                decode::<Events>(garbage),
                Err(DecodeError::Garbage { .. })
            ));
        }
    }
}
