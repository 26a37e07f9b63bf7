//! HTTP requests to other systems: Standard Webhooks signatures, a CloudEvent unless the template says otherwise.

mod body;
mod signature;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use herald_crds::WebhookSpec;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::address::{self, ResolveError};
use super::credentials::Credentials;
use super::{BuildError, Context, Outcome, Provider, Reason, tls};
use crate::clock;
use crate::message::Delivery;
use body::Handover;

/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 4 * 1024;

/// Most texts of a content that are looked for in an answer.
const MAX_TEXTS: usize = 512;

/// How long an answer's body may take once its status is known: it can only add words.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an unused connection is kept; shorter than the usual server keeps it, so that few are met closed.
const IDLE: Duration = Duration::from_secs(15);

/// The same where each recipient has a host of their own: what is kept grows with the number of hosts.
const IDLE_MANY_HOSTS: Duration = Duration::from_secs(2);

/// Longest pause that a receiver may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// Header fields that Herald or HTTP itself sets.
const OWN_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "te",
    "traceparent",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Posts each delivery to its recipient's URL or to the Channel's own.
#[derive(Debug)]
pub struct Webhook {
    /// Where everything goes; `None`: to each delivery's endpoint.
    url: Option<Url>,
    headers: HeaderMap,
    /// The Secret whose key `secret` signs; `None`: not signed.
    secret: Option<String>,
    credentials: Credentials,
    allow_private: bool,
    concurrency: usize,
    /// Made by the first send, since it reads the system's certificates.
    client: OnceCell<Client>,
}

impl Webhook {
    /// A provider that posts as `spec` says.
    pub fn new(name: &str, spec: &WebhookSpec, context: &Context) -> Result<Self, BuildError> {
        let url = match &spec.url {
            Some(url) => Some(parse_url(url).map_err(|reason| BuildError::ParseUrl {
                provider: name.to_owned(),
                reason,
            })?),
            None => None,
        };
        let mut headers = HeaderMap::with_capacity(spec.headers.len());
        for (header, value) in &spec.headers {
            let wrong = |reason| BuildError::CheckHeader {
                provider: name.to_owned(),
                header: header.clone(),
                reason,
            };
            let field = HeaderName::try_from(header.as_str())
                .map_err(|_| wrong("is not a name that HTTP allows"))?;
            if OWN_HEADERS.contains(&field.as_str()) {
                return Err(wrong("is set by Herald"));
            }
            let value = HeaderValue::try_from(value.as_str())
                .map_err(|_| wrong("has a value that HTTP does not allow"))?;
            headers.insert(field, value);
        }
        Ok(Self {
            url,
            headers,
            secret: spec.credentials_ref.as_ref().map(|r| r.name.clone()),
            credentials: context.credentials.clone(),
            allow_private: spec.allow_private_addresses && context.allow_private_addresses,
            concurrency: context.concurrency,
            client: OnceCell::new(),
        })
    }

    async fn client(&self) -> Result<&Client, Reason> {
        let failed = |error: &dyn StdError| Reason::new("tls", error.to_string());
        self.client
            .get_or_try_init(async || {
                // Without certificates https fails, and says why; http still works.
                let tls = tls::system()
                    .or_else(|_| tls::nobody())
                    .map_err(|e| failed(&e))?;
                Client::builder()
                    .user_agent(concat!("herald/", env!("CARGO_PKG_VERSION")))
                    .tls_backend_preconfigured((*tls).clone())
                    .redirect(redirect::Policy::none())
                    .retry(reqwest::retry::never())
                    // A proxy would connect to addresses that were never checked here.
                    .no_proxy()
                    .dns_resolver(Arc::new(Guard {
                        allow_private: self.allow_private,
                    }))
                    .pool_max_idle_per_host(self.concurrency)
                    .pool_idle_timeout(match self.url {
                        Some(_) => IDLE,
                        None => IDLE_MANY_HOSTS,
                    })
                    .build()
                    .map_err(|e| failed(&e))
            })
            .await
    }

    /// The URL for `delivery`, checked as far as it can be before resolution.
    fn target(&self, delivery: &Delivery) -> Result<Url, Outcome> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => parse_url(&delivery.endpoint).map_err(|reason| Outcome::Permanent {
                reason: Reason::new("url", reason),
                address_gone: false,
            })?,
        };
        // An address in a URL is not resolved, so the resolver's check does not see it.
        let literal = url
            .host_str()
            .and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        if let Some(range) = literal.and_then(address::refusal)
            && !self.allow_private
        {
            return Err(self.refused(&ResolveError::Refuse { range }));
        }
        Ok(url)
    }

    /// A refused address of the Channel's own is for its owner to cure; one that a recipient brought is their mistake.
    fn refused(&self, error: &ResolveError) -> Outcome {
        let reason = Reason::new("refused-address", error.to_string());
        match self.url {
            Some(_) => Outcome::Transient(reason),
            None => Outcome::Permanent {
                reason,
                address_gone: false,
            },
        }
    }

    fn headers(&self, delivery: &Delivery, payload: &body::Payload) -> Result<HeaderMap, Reason> {
        let id = delivery.id.to_string();
        let now = clock::now().as_second();
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(payload.content_type));
        headers.insert("webhook-timestamp", now.into());
        let mut insert = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        if let Some(secret) = &self.secret {
            let wrong = |error: &dyn StdError| Reason::new("credentials", error.to_string());
            let secrets = self
                .credentials
                .get(secret, "secret")
                .map_err(|e| wrong(&e))?;
            let signature = signature::sign(secrets.expose(), &id, now, &payload.bytes)
                .map_err(|e| wrong(&e))?;
            insert("webhook-signature", &signature);
        }
        insert("webhook-id", &id);
        insert("idempotency-key", &id);
        if let Some(traceparent) = &delivery.traceparent {
            insert("traceparent", traceparent);
        }
        Ok(headers)
    }

    /// What a request that had no answer came to. `taken`: the receiver may have the content.
    fn unanswered(&self, error: &reqwest::Error, taken: bool) -> Outcome {
        match find::<ResolveError>(error) {
            Some(refused @ ResolveError::Refuse { .. }) => return self.refused(refused),
            Some(lookup) => return Outcome::Transient(Reason::new("dns", lookup.to_string())),
            None => {}
        }
        if taken {
            return Outcome::Unknown(Reason::new(
                "reset",
                "the connection ended after the request had been written, without an answer",
            ));
        }
        Outcome::Transient(match find::<rustls::Error>(error) {
            Some(error) => Reason::new("tls", error.to_string()),
            None => Reason::new(
                "connect",
                match find::<io::Error>(error) {
                    Some(error) => format!("cannot connect: {error}"),
                    None => "cannot connect".to_owned(),
                },
            ),
        })
    }
}

#[async_trait]
impl Provider for Webhook {
    async fn send(&self, delivery: &Delivery, timeout: Duration) -> Outcome {
        let deadline = Instant::now() + timeout;
        let url = match self.target(delivery) {
            Ok(url) => url,
            Err(outcome) => return outcome,
        };
        let Some(payload) = body::payload(delivery) else {
            return Outcome::Permanent {
                reason: Reason::new("content", "the content is not for a webhook"),
                address_gone: false,
            };
        };
        let headers = match self.headers(delivery, &payload) {
            Ok(headers) => headers,
            Err(reason) => return Outcome::Transient(reason),
        };
        let client = match self.client().await {
            Ok(client) => client,
            Err(reason) => return Outcome::Transient(reason),
        };
        let taken = Arc::new(AtomicBool::new(false));
        let request = client
            .post(url)
            .headers(headers)
            .body(reqwest::Body::wrap(Handover::new(
                payload.bytes,
                Arc::clone(&taken),
            )))
            .send();
        match tokio::time::timeout_at(deadline, request).await {
            Ok(Ok(answer)) => answered(delivery, answer, deadline).await,
            Ok(Err(error)) => self.unanswered(&error, taken.load(Ordering::Acquire)),
            Err(_) if taken.load(Ordering::Acquire) => Outcome::Unknown(Reason::new(
                "timeout",
                "no answer in time, after the request had been written",
            )),
            Err(_) => Outcome::Transient(Reason::new("timeout", "no connection in time")),
        }
    }
}

/// What an answer means.
async fn answered(delivery: &Delivery, mut answer: Response, deadline: Instant) -> Outcome {
    let status = answer.status();
    let wait = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after(value, clock::now().into()));
    // Read also when it says nothing new: a connection whose answer was read to its end can be used again.
    let said = read(&mut answer, deadline.min(Instant::now() + ANSWER_TIMEOUT)).await;
    if status.is_success() {
        return Outcome::Sent { provider_id: None };
    }
    let reason = if status.is_redirection() {
        Reason::new(
            format!("http-{}", status.as_u16()),
            format!(
                "HTTP {}: a redirect, which is not followed: give the URL it leads to",
                status.as_u16()
            ),
        )
    } else {
        let texts = body::texts(delivery);
        // Too much to look for: then nothing is quoted.
        let said = if texts.len() > MAX_TEXTS {
            ""
        } else {
            said.as_str()
        };
        let mut hidden: Vec<&str> = vec![&delivery.endpoint];
        hidden.extend(texts.iter().map(String::as_str));
        Reason::quoted(
            format!("http-{}", status.as_u16()),
            &format!("HTTP {}: {said}", status.as_u16()),
            &hidden,
        )
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS => Outcome::Throttled {
            reason,
            retry_after: wait,
        },
        StatusCode::SERVICE_UNAVAILABLE if wait.is_some() => Outcome::Throttled {
            reason,
            retry_after: wait,
        },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Outcome::Transient(reason),
        status if status.is_server_error() => Outcome::Transient(reason),
        _ => Outcome::Permanent {
            reason,
            address_gone: status == StatusCode::GONE,
        },
    }
}

/// The first of an answer's body, as text; whatever goes wrong ends it.
async fn read(answer: &mut Response, deadline: Instant) -> String {
    let mut bytes = Vec::new();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout_at(deadline, answer.chunk()).await {
        let room = MAX_ANSWER - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if bytes.len() == MAX_ANSWER {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What `Retry-After` says (RFC 9110, section 10.2.3): seconds or a date, at most a day; `None` if neither.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let wait = match value.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value.trim())
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("neither http nor https".to_owned()),
    }
}

/// The first error of type `T` in the chain of causes, also where an `io::Error` wraps it.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        if let Some(inner) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            && let Some(found) = find(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Resolves names to addresses that may be spoken to; the connection is made to what it answers.
#[derive(Debug)]
struct Guard {
    allow_private: bool,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            // Port 0 stands for the scheme's own, which the client puts in.
            let addresses = address::resolve(name.as_str(), 0, allow_private).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
