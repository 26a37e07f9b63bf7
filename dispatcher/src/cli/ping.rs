//! `herald ping`: whether Herald answers, and which version it is.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use reqwest::Url;

use super::client::{self, ClientError};
use super::{CliError, GOOD, harmless, paint};

/// How soon it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Longest description of an API, in bytes.
const LONGEST: usize = 4 * 1024 * 1024;

/// What its help says.
pub(super) const HELP: &str = "\
Says whether Herald answers, and which version it is. Needs no key.\n\n\
Exits with 0 if it does, else with 1.\n\n\
Examples:
  herald ping
  herald ping --server https://herald.example --wait 60";

/// Says whether Herald answers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where Herald listens.
    #[arg(
        long,
        env = "HERALD_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL",
        value_parser = client::server
    )]
    server: Url,
    /// Asks again until it answers, for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u32,
}

/// Writes a line to `out` once Herald has answered.
pub(super) async fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let Args { server, wait } = args;
    let begin = Instant::now();
    let patience = Duration::from_secs(wait.into());
    let version = loop {
        match version(&server).await {
            Ok(version) => break version,
            Err(error) if !error.has_asked() || begin.elapsed() + AGAIN > patience => {
                return Err(CliError::Ask(error));
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    let answers = format!("herald {} answers", harmless(&version));
    writeln!(out, "{} at {server}", paint(GOOD, &answers)).map_err(CliError::Print)?;
    Ok(ExitCode::SUCCESS)
}

/// The version of the Herald that listens there, from its description, which anybody may read.
async fn version(server: &Url) -> Result<String, ClientError> {
    let reach = |source| ClientError::Reach {
        server: server.to_string(),
        source,
    };
    // Another part of the program may have chosen the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .timeout(ANSWER)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|source| ClientError::BuildClient { source })?;
    let mut url = server.clone();
    // One that cannot be a base has no segments, and nobody answers there.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().push("openapi.json");
    }
    let mut response = http.get(url).send().await.map_err(reach)?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reach)? {
        text.extend_from_slice(&chunk);
        if text.len() > LONGEST {
            break;
        }
    }
    let description: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    let version = description
        .as_ref()
        .and_then(|d| d["info"]["version"].as_str());
    match version {
        Some(version) if response.status().is_success() => Ok(version.to_owned()),
        _ => Err(ClientError::Understand {
            server: server.to_string(),
            status: response.status(),
            what: "no description of an API".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::http::StatusCode;
    use axum::routing::get;
    use serde_json::json;

    use super::*;

    async fn ping(router: axum::Router, wait: u32) -> Result<String, CliError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let server = server.parse().unwrap();
        let mut out = Vec::new();
        let done = run(Args { server, wait }, &mut out).await;
        serving.abort();
        done.map(|_| anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string())
    }

    #[tokio::test]
    async fn herald_tells_its_version_without_a_key() {
        let described = || async { Json(json!({"info": {"title": "Herald", "version": "9.8.7"}})) };
        let said = ping(
            axum::Router::new().route("/openapi.json", get(described)),
            0,
        )
        .await;
        let said = said.unwrap();
        assert!(
            said.starts_with("herald 9.8.7 answers at http://127.0.0.1"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn what_starts_is_waited_for() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static ASKED: AtomicBool = AtomicBool::new(false);
        let described = || async {
            if ASKED.swap(true, Ordering::SeqCst) {
                Ok(Json(json!({"info": {"version": "9.8.7"}})))
            } else {
                Err(StatusCode::SERVICE_UNAVAILABLE)
            }
        };
        let router = axum::Router::new().route("/openapi.json", get(described));
        assert!(ping(router.clone(), 0).await.is_err());
        ASKED.store(false, Ordering::SeqCst);
        assert!(ping(router, 30).await.unwrap().contains("9.8.7"));
    }

    #[tokio::test]
    async fn what_is_not_herald_is_told_as_such() {
        let other = axum::Router::new().route("/openapi.json", get(|| async { "hello" }));
        let error = ping(other, 0).await.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("not Herald's"), "{error}");
    }
}
