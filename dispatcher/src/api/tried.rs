//! Trying out what is declared: a template rendered, the definitions of it that were in force, a channel's test.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use herald_crds::render::Recipient as RenderedFor;
use herald_crds::{Address, Kind as ResourceKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::declared::{find, places};
use super::preview::{self, Block};
use super::{Api, Caller, ChannelTest, FieldError, JsonBody, Kind, PageOf, Problem, schema};
use crate::api::permissions;

/// The calls that try something out.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(preview))
        .routes(routes!(versions))
        .routes(routes!(test))
}

/// What to render.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PreviewRequest {
    /// The parameters. Default: those of the template's first sample.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Language tag. Default: the recipient's, else the template's.
    #[serde(default)]
    locale: Option<String>,
    /// Somebody in the directory, whose labels and locale count.
    #[serde(default)]
    recipient: Option<String>,
}

/// How a template looks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Preview {
    /// The template's definition: `sha256:…`.
    definition: String,
    /// The language tag that was asked for.
    locale: String,
    /// What is said, by medium.
    content: BTreeMap<String, Block>,
    /// What to mind.
    warnings: Vec<String>,
}

/// Preview a template: every medium rendered, and what to mind.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/templates/{name}/preview", tag = "Declared",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("name" = String, Path, description = "Template"),
    ),
    request_body = PreviewRequest,
    responses((status = 200, body = Preview))
)]
async fn preview(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    caller: Caller,
    JsonBody(asked): JsonBody<PreviewRequest>,
) -> Result<Json<Preview>, Problem> {
    let declared = api.catalog.current();
    let full = format!("{namespace}/{name}");
    let Some(template) = declared.templates.get(full.as_str()) else {
        return Err(Problem::not_found(&format!("template {name:?}")));
    };
    let spec = &template.resource.spec;
    let sample = spec.samples.first();
    let parameters = asked.parameters.unwrap_or_else(|| {
        let sample = sample.and_then(|sample| sample.parameters.clone());
        Value::Object(sample.unwrap_or_default())
    });
    if let Err(problems) = template.compiled.check_parameters(&parameters) {
        let errors = places(problems).into_iter().map(|error| FieldError {
            pointer: format!("/parameters{}", error.pointer),
            ..error
        });
        return Err(Problem::invalid(errors.collect()));
    }
    let recipient = match &asked.recipient {
        None => None,
        Some(id) => {
            caller.require(&permissions::PREVIEW_FOR.right, "").await?;
            let found = api.store.recipient(&namespace, id).await?;
            Some(found.ok_or_else(|| Problem::not_found(&format!("recipient {id:?}")))?)
        }
    };
    let locale = asked
        .locale
        .or_else(|| recipient.as_ref().and_then(|r| r.locale.clone()))
        .unwrap_or_else(|| spec.default_locale().to_owned());
    let person = Arc::new(RenderedFor {
        id: recipient.as_ref().map(|r| r.id.as_str().into()),
        locale: locale.as_str().into(),
        labels: recipient.map(|r| r.labels).unwrap_or_default(),
    });
    let prepared = template.compiled.prepare(parameters);
    let content = spec
        .mediums()
        .map(|medium| {
            let block = preview::block(&template.compiled, medium, &locale, &prepared, &person);
            (medium.as_str().to_owned(), block)
        })
        .collect();
    let mut warnings = Vec::new();
    let primary = |tag: &str| tag.split('-').next().unwrap_or(tag).to_lowercase();
    if !template
        .compiled
        .locales()
        .any(|tag| tag.eq_ignore_ascii_case(&locale) || tag.eq_ignore_ascii_case(&primary(&locale)))
    {
        warnings.push(format!(
            "there is no translation for {locale}: this is the default locale, {}",
            spec.default_locale()
        ));
    }
    for (tag, translation) in &spec.translations {
        for medium in spec.mediums().filter(|medium| !translation.has(*medium)) {
            warnings.push(format!("the translation {tag} has no {medium} block"));
        }
    }
    Ok(Json(Preview {
        definition: template.hash.to_string(),
        locale,
        content,
        warnings,
    }))
}

/// A definition that was in force.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
struct Version {
    /// Its name: `sha256:…`.
    definition: String,
    /// When it first came into force.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
}

/// List the definitions of a template that were in force, newest first.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/templates/{name}/versions", tag = "Declared",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("name" = String, Path, description = "Template"),
    ),
    responses((status = 200, body = PageOf<Version>))
)]
async fn versions(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    _: Caller,
) -> Result<Json<PageOf<Version>>, Problem> {
    let versions = api.store.versions(&namespace, &name).await?;
    if versions.is_empty() {
        find(&api, ResourceKind::NotificationTemplate, &namespace, &name)?;
    }
    let items = versions
        .into_iter()
        .map(|version| Version {
            definition: version.hash,
            since: version.since,
        })
        .collect();
    Ok(Json(PageOf { items, next: None }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TestRequest {
    /// Where the test goes.
    #[schema(schema_with = schema::address)]
    address: Address,
}

/// Test a channel: sends a short message, past the queue, and says what the provider said.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/channels/{name}/test", tag = "Declared",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("name" = String, Path, description = "Channel"),
    ),
    request_body = TestRequest,
    responses((status = 200, body = ChannelTest))
)]
async fn test(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    caller: Caller,
    JsonBody(asked): JsonBody<TestRequest>,
) -> Result<Json<ChannelTest>, Problem> {
    let full = format!("{namespace}/{name}");
    let declared = api.catalog.current();
    let Some(channel) = declared.channels.get(full.as_str()) else {
        return Err(Problem::not_found(&format!("channel {name:?}")));
    };
    let mut problems = places(asked.address.problems("/address"));
    if problems.is_empty() && channel.spec.endpoint(&asked.address).is_none() {
        problems.push(FieldError::new(
            "/address",
            format!(
                "has nothing for a channel of medium {}",
                channel.spec.medium
            ),
        ));
    }
    if !problems.is_empty() {
        return Err(Problem::invalid(problems));
    }
    tracing::info!(channel = full, sender = %caller.sender.name, "a test is sent");
    api.control
        .test(&full, &asked.address)
        .await
        .map(Json)
        .ok_or_else(|| {
            Problem::new(
                Kind::Unavailable,
                "nothing delivers for this channel at the moment",
            )
        })
}
