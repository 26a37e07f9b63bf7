//! What `kubectl get` prints.

use anyhow::{Context as _, ensure};

/// What stands below a heading, in the first line below; empty if nothing does.
pub fn cell(table: &str, heading: &str) -> anyhow::Result<String> {
    let mut lines = table.lines();
    let (headings, row) = (lines.next(), lines.next());
    let headings = headings.context("nothing was printed")?;
    let row = row.with_context(|| format!("nothing is below {headings}"))?;
    let wanted = columns(headings).find(|(_, name)| *name == heading);
    let (begin, _) = wanted.with_context(|| format!("no {heading} in {headings}"))?;
    let end = columns(headings).map(|(at, _)| at).find(|at| *at > begin);
    let cell: String = row
        .chars()
        .skip(begin)
        .take(end.map_or(usize::MAX, |end| end - begin))
        .collect();
    ensure!(
        end.is_none() || cell.ends_with(' ') || cell.is_empty(),
        "{heading} is not apart from what follows: {row}"
    );
    Ok(cell.trim().to_owned())
}

/// Where each heading begins. One may be of several words; at least two spaces are between two.
fn columns(headings: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    headings.split("  ").filter_map(move |name| {
        let begin = at + name.len() - name.trim_start().len();
        at += name.len() + 2;
        let name = name.trim();
        (!name.is_empty()).then_some((begin, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_what_stands_below_its_heading() {
        let table = "NAME     TIME ZONE    SUSPENDED   MEDIUMS     AGE\n\
                     weekly                true        [\"email\"]   5d\n";
        assert_eq!(cell(table, "NAME").unwrap(), "weekly");
        assert_eq!(cell(table, "TIME ZONE").unwrap(), "");
        assert_eq!(cell(table, "SUSPENDED").unwrap(), "true");
        assert_eq!(cell(table, "MEDIUMS").unwrap(), "[\"email\"]");
        assert_eq!(cell(table, "AGE").unwrap(), "5d");
        assert!(cell(table, "READY").is_err());
        assert!(cell("NAME   AGE\n", "AGE").is_err());
    }
}
