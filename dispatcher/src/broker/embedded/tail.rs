//! Tails: they read by id, from where they are.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::queue::Queue;
use super::{Inner, READ_ROWS, read, schema};
use crate::broker::{BrokerError, Incoming, MessageId, Tail};

pub(super) struct EmbeddedTail {
    inner: Arc<Inner>,
    queue: Arc<Queue>,
    /// Everything up to here was read.
    after: u64,
    /// Read and not yet returned.
    buffer: VecDeque<Incoming>,
    changed: watch::Receiver<()>,
}

impl EmbeddedTail {
    pub(super) fn new(inner: Arc<Inner>, queue: Arc<Queue>, after: u64) -> Self {
        let changed = queue.changed.subscribe();
        Self {
            inner,
            queue,
            after,
            buffer: VecDeque::new(),
            changed,
        }
    }

    /// Reads what comes after, at least up to `last`, the topic's newest id when it was asked for.
    async fn read(&mut self, last: u64) -> Result<(), BrokerError> {
        let statement = if self.queue.delayed() {
            schema::READ_ALL
        } else {
            schema::READ
        };
        let rows = sqlx::query(statement)
            .bind(self.queue.number)
            .bind(self.after as i64)
            .bind(READ_ROWS as i64)
            .fetch(&self.inner.readers);
        let (rows, more) = read(rows, READ_ROWS)
            .await
            .map_err(|error| self.inner.receive_error(&self.queue, &error))?;
        let read = rows.last().map_or(self.after, |row| row.id);
        // Ids are committed in their order, so what is missing up to the newest is gone.
        self.after = if more { read } else { read.max(last) };
        let rows = rows.into_iter();
        self.buffer.extend(rows.map(|row| Incoming {
            id: MessageId::of_entry(row.id),
            payload: row.payload,
        }));
        Ok(())
    }
}

#[async_trait]
impl Tail for EmbeddedTail {
    async fn next(&mut self) -> Result<Incoming, BrokerError> {
        loop {
            let shared = &self.inner.shared;
            if shared.closing.is_cancelled() || shared.aborting.is_cancelled() {
                return Err(BrokerError::Closed);
            }
            if let Some(message) = self.buffer.pop_front() {
                return Ok(message);
            }
            self.changed.mark_unchanged();
            match self.queue.last() {
                Some(last) if last > self.after => self.read(last).await?,
                _ => tokio::select! {
                    // Ends with an error only with the queue, which this tail keeps.
                    _ = self.changed.changed() => {}
                    () = shared.closing.cancelled() => {}
                },
            }
        }
    }
}
