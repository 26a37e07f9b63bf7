//! Mail to a real server that throws it away.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lettre::transport::smtp::PoolConfig;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::report::{Section, per_second};
use super::server::{Folder, Server, free_address, send, sent};
use super::{Options, people, process};

const CONNECTIONS: usize = 64;

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "mail",
        "Mail",
        "One notification to a managed group over a channel with concurrency 64, to Postfix's `smtp-sink`; from the 202 to \
         the last mail sent, planning and recording included. Raw: `lettre` with a pool of 64 connections and 64 tasks, \
         which send a message that is already built.",
    );
    let mails = options.scaled(50_000, 2_000);
    let sink = Sink::start().await?;
    let raw_rate = bare(sink.port, mails).await?;

    let yaml = format!(
        "apiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {{name: mail, namespace: bench}}\nspec:\n  medium: email\n  \
         providers:\n  - name: sink\n    smtp: {{host: 127.0.0.1, port: {}, tls: None, from: \"Shop <orders@shop.example>\", \
         allowPrivateAddresses: true}}\n  concurrency: {CONNECTIONS}\n---\n\
         apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {{name: news, namespace: bench}}\nspec:\n  \
         description: News\n  category: news\n  routing: {{channels: [{{name: mail}}]}}\n  \
         content: {{email: {{subject: \"News for {{{{ recipient.id }}}}\", text: \"{BODY}\"}}}}\n---\n\
         apiVersion: herald.dev/v1alpha1\nkind: RecipientGroup\nmetadata: {{name: everybody, namespace: bench}}\nspec:\n  \
         description: A large group\n  managed: true\n",
        sink.port
    );
    let folder = Folder::new(&yaml)?;
    let server = Server::start(&folder, None).await?;
    people::import(&server, mails, "email").await?;
    let mut client = server.client().await?;
    let before = process::processor_time(server.pid)?;
    send(&mut client, &people::to_everybody("news", mails)).await?;
    let began = Instant::now();
    while sent(&mut client, "bench/mail").await? < mails as u64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ensure!(
            began.elapsed() < Duration::from_mins(10),
            "the mails do not end"
        );
    }
    let rate = mails as f64 / began.elapsed().as_secs_f64();
    let spent = process::processor_time(server.pid)? - before;
    section.at_least(
        "mails sent",
        (rate, per_second(rate)),
        format!(
            "{} ({:.0} %)",
            per_second(raw_rate),
            rate / raw_rate * 100.0
        ),
        (1_500.0, "1,500/s"),
    );
    section.told(
        "processor time of a mail",
        format!("{:.0} µs", spent * 1e6 / mails as f64),
        String::new(),
    );
    server.stop().await?;
    Ok(section)
}

const BODY: &str =
    "The shops in the centre and at the harbour open at seven from the first of next month.";

/// Mails per second of `lettre` alone.
async fn bare(port: u16, mails: usize) -> Result<f64> {
    let transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("127.0.0.1")
        .port(port)
        .pool_config(PoolConfig::new().max_size(CONNECTIONS as u32))
        .build();
    let message = Message::builder()
        .from("Shop <orders@shop.example>".parse()?)
        .to("person-7@mail.example".parse()?)
        .subject("News for person-7")
        .body(BODY.to_owned())?;
    let (envelope, message) = (message.envelope().clone(), message.formatted());
    let message = Arc::new(message);
    let left = Arc::new(AtomicUsize::new(mails));
    let began = Instant::now();
    let mut tasks = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let (transport, envelope) = (transport.clone(), envelope.clone());
        let (message, left) = (Arc::clone(&message), Arc::clone(&left));
        tasks.push(tokio::spawn(async move {
            let take =
                || left.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            while take().is_ok() {
                transport.send_raw(&envelope, &message).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(mails as f64 / began.elapsed().as_secs_f64())
}

/// A running `smtp-sink`. Killed when dropped.
struct Sink {
    port: u16,
    _child: Child,
}

impl Sink {
    async fn start() -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new("smtp-sink");
        if process::is_root()? {
            // It insists on giving its rights up.
            command.args(["-u", "nobody"]);
        }
        let child = command
            .args([address.to_string().as_str(), "1024"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("smtp-sink is missing: it comes with Postfix, and is in /usr/sbin")?;
        let began = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            ensure!(
                began.elapsed() < Duration::from_secs(5),
                "smtp-sink does not listen"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Self {
            port: address.port(),
            _child: child,
        })
    }
}
