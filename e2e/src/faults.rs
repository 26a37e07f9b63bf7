//! What a process meets: a port taken, a disk that is full, signals; and that its logs tell nobody's secrets.
//!
//! - This file: the order. [`starts`]: starts that fail, and the first key. [`disk`]: a disk that is full.
//! - [`signals`]: SIGTERM. [`secrets`]: what the logs do not say.

mod disk;
mod secrets;
mod signals;
mod starts;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::process;
use crate::server::{Api, Setup};

/// Signs events; must not be in a log either.
const SECRET: &str = "whsec_aGVyYWxkJ3MgZW5kIHRvIGVuZCBzZWNyZXQgMDAy";

/// How long it may take until what was accepted has ended.
const END: Duration = Duration::from_mins(1);

/// Runs all of them. An error says what was not as it has to be.
pub async fn run(folder: &Path) -> anyhow::Result<()> {
    let herald = process::herald()?;
    let begin = Instant::now();
    let fresh = |name: &str| -> anyhow::Result<Setup> {
        println!("{:>7.1} s  {name}", begin.elapsed().as_secs_f64());
        let folder = folder.join(name.replace(' ', "-"));
        fs::create_dir_all(&folder).context("cannot make a folder")?;
        let setup = Setup::new(&herald, &folder)?;
        declare(&setup, process::free_port()?, process::free_port()?)?;
        Ok(setup)
    };
    starts::a_port_that_is_taken(&fresh("a port that is taken")?).await?;
    starts::a_second_one(&fresh("a second one in the same place")?).await?;
    starts::a_folder_that_is_read_only(&fresh("a folder that is read only")?).await?;
    starts::the_first_key(&fresh("the first key")?).await?;
    starts::a_channel_that_prints(&fresh("a channel that prints")?).await?;
    signals::terminate(&fresh("SIGTERM")?).await?;
    disk::full(fresh("a full disk")?).await?;
    secrets::in_logs(fresh("secrets in logs")?).await?;
    println!(
        "{:>7.1} s  all as it has to be",
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Writes what is declared.
fn declare(setup: &Setup, dead: u16, echo: u16) -> anyhow::Result<()> {
    let secret = setup.declared.join("secrets/receiver");
    fs::create_dir_all(&secret)?;
    fs::write(secret.join("secret"), SECRET)?;
    let written = written(setup);
    let text = include_str!("../scenarios/faults/shop.yaml")
        .replace("LOG_PATH", &written.display().to_string())
        .replace("2500", &dead.to_string())
        .replace("8099", &echo.to_string());
    fs::write(setup.declared.join("shop.yaml"), text).context("cannot write what is declared")
}

/// Where the rehearsing provider writes a line for each send.
fn written(setup: &Setup) -> std::path::PathBuf {
    setup.declared.with_file_name("sent.jsonl")
}

/// Sends a note to an address; the answer, whatever it is.
async fn send(
    api: &Api,
    key: &str,
    to: &str,
    words: &str,
    channel: &str,
) -> anyhow::Result<Response> {
    let address = if channel == "echo" {
        "webhook"
    } else {
        "email"
    };
    let answer = api
        .post("/v1/namespaces/load/notifications")
        .header("idempotency-key", key)
        .json(&json!({
            "template": "note",
            "recipients": [{"address": {address: to}}],
            "parameters": {"words": words},
            "channels": [channel],
        }))
        .send();
    answer.await.context("cannot send")
}

#[derive(Debug, Deserialize)]
struct Accepted {
    id: String,
}

/// Sends a note that must be accepted; its id.
async fn accepted(
    api: &Api,
    key: &str,
    to: &str,
    words: &str,
    channel: &str,
) -> anyhow::Result<String> {
    let answer = send(api, key, to, words, channel).await?;
    let status = answer.status();
    let body = answer.text().await?;
    ensure!(
        status == StatusCode::ACCEPTED,
        "{key} was answered {status}: {body}"
    );
    Ok(serde_json::from_str::<Accepted>(&body)?.id)
}

/// Waits until all of them have ended.
async fn ended(api: &Api, ids: &[String]) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Shown {
        status: String,
    }
    let begin = Instant::now();
    for id in ids {
        loop {
            let path = format!("/v1/namespaces/load/notifications/{id}");
            let shown = api.read::<Shown>(&path, &[("wait", "5s")]).await;
            if shown.as_ref().is_ok_and(|shown| shown.status == "ended") {
                break;
            }
            let status = shown.map(|shown| shown.status);
            ensure!(begin.elapsed() < END, "{id} has not ended: {status:?}");
        }
    }
    Ok(())
}
