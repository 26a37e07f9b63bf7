//! `make run`: Herald with everything around it, to look at.

use clap::Args;

/// What the showcase can be told.
#[derive(Debug, Args)]
pub struct Options {}

/// Runs until Ctrl-C.
pub async fn run(_: Options) -> anyhow::Result<()> {
    tokio::signal::ctrl_c().await?;
    Ok(())
}
