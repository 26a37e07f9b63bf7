//! Many recipients at once.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use std::time::Duration;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::body::media_type;
use super::super::{Api, Caller, FieldError, Kind, Params, Problem};
use super::check_managed;
use crate::access::rights;
use crate::clock;
use crate::people::{Format, ImportError, ImportReport, import};
use crate::store::StoreError;

/// The call that imports.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(recipients))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ImportQuery {
    /// A managed group to which everybody is added who is imported.
    group: Option<String>,
}

/// Import recipients, as many as there are.
///
/// NDJSON, one recipient in each line, or CSV with the columns id, email, phone, webhook, locale, timeZone and
/// `label.KEY`. A line that is wrong is reported and stops no other; to repeat an import is safe.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/recipients/import", tag = "People", operation_id = "import_recipients",
    params(("ns" = String, Path, description = "Namespace"), ImportQuery),
    request_body(content(
        (String = "application/x-ndjson", example = "{\"id\":\"alice\",\"addresses\":{\"email\":\"alice@shop.example\"}}\n"),
        (String = "text/csv", example = "id,email,label.tier\nalice,alice@shop.example,vip\n"),
    )),
    responses((status = 200, body = ImportReport))
)]
async fn recipients(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    caller: Caller,
    Params(query): Params<ImportQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ImportReport>, Problem> {
    let group = query.group.as_deref();
    if let Some(group) = group {
        caller.require(&rights::UPDATE_MEMBERS, group).await?;
        check_managed(&api, &namespace, group)?;
    }
    let format = format(&headers)?;
    let body = body.into_data_stream();
    import(&*api.store, &namespace, group, format, body, clock::now)
        .await
        .map(Json)
        .map_err(stopped)
}

fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    match media_type(headers).as_deref() {
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => {
            Ok(Format::Ndjson)
        }
        Some("text/csv") => Ok(Format::Csv),
        _ => Err(Problem::new(
            Kind::UnsupportedMediaType,
            "this call reads application/x-ndjson and text/csv: say which in Content-Type",
        )),
    }
}

/// Why an import stopped, and what is to be done: what came before holds, and comes in again as it is.
fn stopped(error: ImportError) -> Problem {
    match error {
        ImportError::Header(error) => {
            Problem::invalid(vec![FieldError::new(String::new(), error.to_string())])
        }
        ImportError::ReadBody { .. } => Problem::new(Kind::InvalidRequest, error.to_string()),
        ImportError::Write {
            line,
            source: source @ StoreError::Unavailable { .. },
        } => {
            tracing::warn!(error = %source, "an import stopped");
            let detail = format!(
                "the database is not available at the moment: it stopped at line {line}; \
                 repeat the whole import, what is in already stays as it is"
            );
            Problem::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(1))
        }
        ImportError::Write { source, .. } => source.into(),
    }
}
