//! Mail servers (RFC 5321), with STARTTLS or TLS, authentication, and connections that are used again.

mod compose;
mod pool;
mod reply;
mod session;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::render::Rendered;
use herald_crds::{SmtpSpec, SmtpTls};
use lettre::message::Mailbox;
use rustls::ClientConfig;

use super::credentials::{CredentialError, Credentials, Hidden};
use super::{BuildError, Context, Outcome, Provider, Reason, address, tls};
use crate::message::Delivery;
use pool::Pool;
use session::{Failure, Mail, Opening, Session};

/// How long an unused connection is kept: servers close theirs after minutes, some after ten seconds.
const IDLE: Duration = Duration::from_secs(10);

/// Sends each delivery as a mail through one server.
#[derive(Debug)]
pub struct Smtp {
    host: String,
    port: u16,
    tls: SmtpTls,
    from: Mailbox,
    /// `ConfigMap` with the certificates to trust; `None`: the system's.
    ca: Option<String>,
    /// Secret with user name and password; `None`: no authentication.
    login: Option<String>,
    credentials: Credentials,
    allow_private: bool,
    pool: Arc<Pool>,
    /// The certificates of `ca` as they were last read, and what was made of them.
    trust: Mutex<Option<(Hidden, Arc<ClientConfig>)>>,
}

impl Smtp {
    /// A provider that sends through the server of `spec`.
    pub fn new(name: &str, spec: &SmtpSpec, context: &Context) -> Result<Self, BuildError> {
        let from = compose::parse(&spec.from).ok_or_else(|| BuildError::ParseSender {
            provider: name.to_owned(),
            from: spec.from.clone(),
        })?;
        Ok(Self {
            host: spec.host.clone(),
            port: spec.port(),
            tls: spec.tls(),
            from,
            ca: spec.ca_ref.as_ref().map(|r| r.name.clone()),
            login: spec.credentials_ref.as_ref().map(|r| r.name.clone()),
            credentials: context.credentials.clone(),
            allow_private: spec.allow_private_addresses && context.allow_private_addresses,
            pool: Pool::new(context.concurrency, IDLE),
            trust: Mutex::new(None),
        })
    }

    /// User name and password as they are now; `None`: no authentication.
    fn login(&self) -> Result<Option<(Hidden, Hidden)>, Outcome> {
        let Some(secret) = &self.login else {
            return Ok(None);
        };
        let get = |key| {
            let value = self.credentials.get(secret, key);
            value.map_err(|error: CredentialError| {
                Outcome::Transient(Reason::new("credentials", error.to_string()))
            })
        };
        Ok(Some((get("username")?, get("password")?)))
    }

    /// A new connection, ready to send. Whatever fails here is about us or the server, never about a message.
    async fn open(&self, login: Option<(Hidden, Hidden)>) -> Result<Session, Outcome> {
        let transient =
            |code: &'static str, detail: String| Outcome::Transient(Reason::new(code, detail));
        let trust = match self.tls {
            SmtpTls::None => None,
            SmtpTls::StartTls | SmtpTls::Tls => Some(self.trust()?),
        };
        let addresses = address::resolve(&self.host, self.port, self.allow_private)
            .await
            .map_err(|error| {
                let code = match error {
                    address::ResolveError::Lookup { .. } => "dns",
                    address::ResolveError::Refuse { .. } => "refused-address",
                };
                transient(code, error.to_string())
            })?;
        let hidden = login.clone();
        let opening = Opening {
            tls: self.tls,
            trust,
            host: &self.host,
            login,
        };
        Session::open(&addresses, &opening)
            .await
            .map_err(|failure| {
                let hidden: Vec<&str> = hidden
                    .iter()
                    .flat_map(|(user, password)| [user.expose(), password.expose()])
                    .collect();
                outcome(&failure, false, &hidden)
            })
    }

    fn trust(&self) -> Result<Arc<ClientConfig>, Outcome> {
        let wrong =
            |code: &'static str, detail: String| Outcome::Transient(Reason::new(code, detail));
        let Some(ca) = &self.ca else {
            return tls::system().map_err(|error| wrong("tls", error.to_string()));
        };
        let pem = self
            .credentials
            .get(ca, "ca.crt")
            .map_err(|error| wrong("credentials", error.to_string()))?;
        let mut known = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = &*known
            && *of == pem
        {
            return Ok(Arc::clone(config));
        }
        let config =
            tls::trusting(pem.expose()).map_err(|error| wrong("tls", error.to_string()))?;
        *known = Some((pem, Arc::clone(&config)));
        Ok(config)
    }

    async fn hand_over(&self, delivery: &Delivery, mail: &Mail, handed: &AtomicBool) -> Outcome {
        let login = match self.login() {
            Ok(login) => login,
            Err(outcome) => return outcome,
        };
        let mut reused = self.pool.take(login.as_ref()).await;
        loop {
            let fresh = reused.is_none();
            let mut session = match reused.take() {
                Some(session) => session,
                None => match self.open(login.clone()).await {
                    Ok(session) => session,
                    Err(outcome) => return outcome,
                },
            };
            let sent = session.send(mail, handed).await;
            if let Err(failure) = &sent
                && !fresh
                && failure.is_hangup()
                && !handed.load(Ordering::Acquire)
            {
                // The server had hung up before this mail began: not this mail's failure.
                self.pool.clear();
                continue;
            }
            self.pool.give(session);
            return match sent {
                Ok(reply) => Outcome::Sent {
                    provider_id: reply.queue_id(),
                },
                Err(failure) => {
                    let mut hidden = vec![&*delivery.endpoint, mail.to.as_str()];
                    if let Rendered::Email { subject, .. } = &delivery.content {
                        hidden.push(subject);
                    }
                    outcome(&failure, handed.load(Ordering::Acquire), &hidden)
                }
            };
        }
    }
}

#[async_trait]
impl Provider for Smtp {
    async fn send(&self, delivery: &Delivery, timeout: Duration) -> Outcome {
        let mail = match compose::compose(&self.from, delivery) {
            Ok(mail) => mail,
            Err(error) => {
                return Outcome::Permanent {
                    reason: Reason::new("content", error.to_string()),
                    address_gone: false,
                };
            }
        };
        let handed = AtomicBool::new(false);
        match tokio::time::timeout(timeout, self.hand_over(delivery, &mail, &handed)).await {
            Ok(outcome) => outcome,
            Err(_) if handed.load(Ordering::Acquire) => Outcome::Unknown(Reason::new(
                "timeout",
                "no answer in time, after the content had been handed over",
            )),
            Err(_) => Outcome::Transient(Reason::new(
                "timeout",
                "the server was not ready for the content in time",
            )),
        }
    }
}

/// What a failure came to. `handed`: the server had been given the whole content.
fn outcome(failure: &Failure, handed: bool, hidden: &[&str]) -> Outcome {
    match failure {
        Failure::Refused(stage, reply) => reply.refusal(*stage, hidden),
        Failure::Broken { code, detail } if handed => Outcome::Unknown(Reason::new(
            *code,
            format!("{detail}, after the content had been handed over"),
        )),
        Failure::Broken { code, detail } => Outcome::Transient(Reason::new(*code, detail.as_str())),
        Failure::Unfit { code, detail } => Outcome::Permanent {
            reason: Reason::new(*code, *detail),
            address_gone: false,
        },
    }
}
