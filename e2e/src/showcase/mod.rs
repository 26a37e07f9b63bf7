//! `make run`: Herald with everything around it, to look at.
//!
//! Herald is a process of its own (`child`). In this process are a mail server (`mail`) and a receiver of webhooks
//! (`hooks`), which keep what `arrived`, the `page` that shows it, and the `tour` that sends.

mod arrived;
mod child;
mod hooks;
mod mail;
mod page;
mod tour;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use arrived::Arrived;
use child::{Herald, Start};
use hooks::Secret;
use mail::MailServer;
use tour::{Tour, set_off};

/// Where the samples say that the mail server listens.
const SAMPLE_MAIL_PORT: u16 = 2525;

/// Where the samples say that the receiver of webhooks listens.
const SAMPLE_WEBHOOK_PORT: u16 = 8090;

/// Where a folder keeps the secret that the samples' webhooks are signed with.
const SAMPLE_SECRET: &str = "secrets/warehouse-signing/secret";

/// What the showcase can be told.
#[derive(Debug, Args)]
pub struct Options {
    /// Where Herald listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the mail server listens.
    #[arg(long, value_name = "ADDRESS", default_value_t = local(SAMPLE_MAIL_PORT))]
    mail: SocketAddr,
    /// Where webhooks are received.
    #[arg(long, value_name = "ADDRESS", default_value_t = local(SAMPLE_WEBHOOK_PORT))]
    webhooks: SocketAddr,
    /// Where the page is that shows what arrived.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8025")]
    page: SocketAddr,
    /// What Herald is told: a folder of YAML. Default: crds/samples/quickstart, for which the tour is made.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// What the webhooks of --folder must be signed with: a secret such as whsec_…, that the Channel's credentials hold.
    /// The samples have one of their own.
    #[arg(
        long,
        requires = "folder",
        value_name = "SECRET",
        env = "HERALD_WEBHOOK_SECRET",
        hide_env_values = true
    )]
    webhook_secret: Option<String>,
    /// Where Herald's state and log are kept until the next start. Default: .herald/showcase-PORT.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The program herald. Default: the one beside this program.
    #[arg(long, value_name = "FILE")]
    herald: Option<PathBuf>,
    /// End after the tour instead of staying until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// Send nothing.
    #[arg(long)]
    no_tour: bool,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Runs until Ctrl-C, SIGTERM, or Herald's end.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shown = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = root
        .canonicalize()
        .context("the repository is not where it was built")?;
    // A second one beside it has a port of its own, and so its own place.
    let data = options
        .data
        .unwrap_or_else(|| root.join(format!(".herald/showcase-{}", options.listen.port())));
    let program = match options.herald {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("herald"),
    };
    let secret = options
        .webhook_secret
        .as_deref()
        .map(Secret::new)
        .transpose()?;
    // First every port, so that nothing is begun that cannot be ended.
    let [herald, mail, webhooks, page] = bind([
        ("--listen", options.listen, "Herald"),
        ("--mail", options.mail, "the mail server"),
        ("--webhooks", options.webhooks, "the receiver of webhooks"),
        ("--page", options.page, "the page that shows what arrived"),
    ])
    .await?;
    // Herald takes it again itself.
    drop(herald);

    // A tour that is taken again would be suppressed as a repeat of the last one.
    let state = data.join("state");
    fresh(&state)?;
    let tour_fits = options.folder.is_none();
    let (folder, secret) = if let Some(folder) = options.folder {
        (folder, secret)
    } else {
        let samples = root.join("crds/samples/quickstart");
        let ports = (options.mail.port(), options.webhooks.port());
        let folder = moved(&samples, &data, ports)?;
        let secret = Secret::of_file(&folder.join(SAMPLE_SECRET))?;
        (folder, Some(secret))
    };

    let arrived = Arc::new(Arrived::new());
    let key = format!("showcase-{:016x}", rand::random::<u64>());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tour = Tour {
        url: format!("http://{}", options.listen),
        key: key.clone(),
        namespace: "shop".to_owned(),
        program: beside(&program),
        arrived: Arc::clone(&arrived),
        http: reqwest::Client::builder().no_proxy().build()?,
    };
    tokio::spawn(MailServer::new(Arc::clone(&arrived)).serve(mail));
    let hooks = hooks::router(Arc::clone(&arrived), secret);
    tokio::spawn(async move { axum::serve(webhooks, hooks).await });
    let pages = page::router(arrived, tour.another());
    tokio::spawn(async move { axum::serve(page, pages).await });

    let log = data.join("herald.log");
    let mut herald = Herald::start(Start {
        program: &program,
        folder: &folder,
        namespace: &tour.namespace,
        state: &state,
        log: log.clone(),
        listen: options.listen,
        key: &key,
    })
    .await?;

    println!(
        "Herald listens on {} and works from {}",
        tour.url,
        beside(&folder).display()
    );
    println!(
        "its log is {}; for the commands below:",
        beside(&log).display()
    );
    println!(
        "{}",
        set_off(
            "2",
            &format!(
                "$ export HERALD_URL={} HERALD_API_KEY={key} HERALD_NAMESPACE=shop",
                tour.url
            )
        )
    );
    let outcome = tokio::select! {
        outcome = visit(&tour, options.page, tour_fits && !options.no_tour, options.once) => outcome,
        () = shown => Ok(()),
        error = herald.ended() => return Err(error),
    };
    println!("\nshutting down");
    let stopped = herald.stop().await;
    outcome.and(stopped)
}

/// The tour, and then whatever one likes.
async fn visit(tour: &Tour, page: SocketAddr, with_tour: bool, once: bool) -> anyhow::Result<()> {
    if with_tour {
        tour.run().await?;
    }
    if once {
        return Ok(());
    }
    println!(
        "\n{}",
        set_off("1", &format!("■ See what arrived: http://{page}/"))
    );
    println!("  the API, described: {}/docs", tour.url);
    println!(
        "  outcomes as they happen: {} watch",
        tour.program.display()
    );
    println!(
        "  send another:\n{}",
        set_off("2", &format!("$ {}", tour.another()))
    );
    println!("\nCtrl-C ends it.");
    std::future::pending().await
}

/// Takes ports, each of an option and for something. Errors: all that are taken, with a command that chooses others.
async fn bind<const N: usize>(
    wanted: [(&str, SocketAddr, &str); N],
) -> anyhow::Result<[TcpListener; N]> {
    let mut bound = Vec::with_capacity(N);
    let mut taken = Vec::new();
    let mut others = Vec::new();
    for (option, address, what) in wanted {
        match TcpListener::bind(address).await {
            Ok(listener) => bound.push(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let other = address.port().saturating_add(10_000);
                taken.push(format!("{address}, where {what} is to listen"));
                others.push(format!("{option} {}", SocketAddr::new(address.ip(), other)));
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("{what} cannot listen on {address}; choose another with {option}")
                });
            }
        }
    }
    bound.try_into().map_err(|_: Vec<_>| {
        anyhow::anyhow!(
            "something else has {}; choose others: make run ARGS='{}'",
            taken.join(", and "),
            others.join(" ")
        )
    })
}

/// An empty folder.
fn fresh(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The samples themselves, or a copy of them that names other ports.
fn moved(samples: &Path, data: &Path, (mail, webhooks): (u16, u16)) -> anyhow::Result<PathBuf> {
    if (mail, webhooks) == (SAMPLE_MAIL_PORT, SAMPLE_WEBHOOK_PORT) {
        return Ok(samples.to_owned());
    }
    let copy = data.join("notifications");
    fresh(&copy)?;
    for entry in
        std::fs::read_dir(samples).with_context(|| format!("cannot read {}", samples.display()))?
    {
        let from = entry?.path();
        let Some(name) = from.file_name().filter(|_| from.is_file()) else {
            continue;
        };
        let text = std::fs::read_to_string(&from)
            .with_context(|| format!("cannot read {}", from.display()))?;
        let text = text
            .replace(
                &format!("port: {SAMPLE_MAIL_PORT}"),
                &format!("port: {mail}"),
            )
            .replace(
                &format!(":{SAMPLE_WEBHOOK_PORT}/"),
                &format!(":{webhooks}/"),
            );
        std::fs::write(copy.join(name), text)
            .with_context(|| format!("cannot write to {}", copy.display()))?;
    }
    Ok(copy)
}

/// A path as one would type it here.
fn beside(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .map_or_else(|_| path.to_owned(), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ports_that_are_taken_are_named_with_one_command_that_chooses_others() {
        let [one, two] = [local(0), local(0)].map(TcpListener::bind);
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        let (one, two) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        let wanted = [
            ("--mail", one, "the mail server"),
            ("--page", local(0), "the page"),
            ("--listen", two, "Herald"),
        ];
        let error = bind(wanted).await.unwrap_err().to_string();
        for part in [one.to_string(), two.to_string()] {
            assert!(error.contains(&part), "{error}");
        }
        let other = |address: SocketAddr| address.port().saturating_add(10_000);
        let command = format!(
            "make run ARGS='--mail 127.0.0.1:{} --listen 127.0.0.1:{}'",
            other(one),
            other(two)
        );
        assert!(error.ends_with(&command), "{error}");
    }

    #[test]
    fn with_other_ports_a_copy_of_the_samples_names_them() {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/samples/quickstart");
        let data = tempfile::tempdir().unwrap();
        let copy = moved(&samples, data.path(), (12_525, 18_090)).unwrap();
        let read = |name: &str| std::fs::read_to_string(copy.join(name)).unwrap();
        assert!(read("channel-mail.yaml").contains("port: 12525"));
        let hooks = read("channel-hooks.yaml");
        assert!(hooks.contains("http://127.0.0.1:18090/webhook"));
        let (_, secret) = SAMPLE_SECRET.split_once('/').unwrap();
        let (secret, _) = secret.split_once('/').unwrap();
        assert!(hooks.contains(&format!("credentialsRef: {{name: {secret}}}")));
        let same = moved(
            &samples,
            data.path(),
            (SAMPLE_MAIL_PORT, SAMPLE_WEBHOOK_PORT),
        )
        .unwrap();
        assert_eq!(same, samples);
    }
}
