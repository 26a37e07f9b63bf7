//! `make bench`: how fast, beside how fast this machine is without Herald.
//!
//! The server is the release `herald` as a process of its own, measured over HTTP and from `/proc`.

mod accept;
#[cfg(feature = "pulsar")]
mod cluster;
mod http;
mod idle;
mod mail;
mod meanwhile;
mod million;
mod people;
mod process;
mod raw;
mod report;
mod server;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::report::Section;

/// The sections, in the order of the page.
const SECTIONS: [&str; 12] = [
    "accept",
    "million",
    "window",
    "meanwhile",
    "mail",
    "idle",
    "gateway",
    "fanout",
    "deliver",
    "flood",
    "history",
    "memory",
];

/// Recipients of the large group.
const MILLION: usize = 1_000_000;

/// What the benchmark can be told.
#[derive(Debug, Args)]
pub struct Options {
    /// Takes only these sections: accept, million, window, meanwhile, mail, idle; on Pulsar: gateway, fanout, deliver, flood, history, memory.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Recipients of the large group; with fewer than 1,000,000 all sizes shrink and no page is written.
    #[arg(long, value_name = "NUMBER", default_value_t = MILLION)]
    size: usize,
    /// The page to write.
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

impl Options {
    fn is_full(&self) -> bool {
        self.size >= MILLION
    }

    /// A size that belongs to a million, in proportion.
    fn scaled(&self, full: usize, least: usize) -> usize {
        (full * self.size / MILLION).clamp(least.min(full), full)
    }

    fn begin(&self, name: &str, title: &str, how: &str) -> Section {
        let size = if self.is_full() {
            String::new()
        } else {
            format!(" --size {}", self.size)
        };
        let command = format!("cargo run -p herald-e2e --release -- bench --only {name}{size}");
        Section::begin(title, how, command, self.is_full())
    }
}

/// Where databases are made: on the disk of the build, which is a real one.
fn place() -> Result<PathBuf> {
    let place = std::env::current_exe()?.with_file_name("..").join("bench");
    std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place.canonicalize()?)
}

/// Measures, tells as it goes, and writes the page.
pub async fn run(options: Options) -> Result<()> {
    for name in &options.only {
        ensure!(
            SECTIONS.contains(&name.as_str()),
            "there is no section {name:?}: {}",
            SECTIONS.join(", ")
        );
    }
    server::program()?;
    let figures = place()?.join("figures.json");
    let mut sections = report::kept(&figures);
    println!("{}", report::machine());
    for name in SECTIONS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let section = match name {
            "accept" => accept::measure(&options).await,
            "million" => million::measure(&options, None).await,
            "window" => million::measure(&options, Some(million::WIDE)).await,
            "meanwhile" => meanwhile::measure(&options).await,
            "mail" => mail::measure(&options).await,
            "idle" => idle::measure(&options).await,
            #[cfg(feature = "pulsar")]
            "gateway" => Box::pin(cluster::gateway::measure(&options)).await,
            #[cfg(feature = "pulsar")]
            "fanout" => Box::pin(cluster::fanout::measure(&options)).await,
            #[cfg(feature = "pulsar")]
            "deliver" => Box::pin(cluster::deliver::measure(&options)).await,
            #[cfg(feature = "pulsar")]
            "flood" => Box::pin(cluster::flood::measure(&options)).await,
            #[cfg(feature = "pulsar")]
            "history" => Box::pin(cluster::history::measure(&options)).await,
            #[cfg(feature = "pulsar")]
            "memory" => Box::pin(cluster::memory::measure(&options)).await,
            _ => anyhow::bail!("this program was built without the feature pulsar"),
        };
        let section = section.with_context(|| format!("section {name}"))?;
        if options.is_full() {
            sections.insert(name.to_owned(), section);
            report::keep(&figures, &sections)?;
            report::write(&options.page, &sections, &SECTIONS, &report::machine())?;
        }
    }
    Ok(())
}
