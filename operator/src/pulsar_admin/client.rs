//! How a request is sent, redirected and answered.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::error::{AdminError, RequestError};
use crate::fence::fenced;

/// Most redirects of one request: a broker, the one it names, and some more while a topic moves.
const REDIRECTS: usize = 5;

/// Who is in the cluster is asked at most so often: a redirect may lead to a broker that has come since.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// Most of an answer that says no that is kept.
const MOST_REASON: usize = 512;

/// Where Pulsar is, and as whom to speak to it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address of the web service, `http://…` or `https://…`.
    pub url: String,
    /// Who we are.
    pub token: Token,
    /// PEM certificates to trust beside the system's; `None`: those of the system alone.
    pub ca: Option<PathBuf>,
    /// How long one answer may take.
    pub timeout: Duration,
}

/// Who we are. Never printed.
#[derive(Clone)]
pub enum Token {
    /// Nobody: a cluster without authentication.
    None,
    /// A token that stays.
    Fixed(String),
    /// A file with a token, read again for each request: it may be replaced at any time.
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

/// How the cluster was when something was last asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// When that was.
    pub at: SystemTime,
    /// What was wrong; `None`: nothing.
    pub trouble: Option<String>,
}

/// Whether something may be changed now.
type MayChange = Arc<dyn Fn() -> bool + Send + Sync>;

/// Speaks to the admin API of one Pulsar cluster. Cheap to clone.
#[derive(Clone)]
pub struct PulsarAdmin {
    shared: Arc<Shared>,
    may_change: Option<MayChange>,
}

struct Shared {
    http: reqwest::Client,
    base: Url,
    token: Token,
    /// The hosts of the cluster's brokers, asked for when a redirect leads to a host that is none of them.
    brokers: Mutex<Vec<String>>,
    /// When they were asked for. Whoever asks holds it.
    asked: tokio::sync::Mutex<Option<Instant>>,
    health: Mutex<Option<Health>>,
}

impl std::fmt::Debug for PulsarAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PulsarAdmin")
            .field("base", &self.shared.base.as_str())
            .finish_non_exhaustive()
    }
}

impl PulsarAdmin {
    /// Prepares to speak to a cluster; sends nothing yet.
    pub fn new(settings: Settings) -> Result<Self, AdminError> {
        let unusable = |reason: String| AdminError::PrepareClient {
            url: settings.url.clone(),
            reason,
        };
        let mut base = Url::parse(&settings.url).map_err(|error| unusable(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(unusable(
                "the address of Pulsar's web service begins with http:// or https://".to_owned(),
            ));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // Somebody else may have chosen a provider already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .timeout(settings.timeout)
            .redirect(redirect::Policy::none());
        if let Some(path) = &settings.ca {
            let pem = std::fs::read(path)
                .map_err(|error| unusable(format!("{}: {error}", path.display())))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| unusable(format!("{}: {error}", path.display())))?;
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder
            .build()
            .map_err(|error| unusable(describe(&error)))?;
        Ok(Self {
            shared: Arc::new(Shared {
                http,
                base,
                token: settings.token,
                brokers: Mutex::default(),
                asked: tokio::sync::Mutex::default(),
                health: Mutex::new(None),
            }),
            may_change: None,
        })
    }

    /// The same, but it changes nothing while `may_change` says no. What was sent already may still arrive.
    #[must_use]
    pub fn fenced(self, may_change: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let may_change = Some(Arc::new(may_change) as _);
        Self { may_change, ..self }
    }

    /// How the cluster was when something was last asked of it; `None` if nothing was yet.
    pub fn last_known_health(&self) -> Option<Health> {
        lock(&self.shared.health).clone()
    }

    /// Asks whether the cluster can pass a message from a producer to a consumer.
    pub async fn check_health(&self) -> Result<(), AdminError> {
        self.send(Method::GET, "brokers/health", None::<&()>)
            .await
            .map(drop)
            .map_err(|source| AdminError::CheckHealth { source })
    }

    /// The names of the clusters that a namespace can live in.
    pub async fn clusters(&self) -> Result<Vec<String>, AdminError> {
        self.get("clusters")
            .await
            .map_err(|source| AdminError::ListClusters { source })
    }

    /// Asks for `path`, below `admin/v2`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        let answer = self.send(Method::GET, path, None::<&()>).await?;
        serde_json::from_slice(&answer).map_err(|error| RequestError::Decode {
            reason: error.to_string(),
        })
    }

    /// Sends one request and answers with the body of its answer. Remembers how the cluster is.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync + ?Sized)>,
    ) -> Result<Vec<u8>, RequestError> {
        let body =
            body.map(serde_json::to_vec)
                .transpose()
                .map_err(|error| RequestError::Decode {
                    reason: error.to_string(),
                })?;
        let span = tracing::info_span!(
            "pulsar",
            otel.name = %format_args!("{method} {}", path.split('/').next().unwrap_or_default()),
            otel.kind = "client",
            http.request.method = %method,
            url.path = path,
            error.type = tracing::field::Empty,
            otel.status_code = tracing::field::Empty,
        );
        let outcome = self.follow(method, path, body).instrument(span.clone());
        let outcome = outcome.await;
        // That something is not there is an answer like another.
        if let Err(error) = &outcome
            && !error.is(StatusCode::NOT_FOUND)
        {
            span.record("error.type", <&str>::from(error))
                .record("otel.status_code", "ERROR");
        }
        let trouble = match &outcome {
            Ok(_) => None,
            // It was not asked.
            Err(RequestError::Withheld) => return outcome,
            // An answer that says no to this request says nothing against the cluster.
            Err(RequestError::Refused { status, .. })
                if status.is_client_error() && *status != StatusCode::UNAUTHORIZED =>
            {
                None
            }
            Err(error) => Some(error.to_string()),
        };
        *lock(&self.shared.health) = Some(Health {
            at: SystemTime::now(),
            trouble,
        });
        outcome
    }

    async fn follow(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, RequestError> {
        let mut url = self.url(path)?;
        for _ in 0..=REDIRECTS {
            let response = self.once(&method, &url, body.clone()).await?;
            let status = response.status();
            if matches!(
                status,
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            ) {
                let location = response.headers().get(LOCATION);
                url = self.target(&url, location).await?;
                continue;
            }
            let answer = response.bytes().await.map_err(|error| RequestError::Send {
                url: Box::new(url.clone()),
                reason: describe(&error),
            })?;
            if status.is_success() {
                return Ok(answer.into());
            }
            return Err(RequestError::Refused {
                status,
                reason: reason(&answer),
            });
        }
        Err(RequestError::Redirect {
            to: url.to_string(),
            reason: "the brokers send the request round in circles",
        })
    }

    fn url(&self, path: &str) -> Result<Url, RequestError> {
        self.shared
            .base
            .join("admin/v2/")
            .and_then(|base| base.join(path))
            .map_err(|error| RequestError::Decode {
                reason: error.to_string(),
            })
    }

    /// One request to one broker, with the token: `url` is the base's or was found good.
    async fn once(
        &self,
        method: &Method,
        url: &Url,
        body: Option<Vec<u8>>,
    ) -> Result<reqwest::Response, RequestError> {
        let mut request = self.shared.http.request(method.clone(), url.clone());
        if let Some(header) = self.authorization().await? {
            request = request.header(AUTHORIZATION, header);
        }
        if let Some(body) = body {
            request = request
                .header(reqwest::header::CONTENT_TYPE, "application/json")
                .body(body);
        }
        let may = || method.is_safe() || self.may_change.as_ref().is_none_or(|may| may());
        // Also while it waits for a connection.
        let answer = fenced(request.send(), may).await;
        let answer = answer.ok_or(RequestError::Withheld)?;
        answer.map_err(|error| RequestError::Send {
            url: Box::new(url.clone()),
            reason: describe(&error),
        })
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, RequestError> {
        let token =
            match &self.shared.token {
                Token::None => return Ok(None),
                Token::Fixed(token) => token.clone(),
                Token::File(path) => tokio::fs::read_to_string(path).await.map_err(|source| {
                    RequestError::ReadToken {
                        path: path.clone(),
                        source,
                    }
                })?,
            };
        let mut header =
            HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| {
                RequestError::Decode {
                    reason: "the token has characters that no token has".to_owned(),
                }
            })?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// Where a redirect leads, if the token may go there: to a broker of this cluster, and never from https to http.
    pub(super) async fn target(
        &self,
        from: &Url,
        to: Option<&HeaderValue>,
    ) -> Result<Url, RequestError> {
        let text = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
        let refuse = |reason| RequestError::Redirect {
            to: text.to_owned(),
            reason,
        };
        let to = match from.join(text) {
            Ok(to) if !text.is_empty() => to,
            _ => return Err(refuse("it leads nowhere")),
        };
        if !matches!(to.scheme(), "http" | "https") {
            return Err(refuse("it is neither http nor https"));
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(refuse("it leads from https to http"));
        }
        let host = to.host_str().unwrap_or_default();
        if Some(host) == self.shared.base.host_str() {
            return Ok(to);
        }
        match self.is_broker(host).await {
            Ok(true) => Ok(to),
            Ok(false) => Err(refuse(
                "it leads to a host that is no broker of the cluster",
            )),
            Err(RequestError::Refused {
                status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
                ..
            }) => Err(refuse(
                "which brokers the cluster has is told to superusers alone, and the token's role is none",
            )),
            Err(error) => Err(error),
        }
    }

    /// Whether a host is one of the cluster's brokers, as far as is known, or as it is told now.
    async fn is_broker(&self, host: &str) -> Result<bool, RequestError> {
        let shared = &self.shared;
        let is_known = || lock(&shared.brokers).iter().any(|broker| broker == host);
        if is_known() {
            return Ok(true);
        }
        let mut asked = shared.asked.lock().await;
        if is_known() || asked.is_some_and(|at| at.elapsed() < ASKED_AGAIN) {
            return Ok(is_known());
        }
        let told = self.brokers().await;
        // Whoever waits for an answer that does not come waits for all. A refusal is told to each.
        if !matches!(told, Err(RequestError::Refused { .. })) {
            *asked = Some(Instant::now());
        }
        *lock(&shared.brokers) = told?;
        Ok(is_known())
    }

    /// The hosts of the cluster's brokers, from the broker at the base itself: no redirect is followed here.
    async fn brokers(&self) -> Result<Vec<String>, RequestError> {
        let url = self.url("brokers")?;
        let response = self.once(&Method::GET, &url, None).await?;
        let status = response.status();
        let answer = response.bytes().await.map_err(|error| RequestError::Send {
            url: Box::new(url),
            reason: describe(&error),
        })?;
        if !status.is_success() {
            return Err(RequestError::Refused {
                status,
                reason: reason(&answer),
            });
        }
        let brokers: Vec<String> =
            serde_json::from_slice(&answer).map_err(|error| RequestError::Decode {
                reason: error.to_string(),
            })?;
        Ok(brokers
            .iter()
            .filter_map(|broker| Url::parse(&format!("http://{broker}")).ok())
            .filter_map(|url| url.host_str().map(str::to_owned))
            .collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What Pulsar says about a refusal: `{"reason": …}`, or text, or a page.
fn reason(answer: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        reason: Option<String>,
    }
    let said = serde_json::from_slice::<Refusal>(answer)
        .ok()
        .and_then(|refusal| refusal.reason)
        .unwrap_or_else(|| String::from_utf8_lossy(answer).trim().to_owned());
    if said.is_empty() {
        return "nothing more".to_owned();
    }
    said.chars().take(MOST_REASON).collect()
}

/// An error of the HTTP client with its causes, which it does not print, and without the URL, which we do.
fn describe(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "it took too long".to_owned()
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the exchange broke off".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
