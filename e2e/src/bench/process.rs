//! What the kernel says of a process.

use std::fs;

use anyhow::{Context, Result};

/// The kernel's clock ticks per second, as `/proc` tells times: 100 on every architecture that Linux runs on today.
const TICKS: f64 = 100.0;

/// Bytes in memory.
pub fn resident(pid: u32) -> Result<u64> {
    Ok(line_of(pid, "status", "VmRSS:")? * 1024)
}

/// The most bytes that were ever in memory.
pub fn peak_resident(pid: u32) -> Result<u64> {
    Ok(line_of(pid, "status", "VmHWM:")? * 1024)
}

/// Bytes that it caused to be written to a disk.
pub fn written(pid: u32) -> Result<u64> {
    line_of(pid, "io", "write_bytes:")
}

/// Seconds of processor time it has used.
pub fn processor_time(pid: u32) -> Result<f64> {
    time_of(pid, &[11, 12])
}

/// The sum of some of the 14th to 17th of the fields of proc(5), in seconds: its own times, and those of its children that
/// have ended. Three fewer, since the first two are before the bracket's end and the count begins at 0.
fn time_of(pid: u32, indices: &[usize]) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name is in brackets and may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let mut ticks = 0.0;
    for index in indices {
        ticks += fields.get(*index).context("no time")?.parse::<f64>()?;
    }
    Ok(ticks / TICKS)
}

/// Seconds of processor time that a process and its children have used, those that have ended included; servers only: of
/// children's children that live, nothing is known.
pub fn processor_time_with_children(pid: u32) -> Result<f64> {
    let mut sum = time_of(pid, &[11, 12, 13, 14])?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            // One that has ended meanwhile is the parent's.
            sum += time_of(child.parse()?, &[11, 12, 13, 14]).unwrap_or(0.0);
        }
    }
    Ok(sum)
}

fn line_of(pid: u32, file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number
        .with_context(|| format!("no {name} in /proc/{pid}/{file}"))?
        .parse()?)
}

/// Whether this program runs as root.
pub fn is_root() -> Result<bool> {
    Ok(line_of(std::process::id(), "status", "Uid:")? == 0)
}

/// Mean length of the run queue over the last minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}
