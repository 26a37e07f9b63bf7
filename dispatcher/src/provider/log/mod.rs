//! A JSON line instead of a send, for rehearsals; can be told what becomes of whom.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::render::Rendered;
use herald_crds::{LogOutcome, LogSpec, Priority};
use jiff::Timestamp;
use serde::Serialize;

use super::{Outcome, Provider, Reason};
use crate::clock;
use crate::id::{DeliveryId, NotificationId};
use crate::message::Delivery;

#[cfg(test)]
mod tests;

/// How long a rehearsed provider asks to be left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Writes each attempt as a line of JSON.
///
/// A line is one write to a file opened for appending: it is whole even if others append too, it has left the process
/// when the send is over, and it is not forced to the disk.
#[derive(Debug)]
pub struct Log {
    spec: LogSpec,
    /// Opened by the first send.
    file: OnceLock<File>,
}

/// One line.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    at: Timestamp,
    outcome: LogOutcome,
    delivery: DeliveryId,
    notification: NotificationId,
    namespace: &'a str,
    template: &'a str,
    recipient: &'a str,
    endpoint: &'a str,
    priority: Priority,
    /// Since when it could have been sent.
    ready_at: Timestamp,
    /// When it was handed to the broker.
    released_at: Timestamp,
    round: u16,
    attempt: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    /// `None` if it holds something that must not be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a Rendered>,
}

impl Log {
    /// Writes where `spec` says. The file is opened by the first send.
    pub fn new(spec: &LogSpec) -> Self {
        Self {
            spec: spec.clone(),
            file: OnceLock::new(),
        }
    }

    fn write(&self, delivery: &Delivery, outcome: LogOutcome) -> io::Result<()> {
        let mut line = Vec::with_capacity(1024);
        serde_json::to_writer(
            &mut line,
            &Line {
                at: clock::now(),
                outcome,
                delivery: delivery.id,
                notification: delivery.notification,
                namespace: &delivery.namespace,
                template: &delivery.template,
                recipient: &delivery.recipient,
                endpoint: &delivery.endpoint,
                priority: delivery.priority,
                ready_at: delivery.ready_at,
                released_at: delivery.released_at,
                round: delivery.round,
                attempt: delivery.attempt,
                traceparent: delivery.traceparent.as_deref(),
                content: (!delivery.sensitive).then_some(&delivery.content),
            },
        )?;
        line.push(b'\n');
        if let Some(path) = &self.spec.path {
            let mut file: &File = self.file(Path::new(path))?;
            return file.write_all(&line);
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&line).and_then(|()| stdout.flush())
    }

    fn file(&self, path: &Path) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(self.file.get_or_init(|| file))
    }
}

#[async_trait]
impl Provider for Log {
    async fn send(&self, delivery: &Delivery, timeout: Duration) -> Outcome {
        let outcome = self.spec.outcome(&delivery.endpoint);
        let latency = match outcome {
            LogOutcome::Hang => timeout,
            _ => self.spec.latency().min(timeout),
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if latency == timeout {
            return Outcome::Transient(Reason::new(
                "timeout",
                "rehearsed: nothing happened until the timeout",
            ));
        }
        if let Err(error) = self.write(delivery, outcome) {
            // Neither the recipient's nor the message's fault.
            return Outcome::Transient(Reason::new("write", error.to_string()));
        }
        match outcome {
            LogOutcome::Sent => Outcome::Sent { provider_id: None },
            LogOutcome::Transient => Outcome::Transient(Reason::new(
                "rehearsed",
                "rehearsed: fails, and might not later",
            )),
            LogOutcome::Permanent => Outcome::Permanent {
                reason: Reason::new("rehearsed", "rehearsed: fails for good"),
                address_gone: false,
            },
            LogOutcome::Throttled => Outcome::Throttled {
                reason: Reason::new("rehearsed", "rehearsed: asks to slow down"),
                retry_after: Some(RETRY_AFTER),
            },
            // A hang was over before the line was written.
            LogOutcome::Unknown | LogOutcome::Hang => Outcome::Unknown(Reason::new(
                "rehearsed",
                "rehearsed: nobody knows whether it was sent",
            )),
        }
    }
}
