//! A body in pieces becomes lines of bounded length.

/// Longest line of an import, in bytes, without its end.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// A line of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Its number, from 1.
    pub number: u64,
    /// What it says, without its end (LF or CRLF); `None`: it was longer than [`MAX_LINE_BYTES`] and was thrown away.
    pub text: Option<&'a [u8]>,
}

/// Puts pieces of a body together and takes lines off.
///
/// Holds at most one piece and one line. An overlong line is thrown away as it comes in, never collected.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Where the first line not yet taken begins.
    start: usize,
    /// Up to here there is no line's end.
    searched: usize,
    number: u64,
    overlong: bool,
}

impl Lines {
    /// Adds a piece. All complete lines are to be taken before the next is added.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        if self.buffer.len() > MAX_LINE_BYTES + 1 {
            self.overlong = true;
            self.buffer.clear();
            self.searched = 0;
        }
        self.buffer.extend_from_slice(piece);
    }

    /// The next complete line; `None` until more is pushed.
    pub fn next(&mut self) -> Option<Line<'_>> {
        let Some(length) = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        else {
            self.searched = self.buffer.len();
            return None;
        };
        let end = self.searched + length;
        let start = self.start;
        self.start = end + 1;
        self.searched = self.start;
        Some(self.line(start, end))
    }

    /// The last line, if the body did not end with a line's end.
    pub fn last(&mut self) -> Option<Line<'_>> {
        let (start, end) = (self.start, self.buffer.len());
        if start == end && !self.overlong {
            return None;
        }
        self.start = end;
        self.searched = end;
        Some(self.line(start, end))
    }

    fn line(&mut self, start: usize, end: usize) -> Line<'_> {
        self.number += 1;
        let text = &self.buffer[start..end];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let overlong = std::mem::take(&mut self.overlong) || text.len() > MAX_LINE_BYTES;
        Line {
            number: self.number,
            text: (!overlong).then_some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(body: &[u8], pieces: usize) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in body.chunks(pieces) {
            lines.push(piece);
            while let Some(line) = lines.next() {
                found.push((line.number, line.text.map(<[u8]>::to_vec)));
            }
            assert!(lines.buffer.len() <= MAX_LINE_BYTES + 1 + 2 * pieces);
        }
        found.extend(
            lines
                .last()
                .map(|line| (line.number, line.text.map(<[u8]>::to_vec))),
        );
        found
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_body_is_cut(body in "[ab\r\n]{0,80}", pieces in 1_usize..20) {
            let lines: Vec<_> = body
                .split_terminator('\n')
                .enumerate()
                .map(|(n, line)| {
                    let line = line.strip_suffix('\r').unwrap_or(line);
                    (n as u64 + 1, Some(line.as_bytes().to_vec()))
                })
                .collect();
            prop_assert_eq!(split(body.as_bytes(), pieces), lines);
        }
    }

    #[test]
    fn an_overlong_line_is_thrown_away_and_the_next_is_whole() {
        let good = "x".repeat(MAX_LINE_BYTES);
        let body = format!(
            "a\n{good}\r\n{good}y\n{}\nb",
            "z".repeat(5 * MAX_LINE_BYTES)
        );
        for pieces in [1000, 4096, MAX_LINE_BYTES, body.len()] {
            let lengths: Vec<_> = split(body.as_bytes(), pieces)
                .into_iter()
                .map(|(number, text)| (number, text.map(|t| t.len())))
                .collect();
            let expected = [
                (1, Some(1)),
                (2, Some(MAX_LINE_BYTES)),
                (3, None),
                (4, None),
                (5, Some(1)),
            ];
            assert_eq!(lengths, expected, "in pieces of {pieces}");
        }
    }
}
