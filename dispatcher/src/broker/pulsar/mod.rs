//! Apache Pulsar as the broker.
//!
//! # Layout
//!
//! - `client`: one connection for each role, and when it was renewed.
//! - `authentication`: the token, read again whenever the broker asks who we are.
//! - `producers`: many receipts in flight, partitions by the key's hash.
//! - `consumer`: one for each partition, which ends rather than go on after a break.
//! - `tail`: reads along, and what the last message is.
//! - `time`: what time it is there.
//! - `error`: what the client says, with what to do about it.
//!
//! # What is so on purpose
//!
//! - The client's own batching stays off: an acknowledgement would be one of a whole batch, and a delay would be lost.
//! - Nothing here reconnects a consumer or a tail. The client does so silently, with local queues full of messages that
//!   the broker has meanwhile given to others: so whoever notices a renewed connection ends the consumer with an error,
//!   and its owner lets go of what it has not begun and subscribes again. Only one that holds nothing, and has been silent
//!   for long though there is a backlog, is replaced where it stands.
//! - Whatever opens a connection runs in a task of its own: given up halfway, it would leave the client waiting for ever
//!   for a connection that nobody opens.
//! - The client's `check_connection` is never called: it takes the place of the keep-alive that is waiting for its
//!   answer, which then gives the connection up.

mod authentication;
mod client;
mod consumer;
mod error;
mod producers;
mod tail;
mod time;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use herald_crds::Priority;
use herald_crds::names::{Topic, TopicKind};
use serde::Deserialize;

use self::client::Connection;
use self::producers::Producers;
use self::tail::LastMessages;
use super::{Broker, BrokerError, Consumer, MessageId, Outgoing, Sharing, Tail};
use crate::clock::Told;

/// Where Pulsar is, and as whom to speak to it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address of the brokers, `pulsar://…` or `pulsar+ssl://…`.
    pub url: String,
    /// The tenant in which all topics are.
    pub tenant: String,
    /// Who we are.
    pub token: Token,
    /// PEM certificates to trust beside the usual ones; `None`: those alone.
    pub ca: Option<PathBuf>,
    /// How long one answer, a receipt above all, may take: 5 to 10 s.
    pub operation_timeout: Duration,
}

/// Who we are. Never printed.
#[derive(Clone)]
pub enum Token {
    /// Nobody: a cluster without authentication.
    None,
    /// A token that stays.
    Fixed(String),
    /// A file with a token, read again whenever the broker asks: it may be replaced at any time.
    File(PathBuf),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Fixed(_) => f.write_str("Fixed(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// What a token says of itself, to name it in an error: nobody has checked it.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    /// The role it is for.
    sub: Option<String>,
    /// When it ends, in seconds since 1970.
    exp: Option<i64>,
}

impl Token {
    /// Empty if it is none, cannot be read, or is not of the kind that says anything.
    fn claims(&self) -> Claims {
        let token = match self {
            Self::None => String::new(),
            Self::Fixed(token) => token.clone(),
            Self::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
        };
        let claims = token.trim().split('.').nth(1).unwrap_or_default();
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap_or_default();
        serde_json::from_slice(&claims).unwrap_or_default()
    }
}

/// Pulsar. Connects when it is first used; dropping it ends its connections.
pub struct PulsarBroker {
    settings: Arc<Settings>,
    /// What is critical waits behind nothing else.
    critical: Arc<Connection>,
    rest: Arc<Connection>,
    tails: Arc<Connection>,
    critical_producers: Producers,
    producers: Producers,
    last_messages: LastMessages,
}

impl PulsarBroker {
    /// A broker that connects when it is first used.
    pub fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let [critical, rest, tails] =
            [(); 3].map(|()| Arc::new(Connection::new(Arc::clone(&settings))));
        Self {
            critical_producers: Producers::new(Arc::clone(&critical)),
            producers: Producers::new(Arc::clone(&rest)),
            last_messages: LastMessages::new(Arc::clone(&tails)),
            settings,
            critical,
            rest,
            tails,
        }
    }

    fn producers(&self, topic: &Topic) -> &Producers {
        if is_critical(topic) {
            &self.critical_producers
        } else {
            &self.producers
        }
    }

    /// Where it is, and in which tenant.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

fn is_critical(topic: &Topic) -> bool {
    matches!(
        topic.kind(),
        Some(
            TopicKind::Requests(_, Priority::Critical)
                | TopicKind::Deliveries(_, Priority::Critical)
        )
    )
}

#[async_trait]
impl Broker for PulsarBroker {
    fn place(&self, topic: &Topic, key: &str) -> Option<u64> {
        Some(self.producers(topic).place(topic, key))
    }

    async fn publish(&self, topic: &Topic, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        self.producers(topic).publish(topic, messages).await
    }

    async fn subscribe(
        &self,
        topic: &Topic,
        sharing: Sharing,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let connection = if is_critical(topic) {
            &self.critical
        } else {
            &self.rest
        };
        let consumer = consumer::subscribe(connection, topic, sharing, prefetch).await?;
        Ok(Box::new(consumer))
    }

    async fn tail(
        &self,
        topic: &Topic,
        after: Option<MessageId>,
    ) -> Result<Box<dyn Tail>, BrokerError> {
        let tail = tail::tail(&self.tails, topic, after).await?;
        Ok(Box::new(tail))
    }

    async fn last_message_id(&self, topic: &Topic) -> Result<Option<MessageId>, BrokerError> {
        self.last_messages.ask(topic).await
    }

    async fn time(&self, topic: &Topic) -> Result<Option<Told>, BrokerError> {
        time::ask(&self.tails, topic).await.map(Some)
    }
}
