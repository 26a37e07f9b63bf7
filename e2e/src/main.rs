//! Everything real on one machine: the showcase, scenarios, faults and benchmarks.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod embedded;
mod faults;
mod process;
mod run;
mod server;
mod showcase;
mod sinks;

/// Herald against the real world.
#[derive(Debug, Parser)]
#[command(name = "herald-e2e", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts Herald with a mail server and a webhook receiver, sends one of each kind and shows what arrives.
    Showcase(showcase::Options),
    /// Measures, each figure beside its raw baseline, and writes docs/benchmarks.md.
    Bench(bench::Options),
    /// Runs a scenario against real mail and HTTP servers, and says whether everything was as it has to be.
    Run(run::Options),
    /// Says which scenarios there are.
    List,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Showcase(options) => showcase::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::Run(options) => run::run(options).await,
        Command::List => {
            run::list();
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
