//! Where logs go: to standard error, for people on a terminal and as JSON lines otherwise. And traces, if somebody
//! collects them: over OTLP, as the standard variables `OTEL_*` say.

use std::io::{self, IsTerminal};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Key, Value};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// What is logged unless `HERALD_LOG` says otherwise.
const USUAL: &str = "info";

/// What is logged of others, unless `HERALD_LOG` names them: kube tells of each watch that ends, which is routine; ours
/// counts them.
const OTHERS: &str = "kube_runtime=error,kube_client=error";

/// Who we are in traces, unless the variables say otherwise.
const SERVICE: &str = "herald-operator";

/// With one of these traces are sent.
const ENDPOINTS: [&str; 2] = [
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    opentelemetry_otlp::OTEL_EXPORTER_OTLP_ENDPOINT,
];

/// What is told while the program runs.
#[derive(Debug)]
#[must_use = "spans that are not sent yet are lost without `end`"]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sends what is not sent yet, for some seconds at most. Blocks: not for an asynchronous task.
    pub fn end(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "not all traces were sent");
        }
    }
}

/// Begins to log, at what the environment variable `HERALD_LOG` says (`debug`, `herald_operator::channel=trace`);
/// a text that says nothing counts as the usual one, with a word about it. And to trace, if the environment says where
/// to. Later calls change nothing.
pub fn begin() -> Telemetry {
    let asked = std::env::var("HERALD_LOG").ok();
    let (filter, wrong) = match filter(asked.as_deref().unwrap_or(USUAL)) {
        Ok(filter) => (filter, None),
        Err(error) => (filter(USUAL).unwrap_or_default(), Some(error)),
    };
    let is_asked_for = is_asked_for(|name| std::env::var(name).ok());
    let (provider, no_traces) = match is_asked_for.then(|| provider(None)) {
        Some(Ok(provider)) => (Some(provider), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = if io::stderr().is_terminal() {
        let colours = std::env::var_os("NO_COLOR").is_none();
        lines
            .with_ansi(colours)
            .with_target(false)
            .compact()
            .boxed()
    } else {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed()
    };
    let begun = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(provider.as_ref().map(spans))
        .try_init();
    if begun.is_ok() {
        if let Some(error) = wrong {
            tracing::warn!(%error, "HERALD_LOG says nothing that can be understood, logging the usual");
        }
        if let Some(error) = no_traces {
            tracing::warn!(%error, "no traces are sent: what OTEL_* says cannot be used");
        }
    }
    Telemetry(provider)
}

fn filter(asked: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(format!("{OTHERS},{asked}"))
}

/// Whether somebody collects traces.
fn is_asked_for(variable: impl Fn(&str) -> Option<String>) -> bool {
    let says = |name, what: &str| variable(name).is_some_and(|v| v.eq_ignore_ascii_case(what));
    let is_off = says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none");
    let mut endpoints = ENDPOINTS.into_iter().filter_map(variable);
    !is_off && endpoints.any(|endpoint| !endpoint.is_empty())
}

/// Sends spans to `endpoint`, or where the variables say. What waits to be sent is bounded (`OTEL_BSP_MAX_QUEUE_SIZE`):
/// what is too much is dropped, and said so. A thread of its own sends: a collector that hangs holds up nobody.
fn provider(endpoint: Option<String>) -> Result<SdkTracerProvider, ExporterBuildError> {
    let builder = SpanExporter::builder().with_http();
    let builder = match endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    };
    let found = Resource::builder().build();
    let service = found.get(&Key::new("service.name"));
    let is_named = service.is_some_and(|name: Value| !name.as_str().starts_with("unknown_service"));
    let resource = if is_named {
        found
    } else {
        Resource::builder().with_service_name(SERVICE).build()
    };
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(builder.build()?)
        .build())
}

/// Our own spans, not those of libraries, whatever is logged.
fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let layer: OpenTelemetryLayer<S, Tracer> =
        tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE));
    layer.with_filter(Targets::new().with_target("herald_operator", LevelFilter::INFO))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::Router;
    use axum::body::Bytes;
    use axum::extract::State;
    use axum::http::{HeaderMap, Uri};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Told;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message as _;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::fixtures::{Bench, document};

    /// A collector: what is posted to it, with its path and type.
    async fn collector() -> (String, mpsc::UnboundedReceiver<(String, String, Bytes)>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let take = async |State(sender): State<mpsc::UnboundedSender<_>>,
                          uri: Uri,
                          headers: HeaderMap,
                          body: Bytes| {
            let kind = headers["content-type"].to_str().unwrap().to_owned();
            sender.send((uri.path().to_owned(), kind, body)).unwrap();
        };
        let app = Router::new().fallback(take).with_state(sender);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (url, receiver)
    }

    fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
        let found = attributes.iter().find(|attribute| attribute.key == key)?;
        match &found.value {
            Some(AnyValue {
                value: Some(Told::StringValue(text)),
            }) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    /// Traces what `work` does, and answers what the collector got: who told it, and the spans.
    async fn traced(work: impl Future<Output = ()>) -> (Option<String>, Vec<Span>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (url, mut taken) = collector().await;
        let provider = provider(Some(url)).unwrap();
        {
            let subscriber = tracing_subscriber::registry().with(spans(&provider));
            let _guard = tracing::subscriber::set_default(subscriber);
            work.await;
        }
        let ending = Telemetry(Some(provider));
        tokio::task::spawn_blocking(|| ending.end()).await.unwrap();
        let (mut service, mut all) = (None, Vec::new());
        while let Ok((path, kind, body)) = taken.try_recv() {
            assert_eq!((&*path, &*kind), ("/v1/traces", "application/x-protobuf"));
            for of in ExportTraceServiceRequest::decode(body)
                .unwrap()
                .resource_spans
            {
                service = text(&of.resource.unwrap().attributes, "service.name");
                all.extend(of.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        (service, all)
    }

    #[tokio::test]
    async fn a_collector_gets_a_span_for_each_look_at_a_resource() {
        let (service, all) = traced(Box::pin(async {
            let mut bench = Bench::embedded();
            let spec = json!({"members": [{"group": "missing"}]});
            bench.declare(&document("RecipientGroup", "all", &spec));
            let group = crate::watch::get(&bench.ctx.stores.groups, "shop", "all").unwrap();
            let ctx = Arc::clone(&bench.ctx);
            let looked = crate::queue::look(group, ctx, crate::group::reconcile).await;
            looked.unwrap();
        }))
        .await;
        assert_eq!(service.as_deref(), Some("herald-operator"));
        let [span] = &*all else {
            panic!("one span: {all:?}");
        };
        assert_eq!(span.name, "reconcile");
        let told = [
            "herald.kind",
            "k8s.namespace.name",
            "herald.name",
            "herald.outcome",
        ];
        let told = told.map(|key| text(&span.attributes, key).unwrap_or_default());
        assert_eq!(told, ["RecipientGroup", "shop", "all", "done"]);
    }

    #[tokio::test]
    async fn what_is_asked_of_pulsar_is_a_part_of_the_look_that_asked() {
        use tracing::Instrument as _;
        let (_, all) = traced(async {
            let admin = crate::pulsar_admin::PulsarAdmin::new(crate::pulsar_admin::Settings {
                // Nobody listens there.
                url: "http://127.0.0.1:1".to_owned(),
                token: crate::pulsar_admin::Token::Fixed("secret".to_owned()),
                ca: None,
                timeout: std::time::Duration::from_secs(5),
            })
            .unwrap();
            let looking = tracing::info_span!(target: "herald_operator::queue", "reconcile");
            let asked = admin.topics("herald/shop").instrument(looking).await;
            asked.unwrap_err();
        })
        .await;
        let [asked, looking] = &*all else {
            panic!("two spans: {all:?}");
        };
        assert_eq!(asked.parent_span_id, looking.span_id);
        assert!(asked.name.starts_with("GET"), "{asked:?}");
        let path = text(&asked.attributes, "url.path").unwrap();
        assert!(path.contains("herald/shop"), "{path}");
        assert!(text(&asked.attributes, "error.type").is_some(), "{asked:?}");
        assert!(!format!("{asked:?}").contains("secret"));
    }

    #[test]
    fn traces_are_sent_only_if_somebody_said_where_to() {
        let asked = |given: &[(&str, &str)]| {
            is_asked_for(|name| {
                let found = given.iter().find(|(given, _)| *given == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(!asked(&[]) && !asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(asked(&[all]));
        assert!(asked(&[(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://c:1/v1/traces"
        )]));
        assert!(!asked(&[all, ("OTEL_SDK_DISABLED", "TRUE")]));
        assert!(!asked(&[all, ("OTEL_TRACES_EXPORTER", "none")]));
    }

    #[test]
    fn kube_is_quiet_whatever_is_logged_unless_it_is_named() {
        let told = |asked| filter(asked).unwrap().to_string();
        assert!(told("debug").contains("kube_client=error"));
        let named = told("info,kube_client=debug");
        assert!(named.contains("kube_client=debug") && !named.contains("kube_client=error"));
    }
}
