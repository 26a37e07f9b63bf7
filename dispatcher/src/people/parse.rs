//! A line of NDJSON or CSV becomes a recipient, or says what is wrong with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use csv_core::ReadRecordResult;
use herald_crds::{Address, Problem};

use super::recipient::problems;
use crate::store::Recipient;

/// How an import is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object in each line (`application/x-ndjson`).
    Ndjson,
    /// Comma-separated values (RFC 4180; `text/csv`), the first line of which names the columns.
    ///
    /// No field of a recipient may hold a line's end, so a record is one line: a quote that is never closed costs its
    /// own line and no other.
    Csv,
}

/// The first line of a CSV import cannot be used, so that no other can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, the header: {problem}")]
pub struct HeaderError {
    /// The header's line, from 1.
    pub line: u64,
    /// What is wrong and what to do.
    pub problem: String,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Nothing: it is blank, or the header.
    Nothing,
    /// A good recipient.
    Recipient(Recipient),
    /// What is wrong with it.
    Wrong(String),
}

/// The columns of a CSV import that have a name of their own.
const COLUMNS: [&str; 6] = ["id", "email", "phone", "webhook", "locale", "timeZone"];

/// What a column of a CSV import holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    Id,
    Email,
    Phone,
    Webhook,
    Locale,
    TimeZone,
    Label(String),
}

impl Column {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "email" => Self::Email,
            "phone" => Self::Phone,
            "webhook" => Self::Webhook,
            "locale" => Self::Locale,
            "timeZone" => Self::TimeZone,
            _ => Self::Label(
                name.strip_prefix("label.")
                    .filter(|key| !key.is_empty())?
                    .to_owned(),
            ),
        })
    }
}

/// Reads lines of one import, one after the other.
pub(super) enum Parser {
    Ndjson,
    Csv(Box<CsvParser>),
}

impl Parser {
    pub fn new(format: Format) -> Self {
        match format {
            Format::Ndjson => Self::Ndjson,
            Format::Csv => Self::Csv(Box::default()),
        }
    }

    /// Reads a line of at most [`MAX_LINE_BYTES`](super::MAX_LINE_BYTES). Lines are to be given in their order.
    pub fn line(&mut self, number: u64, text: &[u8]) -> Result<Parsed, HeaderError> {
        // Spreadsheets begin what they export with a byte order mark.
        let text = match number {
            1 => text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text),
            _ => text,
        };
        if text.trim_ascii().is_empty() {
            return Ok(Parsed::Nothing);
        }
        let recipient = match self {
            Self::Ndjson => parse_json(text),
            Self::Csv(csv) if csv.columns.is_empty() => {
                return match csv.header(text) {
                    Ok(()) => Ok(Parsed::Nothing),
                    Err(problem) => Err(HeaderError {
                        line: number,
                        problem,
                    }),
                };
            }
            Self::Csv(csv) => csv.record(text),
        };
        Ok(match recipient {
            Err(problem) => Parsed::Wrong(problem),
            Ok(recipient) => match problems(&recipient).as_slice() {
                [] => Parsed::Recipient(recipient),
                wrong => Parsed::Wrong(sentence(wrong)),
            },
        })
    }
}

/// What is wrong with a column that nobody knows, and what was meant, perhaps.
fn unknown_column(name: &str) -> String {
    let mut text = format!("unknown column {name:?}: ");
    let known = COLUMNS
        .iter()
        .find(|known| known.eq_ignore_ascii_case(name));
    if let Some(known) = known {
        let _ = write!(text, "did you mean {known:?}?");
    } else if let Some(separator) = [';', '\t'].into_iter().find(|s| name.contains(*s)) {
        let _ = write!(
            text,
            "columns are separated by commas, and this line has {separator:?}"
        );
    } else {
        let _ = write!(
            text,
            "known are {} and label.<key>, such as label.{}",
            COLUMNS.join(", "),
            if name.is_empty() { "tier" } else { name }
        );
    }
    text
}

/// Problems of one line as one sentence: people read reports of imports, and there is one entry for each line.
fn sentence(problems: &[Problem]) -> String {
    const MOST: usize = 5;
    let mut text = String::new();
    for problem in problems.iter().take(MOST) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&problem.to_string());
    }
    if problems.len() > MOST {
        text.push_str("; and more");
    }
    text
}

fn parse_json(text: &[u8]) -> Result<Recipient, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let recipient = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let words = without_line(error.inner());
        if error.inner().is_data() && error.path().iter().len() > 0 {
            format!("{}: {words}", error.path())
        } else {
            words
        }
    })?;
    deserializer.end().map_err(|error| without_line(&error))?;
    Ok(recipient)
}

/// What `serde_json` says, with the column but without its count of lines: to it, each line is the first.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(words, _)| words);
    if error.is_data() {
        words.to_owned()
    } else {
        format!("not JSON: {words} at column {}", error.column())
    }
}

/// Reads CSV, line by line.
pub(super) struct CsvParser {
    reader: csv_core::Reader,
    /// Empty until the header was read.
    columns: Vec<Column>,
    fields: Vec<u8>,
    ends: Vec<usize>,
}

impl Default for CsvParser {
    fn default() -> Self {
        Self {
            reader: csv_core::Reader::new(),
            columns: Vec::new(),
            fields: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl CsvParser {
    /// Most columns: every field and every label that a recipient may have.
    const MAX_COLUMNS: usize = 6 + super::recipient::MAX_LABELS;

    /// Takes a line apart into fields.
    fn split(
        &mut self,
        text: &[u8],
    ) -> Result<impl ExactSizeIterator<Item = Result<&str, String>>, String> {
        let Self {
            reader,
            fields,
            ends,
            columns: _,
        } = self;
        reader.reset();
        fields.resize(text.len() + 1, 0);
        ends.resize(Self::MAX_COLUMNS + 1, 0);
        let (early, _, bytes, some) = reader.read_record(text, fields, ends);
        let (result, _, _, rest) =
            reader.read_record(b"\n", &mut fields[bytes..], &mut ends[some..]);
        if early == ReadRecordResult::Record || result != ReadRecordResult::Record {
            return Err(match (early, result) {
                (ReadRecordResult::Record, _) => {
                    "a carriage return in the middle: lines end with LF or CRLF".to_owned()
                }
                (_, ReadRecordResult::InputEmpty) => {
                    "a quoted field is not closed on this line".to_owned()
                }
                _ => format!("more than {} columns", Self::MAX_COLUMNS),
            });
        }
        let count = some + rest;
        let fields = &self.fields;
        let mut start = 0;
        Ok(self.ends[..count].iter().map(move |end| {
            let field = &fields[start..*end];
            start = *end;
            str::from_utf8(field).map_err(|_| "not UTF-8: save the file as UTF-8".to_owned())
        }))
    }

    fn header(&mut self, text: &[u8]) -> Result<(), String> {
        let names: Vec<String> = self
            .split(text)?
            .map(|name| name.map(|name| name.trim().to_owned()))
            .collect::<Result<_, _>>()?;
        let mut columns: Vec<Column> = Vec::with_capacity(names.len());
        for name in names {
            let Some(column) = Column::named(&name) else {
                return Err(unknown_column(&name));
            };
            if columns.contains(&column) {
                return Err(format!("column {name:?} is there twice"));
            }
            columns.push(column);
        }
        if !columns.contains(&Column::Id) {
            return Err(
                "column \"id\" is missing: the first line names the columns, such as id,email,locale"
                    .to_owned(),
            );
        }
        self.columns = columns;
        Ok(())
    }

    fn record(&mut self, text: &[u8]) -> Result<Recipient, String> {
        let columns = std::mem::take(&mut self.columns);
        let recipient = self.fill(&columns, text);
        self.columns = columns;
        recipient
    }

    fn fill(&mut self, columns: &[Column], text: &[u8]) -> Result<Recipient, String> {
        let fields = self.split(text)?;
        if fields.len() != columns.len() {
            return Err(format!(
                "{} fields, but the header has {} columns",
                fields.len(),
                columns.len()
            ));
        }
        let mut recipient = Recipient {
            id: String::new(),
            locale: None,
            time_zone: None,
            addresses: Address::default(),
            labels: BTreeMap::new(),
        };
        for (column, field) in columns.iter().zip(fields) {
            let field = field?;
            // An empty cell says nothing, rather than an empty text.
            let value = (!field.is_empty()).then(|| field.to_owned());
            match column {
                Column::Id => recipient.id = value.unwrap_or_default(),
                Column::Email => recipient.addresses.email = value,
                Column::Phone => recipient.addresses.phone = value,
                Column::Webhook => recipient.addresses.webhook = value,
                Column::Locale => recipient.locale = value,
                Column::TimeZone => recipient.time_zone = value,
                Column::Label(key) => {
                    if let Some(value) = value {
                        recipient.labels.insert(key.clone(), value);
                    }
                }
            }
        }
        Ok(recipient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, lines: &[&str]) -> Vec<Result<Parsed, HeaderError>> {
        let mut parser = Parser::new(format);
        lines
            .iter()
            .zip(1..)
            .map(|(line, number)| parser.line(number, line.as_bytes()))
            .collect()
    }

    fn recipient(parsed: &Result<Parsed, HeaderError>) -> &Recipient {
        match parsed {
            Ok(Parsed::Recipient(recipient)) => recipient,
            other => panic!("not a recipient: {other:?}"),
        }
    }

    fn wrong(parsed: &Result<Parsed, HeaderError>) -> &str {
        match parsed {
            Ok(Parsed::Wrong(problem)) => problem,
            other => panic!("nothing wrong: {other:?}"),
        }
    }

    #[test]
    fn csv_quoting_is_read_as_rfc_4180_says() {
        let found = read(
            Format::Csv,
            &[
                "\u{feff}id, email,label.name,label.note,timeZone",
                r#"alice,alice@shop.example,"Kim, Alice","says ""hi""",Asia/Seoul"#,
                "",
                "bob,,Bob,,",
            ],
        );
        assert_eq!(found[0], Ok(Parsed::Nothing));
        let alice = recipient(&found[1]);
        assert_eq!(alice.labels["name"], "Kim, Alice");
        assert_eq!(alice.labels["note"], r#"says "hi""#);
        assert_eq!(alice.addresses.email.as_deref(), Some("alice@shop.example"));
        assert_eq!(alice.time_zone.as_deref(), Some("Asia/Seoul"));
        assert_eq!(found[2], Ok(Parsed::Nothing));
        let bob = recipient(&found[3]);
        assert_eq!(bob.addresses, Address::default());
        assert_eq!(bob.labels.len(), 1);
    }

    #[test]
    fn an_unclosed_quote_costs_its_own_line_alone() {
        let found = read(
            Format::Csv,
            &[
                "id,label.name",
                r#"a,"Alice"#,
                r#"b,"Bob""#,
                "c\rd",
                r#"e,"E""#,
            ],
        );
        assert!(wrong(&found[1]).contains("not closed"));
        assert_eq!(recipient(&found[2]).labels["name"], "Bob");
        assert!(wrong(&found[3]).contains("carriage return"));
        assert_eq!(recipient(&found[4]).id, "e");
    }

    #[test]
    fn a_record_with_more_or_fewer_fields_says_so() {
        let many = format!("e{}", ",".repeat(200));
        let found = read(
            Format::Csv,
            &[
                "id,email",
                "a",
                "b,b@shop.example,x",
                "c,c@shop.example",
                &many,
            ],
        );
        assert!(wrong(&found[1]).contains("1 fields"));
        assert!(wrong(&found[2]).contains("3 fields"));
        assert_eq!(recipient(&found[3]).id, "c");
        assert!(wrong(&found[4]).contains("more than 70"));
    }

    #[test]
    fn a_header_that_cannot_be_used_stops_the_import_and_says_why() {
        for (header, words) in [
            ("id,emial", "emial"),
            ("email", "\"id\" is missing"),
            ("id,Email", "did you mean \"email\"?"),
            ("id;email", "separated by commas, and this line has ';'"),
            ("id,tier", "such as label.tier"),
            ("id,email,email", "twice"),
            ("id,label.", "label."),
            ("id,\"email", "not closed"),
        ] {
            let found = read(Format::Csv, &["", header]);
            let error = found[1].as_ref().unwrap_err();
            assert_eq!(error.line, 2);
            assert!(error.problem.contains(words), "{}", error.problem);
        }
    }

    #[test]
    fn broken_json_says_where_and_never_counts_lines_of_its_own() {
        let found = read(
            Format::Ndjson,
            &[
                r#"{"id": "alice", "addresses": {"email": "alice@shop.example"}}"#,
                r#"{"id": "bob", "#,
                r#"{"id": "carol", "adresses": {}}"#,
                r#"{"id": "dave", "addresses": {"email": 7}}"#,
                r#"{"id": "erin"} {"id": "frank"}"#,
                r#"{"id": "grace", "addresses": {"email": "nowhere"}, "locale": "-"}"#,
                r#"{"id": "heidi"}"#,
            ],
        );
        assert_eq!(recipient(&found[0]).id, "alice");
        assert!(wrong(&found[1]).starts_with("not JSON: "));
        assert!(wrong(&found[2]).contains("`adresses`"));
        assert!(wrong(&found[3]).starts_with("addresses.email: "));
        assert!(wrong(&found[4]).contains("column 16"));
        assert!(
            wrong(&found[5]).contains("/addresses/email") && wrong(&found[5]).contains("/locale")
        );
        assert_eq!(recipient(&found[6]).id, "heidi");
        assert!((1..6).all(|n| !wrong(&found[n]).contains("line 1")));
    }

    #[test]
    fn text_that_is_not_utf_8_is_one_wrong_line() {
        let mut parser = Parser::new(Format::Csv);
        parser.line(1, b"id,label.name").unwrap();
        let found = parser.line(2, b"a,M\xfcller").unwrap();
        assert!(matches!(found, Parsed::Wrong(problem) if problem.contains("UTF-8")));
    }
}
