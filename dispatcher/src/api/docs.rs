//! The API's description: OpenAPI at `/openapi.json`, and the same for people at `/docs`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use strum::IntoEnumIterator;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{InfoBuilder, Ref, RefOr, ResponseBuilder, Schema};

use super::Api;
use super::problem::{Kind, ProblemBody};

/// Adds what no handler says: what the API is, keys, the schemas of `herald-crds`, and the problem that any call may
/// answer.
pub(super) fn complete(openapi: &mut OpenApi) {
    openapi.info = InfoBuilder::new()
        .title("Herald")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Sends notifications, and tells what became of them. Errors are problem details (RFC 9457); lists have \
             pages (`limit`, `cursor`, `next`); times are RFC 3339.",
        ))
        .build();
    let components = openapi.components.get_or_insert_default();
    components.schemas.extend(super::schema::declared());
    components.schemas.insert(
        "Problem".to_owned(),
        <ProblemBody as utoipa::PartialSchema>::schema(),
    );
    components.schemas.insert(
        "FieldError".to_owned(),
        <super::FieldError as utoipa::PartialSchema>::schema(),
    );
    components.security_schemes.insert(
        "key".to_owned(),
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("An API key"))
                .build(),
        )
        .into(),
    );
    openapi.security = Some(vec![SecurityRequirement::new("key", Vec::<String>::new())]);
    for item in openapi.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
        ];
        for operation in operations.into_iter().flatten() {
            let content = utoipa::openapi::ContentBuilder::new()
                .schema(Some(RefOr::<Schema>::Ref(Ref::from_schema_name("Problem"))))
                .build();
            let problem = ResponseBuilder::new()
                .description("It was not done: why, and what to do")
                .content("application/problem+json", content)
                .build();
            operation
                .responses
                .responses
                .insert("default".to_owned(), problem.into());
        }
    }
}

/// `/openapi.json`, `/docs` and `/problems/{kind}`, made once.
pub(super) fn routes(openapi: &OpenApi) -> Router<Arc<Api>> {
    let value = serde_json::to_value(openapi).unwrap_or_default();
    let json = Bytes::from(value.to_string());
    let page = Bytes::from(page(&value));
    Router::new()
        .route(
            "/openapi.json",
            get(async move || {
                ([(header::CONTENT_TYPE, "application/json")], json.clone()).into_response()
            }),
        )
        .route("/docs", get(async move || html(page.clone())))
}

fn html(page: Bytes) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, page)
}

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:var(--soft);padding:.75rem;border-radius:6px;overflow:auto}
details{border:1px solid var(--line);border-radius:6px;margin:.4rem 0;padding:.3rem .75rem}
summary{cursor:pointer}
summary b{display:inline-block;min-width:4.5rem;font:600 13px ui-monospace,monospace}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
td,th{border-bottom:1px solid var(--line);padding:.3rem .5rem;text-align:left;vertical-align:top}
h2{margin-top:2.5rem}nav a{margin-right:1rem}.req{color:#c33}";

/// The description as a page that needs nothing but itself.
fn page(openapi: &Value) -> String {
    let mut page = String::with_capacity(256 * 1024);
    let title = openapi["info"]["title"].as_str().unwrap_or_default();
    let version = openapi["info"]["version"].as_str().unwrap_or_default();
    let about = openapi["info"]["description"].as_str().unwrap_or_default();
    put(
        &mut page,
        format_args!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title} {version}</title><style>{STYLE}</style><h1>{title} {version}</h1><p>{}</p>\
         <p>Every call needs <code>Authorization: Bearer &lt;API key&gt;</code>. For programs: \
         <a href=/openapi.json>openapi.json</a>.</p>",
            inline(about)
        ),
    );
    let empty = Map::new();
    let paths = openapi["paths"].as_object().unwrap_or(&empty);
    let mut tags: Vec<&str> = Vec::new();
    let mut calls: Vec<(&str, &str, &str, &Value)> = Vec::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let tag = operation["tags"][0].as_str().unwrap_or("Others");
            if !tags.contains(&tag) {
                tags.push(tag);
            }
            calls.push((tag, path, method, operation));
        }
    }
    let rank = |tag: &str| {
        let order = ["Sending", "History", "Orders", "Dead letters", "Declared"];
        order
            .iter()
            .position(|known| *known == tag)
            .unwrap_or(order.len())
    };
    tags.sort_by_key(|tag| (rank(tag), *tag));
    page.push_str("<nav>");
    for tag in &tags {
        put(
            &mut page,
            format_args!("<a href=\"#{0}\">{0}</a>", escape(tag)),
        );
    }
    page.push_str("<a href=#schemas>Schemas</a><a href=#problems>Problems</a></nav>");
    for tag in &tags {
        put(
            &mut page,
            format_args!("<h2 id=\"{0}\">{0}</h2>", escape(tag)),
        );
        for (_, path, method, operation) in calls.iter().filter(|(of, ..)| of == tag) {
            call(&mut page, path, method, operation);
        }
    }
    page.push_str("<h2 id=schemas>Schemas</h2>");
    for (name, schema) in openapi["components"]["schemas"]
        .as_object()
        .unwrap_or(&empty)
    {
        put(
            &mut page,
            format_args!(
                "<details id=\"schema-{0}\"><summary><code>{0}</code> {1}</summary>",
                escape(name),
                inline(schema["description"].as_str().unwrap_or_default())
            ),
        );
        members(&mut page, schema);
        page.push_str("</details>");
    }
    page.push_str("<h2 id=problems>Problems</h2><table><tr><th>type<th>status<th>title");
    for kind in Kind::iter() {
        put(
            &mut page,
            format_args!(
                "<tr><td><code>{}</code><td>{}<td>{}",
                kind.uri(),
                kind.status().as_u16(),
                escape(kind.title())
            ),
        );
    }
    page.push_str("</table></html>");
    page
}

fn call(page: &mut String, path: &str, method: &str, operation: &Value) {
    put(
        page,
        format_args!(
            "<details><summary><b>{}</b><code>{}</code> {}</summary><p>{}</p>",
            method.to_uppercase(),
            escape(path),
            inline(operation["summary"].as_str().unwrap_or_default()),
            inline(operation["description"].as_str().unwrap_or_default())
        ),
    );
    let parameters = operation["parameters"].as_array();
    if let Some(parameters) = parameters.filter(|parameters| !parameters.is_empty()) {
        page.push_str("<table><tr><th>parameter<th>in<th>type<th>");
        for parameter in parameters {
            let is_required = parameter["required"].as_bool().unwrap_or_default();
            put(
                page,
                format_args!(
                    "<tr><td><code>{}</code>{}<td>{}<td>{}<td>{}",
                    escape(parameter["name"].as_str().unwrap_or_default()),
                    if is_required {
                        "<span class=req>*</span>"
                    } else {
                        ""
                    },
                    escape(parameter["in"].as_str().unwrap_or_default()),
                    shape(&parameter["schema"]),
                    inline(parameter["description"].as_str().unwrap_or_default())
                ),
            );
        }
        page.push_str("</table>");
    }
    for (media, content) in operation["requestBody"]["content"]
        .as_object()
        .into_iter()
        .flatten()
    {
        put(
            page,
            format_args!(
                "<p>Body, <code>{}</code>: {}</p>",
                escape(media),
                shape(&content["schema"])
            ),
        );
        if let Some(example) = content.get("example") {
            let text = serde_json::to_string_pretty(example).unwrap_or_default();
            put(page, format_args!("<pre>{}</pre>", escape(&text)));
        }
    }
    page.push_str("<table><tr><th>status<th>answer<th>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let content = response["content"]
            .as_object()
            .and_then(|c| c.iter().next());
        put(
            page,
            format_args!(
                "<tr><td>{}<td>{}<td>{}",
                escape(status),
                content
                    .map(|(_, content)| shape(&content["schema"]))
                    .unwrap_or_default(),
                inline(response["description"].as_str().unwrap_or_default())
            ),
        );
    }
    page.push_str("</table></details>");
}

/// A schema's members as a table, or the schema itself where it has none.
fn members(page: &mut String, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        let text = serde_json::to_string_pretty(schema).unwrap_or_default();
        put(page, format_args!("<pre>{}</pre>", escape(&text)));
        return;
    };
    let required = schema["required"].as_array();
    page.push_str("<table><tr><th>member<th>type<th>");
    for (name, member) in properties {
        let is_required = required.is_some_and(|all| all.contains(&json!(name)));
        put(
            page,
            format_args!(
                "<tr><td><code>{}</code>{}<td>{}<td>{}",
                escape(name),
                if is_required {
                    "<span class=req>*</span>"
                } else {
                    ""
                },
                shape(member),
                inline(member["description"].as_str().unwrap_or_default())
            ),
        );
    }
    page.push_str("</table>");
}

/// A schema in a word or two.
fn shape(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return format!("<a href=\"#schema-{0}\">{0}</a>", escape(name));
    }
    for union in ["oneOf", "anyOf", "allOf"] {
        if let Some(variants) = schema[union].as_array() {
            let shapes: Vec<String> = variants
                .iter()
                .filter(|variant| variant["type"] != "null")
                .map(shape)
                .collect();
            return shapes.join(" or ");
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|v| escape(&v.to_string())).collect();
        return values.join(", ");
    }
    let mut word = match &schema["type"] {
        Value::String(one) if one == "array" => format!("list of {}", shape(&schema["items"])),
        Value::String(one) => escape(one),
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .filter(|one| *one != "null")
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "any".to_owned(),
    };
    if let Some(format) = schema["format"].as_str() {
        let _ = write!(word, " ({})", escape(format));
    }
    word
}

/// Escaped, with `code` between backticks.
fn inline(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in escape(text).split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(html, "<code>{part}</code>");
        } else {
            html.push_str(part);
        }
    }
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Writing to a string cannot fail.
fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
}
