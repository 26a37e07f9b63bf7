//! HTTP: routes, authentication, problem details, OpenAPI.
//!
//! # Layout
//!
//! - [`problem`]: what a caller is told when it does not get what it asked for.
//! - [`auth`]: who calls. [`page`]: lists and queries. [`body`]: bodies.
//! - [`people`]: recipients, members, suppressions.
//!
//! A handler takes [`Caller`], asks it for the scope, and returns `Result<_, Problem>`. It is described by
//! `#[utoipa::path]` and put into its module's `routes()`; so OpenAPI cannot leave it out.

pub mod auth;
pub mod body;
pub mod page;
pub mod people;
pub mod problem;
pub mod schema;

use std::sync::Arc;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;

pub use auth::{Caller, Keys};
pub use body::JsonBody;
pub use page::{PageOf, Params};
pub use problem::{FieldError, Kind, Problem};

use crate::metrics::Metrics;
use crate::store::Store;

/// What handlers work with; their axum `State` is an `Arc<Api>`.
pub struct Api {
    /// Who may call.
    pub keys: Keys,
    /// History, people, definitions.
    pub store: Arc<dyn Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Every call of the API, and its description.
pub fn router(api: Arc<Api>) -> (Router, utoipa::openapi::OpenApi) {
    let (router, openapi) = OpenApiRouter::new()
        .merge(people::routes())
        .split_for_parts();
    (router.with_state(api), openapi)
}
