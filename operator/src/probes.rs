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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;
    use crate::fixtures::ApiServer;
    use crate::leader::Candidate;

    async fn leads(router: &Router) -> bool {
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let text = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let text = std::str::from_utf8(&text).unwrap();
        assert!(text.contains("\nherald_operator_leader "), "{text}");
        text.contains("\nherald_operator_leader 1\n")
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_says_so_until_the_lease_does_not_count_any_more() {
        let (client, lasts) = (ApiServer::default().client(), Duration::from_secs(15));
        let mut one = Candidate::new(client, "herald-system", "one".to_owned(), lasts);
        let (_ready, is_ready) = watch::channel(true);
        let router = router(Arc::default(), is_ready, one.term());
        assert!(!leads(&router).await);
        one.win().await;
        assert!(leads(&router).await);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!leads(&router).await);
    }
}
