//! No log line holds an address, a content or a token, however much is logged and however badly it goes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::StatusCode;

use super::{SECRET, declare, send};
use crate::process::{self, Running};
use crate::server::{self, KEY, Setup};

/// What must not be in a log: of an address, of a content, of a token, of an Idempotency-Key's owner's making.
const ADDRESS: &str = "marker-address";
const CONTENT: &str = "marker-content";
const TOKEN: &str = "hk_marker_token";

/// How long it is waited for the failures to be logged.
const FAILURES: Duration = Duration::from_secs(30);

/// Sends what carries markers, well and badly, with everything logged that can be.
pub async fn in_logs(setup: Setup) -> anyhow::Result<()> {
    let echo = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    declare(&setup, process::free_port()?, echo.local_addr()?.port())?;
    std::thread::spawn(move || echo_all(&echo));
    let api = setup.api()?;
    let mut command = setup.command();
    command.env("HERALD_LOG", "trace,hyper=debug,h2=info,sqlx=debug");
    let mut running = Running::start("herald", &mut command, &setup.log)?;
    server::ready(&mut running, &api).await?;

    let to = format!("{ADDRESS}@b.example");
    let hook = format!("http://127.0.0.1:1/{ADDRESS}");
    for (channel, to) in [("quick", &to), ("broken", &to), ("echo", &hook)] {
        let answer = send(&api, &format!("secret-{channel}"), to, CONTENT, channel).await?;
        ensure!(
            answer.status() == StatusCode::ACCEPTED,
            "{channel}: {}: {}",
            answer.status(),
            answer.text().await?
        );
    }
    // Wrong in every way that repeats something in its answer.
    for to in [format!("{ADDRESS} is none"), format!("{ADDRESS}@@")] {
        let answer = send(&api, "secret-wrong", &to, CONTENT, "quick").await?;
        ensure!(
            answer.status() == StatusCode::UNPROCESSABLE_ENTITY,
            "{}",
            answer.status()
        );
    }
    let client = reqwest::Client::new();
    let list = client
        .get(api.url("/v1/namespaces/load/notifications"))
        .bearer_auth(TOKEN);
    ensure!(
        list.send().await?.status() == StatusCode::UNAUTHORIZED,
        "a wrong key is taken"
    );
    let import = api
        .post("/v1/namespaces/load/recipients/import")
        .header("content-type", "application/x-ndjson")
        .body(format!("{{\"id\":\"a\",\"addresses\":{{\"email\":\"{ADDRESS}@b.example\"}}}}\n{{\"id\":\"{ADDRESS} no\"}}\nnot {CONTENT}\n"));
    import.send().await.context("cannot import")?;

    let begin = Instant::now();
    loop {
        let metrics = api.metrics().await?;
        let failed = metrics
            .get("herald_failed_attempts_total")
            .copied()
            .unwrap_or_default();
        let sent = metrics
            .get("herald_sent_total")
            .copied()
            .unwrap_or_default();
        if failed >= 2.0 && sent >= 1.0 {
            break;
        }
        ensure!(
            begin.elapsed() < FAILURES,
            "{failed} attempts failed and {sent} were sent, expected 2 and 1"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.kill();

    let log = fs::read_to_string(&setup.log)?;
    for (words, times) in [("\"accepted\"", 3), ("did not succeed", 2)] {
        let said = log.lines().filter(|line| line.contains(words)).count();
        ensure!(
            said >= times,
            "{words:?} was logged {said} times: this showed nothing"
        );
    }
    let key = SECRET.trim_start_matches("whsec_");
    for marker in [ADDRESS, CONTENT, TOKEN, KEY, key] {
        let line = log.lines().find(|line| line.contains(marker));
        ensure!(
            line.is_none(),
            "{marker:?} is in the log: {}",
            line.unwrap_or_default()
        );
    }
    Ok(())
}

/// Answers every request 500, with what was sent as words.
fn echo_all(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = vec![0; 16 * 1024];
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
        let mut length = 0;
        while let Ok(read @ 1..) = stream.read(&mut request[length..]) {
            length += read;
        }
        let head = format!(
            "HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&request[..length]);
    }
}
