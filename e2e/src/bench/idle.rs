//! What it takes to do nothing, and to begin.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::process::Command;

use super::report::{Section, mebibytes, percentile};
use super::server::{self, Folder, Server};
use super::{Options, people, process};

const MIB: f64 = 1024.0 * 1024.0;

/// Starts of which the median counts.
const STARTS: usize = 9;

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "idle",
        "Doing nothing, and beginning",
        "Three channels, four templates and a group are declared; nothing is sent. Idle is from the second minute on. Start to ready is from starting the \
         process to the first 200 of `/readyz`, asked each millisecond. Raw: `herald --version`, which does nothing.",
    );
    let mut bare = Vec::with_capacity(STARTS);
    let mut starts = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let began = Instant::now();
        let version = Command::new(server::program()?)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .await?;
        ensure!(version.success(), "herald --version failed");
        bare.push(began.elapsed().as_secs_f64() * 1e3);
        let folder = Folder::new(&people::yaml())?;
        let server = Server::start(&folder, None).await?;
        starts.push(server.start.as_secs_f64() * 1e3);
        server.stop().await?;
    }
    bare.sort_by(f64::total_cmp);
    starts.sort_by(f64::total_cmp);
    let (bare, start) = (percentile(&bare, 0.5), percentile(&starts, 0.5));
    section.at_most(
        &format!("start to ready, a new folder, median of {STARTS}"),
        (start, format!("{start:.0} ms")),
        format!("{bare:.0} ms to do nothing"),
        (300.0, "300 ms"),
    );

    let folder = Folder::new(&people::yaml())?;
    let server = Server::start(&folder, None).await?;
    // By then everything that is done once a minute was done once: connections are open.
    tokio::time::sleep(Duration::from_secs(options.scaled(70, 5) as u64)).await;
    let time = Duration::from_secs(options.scaled(60, 10) as u64);
    let (written, spent) = (
        process::written(server.pid)?,
        process::processor_time(server.pid)?,
    );
    tokio::time::sleep(time).await;
    let written = process::written(server.pid)? - written;
    let spent = process::processor_time(server.pid)? - spent;
    let resident = process::resident(server.pid)?;
    let share = spent / time.as_secs_f64() * 100.0;
    section.at_most(
        "resident, idle",
        (resident as f64, format!("{:.1} MiB", resident as f64 / MIB)),
        String::new(),
        (30.0 * MIB, "30 MiB"),
    );
    section.at_most(
        &format!("of a core, over {} s idle", time.as_secs()),
        (share, format!("{share:.2} %")),
        String::new(),
        (1.0, "1 %"),
    );
    section.at_most(
        &format!("written to disk, over {} s idle", time.as_secs()),
        (written as f64, format!("{written} bytes")),
        String::new(),
        (0.5, "nothing"),
    );
    server.stop().await?;
    let bytes = std::fs::metadata(server::program()?)?.len();
    section.at_most(
        "the program on disk",
        (bytes as f64, mebibytes(bytes)),
        String::new(),
        (40.0 * MIB, "40 MiB"),
    );
    Ok(section)
}
