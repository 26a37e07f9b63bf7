//! Where logs go: to standard error, for people on a terminal and as JSON lines otherwise.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// What is logged unless `HERALD_LOG` says otherwise: what somebody who runs Herald wants to know.
const USUAL: &str = "info";

/// Begins to log, at what the environment variable `HERALD_LOG` says (`debug`, `herald_dispatcher::deliver=trace`);
/// a text that says nothing counts as the usual one, with a word about it. Later calls change nothing.
pub fn begin() {
    let asked = std::env::var("HERALD_LOG").ok();
    let filter = asked.as_deref().map(EnvFilter::try_new);
    let (filter, wrong) = match filter {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(USUAL), Some(error)),
        None => (EnvFilter::new(USUAL), None),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let begun = if io::stderr().is_terminal() {
        let colours = std::env::var_os("NO_COLOR").is_none();
        builder
            .with_ansi(colours)
            .with_target(false)
            .compact()
            .try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
    };
    if let (Ok(()), Some(error)) = (begun, wrong) {
        tracing::warn!(%error, "HERALD_LOG says nothing that can be understood, logging the usual");
    }
}
