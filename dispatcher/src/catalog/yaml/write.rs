//! JSON becomes YAML as people write it.

use std::fmt::Write as _;

use serde_json::Value;

/// Writes a value as block YAML that [`super::read`] reads back as the same value.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => mapping(&mut out, members, 0),
        Value::Array(items) if !items.is_empty() => list(&mut out, items, 0),
        scalar => {
            flow(&mut out, scalar, 0);
        }
    }
    out
}

fn mapping(out: &mut String, members: &serde_json::Map<String, Value>, indent: usize) {
    for (index, (key, value)) in members.iter().enumerate() {
        if index > 0 || !out.ends_with("- ") {
            pad(out, indent);
        }
        text(out, key);
        out.push(':');
        under(out, value, indent);
    }
}

fn list(out: &mut String, items: &[Value], indent: usize) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 || !out.ends_with("- ") {
            pad(out, indent);
        }
        out.push_str("- ");
        match item {
            Value::Object(members) if !members.is_empty() => mapping(out, members, indent + 2),
            Value::Array(items) if !items.is_empty() => list(out, items, indent + 2),
            scalar => flow(out, scalar, indent),
        }
    }
}

/// What follows a key and its colon.
fn under(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            out.push('\n');
            mapping(out, members, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            list(out, items, indent);
        }
        scalar => {
            out.push(' ');
            flow(out, scalar, indent);
        }
    }
}

/// A scalar, or something empty, and the end of its line.
fn flow(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(words) if suits_a_block(words) => {
            out.push_str(if words.ends_with('\n') { "|" } else { "|-" });
            for line in words.strip_suffix('\n').unwrap_or(words).split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    pad(out, indent + 2);
                    out.push_str(line);
                }
            }
        }
        Value::String(words) => text(out, words),
        // Numbers, true, false, null, [] and {} are the same in both.
        other => out.push_str(&other.to_string()),
    }
    out.push('\n');
}

/// Whether a text of several lines can stand as it is.
fn suits_a_block(words: &str) -> bool {
    let body = words.strip_suffix('\n').unwrap_or(words);
    words.contains('\n')
        && !body.starts_with([' ', '\n', '\t'])
        && !body.ends_with('\n')
        && !body.is_empty()
        && words.chars().all(|c| c == '\n' || is_plain(c))
}

/// Whether a character needs no escape anywhere.
fn is_plain(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// A text of one line: bare if it cannot be mistaken, else in quotes.
fn text(out: &mut String, words: &str) {
    let is_bare = words.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && words
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./@ ".contains(c))
        && !words.ends_with(' ')
        && !matches!(
            words.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if is_bare {
        out.push_str(words);
        return;
    }
    out.push('"');
    for c in words.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if is_plain(c) => out.push(c),
            c => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}
