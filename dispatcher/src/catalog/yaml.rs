//! YAML whose every node knows its line, and that cannot grow beyond bounds.

mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;

use herald_crds::validate::escape;
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

pub use write::write;

/// The longest file that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The most nodes (scalars, lists, mappings) of one file, each alias counted with all that it stands for.
pub const MAX_NODES: usize = 200_000;

/// The most text (keys and scalars) of one file, in bytes, each alias counted with all that it stands for.
pub const MAX_TEXT: usize = 4 << 20;

/// The deepest that lists and mappings may stand in each other.
pub const MAX_DEPTH: usize = 64;

/// One YAML document: its JSON, and the line of each of its nodes.
#[derive(Debug, Clone)]
pub struct Document {
    /// What it says.
    pub value: Value,
    /// Where it says it.
    pub lines: Lines,
}

/// The lines of a document's nodes.
#[derive(Debug, Clone)]
pub struct Lines {
    line: usize,
    under: Under,
}

#[derive(Debug, Clone)]
enum Under {
    Nothing,
    List(Vec<Lines>),
    Mapping(BTreeMap<String, Lines>),
}

impl Lines {
    /// The line, from 1, of what the JSON Pointer `path` leads to: the key's for a member of a mapping.
    ///
    /// If nothing is there: that of the nearest that is there on the way to it.
    pub fn line_of(&self, path: &str) -> usize {
        let mut found = self;
        for token in path.split('/').skip(1) {
            let next = match &found.under {
                Under::Nothing => None,
                Under::List(items) => token.parse::<usize>().ok().and_then(|i| items.get(i)),
                Under::Mapping(members) => {
                    members.get(token.replace("~1", "/").replace("~0", "~").as_str())
                }
            };
            match next {
                Some(next) => found = next,
                None => break,
            }
        }
        found.line
    }
}

/// Why a file cannot be read as YAML, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct YamlError {
    /// The line, from 1.
    pub line: usize,
    /// JSON Pointer to the node, as far as it was read.
    pub path: String,
    /// What is wrong.
    pub kind: YamlErrorKind,
}

/// What is wrong with a file of YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum YamlErrorKind {
    /// More than [`MAX_BYTES`].
    #[error("the file has {0} bytes; at most {MAX_BYTES} are read: split it")]
    TooLarge(u64),
    /// Bytes that are not UTF-8.
    #[error("this line is not UTF-8: save the file as UTF-8")]
    NotUtf8,
    /// It is not YAML.
    #[error("not YAML: {info} (column {column})")]
    Syntax {
        /// What the parser says.
        info: String,
        /// The column, from 1.
        column: usize,
    },
    /// More than [`MAX_NODES`] or [`MAX_TEXT`], aliases expanded.
    #[error(
        "with all aliases (*name) expanded the file has more than {MAX_NODES} values or {MAX_TEXT} bytes of text: \
         use fewer aliases, or split it"
    )]
    TooMuch,
    /// More than [`MAX_DEPTH`].
    #[error("lists and mappings stand in each other more than {MAX_DEPTH} deep")]
    TooDeep,
    /// A key stands in a mapping twice.
    #[error("key {key:?} is here a second time; it is on line {first} already")]
    DuplicateKey {
        /// The key.
        key: String,
        /// The line of the first.
        first: usize,
    },
    /// An alias inside of what it stands for.
    #[error("this alias stands inside of what it stands for")]
    SelfReference,
    /// A list or a mapping as a key.
    #[error("a key must be a plain word or a string, not a list or a mapping")]
    KeyNotScalar,
    /// `<<`, of YAML 1.1.
    #[error("merge keys (<<) are not part of YAML 1.2: write the fields out")]
    MergeKey,
    /// A tag other than those of the core schema.
    #[error(
        "unknown tag {0}: only !!str, !!int, !!float, !!bool, !!null, !!seq and !!map are known"
    )]
    UnknownTag(String),
    /// A value that is not what its tag says.
    #[error("this is not what its tag {0} says")]
    TagMismatch(String),
    /// A number that JSON cannot say.
    #[error("{0} is no number that can be used here: if it is meant as text, put it in quotes")]
    Number(String),
}

/// Reads a file of one or more YAML documents (YAML 1.2, core schema: `no` and `on` are strings).
///
/// Documents that are empty are left out. Errors: the first thing wrong; nothing of a file that has one is read.
pub fn read(bytes: &[u8]) -> Result<Vec<Document>, YamlError> {
    let at = |line, kind| YamlError {
        line,
        path: String::new(),
        kind,
    };
    if bytes.len() > MAX_BYTES {
        return Err(at(1, YamlErrorKind::TooLarge(bytes.len() as u64)));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|b| *b == b'\n').count();
        at(line, YamlErrorKind::NotUtf8)
    })?;
    let mut reader = Reader::default();
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| YamlError {
            // What is missing at the end is said to be missing on the last line, not after it.
            line: error.marker().line().min(text.lines().count()).max(1),
            path: reader.path(),
            kind: YamlErrorKind::Syntax {
                info: error.info().to_owned(),
                column: error.marker().col() + 1,
            },
        })?;
        let line = span.start.line();
        reader.take(event, line).map_err(|kind| YamlError {
            line,
            path: reader.path(),
            kind,
        })?;
    }
    Ok(reader.documents)
}

/// A node that is complete.
#[derive(Debug, Clone)]
struct Node {
    value: Value,
    lines: Lines,
    /// How many nodes it is, itself included, aliases expanded.
    nodes: usize,
    /// How many bytes of keys and scalars it has, aliases expanded.
    text: usize,
    /// How many lists and mappings stand in each other in it.
    depth: usize,
}

/// A list or mapping that is being read.
#[derive(Debug)]
struct Open {
    anchor: usize,
    line: usize,
    nodes: usize,
    text: usize,
    depth: usize,
    kind: OpenKind,
}

#[derive(Debug)]
enum OpenKind {
    List(Vec<Value>, Vec<Lines>),
    Mapping {
        values: Map<String, Value>,
        lines: BTreeMap<String, Lines>,
        /// The key whose value comes next, and its line.
        key: Option<(String, usize)>,
    },
}

#[derive(Debug, Default)]
struct Reader {
    documents: Vec<Document>,
    /// The lists and mappings around what is read now, outermost first.
    open: Vec<Open>,
    /// Complete nodes by anchor.
    anchors: BTreeMap<usize, Node>,
    /// Nodes and text of the file so far.
    nodes: usize,
    text: usize,
}

impl Reader {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlErrorKind> {
        match event {
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(text, style, line);
                }
                let length = text.len();
                let value = scalar(text, style, tag.as_deref())?;
                let node = Node {
                    value,
                    lines: Lines {
                        line,
                        under: Under::Nothing,
                    },
                    nodes: 1,
                    text: length,
                    depth: 0,
                };
                self.count(1, length)?;
                self.complete(node, anchor);
                Ok(())
            }
            Event::Alias(anchor) => {
                if self.wants_key() {
                    return Err(YamlErrorKind::KeyNotScalar);
                }
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(YamlErrorKind::SelfReference);
                };
                if self.open.len() + node.depth > MAX_DEPTH {
                    return Err(YamlErrorKind::TooDeep);
                }
                let (nodes, text) = (node.nodes, node.text);
                self.count(nodes, text)?;
                let mut node = self.anchors[&anchor].clone();
                node.lines.line = line;
                self.complete(node, 0);
                Ok(())
            }
            Event::SequenceStart(anchor, tag) => {
                expect_tag(tag.as_deref(), "seq")?;
                self.begin(anchor, line, OpenKind::List(Vec::new(), Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                expect_tag(tag.as_deref(), "map")?;
                let kind = OpenKind::Mapping {
                    values: Map::new(),
                    lines: BTreeMap::new(),
                    key: None,
                };
                self.begin(anchor, line, kind)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.end();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    /// Whether the next node is a key.
    fn wants_key(&self) -> bool {
        let inner = self.open.last().map(|open| &open.kind);
        matches!(inner, Some(OpenKind::Mapping { key: None, .. }))
    }

    fn key(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        line: usize,
    ) -> Result<(), YamlErrorKind> {
        if style == ScalarStyle::Plain && text == "<<" {
            return Err(YamlErrorKind::MergeKey);
        }
        self.count(0, text.len())?;
        let Some(open) = self.open.last_mut() else {
            return Ok(());
        };
        open.text += text.len();
        if let OpenKind::Mapping { lines, key, .. } = &mut open.kind {
            let first = lines.get(text.as_ref()).map(|lines| lines.line);
            *key = Some((text.into_owned(), line));
            if let (Some(first), Some((key, _))) = (first, key) {
                let key = key.clone();
                return Err(YamlErrorKind::DuplicateKey { key, first });
            }
        }
        Ok(())
    }

    fn begin(&mut self, anchor: usize, line: usize, kind: OpenKind) -> Result<(), YamlErrorKind> {
        if self.wants_key() {
            return Err(YamlErrorKind::KeyNotScalar);
        }
        if self.open.len() == MAX_DEPTH {
            return Err(YamlErrorKind::TooDeep);
        }
        self.count(1, 0)?;
        self.open.push(Open {
            anchor,
            line,
            nodes: 1,
            text: 0,
            depth: 1,
            kind,
        });
        Ok(())
    }

    fn end(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let (value, under) = match open.kind {
            OpenKind::List(values, lines) => (Value::Array(values), Under::List(lines)),
            OpenKind::Mapping { values, lines, .. } => {
                (Value::Object(values), Under::Mapping(lines))
            }
        };
        let node = Node {
            value,
            lines: Lines {
                line: open.line,
                under,
            },
            nodes: open.nodes,
            text: open.text,
            depth: open.depth,
        };
        self.complete(node, open.anchor);
    }

    /// Puts a node where it belongs: into what is open, or it is the document.
    fn complete(&mut self, mut node: Node, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            if !node.value.is_null() {
                self.documents.push(Document {
                    value: node.value,
                    lines: node.lines,
                });
            }
            return;
        };
        open.nodes += node.nodes;
        open.text += node.text;
        open.depth = open.depth.max(node.depth + 1);
        match &mut open.kind {
            OpenKind::List(values, lines) => {
                values.push(node.value);
                lines.push(node.lines);
            }
            OpenKind::Mapping { values, lines, key } => {
                if let Some((key, line)) = key.take() {
                    node.lines.line = line;
                    lines.insert(key.clone(), node.lines);
                    values.insert(key, node.value);
                }
            }
        }
    }

    fn count(&mut self, nodes: usize, text: usize) -> Result<(), YamlErrorKind> {
        self.nodes += nodes;
        self.text += text;
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            return Err(YamlErrorKind::TooMuch);
        }
        Ok(())
    }

    /// JSON Pointer to what is read now.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.kind {
                OpenKind::List(values, _) => {
                    path.push('/');
                    path.push_str(&values.len().to_string());
                }
                OpenKind::Mapping {
                    key: Some((key, _)),
                    ..
                } => {
                    path.push('/');
                    path.push_str(&escape(key));
                }
                OpenKind::Mapping { key: None, .. } => {}
            }
        }
        path
    }
}

/// Refuses a tag that is there and is not `!!name`.
fn expect_tag(tag: Option<&Tag>, name: &str) -> Result<(), YamlErrorKind> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == name) => {
            Err(YamlErrorKind::UnknownTag(tag.to_string()))
        }
        _ => Ok(()),
    }
}

/// What a scalar means: by its tag, else by its look if it is plain (YAML 1.2.2, section 10.3.2), else it is text.
fn scalar(
    text: Cow<'_, str>,
    style: ScalarStyle,
    tag: Option<&Tag>,
) -> Result<Value, YamlErrorKind> {
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain {
            plain(text)
        } else {
            Ok(Value::String(text.into_owned()))
        };
    };
    let is_text = (tag.handle.is_empty() && tag.suffix == "!")
        || (tag.is_yaml_core_schema() && tag.suffix == "str");
    if is_text {
        return Ok(Value::String(text.into_owned()));
    }
    if !tag.is_yaml_core_schema() {
        return Err(YamlErrorKind::UnknownTag(tag.to_string()));
    }
    let value = plain(text)?;
    let fits = match tag.suffix.as_str() {
        "null" => value.is_null(),
        "bool" => value.is_boolean(),
        "int" => value.is_i64() || value.is_u64(),
        "float" => value.is_number(),
        _ => return Err(YamlErrorKind::UnknownTag(tag.to_string())),
    };
    if fits {
        Ok(value)
    } else {
        Err(YamlErrorKind::TagMismatch(format!("!!{}", tag.suffix)))
    }
}

fn plain(text: Cow<'_, str>) -> Result<Value, YamlErrorKind> {
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    Ok(match number(&text)? {
        Some(number) => Value::Number(number),
        None => Value::String(text.into_owned()),
    })
}

/// The number that `text` looks like; `None` if it looks like none. Error: one that JSON cannot say.
fn number(text: &str) -> Result<Option<Number>, YamlErrorKind> {
    let said = |number: Option<Number>| match number {
        Some(number) => Ok(Some(number)),
        None => Err(YamlErrorKind::Number(text.to_owned())),
    };
    for (prefix, radix) in [("0o", 8), ("0x", 16)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
                return Ok(None);
            }
            return said(u64::from_str_radix(digits, radix).ok().map(Number::from));
        }
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return said(None);
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let looks_right = digits(whole)
        && digits(fraction.unwrap_or_default())
        && !(whole.is_empty() && fraction.is_none_or(str::is_empty))
        && exponent.is_none_or(|exponent| {
            let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent)
        });
    if !looks_right {
        return Ok(None);
    }
    // Rust reads what remains the same way, a leading '+' included.
    said(if fraction.is_none() && exponent.is_none() {
        let signed = text.parse::<i64>().ok().map(Number::from);
        signed.or_else(|| text.parse::<u64>().ok().map(Number::from))
    } else {
        text.parse::<f64>().ok().and_then(Number::from_f64)
    })
}

#[cfg(test)]
mod tests;
