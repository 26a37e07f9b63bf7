//! One connection for each role, and when it was renewed.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::names::Topic;
use pulsar::{ConnectionRetryOptions, OperationRetryOptions, Pulsar, PulsarBuilder, TokioExecutor};
use tokio::sync::{Mutex, watch};

use super::Settings;
use super::authentication::Answer;
use super::error::{LastTrouble, Trouble};

/// How long a silent connection may be dead.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Between two attempts at something that the broker is not ready for.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Such attempts before whoever wants it is told: a second's worth.
const RETRIES: u32 = 4;

/// Attempts at opening a connection before whoever wants it is told: two seconds' worth.
const CONNECTS: u32 = 7;

/// Messages on their way to the socket of one connection; whoever has more waits. Acknowledgements and questions have a
/// way of their own, which has no end.
///
/// The client lays out all places beforehand, of some six kilobytes each: no more than keep the socket busy.
const OUTBOUND: usize = 512;

/// The client of one role, connected when it is first used.
///
/// Roles do not share one: a receipt that does not come breaks the connection for everybody on it.
pub(super) struct Connection {
    settings: Arc<Settings>,
    client: Mutex<(Option<Client>, LastTrouble)>,
    /// How often the broker asked who we are: for each connection, and now and then in between.
    renewals: watch::Sender<u64>,
}

pub(super) type Client = Pulsar<TokioExecutor>;

impl Connection {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            client: Mutex::default(),
            renewals: watch::Sender::new(0),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The client, connected. Only to be awaited by what is not given up.
    pub(super) async fn client(&self) -> Result<Client, Trouble> {
        let (client, last) = &mut *self.client.lock().await;
        if let Some(client) = client {
            return Ok(client.clone());
        }
        last.recent()?;
        let outcome = self.connect().await;
        match &outcome {
            Ok(connected) => *client = Some(connected.clone()),
            Err(trouble) => last.note(trouble),
        }
        outcome
    }

    async fn connect(&self) -> Result<Client, Trouble> {
        let connecting = self.builder().await?.build();
        Box::pin(connecting)
            .await
            .map_err(|error| Trouble::connecting(&error))
    }

    async fn builder(&self) -> Result<PulsarBuilder<TokioExecutor>, Trouble> {
        let Settings {
            url,
            tenant: _,
            token,
            ca,
            operation_timeout,
        } = &*self.settings;
        let mut builder = Pulsar::builder(url.clone(), TokioExecutor)
            .with_auth_provider(Box::new(Answer::new(token.clone(), self.renewals.clone())))
            .with_connection_retry_options(ConnectionRetryOptions {
                min_backoff: Duration::from_millis(10),
                max_backoff: Duration::from_secs(1),
                max_retries: CONNECTS,
                connection_timeout: *operation_timeout,
                keep_alive: KEEP_ALIVE,
                ..ConnectionRetryOptions::default()
            })
            .with_operation_retry_options(OperationRetryOptions {
                operation_timeout: *operation_timeout,
                retry_delay: RETRY_DELAY,
                max_retries: Some(RETRIES),
            })
            .with_outbound_channel_size(OUTBOUND);
        if let Some(path) = ca {
            let pem = tokio::fs::read(path).await.map_err(|error| {
                Trouble::other(format!(
                    "the certificates in {} cannot be read: {error}",
                    path.display()
                ))
            })?;
            builder = builder.with_certificate_chain(pem);
        }
        Ok(builder)
    }

    /// Tells when a connection was opened, or the broker asked again who we are.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// The full names of a topic's partitions, in order; itself if it has none. Afterwards their brokers are connected.
    ///
    /// Only to be awaited by what is not given up.
    pub(super) async fn partitions(
        &self,
        client: &Client,
        topic: &Topic,
    ) -> Result<Vec<String>, Trouble> {
        let partitions = client.lookup_partitioned_topic(self.full_name(topic));
        // The client's futures are large, here and elsewhere.
        let partitions = Box::pin(partitions)
            .await
            .map_err(|error| Trouble::of(&error))?;
        Ok(partitions.into_iter().map(|(name, _)| name).collect())
    }

    /// How many partitions a topic has; 0: it is not partitioned.
    pub(super) async fn count_partitions(&self, topic: &Topic) -> Result<usize, Trouble> {
        let client = self.client().await?;
        let count = client.lookup_partitioned_topic_number(self.full_name(topic));
        let count = Box::pin(count).await.map_err(|error| Trouble::of(&error))?;
        Ok(count as usize)
    }

    fn full_name(&self, topic: &Topic) -> String {
        format!("persistent://{}/{topic}", self.settings.tenant)
    }
}
