//! What the gateways know: how a Channel fares, and where a Schedule stands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use herald_crds::ScheduleStatus;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::metrics::{Metrics, OfReason};

/// How long one answer may take: what is asked for is of this moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question that was not answered.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum GatewayError {
    /// The connection cannot be prepared.
    #[error("gatewayUrl: cannot prepare to speak to {url}: {reason}")]
    Prepare {
        /// Where it is said to be.
        url: String,
        /// What is wrong with that.
        reason: String,
    },
    /// The token is in a file that cannot be read.
    #[error("the token for the gateway in {} cannot be read: {source}", path.display())]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No answer came.
    #[error("no answer from the gateway: {reason}")]
    Ask {
        /// What the HTTP client said.
        reason: String,
    },
    /// It says no to who asks, or to what they may.
    #[error("the gateway answered {status}{}", advice(*status))]
    Refuse {
        /// The answer's status.
        status: u16,
    },
    /// It cannot tell, for the moment perhaps.
    #[error("the gateway answered {status}")]
    Tell {
        /// The answer's status.
        status: u16,
    },
}

/// How a Channel fares, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChannelState {
    /// What waits, by class.
    pub classes: BTreeMap<String, ClassState>,
    /// What holds it back: nothing, slots, rate, provider or suspended.
    pub limited_by: String,
    /// Pods that are heard.
    pub replicas: u32,
    /// Its providers.
    pub providers: Vec<ProviderState>,
    /// Whether it has dead letters; `None`: the gateway is too old to tell.
    pub dead_letters: Option<bool>,
}

/// Where a Schedule stands.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ScheduleState {
    /// What is mirrored as it is told.
    #[serde(flatten)]
    pub status: ScheduleStatus,
    /// Why its latest due time is not sent; `None`: it was, or the gateway is too old to tell.
    #[serde(default)]
    pub refused: Option<Refused>,
}

/// A due time that is not sent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Which one.
    pub schedule_time: Timestamp,
    /// Why not, as senders are told.
    pub message: String,
}

/// What waits of one class.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClassState {
    /// For how long the oldest that is due has waited; `None`: nothing does.
    pub oldest_age_seconds: Option<f64>,
}

/// How a provider is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ProviderState {
    /// Its name.
    pub name: String,
    /// 1: in use, 0.5: being probed, 0: out of order.
    pub state: f64,
}

impl ChannelState {
    /// For how long the oldest of any class has waited; zero: nothing waits.
    pub fn oldest(&self) -> Duration {
        let ages = self.classes.values().filter_map(|c| c.oldest_age_seconds);
        let oldest = ages.fold(0.0, f64::max);
        Duration::try_from_secs_f64(oldest).unwrap_or_default()
    }
}

/// One that did not answer is not asked for so long, whoever wants to know: each would wait in vain.
const AWAY: Duration = Duration::from_secs(10);

/// Asks the gateways. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway {
    http: reqwest::Client,
    url: String,
    token: Option<PathBuf>,
    metrics: Arc<Metrics>,
    state: Arc<Mutex<State>>,
}

/// How it answers.
#[derive(Debug, Default)]
struct State {
    /// Since when it does not.
    away: Option<Instant>,
    /// It says no to who we are, or to what we may: to a question about which namespace first, and with which status.
    refuses: Option<(String, u16)>,
}

impl Gateway {
    /// Prepares to ask at `url`, with the token of a file and certificates to trust beside the usual ones.
    pub fn new(
        url: &str,
        token: Option<PathBuf>,
        ca: Option<&std::path::Path>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, GatewayError> {
        let unusable = |reason: String| GatewayError::Prepare {
            url: url.to_owned(),
            reason,
        };
        let mut builder = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = ca {
            let unreadable =
                |error: &dyn std::fmt::Display| unusable(format!("{}: {error}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unreadable(&error))?;
            let bundle = reqwest::Certificate::from_pem_bundle(&pem);
            for certificate in bundle.map_err(|error| unreadable(&error))? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            token,
            metrics,
            state: Arc::default(),
        })
    }

    /// How a Channel fares; `None`: the gateway does not know it yet.
    pub async fn channel(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ChannelState>, GatewayError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            state: ChannelState,
        }
        let path = format!("/v1/namespaces/{namespace}/channels/{name}");
        let answer: Option<Answer> = self.get(namespace, &path).await?;
        Ok(answer.map(|answer| answer.state))
    }

    /// Where a Schedule stands; `None`: the gateway does not know it yet, but perhaps one before it that had its name.
    pub async fn schedule(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<Option<ScheduleState>, GatewayError> {
        #[derive(Default, Deserialize)]
        struct Metadata {
            uid: Option<String>,
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            metadata: Metadata,
            #[serde(default)]
            status: ScheduleState,
        }
        let path = format!("/v1/namespaces/{namespace}/schedules/{name}");
        let answer: Option<Answer> = self.get(namespace, &path).await?;
        let of_it = answer.filter(|answer| {
            let told = answer.metadata.uid.as_deref();
            told.is_none() || told == uid
        });
        Ok(of_it.map(|answer| answer.status))
    }

    /// Asks for `path`, which is about something of `namespace`.
    async fn get<T: DeserializeOwned>(
        &self,
        namespace: &str,
        path: &str,
    ) -> Result<Option<T>, GatewayError> {
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state().away.is_some_and(|since| since.elapsed() < AWAY) {
            return Err(GatewayError::Ask {
                reason: "it did not answer a moment ago".to_owned(),
            });
        }
        let answer = self.ask(path).await;
        if let Err(error) = &answer {
            let reason = OfReason {
                reason: error.into(),
            };
            self.metrics.gateway_errors.get_or_create(&reason).inc();
        }
        let mut state = state();
        state.away = match &answer {
            Err(GatewayError::Ask { .. }) => Some(Instant::now()),
            _ => None,
        };
        state.note(namespace, &answer);
        drop(state);
        answer
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, GatewayError> {
        let asked = |error: reqwest::Error| GatewayError::Ask {
            reason: error.without_url().to_string(),
        };
        let mut request = self.http.get(format!("{}{path}", self.url));
        if let Some(path) = &self.token {
            let token = tokio::fs::read_to_string(path).await;
            let token = token.map_err(|source| GatewayError::ReadToken {
                path: path.clone(),
                source,
            })?;
            let header = HeaderValue::try_from(format!("Bearer {}", token.trim()));
            let mut header = header.map_err(|_| GatewayError::Ask {
                reason: "the token has characters that no token has".to_owned(),
            })?;
            header.set_sensitive(true);
            request = request.header(AUTHORIZATION, header);
        }
        let response = request.send().await.map_err(asked)?;
        match response.status().as_u16() {
            200 => response.json().await.map(Some).map_err(asked),
            404 => Ok(None),
            status @ (401 | 403) => Err(GatewayError::Refuse { status }),
            status => Err(GatewayError::Tell { status }),
        }
    }
}

impl State {
    /// Says once that a gateway refuses us, and that it does not any more: nobody sees then how Channels fare.
    fn note<T>(&mut self, namespace: &str, answer: &Result<T, GatewayError>) {
        match answer {
            Err(error @ GatewayError::Refuse { status })
                if self.refuses.as_ref().is_none_or(|(_, told)| told != status) =>
            {
                tracing::warn!(
                    %error, namespace,
                    "the gateways refuse the operator: scaling, conditions and the status of Schedules stand still"
                );
                self.refuses = Some((namespace.to_owned(), *status));
            }
            Ok(_) if self.refuses.as_ref().is_some_and(|(of, _)| of == namespace) => {
                tracing::info!(namespace, "the gateways answer the operator again");
                self.refuses = None;
            }
            _ => {}
        }
    }
}

/// What to do about an answer.
fn advice(status: u16) -> &'static str {
    match status {
        401 => {
            ": it does not know the token of the operator: its audience has to be that of the gateways"
        }
        403 => {
            ": the operator's service account may not read there: the chart's roles let it, where they are bound"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::State as Given;
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_gateway_that_refuses_is_told_of_once_and_counted() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let status = Arc::new(Mutex::new(StatusCode::UNAUTHORIZED));
        let told =
            async |Given(status): Given<Arc<Mutex<StatusCode>>>| (*status.lock().unwrap(), "{}");
        let app = Router::new().fallback(told).with_state(Arc::clone(&status));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let metrics = Arc::<Metrics>::default();
        let gateway = Gateway::new(&url, None, None, Arc::clone(&metrics)).unwrap();
        let refuses = || gateway.state.lock().unwrap().refuses.clone();
        for namespace in ["shop", "shop", "platform"] {
            let asked = gateway.channel(namespace, "mail").await;
            assert!(asked.unwrap_err().to_string().contains("audience"));
            assert_eq!(refuses(), Some(("shop".to_owned(), 401)));
        }
        let text = metrics.encode().unwrap();
        let line = r#"herald_operator_gateway_errors_total{reason="Refuse"} 3"#;
        assert!(text.contains(line), "{text}");
        *status.lock().unwrap() = StatusCode::OK;
        gateway.channel("platform", "mail").await.unwrap();
        assert!(refuses().is_some(), "it is not known of the first yet");
        gateway.channel("shop", "mail").await.unwrap();
        assert_eq!(refuses(), None);
    }

    #[tokio::test]
    async fn what_is_told_of_a_schedule_is_that_of_the_one_that_is_asked_about() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let told = json!({"metadata": {"uid": "u-1"}, "status": {"missed": 7}}).to_string();
        let app = Router::new().fallback(async move || told.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let gateway = Gateway::new(&url, None, None, Arc::default()).unwrap();
        let missed = async |uid| {
            let asked = gateway.schedule("shop", "daily", Some(uid)).await;
            asked.unwrap().map(|told| told.status.missed)
        };
        assert_eq!(missed("u-1").await, Some(Some(7)));
        assert_eq!(missed("u-2").await, None, "it was made anew since");
    }

    #[test]
    fn the_age_of_a_channel_is_that_of_its_oldest() {
        let state: ChannelState = serde_json::from_value(json!({
            "classes": {
                "critical": {"due": 0, "scheduled": 0, "held": 0},
                "low": {"due": 9, "scheduled": 0, "held": 1, "oldestAgeSeconds": 12.5},
            },
            "sendsPerSecond": 3.0,
            "limitedBy": "slots",
            "replicas": 2,
            "pods": [{"name": "a", "held": 1, "sendsPerSecond": 1.0, "limitedBy": "slots"}],
            "providers": [{"name": "ses", "state": 0.5}],
        }))
        .unwrap();
        assert_eq!(state.oldest(), Duration::from_millis(12_500));
        assert_eq!((state.replicas, state.limited_by.as_str()), (2, "slots"));
        assert_eq!(ChannelState::default().oldest(), Duration::ZERO);
    }
}
