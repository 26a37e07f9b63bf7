//! `herald local`: everything in one process, from a folder of YAML.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{BAD, BOLD, CliError, DIM, GOOD, count, harmless, paint};
use crate::access::Callers;
use crate::catalog::Place;
use crate::local::{Declared, Local, Options};
use crate::{pipeline, telemetry};

/// What its help says.
pub(super) const HELP: &str = "Serves the API and delivers, in one process, from a folder of YAML.\n\n\
    The folder holds Channels, NotificationTemplates, RecipientGroups and Schedules, and the credentials of providers \
    in secrets/NAME/KEY; a Namespace in it gives the labels that a Channel's allowedNamespaces may ask for. It is watched: an edit counts within seconds, and what is broken is reported while its last \
    good version stays in force. Queue and history are kept in .herald in the folder. Nothing that was accepted is \
    lost, whatever ends the process; Ctrl-C and SIGTERM finish what is being sent first.\n\n\
    The first start makes an API key and prints it once, unless HERALD_API_KEY gives one. A key that was lost: start with \
    HERALD_API_KEY=… of your own, which may do everything for as long as this runs, and make another with herald keys.\n\n\
    With --catalog kubernetes, what is declared comes from the cluster that this runs in instead, and credentials from the \
    Secrets of its namespace that have the label herald.dev/credentials=true, for the Channels of that namespace; --callers kubernetes lets the cluster's \
    identities call, by its RBAC.\n\n\
    HERALD_LOG says what is logged, such as debug or warn,herald_dispatcher=debug (default: info).\n\n\
    Examples:\n  \
    herald local shop/\n  \
    HERALD_API_KEY=secret herald local shop/ --listen 127.0.0.1:9000 \\\n    --allow-private-addresses\n  \
    herald local --catalog kubernetes --state /var/lib/herald \\\n    --listen 0.0.0.0:8080";

/// Serves the API and delivers, in one process.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of YAML.
    #[arg(required_unless_present = "catalog")]
    dir: Option<PathBuf>,
    /// Where what is declared comes from, instead of DIR: the cluster that this runs in, or a folder.
    #[arg(
        long,
        env = "HERALD_CATALOG",
        value_name = "kubernetes|DIR",
        requires_if("kubernetes", "state")
    )]
    catalog: Option<Place>,
    /// The namespaces of the cluster whose resources count [default: all]
    #[arg(
        long,
        env = "HERALD_WATCH_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    watch_namespaces: Vec<String>,
    /// Who may call [default: keys]
    #[arg(long, env = "HERALD_CALLERS")]
    callers: Option<Callers>,
    /// The audience that tokens of callers must have [default: herald]
    #[arg(long, env = "HERALD_AUDIENCE", value_name = "NAME")]
    audience: Option<String>,
    /// Where to serve HTTP; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where to keep queue and history [default: .herald in the folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The namespace of resources that name none.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Lets Channels with allowPrivateAddresses send to private, loopback and link-local addresses.
    #[arg(long)]
    allow_private_addresses: bool,
    /// Size of the queue, in MiB, from which on nothing more is accepted (503).
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    max_queue: u64,
    /// Most deliveries of a channel whose outcome is not on disk yet: so many of each channel may be sent twice when the process is killed.
    #[arg(long, value_name = "NUMBER", default_value_t = pipeline::WINDOW)]
    window: usize,
    /// An API key that may do everything.
    #[arg(long, env = "HERALD_API_KEY", hide_env_values = true, hide = true)]
    api_key: Option<String>,
}

/// Serves until it is told to stop.
pub fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    telemetry::begin();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::StartRuntime { source })?;
    runtime.block_on(serve(args, out))
}

async fn serve(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let declared = declared(&args)?;
    let Args {
        dir: _,
        catalog: _,
        watch_namespaces: _,
        callers: _,
        audience: _,
        listen,
        state,
        namespace,
        allow_private_addresses,
        max_queue,
        window,
        api_key,
    } = args;
    let usual = match &declared {
        Declared::Folder(dir) => Options::new(dir, listen),
        #[cfg(feature = "kubernetes")]
        Declared::Cluster { .. } => Options::new("", listen),
    };
    let options = Options {
        state: state.unwrap_or_else(|| usual.state.clone()),
        declared,
        namespace,
        api_key: api_key.filter(|key| !key.is_empty()),
        allow_private_addresses,
        max_queue_bytes: max_queue * 1024 * 1024,
        window: window.clamp(1, 65_536),
        ..usual
    };
    // Listened for before anything starts, so that a signal on the way finds somebody.
    let stop = stop_signal().map_err(|source| CliError::ListenForSignals { source })?;
    let folder = match &options.declared {
        Declared::Folder(dir) => Some(dir.clone()),
        #[cfg(feature = "kubernetes")]
        Declared::Cluster { .. } => None,
    };
    let local = Local::start(options).await.map_err(CliError::StartLocal)?;
    welcome(&local, folder.as_deref(), out).map_err(CliError::Print)?;
    stop.await;
    tracing::info!("shutting down: finishing what is being sent");
    local.stop().await;
    tracing::info!("done");
    Ok(ExitCode::SUCCESS)
}

/// Where what is declared comes from, and who may call.
fn declared(args: &Args) -> Result<Declared, CliError> {
    let place = match (&args.dir, &args.catalog) {
        (Some(dir), _) => &Place::Folder(dir.clone()),
        (None, Some(place)) => place,
        (None, None) => return Err(CliError::Choose("name a folder of YAML")),
    };
    let identities = args.callers == Some(Callers::Kubernetes);
    match place {
        Place::Folder(_) if identities => Err(CliError::Choose(
            "identities of a cluster can call only with --catalog kubernetes",
        )),
        Place::Folder(dir) => Ok(Declared::Folder(dir.clone())),
        #[cfg(not(feature = "kubernetes"))]
        Place::Kubernetes => Err(CliError::Choose(
            "this herald was built without the feature kubernetes",
        )),
        #[cfg(feature = "kubernetes")]
        Place::Kubernetes => Ok(Declared::Cluster {
            options: crate::cluster::Options {
                namespaces: args.watch_namespaces.clone(),
                audience: args.audience.clone(),
            },
            identities,
        }),
    }
}

/// Says where it is and what it serves; and the key, if one was made, once.
fn welcome(local: &Local, folder: Option<&Path>, out: &mut dyn Write) -> std::io::Result<()> {
    let url = format!("http://{}", local.address);
    let declared = local.catalog.current();
    let what = [
        count(declared.channels.len(), "channel"),
        count(declared.templates.len(), "template"),
        count(declared.groups.len(), "group"),
        count(declared.schedules.len(), "schedule"),
    ];
    writeln!(
        out,
        "{} on {url} with {}",
        paint(GOOD, "herald is ready"),
        what.join(", ")
    )?;
    if let Some(key) = &local.new_key {
        writeln!(out, "\nAPI key, shown this once: {}", paint(BOLD, key))?;
        writeln!(
            out,
            "{}",
            paint(
                DIM,
                &format!("export HERALD_URL={url} HERALD_API_KEY={key}")
            )
        )?;
    }
    writeln!(out, "{}", paint(DIM, &format!("API: {url}/docs")))?;
    if !declared.problems.is_empty() {
        let problems = count(declared.problems.len(), "problem");
        let hint = match folder {
            Some(dir) => format!(
                "herald lint {}   # where",
                harmless(&dir.display().to_string())
            ),
            None => "herald doctor   # where".to_owned(),
        };
        writeln!(out, "{}; {}", paint(BAD, &problems), paint(DIM, &hint))?;
    }
    out.flush()
}

/// Resolves at Ctrl-C or SIGTERM.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
