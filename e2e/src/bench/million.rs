//! One notification to a very large group: how fast, and how much memory it takes.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::{Section, grouped, mebibytes, per_second};
use super::server::{Folder, Server, notification, recorded, send, sent};
use super::{Options, people, process, raw};

/// A window for who prefers speed: so many may be sent twice when the process is killed.
pub const WIDE: usize = 1024;

const MIB: f64 = 1024.0 * 1024.0;

/// Measures, with a window other than the default if one is given.
pub async fn measure(options: &Options, window: Option<usize>) -> Result<Section> {
    let size = options.size;
    let (name, title) = match window {
        None => ("million", String::from("One notification to a million")),
        Some(window) => ("window", format!("The same with `--window {window}`")),
    };
    let mut section = options.begin(
        name,
        &title,
        "People are imported into a managed group as NDJSON in one request; one notification with `confirmRecipients`; a \
         text of 400 bytes; the `log` provider, which writes to `/dev/null`. From the 202 to the last delivery sent, and \
         to the last one recorded in history, audit trail included. Raw: rows that are inserted, and marked twice, in \
         transactions of 500, over one connection.",
    );
    let raw_folder = tempfile::tempdir_in(super::place()?)?;
    let raw_rate = raw::rows_written_thrice(raw_folder.path(), size).await?;
    drop(raw_folder);
    let raw_rate_told = format!("{} rows", per_second(raw_rate));

    let folder = Folder::new(&people::yaml())?;
    let server = Server::start(&folder, window).await?;
    let imported = people::import(&server, size, "phone").await?;
    let rate = size as f64 / imported.as_secs_f64();
    section.told("people imported", per_second(rate), raw_rate_told.clone());
    let peak_of_import = server.peak()?;

    let before = process::processor_time(server.pid)?;
    let mut client = server.client().await?;
    let id = send(&mut client, &people::to_everybody("free", size)).await?;
    let began = Instant::now();
    let mut all_sent = None;
    let all_recorded = loop {
        if all_sent.is_none() && sent(&mut client, "bench/free").await? >= size as u64 {
            all_sent = Some(began.elapsed());
        }
        let seen = notification(&mut client, &id).await?;
        if recorded(&seen) >= size as u64 {
            break began.elapsed();
        }
        let pause = if all_sent.is_some() { 100 } else { 50 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    };
    let all_sent = all_sent.unwrap_or(all_recorded);
    let spent = process::processor_time(server.pid)? - before;

    let rate = size as f64 / all_recorded.as_secs_f64();
    section.at_least(
        "deliveries, until all were recorded",
        (rate, per_second(rate)),
        raw_rate_told.clone(),
        (10_000.0, "10,000/s"),
    );
    let rate = size as f64 / all_sent.as_secs_f64();
    section.at_least(
        "deliveries, until all were sent",
        (rate, per_second(rate)),
        raw_rate_told,
        (30_000.0, "30,000/s"),
    );
    let drain = all_recorded.saturating_sub(all_sent);
    section.told(
        "recording went on for",
        format!("{:.1} s", drain.as_secs_f64()),
        String::new(),
    );
    section.told(
        "processor time of a delivery",
        format!("{:.0} µs", spent * 1e6 / size as f64),
        String::new(),
    );
    let peak = server.peak()?;
    section.at_most(
        "resident, the most at any time",
        (peak as f64, mebibytes(peak)),
        format!("{} at the end of the import", mebibytes(peak_of_import)),
        (200.0 * MIB, "200 MiB"),
    );
    section.told(
        "resident, afterwards",
        mebibytes(process::resident(server.pid)?),
        String::new(),
    );
    server.stop().await?;
    section.told(
        "queue and history on disk",
        mebibytes(folder.bytes()?),
        String::new(),
    );

    let server = Server::start(&folder, window).await?;
    let start = server.start.as_secs_f64() * 1e3;
    section.at_most(
        &format!(
            "start to ready, with {} delivered rows",
            grouped(size as u64)
        ),
        (start, format!("{start:.0} ms")),
        String::new(),
        (300.0, "300 ms"),
    );
    server.stop().await?;
    Ok(section)
}
