//! Recipients from a stream into the store.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use serde::Serialize;

use super::lines::{Line, Lines, MAX_LINE_BYTES};
use super::parse::{Format, HeaderError, Parsed, Parser};
use crate::store::{PeopleStore, Recipient, StoreError};

/// Recipients that are written in one transaction.
const BATCH: usize = 500;
/// Bytes of lines that are written in one transaction, lest 500 of the longest lines are held.
const BATCH_BYTES: usize = 1024 * 1024;
/// Most failed lines that are reported one by one.
const MAX_REPORTED: usize = 1000;
/// Most characters of what is said about one line.
const MAX_PROBLEM: usize = 500;

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportReport {
    /// Recipients that were not in the directory.
    pub created: u64,
    /// Recipients that were, whether anything about them changed or not.
    pub updated: u64,
    /// Lines that were wrong.
    pub failed: u64,
    /// Recipients that were not yet members of the group; absent without a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added_to_group: Option<u64>,
    /// The first 1,000 of the lines that were wrong.
    pub errors: Vec<LineProblem>,
}

/// A line that was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LineProblem {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// Why an import stopped before its end. What was written before stays; to repeat the whole import is safe.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The header of a CSV import cannot be used; nothing was written.
    #[error(transparent)]
    Header(HeaderError),
    /// The body broke off.
    #[error("the body broke off after line {line}: {reason}")]
    ReadBody {
        /// The last line that was read.
        line: u64,
        /// What happened to it.
        reason: String,
    },
    /// The store did not take it.
    #[error("stopped at line {line}: {source}")]
    Write {
        /// The last line that was read; up to [`BATCH`] recipients before it were not written.
        line: u64,
        /// What the store said.
        source: StoreError,
    },
}

/// Reads recipients from `body` and writes them into the directory of `namespace`, and, if a `group` is given, into
/// that managed group, as they come.
///
/// A line that is wrong is reported and stops no other. Of two lines with the same id the later holds. Memory is
/// bounded by one piece of the body, one line and one batch. Cancelling it leaves written what was written.
pub async fn import<S, B, E>(
    store: &S,
    namespace: &str,
    group: Option<&str>,
    format: Format,
    body: B,
    clock: impl Fn() -> Timestamp,
) -> Result<ImportReport, ImportError>
where
    S: PeopleStore + ?Sized,
    B: Stream<Item = Result<Bytes, E>>,
    E: std::fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut lines = Lines::default();
    let mut run = Run {
        store,
        namespace,
        group,
        clock,
        parser: Parser::new(format),
        batch: Vec::with_capacity(BATCH),
        batch_bytes: 0,
        line: 0,
        report: ImportReport {
            added_to_group: group.map(|_| 0),
            ..ImportReport::default()
        },
    };
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| ImportError::ReadBody {
            line: run.line,
            reason: error.to_string(),
        })?;
        lines.push(&piece);
        while let Some(line) = lines.next() {
            run.take(line).await?;
        }
    }
    if let Some(line) = lines.last() {
        run.take(line).await?;
    }
    run.write().await?;
    Ok(run.report)
}

/// An import under way.
struct Run<'a, S: ?Sized, C> {
    store: &'a S,
    namespace: &'a str,
    group: Option<&'a str>,
    clock: C,
    parser: Parser,
    batch: Vec<Recipient>,
    batch_bytes: usize,
    /// The last line that was read.
    line: u64,
    report: ImportReport,
}

impl<S: PeopleStore + ?Sized, C: Fn() -> Timestamp> Run<'_, S, C> {
    async fn take(&mut self, line: Line<'_>) -> Result<(), ImportError> {
        self.line = line.number;
        let Some(text) = line.text else {
            self.failed(format!("longer than {MAX_LINE_BYTES} bytes"));
            return Ok(());
        };
        match self.parser.line(line.number, text) {
            Ok(Parsed::Nothing) => {}
            Ok(Parsed::Wrong(problem)) => self.failed(problem),
            Ok(Parsed::Recipient(recipient)) => {
                self.batch.push(recipient);
                self.batch_bytes += text.len();
                if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
                    self.write().await?;
                }
            }
            Err(error) => return Err(ImportError::Header(error)),
        }
        Ok(())
    }

    fn failed(&mut self, mut problem: String) {
        self.report.failed += 1;
        if self.report.errors.len() < MAX_REPORTED {
            if let Some((end, _)) = problem.char_indices().nth(MAX_PROBLEM) {
                problem.truncate(end);
                problem.push('…');
            }
            self.report.errors.push(LineProblem {
                line: self.line,
                problem,
            });
        }
    }

    async fn write(&mut self) -> Result<(), ImportError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let now = (self.clock)();
        let line = self.line;
        let stopped = |source| ImportError::Write { line, source };
        let new = self
            .store
            .put_recipients(self.namespace, &self.batch, now)
            .await
            .map_err(stopped)?;
        let created = new.iter().filter(|new| **new).count() as u64;
        self.report.created += created;
        self.report.updated += new.len() as u64 - created;
        if let Some(group) = self.group {
            let ids: Vec<String> = self.batch.drain(..).map(|r| r.id).collect();
            let (added, _) = self
                .store
                .change_members(self.namespace, group, &ids, &[], now)
                .await
                .map_err(stopped)?;
            *self.report.added_to_group.get_or_insert(0) += added;
        }
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;

    use super::*;
    use crate::store::Paging;
    use crate::store::sqlite::{Options, SqliteStore};

    async fn open(folder: &std::path::Path) -> SqliteStore {
        let options = Options {
            synchronous: false,
            ..Options::default()
        };
        SqliteStore::open(&folder.join("store.db"), options)
            .await
            .unwrap()
    }

    /// A body that comes in pieces of 1,000 bytes.
    fn body(text: &str) -> impl Stream<Item = Result<Bytes, Infallible>> {
        let pieces: Vec<_> = text
            .as_bytes()
            .chunks(1000)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        stream::iter(pieces)
    }

    async fn count(store: &SqliteStore) -> usize {
        let (mut count, mut cursor) = (0, None);
        loop {
            let paging = Paging {
                limit: 1000,
                cursor,
            };
            let page = store.recipients("shop", None, &[], &paging).await.unwrap();
            count += page.items.len();
            cursor = page.next;
            if cursor.is_none() {
                return count;
            }
        }
    }

    #[tokio::test]
    async fn broken_lines_in_the_middle_stop_no_other_line() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let mut text = String::from("id,email,label.tier\n");
        for n in 0..1700 {
            let line = match n {
                700 => "p700,\"unclosed,vip\n".to_owned(),
                900 => format!("p900,{},vip\n", "x".repeat(MAX_LINE_BYTES)),
                1100 => "p1100,not-an-address,vip\n".to_owned(),
                _ => format!("p{n},p{n}@shop.example,vip\n"),
            };
            text.push_str(&line);
        }
        let report = import(
            &store,
            "shop",
            Some("everybody"),
            Format::Csv,
            body(&text),
            Timestamp::now,
        )
        .await
        .unwrap();
        assert_eq!(
            (report.created, report.updated, report.failed),
            (1697, 0, 3)
        );
        assert_eq!(report.added_to_group, Some(1697));
        let lines: Vec<u64> = report.errors.iter().map(|e| e.line).collect();
        assert_eq!(lines, [702, 902, 1102], "the header is line 1");
        assert!(report.errors[1].problem.contains("65536"));
        assert_eq!(count(&store).await, 1697);

        let again = import(
            &store,
            "shop",
            Some("everybody"),
            Format::Csv,
            body(&text),
            Timestamp::now,
        )
        .await
        .unwrap();
        assert_eq!((again.created, again.updated, again.failed), (0, 1697, 3));
        assert_eq!(again.added_to_group, Some(0));
    }

    #[tokio::test]
    async fn only_the_first_thousand_failures_are_reported_and_all_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let wrong = format!("{{\"id\": \"a\", \"{}\": 1}}\n", "x".repeat(5000));
        let text = format!("{}{{\"id\": \"b\"}}", wrong.repeat(1500));
        let report = import(
            &store,
            "shop",
            None,
            Format::Ndjson,
            body(&text),
            Timestamp::now,
        )
        .await
        .unwrap();
        assert_eq!((report.created, report.failed), (1, 1500));
        assert_eq!(report.added_to_group, None);
        assert_eq!(report.errors.len(), MAX_REPORTED);
        let longest = report
            .errors
            .iter()
            .map(|e| e.problem.chars().count())
            .max();
        assert_eq!(longest, Some(MAX_PROBLEM + 1));
    }

    #[tokio::test]
    async fn a_header_that_cannot_be_used_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let text = "id,mail\na,a@shop.example\n";
        let stopped = import(
            &store,
            "shop",
            None,
            Format::Csv,
            body(text),
            Timestamp::now,
        )
        .await;
        assert!(matches!(
            stopped,
            Err(ImportError::Header(HeaderError { line: 1, .. }))
        ));
        assert_eq!(count(&store).await, 0);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_keeps_the_batches_before() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let lines: Vec<String> = (0..700).map(|n| format!("{{\"id\":\"p{n}\"}}\n")).collect();
        let lines = lines.concat();
        let pieces = stream::iter([Ok(Bytes::from(lines)), Err("connection reset")]);
        let stopped = import(&store, "shop", None, Format::Ndjson, pieces, Timestamp::now).await;
        assert!(matches!(
            stopped,
            Err(ImportError::ReadBody { line: 700, .. })
        ));
        assert_eq!(count(&store).await, BATCH);
    }

    /// `cargo test --release -p herald-dispatcher --lib -- --ignored --nocapture a_million`
    #[tokio::test]
    #[ignore = "takes a minute: measures"]
    async fn a_million_recipients_come_in_at_20_000_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("store.db"), Options::default())
            .await
            .unwrap();
        let pieces = stream::iter(0..10_000).map(|piece| {
            let lines: Vec<String> = (0..100)
                .map(|n| {
                    let id = piece * 100 + n;
                    format!(
                        "{{\"id\":\"customer-{id}\",\"locale\":\"ko\",\"timeZone\":\"Asia/Seoul\",\
                         \"addresses\":{{\"email\":\"customer-{id}@shop.example\"}},\
                         \"labels\":{{\"tier\":\"vip\"}}}}\n"
                    )
                })
                .collect();
            Ok::<_, Infallible>(Bytes::from(lines.concat()))
        });
        let begun = std::time::Instant::now();
        let report = import(
            &store,
            "shop",
            Some("all"),
            Format::Ndjson,
            pieces,
            Timestamp::now,
        )
        .await
        .unwrap();
        assert_eq!(report.created, 1_000_000);
        let rate = 1e6 / begun.elapsed().as_secs_f64();
        println!("{rate:.0} recipients a second");
        assert!(rate >= 20_000.0);
    }
}
