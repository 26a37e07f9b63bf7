//! Everything real on one machine: the showcase, scenarios, faults and benchmarks.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use herald_e2e::environment::{self, Cluster, Environment};
use herald_e2e::process;

mod accepted;
mod bench;
mod cluster;
mod embedded;
mod faults;
mod image;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod run;
mod scaling;
mod server;
mod servers;
mod showcase;
mod sinks;
mod soak;
mod took;

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
    /// Starts Pulsar and PostgreSQL on this machine and leaves them running, for tests and scenarios.
    ///
    /// With --kubernetes a cluster, too, with both beside it.
    Up(Up),
    /// Ends what `up` started.
    Down,
    /// Says what `up` started, and whether it is still there.
    Status,
    /// Connects whoever comes to the socket that is the standard input with an address: the way into a cluster.
    #[command(hide = true)]
    Forward {
        /// With a port.
        address: String,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// Without Pulsar.
    #[arg(long)]
    no_pulsar: bool,
    /// Without PostgreSQL.
    #[arg(long)]
    no_postgres: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Neither waits for the disk: faster, and a power failure loses something.
    #[arg(long)]
    no_sync: bool,
}

#[derive(Debug, Args)]
struct ClusterOptions {
    /// With a Kubernetes cluster.
    #[arg(long)]
    kubernetes: bool,
    /// With Argo CD beside it.
    #[arg(long, requires = "kubernetes")]
    argocd: bool,
}

async fn up(options: &Up) -> anyhow::Result<()> {
    let environment = Environment::up(&environment::Options {
        pulsar: !options.no_pulsar,
        postgres: !options.no_postgres,
        cluster: match (options.cluster.kubernetes, options.cluster.argocd) {
            (false, _) => Cluster::None,
            (true, false) => Cluster::Kubernetes,
            (true, true) => Cluster::WithArgoCd,
        },
        sync: !options.no_sync,
        broker: Vec::new(),
    })
    .await?;
    println!("{}", environment.describe());
    Ok(())
}

fn down() -> anyhow::Result<()> {
    let was_up = Environment::down()?;
    println!("{}", if was_up { "ended" } else { "nothing was up" });
    Ok(())
}

fn status() -> anyhow::Result<()> {
    match Environment::running()? {
        Some(environment) => println!("{}", environment.describe()),
        None => anyhow::bail!("nothing is up: `herald-e2e up` starts it"),
    }
    Ok(())
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
        Command::Up(options) => up(&options).await,
        Command::Down => down(),
        Command::Status => status(),
        Command::Forward { address } => environment::kubernetes::forward::serve(&address).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
