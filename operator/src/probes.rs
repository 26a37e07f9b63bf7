//! Health and metrics, on a port of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::leader::Term;
use crate::metrics::Metrics;

/// The type of the text of metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Probes {
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
    term: Term,
}

/// `/livez`, `/readyz` and `/metrics`. Needs no key: for a port that is not public.
///
/// Ready is an operator that works, and one that stands by. `term`: for how long it may work, which is told when it is asked.
pub fn router(metrics: Arc<Metrics>, ready: watch::Receiver<bool>, term: Term) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(Probes {
            metrics,
            ready,
            term,
        })
}

async fn readyz(State(probes): State<Probes>) -> Response {
    if *probes.ready.borrow() {
        "ready\n".into_response()
    } else {
        let text = "not ready: starting or shutting down\n";
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn metrics_text(State(probes): State<Probes>) -> Response {
    // Not when it changes: one that was suspended has to tell the truth at once.
    probes.metrics.leader.set(probes.term.lasts().into());
    match probes.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
