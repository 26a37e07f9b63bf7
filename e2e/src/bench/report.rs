//! What was measured, as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::process;

/// In the page, what comes after this line is written by hand and kept.
const BY_HAND: &str = "<!-- From here on the page is written by hand. -->";

/// Figures that were taken together, with their baselines.
#[derive(Debug, Serialize, Deserialize)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// How it was measured.
    pub how: String,
    /// Whether its sizes were the full ones.
    pub full: bool,
    /// The command that takes it again.
    pub command: String,
    /// When it was taken.
    pub at: Timestamp,
    /// The run queue's mean length when it began: above 1 the machine was busy with other things too.
    pub load: f64,
    /// Its figures.
    pub figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What came out, with its unit.
    pub measured: String,
    /// The raw baseline of the same run, with its unit; empty: there is none.
    pub baseline: String,
    /// What it is held to; empty: it informs.
    pub goal: String,
    /// How far it is from the goal: 1 or more holds; `None`: there is no goal.
    pub share: Option<f64>,
}

impl Section {
    /// A section that begins now.
    pub fn begin(title: &str, how: &str, command: String, full: bool) -> Self {
        println!("\n{title}");
        Self {
            title: title.to_owned(),
            how: how.to_owned(),
            full,
            command,
            at: Timestamp::now(),
            load: process::load_average(),
            figures: Vec::new(),
        }
    }

    /// A figure that informs.
    pub fn told(&mut self, what: &str, measured: String, baseline: String) {
        self.add(what, measured, baseline, String::new(), None);
    }

    /// A figure that is to be at least something, in the same unit.
    pub fn at_least(
        &mut self,
        what: &str,
        measured: (f64, String),
        baseline: String,
        (goal, told): (f64, &str),
    ) {
        let share = measured.0 / goal;
        let goal = format!("≥ {told}");
        self.add(what, measured.1, baseline, goal, Some(share));
    }

    /// A figure that is to be at most something, in the same unit.
    pub fn at_most(
        &mut self,
        what: &str,
        measured: (f64, String),
        baseline: String,
        (goal, told): (f64, &str),
    ) {
        let share = if measured.0 <= 0.0 {
            f64::MAX
        } else {
            goal / measured.0
        };
        let goal = format!("≤ {told}");
        self.add(what, measured.1, baseline, goal, Some(share));
    }

    fn add(
        &mut self,
        what: &str,
        measured: String,
        baseline: String,
        goal: String,
        share: Option<f64>,
    ) {
        let figure = Figure {
            what: what.to_owned(),
            measured,
            baseline,
            goal,
            share,
        };
        let beside = if figure.baseline.is_empty() {
            String::new()
        } else {
            format!(" (raw: {})", figure.baseline)
        };
        println!(
            "  {:<58} {}{beside} {} {}",
            figure.what,
            figure.measured,
            figure.goal,
            figure.verdict()
        );
        self.figures.push(figure);
    }
}

impl Figure {
    fn verdict(&self) -> String {
        match self.share {
            None => String::new(),
            Some(share) if share >= 1.0 => "holds".to_owned(),
            Some(share) => format!("**short: {:.0} % of it**", share * 100.0),
        }
    }
}

/// What was measured so far, by the sections' names: a section may be taken again alone.
pub fn kept(path: &Path) -> BTreeMap<String, Section> {
    std::fs::read(path)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

/// Keeps what was measured.
pub fn keep(path: &Path, sections: &BTreeMap<String, Section>) -> Result<()> {
    std::fs::write(path, serde_json::to_vec_pretty(sections)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the page; what was written by hand on it stays.
pub fn write(
    path: &Path,
    sections: &BTreeMap<String, Section>,
    order: &[&str],
    machine: &str,
) -> Result<()> {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let by_hand = before
        .split_once(BY_HAND)
        .map_or("\n", |(_, by_hand)| by_hand);
    let mut page = format!(
        "# Benchmarks\n\n\
         Written by `make bench`, which takes about half an hour; `--only NAME` takes one section again.\n\n\
         {machine}\n\n\
         The server is the release `herald local`, or `herald-dispatcher` over Pulsar and PostgreSQL on the same machine, as \
         processes of their own, measured from outside: over HTTP and from `/proc`. The client runs on the same machine and \
         has its share of the processors. Each figure stands beside a raw baseline of the same run, without Herald, on the \
         same disk: **ratios are the goal**, absolute figures say what this machine does. A section's load is the length of \
         the run queue, over the minute before it began: with more than 1 the machine had other work too, and figures are noisier and lower.\n"
    );
    for name in order {
        let Some(section) = sections.get(*name) else {
            continue;
        };
        let size = if section.full { "" } else { ", **small size**" };
        write!(
            page,
            "\n## {}\n\n{}\n\n`{}` · {}, load {:.1}{size}\n\n\
             | what | measured | raw baseline | goal | |\n| --- | --- | --- | --- | --- |\n",
            section.title,
            section.how,
            section.command,
            section.at.strftime("%Y-%m-%d"),
            section.load,
        )?;
        for figure in &section.figures {
            writeln!(
                page,
                "| {} | {} | {} | {} | {} |",
                figure.what,
                figure.measured,
                figure.baseline,
                figure.goal,
                figure.verdict()
            )?;
        }
    }
    write!(page, "\n{BY_HAND}{by_hand}")?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// The machine, as far as it matters to the figures.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim())
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|line| line.split_whitespace().next())
        .and_then(|kib| kib.parse::<f64>().ok())
        .unwrap_or(0.0)
        / (1024.0 * 1024.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "Machine: {cores} cores ({model}), {memory:.0} GiB, Linux {}.",
        kernel.trim()
    )
}

/// The value below which `share` of the sorted values are.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(index.saturating_sub(1).min(last))
        .copied()
        .unwrap_or(f64::NAN)
}

/// So many a second.
pub fn per_second(rate: f64) -> String {
    format!("{}/s", grouped(rate.round() as u64))
}

/// Milliseconds.
pub fn milliseconds(milliseconds: f64) -> String {
    format!("{milliseconds:.1} ms")
}

/// MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / (1024.0 * 1024.0))
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert!((percentile(&values, 0.99) - 198.0).abs() < 1e-9);
        assert!((percentile(&values, 1.0) - 200.0).abs() < 1e-9);
        assert!((percentile(&[7.0], 0.5) - 7.0).abs() < 1e-9);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
