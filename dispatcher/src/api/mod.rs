//! HTTP: routes, authentication, problem details, OpenAPI.
//!
//! # Layout
//!
//! - [`problem`]: what a caller is told when it does not get what it asked for.
//! - [`auth`]: who calls. [`permissions`]: what each call needs. [`keys`]: API keys. [`page`]: lists and queries. [`body`]: bodies.
//! - [`sending`], [`dry_run`]: sending. [`history`]: what became of it. [`stream`]: that as it happens. [`orders`]: cancel, prioritize, confirm, dead letters.
//! - [`declared`], [`tried`], [`preview`]: the four resources. [`people`]: recipients, members, suppressions.
//! - [`view`], [`schema`]: what callers see. [`docs`]: OpenAPI. [`probes`]: health and metrics. [`serve`]: connections.
//!
//! A handler takes [`Caller`] and returns `Result<_, Problem>`. It is described by `#[utoipa::path]` and put into its module's
//! `routes()`, so OpenAPI cannot leave it out; and what it needs is said in [`permissions`], else nobody may call it.

pub mod auth;
pub mod body;
pub mod control;
pub mod declared;
pub mod docs;
pub mod dry_run;
pub mod history;
pub mod keys;
pub mod orders;
pub mod page;
pub mod people;
pub mod permissions;
pub mod preview;
pub mod probes;
pub mod problem;
pub mod schema;
pub mod sending;
pub mod serve;
pub mod stream;
pub mod tried;
pub mod view;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::{broadcast, watch};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;

pub use auth::Caller;
pub use body::JsonBody;
pub use control::{ChannelTest, Control, EditError, Editor};
pub use page::{PageOf, Params};
pub use problem::{FieldError, Kind, Problem};

use crate::accept::Accept;
use crate::access::{Access, Keys};
use crate::broker::Broker;
use crate::catalog::Catalog;
use crate::deliver::load::Loads;
use crate::fanout::definitions::Definitions;
use crate::id::FullName;
use crate::message::Event;
use crate::metrics::{Metrics, Operation};
use crate::store::Store;

/// How long a call may take.
const USUAL_TIME: Duration = Duration::from_secs(30);

/// How long a call may take that only reads: somewhat more than one statement of the database may. One that stands still
/// without breaking its connections answers never.
const READING_TIME: Duration = Duration::from_secs(16);

/// How long a call may take that streams its body.
const STREAMED_TIME: Duration = Duration::from_hours(1);

/// What handlers work with; their axum `State` is an `Arc<Api>`.
pub struct Api {
    /// Who calls, and may.
    pub access: Arc<dyn Access>,
    /// API keys, to be made and taken away; `None`: callers are somebody else's matter.
    pub keys: Option<Arc<Keys>>,
    /// What accepts.
    pub accept: Arc<Accept>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// What moves: the stream of outcomes reads along.
    pub broker: Arc<dyn Broker>,
    /// History, people, definitions.
    pub store: Arc<dyn Store>,
    /// Definitions ready to render from.
    pub definitions: Arc<Definitions>,
    /// How busy channels are.
    pub loads: Arc<Loads>,
    /// What reaches the other stages.
    pub control: Arc<dyn Control>,
    /// What changes what is declared; `None`: it cannot be changed over HTTP.
    pub editor: Option<Arc<dyn Editor>>,
    /// Outcomes as they are recorded, each with its channel, for those who wait for an end.
    pub outcomes: broadcast::Sender<Arc<(FullName, Event)>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the program is ready; false while it starts and while it shuts down.
    pub ready: watch::Receiver<bool>,
    /// Places for streams of outcomes.
    pub streams: stream::Places,
}

/// Every call of the API with its description, at `/openapi.json` and `/docs`.
pub fn router(api: Arc<Api>) -> Router {
    let (router, openapi) = described();
    router
        .merge(docs::routes(&openapi))
        .fallback(async |request: Request| {
            Problem::not_found(&format!(
                "path {}; GET /docs lists all",
                request.uri().path()
            ))
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                Kind::MethodNotAllowed,
                "GET /docs lists the methods of each path",
            )
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&api), around))
        .with_state(api)
}

/// Every call, and the description of all.
pub fn described() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    let (router, mut openapi) = OpenApiRouter::new()
        .merge(sending::routes())
        .merge(history::routes())
        .merge(stream::routes())
        .merge(orders::routes())
        .merge(declared::routes())
        .merge(tried::routes())
        .merge(people::routes())
        .merge(keys::routes())
        .split_for_parts();
    docs::complete(&mut openapi);
    // Inside of what limits time and counts, so that a panic is an answer like any other.
    let router = router.layer(CatchPanicLayer::custom(panicked));
    (router, openapi)
}

/// What happens around every call: it has a span and a time limit, and what is refused is counted.
async fn around(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("", MatchedPath::as_str)
        .to_owned();
    let waits = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|part| part.starts_with("wait=")));
    let time = if route.ends_with("/import") {
        STREAMED_TIME
    } else if waits {
        USUAL_TIME + history::LONGEST_WAIT
    } else if request.method() == Method::GET {
        READING_TIME
    } else {
        USUAL_TIME
    };
    let span = tracing::info_span!("http", method = %request.method(), route);
    let answer = tokio::time::timeout(time, next.run(request));
    let response = match answer.instrument(span).await {
        Ok(response) => response,
        Err(_) => Problem::new(
            Kind::Timeout,
            format!("no answer within {} s", time.as_secs()),
        )
        .retry_after(Duration::from_secs(1))
        .into_response(),
    };
    if let Some(kind) = response.extensions().get::<Kind>() {
        let operation = (*kind).into();
        api.metrics
            .refused
            .get_or_create(&Operation { operation })
            .inc();
    }
    response
}

#[allow(clippy::needless_pass_by_value, reason = "tower-http gives it so")]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let words = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no words");
    tracing::error!(panic = words, "a handler panicked");
    Problem::new(Kind::Internal, "a defect of Herald's; the log has it").into_response()
}
