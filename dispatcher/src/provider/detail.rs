//! What a provider said, made fit to be kept: one line, short, without addresses and contents.

use std::sync::Arc;

use super::Reason;

/// Most characters of a detail.
const MAX_CHARS: usize = 500;

/// Shortest text that is worth hiding: hiding every "a" would leave nothing to read.
const MIN_HIDDEN: usize = 4;

impl Reason {
    /// A reason in our own words, which are known to hold nothing private.
    pub(super) fn new(code: impl Into<Arc<str>>, detail: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            detail: cut(detail.into()),
        }
    }

    /// A reason in somebody else's words: without `hidden`, and without whatever looks like an address.
    pub(super) fn quoted(code: impl Into<Arc<str>>, said: &str, hidden: &[&str]) -> Self {
        Self {
            code: code.into(),
            detail: scrub(said, hidden),
        }
    }
}

/// `said` on one line, cut, without `hidden` and without mail addresses and URLs.
pub(super) fn scrub(said: &str, hidden: &[&str]) -> String {
    let mut text = said.to_owned();
    for secret in hidden.iter().filter(|s| s.len() >= MIN_HIDDEN) {
        text = replace_ignoring_case(&text, secret);
    }
    let mut line = String::with_capacity(text.len().min(MAX_CHARS));
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        if word.contains('@') || word.contains("%40") {
            line.push_str("(address)");
        } else if word.contains("://") {
            line.push_str("(URL)");
        } else {
            line.push_str(word);
        }
        if line.len() > MAX_CHARS * 4 {
            break;
        }
    }
    cut(line)
}

/// `text` with every `part` taken out, in whatever case (servers turn addresses into lower case).
fn replace_ignoring_case(text: &str, part: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        if rest
            .get(..part.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(part))
        {
            kept.push('…');
            rest = &rest[part.len()..];
            continue;
        }
        let mut chars = rest.chars();
        kept.extend(chars.next());
        rest = chars.as_str();
    }
    kept
}

fn cut(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(MAX_CHARS) {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_urls_and_what_is_named_do_not_survive() {
        let said = "550 5.1.1 <Alice@Shop.example>:\r\n user ALICE unknown, see (https://help.example/?u=alice) code pa55word";
        assert_eq!(
            scrub(said, &["alice@shop.example", "pa55word"]),
            "550 5.1.1 <…>: user ALICE unknown, see (URL) code …"
        );
        assert_eq!(
            scrub("to bob%40x.example or bob@x.example", &[]),
            "to (address) or (address)"
        );
    }

    #[test]
    fn a_detail_is_one_line_of_at_most_500_characters() {
        let detail = scrub(&"ü\n".repeat(5_000), &[]);
        assert_eq!(detail.chars().count(), 500);
        assert!(!detail.contains('\n'));
    }
}
