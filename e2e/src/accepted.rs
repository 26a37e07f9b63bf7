//! What Herald's documentation asks of a client: a key for each request, and the same request again until it is answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde::Deserialize;

use crate::server::Api;

/// Pause before a request is repeated that was not answered.
const PAUSE: Duration = Duration::from_millis(50);

/// A request that is not accepted for so long fails the run.
const PATIENCE: Duration = Duration::from_mins(5);

#[derive(Debug, Deserialize)]
struct Accepted {
    id: String,
}

/// Repeats a request with its key, at one server after the other, until it is accepted; its id.
pub async fn until_accepted(
    apis: &[Api],
    path: &str,
    key: &str,
    body: &str,
    repeated: &mut BTreeMap<String, usize>,
) -> anyhow::Result<String> {
    let begin = Instant::now();
    for api in apis.iter().cycle() {
        let answer = api
            .post(path)
            .header("idempotency-key", key)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_owned())
            .send()
            .await;
        let (what, pause) = match answer {
            Ok(answer) if answer.status() == StatusCode::ACCEPTED => {
                match answer.json::<Accepted>().await {
                    Ok(accepted) => return Ok(accepted.id),
                    Err(_) => ("answer broke off".to_owned(), PAUSE),
                }
            }
            Ok(answer) => {
                let status = answer.status();
                let after = answer.headers().get(RETRY_AFTER);
                let after = after.and_then(|v| v.to_str().ok()?.parse().ok());
                let may_repeat = status.is_server_error()
                    || status == StatusCode::CONFLICT
                    || status == StatusCode::TOO_MANY_REQUESTS;
                if !may_repeat {
                    let words = answer.text().await.unwrap_or_default();
                    bail!("{key} was refused, {status}: {words}");
                }
                let pause = after.map_or(PAUSE, Duration::from_secs);
                (status.as_u16().to_string(), pause)
            }
            Err(error) if error.is_connect() => ("not reached".to_owned(), PAUSE),
            Err(error) if error.is_timeout() => ("timeout".to_owned(), PAUSE),
            Err(_) => ("broken off".to_owned(), PAUSE),
        };
        *repeated.entry(what.clone()).or_default() += 1;
        if begin.elapsed() > PATIENCE {
            bail!("{key} was not accepted within {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(pause).await;
    }
    bail!("there is no server to send {key} to")
}
