//! Aligned tables.
//!
//! They are always coloured: the program takes colours out unless it writes to a terminal that wants them.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use super::{BAD, DIM, GOOD, harmless, paint};
use crate::store::State;

/// As it is.
pub(super) const PLAIN: Style = Style::new();
/// What is under way.
pub(super) const BUSY: Style = AnsiColor::Yellow.on_default();

/// How results are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// Herald's answers, unchanged.
    Json,
}

/// How a delivery's state reads.
pub(super) const fn of_state(state: State) -> Style {
    match state {
        State::Sent => GOOD,
        State::Failed | State::Unknown => BAD,
        State::Scheduled | State::Queued | State::Sending | State::Retrying => BUSY,
        State::Suppressed | State::Cancelled | State::Expired => DIM,
    }
}

/// What others wrote, on one line.
fn one_line(text: &str) -> String {
    harmless(text).replace(['\n', '\t'], " ")
}

/// Rows, each column as wide as its widest cell.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    /// A table with these column headings.
    pub(super) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let mut table = Self::default();
        table.row(headings.map(|text| (text.to_uppercase(), DIM)));
        table
    }

    /// One more row. An empty cell is shown as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [(String, Style); N]) {
        let cells = cells.map(|(text, style)| match text.as_str() {
            "" => ("-".to_owned(), style),
            text => (one_line(text), style),
        });
        self.rows.push(cells.into());
    }

    /// A row of a name and what it is; none if there is nothing to say.
    pub(super) fn pair(&mut self, name: &str, value: impl Into<String>, style: Style) {
        let value = value.into();
        if !value.is_empty() {
            self.row([(name.to_owned(), DIM), (value, style)]);
        }
    }

    /// The table as text, a line break after each row.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|(text, _)| text.width()).max().unwrap_or(0)
            })
            .collect();
        let mut lines = String::new();
        for row in &self.rows {
            for (column, (text, style)) in row.iter().enumerate() {
                lines.push_str(&paint(*style, text));
                if column + 1 < row.len() {
                    let gap = widths[column] - text.width() + 2;
                    let _ = write!(lines, "{:gap$}", "");
                }
            }
            lines.push('\n');
        }
        lines
    }
}

/// What is left without colours.
#[cfg(test)]
pub(super) fn uncoloured(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> (String, Style) {
        (text.to_owned(), PLAIN)
    }

    #[test]
    fn columns_are_aligned_also_where_characters_are_wide() {
        let mut table = Table::new(["who", "state"]);
        table.row([plain("지우"), (String::from("sent"), GOOD)]);
        table.row([("alice".to_owned(), BAD), plain("")]);
        let text = table.text();
        assert_eq!(uncoloured(&text), "WHO    STATE\n지우   sent\nalice  -\n");
        assert_ne!(uncoloured(&text), text);
    }

    #[test]
    fn what_others_wrote_stays_in_its_cell() {
        let mut table = Table::default();
        table.pair("a", "\u{1b}[2Jb\nc", PLAIN);
        assert_eq!(uncoloured(&table.text()), "a  \\u{1b}[2Jb c\n");
    }
}
