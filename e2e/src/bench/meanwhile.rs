//! What a million under way does to a message to one.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::http::Client;
use super::report::{Section, milliseconds, percentile};
use super::server::{Folder, Server, send};
use super::{Options, people};

/// Critical messages, loaded and not.
const CRITICAL: usize = 200;

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "meanwhile",
        "A message to one, while a million is under way",
        "Both are `normal`; the one is sent by recipient id, over the same channel as the million. Then critical messages to \
         a bare address, ten a second, over that channel, with and without a million under way. Each is timed from before \
         its POST to the end of its send, as its delivery's `endedAt` says; both are this machine's clock.",
    );
    let folder = Folder::new(&people::yaml())?;
    let server = Server::start(&folder, None).await?;
    people::import(&server, options.size, "phone").await?;
    let mut client = server.client().await?;

    let code = json!({"template": "code", "recipients": [{"address": {"phone": "+821000000000"}}]});
    let alone = timed(&server, &code, CRITICAL, Duration::from_millis(100)).await?;
    let alone_p99 = percentile(&alone, 0.99);

    let million = send(&mut client, &people::to_everybody("free", options.size)).await?;
    tokio::time::sleep(Duration::from_millis(options.scaled(3_000, 300) as u64)).await;
    let to_one = json!({"template": "free", "recipients": [{"recipient": "person-7"}]});
    let (normal, critical) = tokio::try_join!(
        timed(
            &server,
            &to_one,
            options.scaled(10, 3),
            Duration::from_secs(2)
        ),
        timed(
            &server,
            &code,
            options.scaled(CRITICAL, 10),
            Duration::from_millis(100)
        ),
    )?;
    let under_way = is_under_way(&mut client, &million).await?;
    cancel(&mut client, &million).await?;

    for (channel, per_second) in [("ten", 10.0), ("hundred", 100.0)] {
        let million = send(&mut client, &people::to_everybody(channel, options.size)).await?;
        // Until ten seconds of work are out, and as much as there will be in front of the one.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let to_one = json!({"template": channel, "recipients": [{"recipient": "person-7"}]});
        let took = timed(
            &server,
            &to_one,
            options.scaled(5, 2),
            Duration::from_secs(4),
        )
        .await?;
        cancel(&mut client, &million).await?;
        let worst = percentile(&took, 1.0);
        let goal = 10_000.0 + 2_000.0 / per_second;
        section.at_most(
            &format!(
                "`normal` to one, channel at {per_second}/s, slowest of {}",
                took.len()
            ),
            (worst, milliseconds(worst)),
            String::new(),
            (goal, &format!("10 s + 2 sends = {goal:.0} ms")),
        );
    }
    let worst = percentile(&normal, 1.0);
    section.at_most(
        &format!(
            "`normal` to one, channel unlimited, slowest of {}",
            normal.len()
        ),
        (worst, milliseconds(worst)),
        String::new(),
        (10_000.0, "10 s"),
    );
    let p99 = percentile(&critical, 0.99);
    section.at_most(
        &format!(
            "`critical`, 99th percentile of {}{under_way}",
            critical.len()
        ),
        (p99, milliseconds(p99)),
        format!(
            "{} unloaded ({:.1}×)",
            milliseconds(alone_p99),
            p99 / alone_p99
        ),
        (alone_p99 * 3.0, "3 × unloaded"),
    );
    section.told(
        "`critical`, median",
        milliseconds(percentile(&critical, 0.5)),
        format!("{} unloaded", milliseconds(percentile(&alone, 0.5))),
    );
    server.stop().await?;
    Ok(section)
}

/// Sends `count` of them, one each `interval`, and answers how long each took until it was sent, in sorted milliseconds.
async fn timed(
    server: &Server,
    request: &Value,
    count: usize,
    interval: Duration,
) -> Result<Vec<f64>> {
    let mut client = server.client().await?;
    let mut interval = tokio::time::interval(interval);
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        interval.tick().await;
        let begun = Timestamp::now();
        out.push((send(&mut client, request).await?, begun));
    }
    let mut took = Vec::with_capacity(count);
    for (id, begun) in out {
        took.push((ended(&mut client, &id).await? - begun).total(jiff::Unit::Millisecond)?);
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// When the only delivery of a notification ended.
async fn ended(client: &mut Client, id: &str) -> Result<Timestamp> {
    let path = format!("/v1/namespaces/bench/notifications/{id}");
    loop {
        let answer = client.get(&format!("{path}?wait=30s")).await?;
        if answer.status != 404 && answer.json(200)?["status"] == "ended" {
            break;
        }
    }
    let deliveries = client.get(&format!("{path}/deliveries")).await?.json(200)?;
    let delivery = deliveries["items"].get(0).context("no delivery")?;
    anyhow::ensure!(delivery["state"] == "sent", "not sent: {delivery}");
    let at = delivery["endedAt"].as_str().context("no endedAt")?;
    Ok(at.parse()?)
}

/// A remark if the million was over before the others were.
async fn is_under_way(client: &mut Client, id: &str) -> Result<&'static str> {
    let notification = super::server::notification(client, id).await?;
    Ok(if notification["status"] == "ended" {
        " (of which the last came after the million)"
    } else {
        ""
    })
}

async fn cancel(client: &mut Client, id: &str) -> Result<()> {
    let path = format!("/v1/namespaces/bench/notifications/{id}/cancel");
    let answer = client.post(&path, b"").await?;
    anyhow::ensure!(
        matches!(answer.status, 200 | 202 | 409),
        "cancel answered {}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(())
}
