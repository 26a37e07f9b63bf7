//! What time it is at the broker.
//!
//! The protocol has no question for that. But the broker says of each consumer since when it is there: so one is made that
//! reads nothing, asked, and dropped.

use std::sync::Arc;
use std::time::Instant;

use futures::{FutureExt as _, StreamExt as _};
use herald_crds::names::Topic;
use jiff::Timestamp;

use super::client::Connection;
use super::error::Trouble;
use super::tail::{LATEST, open};
use crate::broker::BrokerError;
use crate::clock::Told;

/// Messages that it may be sent on the way: at a full queue the client answers no question.
const AHEAD: usize = 64;

/// Asks the broker of a topic's first partition.
pub(super) async fn ask(connection: &Arc<Connection>, topic: &Topic) -> Result<Told, BrokerError> {
    let (asking, asked) = (Arc::clone(connection), topic.clone());
    // Given up halfway, it would block the client: see the module.
    let outcome = tokio::spawn(async move { told(&asking, &asked).await })
        .await
        .unwrap_or_else(|error| Err(Trouble::other(error.to_string())));
    outcome.map_err(|trouble| trouble.receiving(connection.settings(), topic))
}

async fn told(connection: &Connection, topic: &Topic) -> Result<Told, Trouble> {
    let client = connection.client().await?;
    let partitions = connection.partitions(&client, topic).await?;
    let Some(partition) = partitions.first() else {
        return Err(Trouble::other("it has no partition"));
    };
    let from = Instant::now();
    let mut reader = open(&client, partition, LATEST, AHEAD).await?;
    while let Some(Some(_)) = reader.next().now_or_never() {}
    let patience = connection.settings().operation_timeout;
    let stats = match tokio::time::timeout(patience, Box::pin(reader.get_stats())).await {
        Ok(stats) => stats.map_err(|error| Trouble::of(&error))?,
        Err(_) => return Err(Trouble::other("it does not answer any more")),
    };
    // Not before: the client may have made the consumer anew in between.
    let until = Instant::now();
    let since = stats.into_iter().find_map(|stats| stats.connected_since);
    let since =
        since.ok_or_else(|| Trouble::other("it does not say since when a consumer is there"))?;
    let time = since
        .parse::<Timestamp>()
        .map_err(|error| Trouble::other(format!("{since:?} is no time: {error}")))?;
    Ok(Told { time, from, until })
}
