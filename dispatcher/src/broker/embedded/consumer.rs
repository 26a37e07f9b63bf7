//! Consumers: they read the file from the topic's cursor, and hold what they read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use super::queue::{Next, Queue};
use super::worker::Command;
use super::{Inner, READ_ROWS, read, schema};
use crate::broker::{Acknowledger, BrokerError, Consumer, Incoming, MessageId, Sharing};
use crate::clock;

/// Longest sleep until something is due: a clock that was set forward is noticed this late.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

pub(super) struct EmbeddedConsumer {
    hold: Arc<Hold>,
    /// Read and not yet received; held all the same.
    buffer: VecDeque<Incoming>,
    changed: watch::Receiver<()>,
}

/// Which consumer it is.
struct Hold {
    inner: Arc<Inner>,
    queue: Arc<Queue>,
    number: u64,
}

impl EmbeddedConsumer {
    pub(super) fn new(
        inner: Arc<Inner>,
        queue: Arc<Queue>,
        sharing: Sharing,
        prefetch: usize,
    ) -> Self {
        let changed = queue.changed.subscribe();
        let number = queue.join(sharing, prefetch);
        Self {
            hold: Arc::new(Hold {
                inner,
                queue,
                number,
            }),
            buffer: VecDeque::new(),
            changed,
        }
    }

    /// Reads what is next into the buffer. Cancelled, it is as if it had not begun.
    async fn read(&mut self) -> Result<(), BrokerError> {
        let Hold {
            inner,
            queue,
            number,
        } = &*self.hold;
        let _turn = queue.turn.lock().await;
        let now = clock::now().as_millisecond();
        let Some(reading) = queue.begin(*number, now) else {
            return Ok(());
        };
        let limit = reading.room.min(READ_ROWS);
        let (deliver_at, after) = reading.after;
        let outcome = async {
            if !reading.delayed {
                let rows = sqlx::query(schema::READ)
                    .bind(queue.number)
                    .bind(after as i64)
                    .bind(limit as i64)
                    .fetch(&inner.readers);
                let (rows, more) = read(rows, limit).await?;
                return Ok((rows, more, None));
            }
            let rows = sqlx::query(schema::READ_DUE)
                .bind(queue.number)
                .bind(deliver_at)
                .bind(after as i64)
                .bind(now)
                .bind(limit as i64)
                .fetch(&inner.readers);
            let (rows, more) = read(rows, limit).await?;
            let next_due = if more {
                None
            } else {
                sqlx::query_scalar(schema::NEXT_DUE)
                    .bind(queue.number)
                    .bind(now)
                    .fetch_one(&inner.readers)
                    .await?
            };
            Ok((rows, more, next_due))
        };
        let (rows, more, next_due) = outcome
            .await
            .map_err(|error| inner.receive_error(queue, &error))?;
        self.buffer.extend(reading.finish(rows, more, next_due));
        Ok(())
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn receive(&mut self) -> Result<Incoming, BrokerError> {
        loop {
            let Hold {
                inner,
                queue,
                number,
            } = &*self.hold;
            if inner.shared.closing.is_cancelled() || inner.shared.aborting.is_cancelled() {
                return Err(BrokerError::Closed);
            }
            if let Some(message) = self.buffer.pop_front() {
                return Ok(message);
            }
            self.changed.mark_unchanged();
            let now = clock::now().as_millisecond();
            let due = match queue.next(*number, now) {
                Next::Read => {
                    self.read().await?;
                    continue;
                }
                Next::Until(due) => Some(Duration::from_millis((due - now) as u64)),
                Next::Wait => None,
            };
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep(due.min(LONGEST_SLEEP)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Ends with an error only with the queue, which this consumer keeps.
                _ = self.changed.changed() => {}
                () = sleep => {}
                () = inner.shared.closing.cancelled() => {}
            }
        }
    }

    fn acknowledger(&self) -> Arc<dyn Acknowledger> {
        Arc::new(EmbeddedAcknowledger {
            hold: Arc::clone(&self.hold),
        })
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.hold.queue.leave(self.hold.number);
    }
}

struct EmbeddedAcknowledger {
    hold: Arc<Hold>,
}

#[async_trait]
impl Acknowledger for EmbeddedAcknowledger {
    async fn acknowledge(&self, ids: &[MessageId]) -> Result<(), BrokerError> {
        let Hold {
            inner,
            queue,
            number,
        } = &*self.hold;
        let permit = inner
            .commands
            .reserve()
            .await
            .map_err(|_| BrokerError::Closed)?;
        // From here nothing waits: what is marked as leaving is on its way to the writer, which undoes it if it fails.
        let ids = queue.leaving(*number, ids);
        if ids.is_empty() {
            return Ok(());
        }
        let (receipt, answer) = oneshot::channel();
        let queue = Arc::clone(queue);
        permit.send(Command::Acknowledge {
            queue,
            ids,
            receipt,
        });
        answer.await.unwrap_or(Err(BrokerError::Closed))
    }
}
