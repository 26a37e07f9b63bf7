//! The page on which one sees what arrived.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};

use super::arrived::{Arrived, Mail, Webhook};

/// A mail's HTML may show itself and its pictures, and do nothing: no scripts, no forms, no address of ours.
const MAIL_POLICY: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src https: data:; font-src https: data:";

/// The page itself loads nothing from elsewhere.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'";

#[derive(Clone)]
struct Page {
    arrived: Arc<Arrived>,
    /// A command that sends another.
    command: Arc<str>,
}

/// Everything that is shown.
#[derive(Serialize)]
struct Shown {
    mails: Vec<Mail>,
    webhooks: Vec<Webhook>,
    command: Arc<str>,
}

/// The page, and what it asks for.
pub fn router(arrived: Arc<Arrived>, command: String) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/arrived", get(shown))
        .route("/mails/{number}/html", get(html))
        .route("/changes", get(changes))
        .with_state(Page {
            arrived,
            command: command.into(),
        })
}

async fn page() -> impl IntoResponse {
    let policy = [(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)];
    (policy, Html(include_str!("page.html")))
}

async fn shown(State(page): State<Page>) -> Json<Shown> {
    Json(Shown {
        mails: page.arrived.mails(),
        webhooks: page.arrived.webhooks(),
        command: page.command,
    })
}

async fn html(State(page): State<Page>, Path(number): Path<u64>) -> impl IntoResponse {
    let Some(html) = page
        .arrived
        .mail_numbered(number)
        .and_then(|mail| mail.html)
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let policy = [(header::CONTENT_SECURITY_POLICY, MAIL_POLICY)];
    (policy, Html(html)).into_response()
}

async fn changes(
    State(page): State<Page>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let changes = WatchStream::new(page.arrived.changes());
    let events = changes.map(|count| Ok(Event::default().data(count.to_string())));
    Sse::new(events).keep_alive(KeepAlive::default())
}
