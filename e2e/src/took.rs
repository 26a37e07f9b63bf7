//! What something took, in short.

use std::time::Duration;

/// Half of them took at most, and 99 of a hundred.
pub fn percentiles(took: &mut [Duration]) -> String {
    took.sort_unstable();
    let at = |share: f64| {
        let index = (took.len() as f64 * share) as usize;
        let at = took.get(index.min(took.len().saturating_sub(1)));
        at.copied().unwrap_or_default().as_secs_f64()
    };
    format!("{:.3} / {:.3} s", at(0.5), at(0.99))
}
