//! HTML as plain text, for the readers of mail that show no HTML.

/// The width that text is wrapped at, in columns (RFC 5322, section 2.1.1, recommends at most 78).
const WIDTH: usize = 78;

/// The most tags that are parsed into a tree: the time that takes grows with the square of how deep they nest.
const MOST_TAGS: usize = 4_000;

/// The most elements that a tree may come to. An HTML parser opens the formatting elements that were left open again in
/// each paragraph (HTML standard, 13.2.4.3), so that a page may have as many as its tags times these.
const MOST_ELEMENTS: usize = 500_000;

/// What an HTML parser opens again in each paragraph.
const FORMATTING: [&str; 14] = [
    "a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
];

/// What begins on a line of its own.
const BLOCKS: [&str; 24] = [
    "address",
    "article",
    "blockquote",
    "br",
    "dd",
    "div",
    "dl",
    "dt",
    "footer",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "ol",
    "p",
    "section",
    "table",
    "tr",
    "ul",
];

/// The text of a page, links as footnotes, tables cell by cell: in mail they are layout.
///
/// A page that would take too long, with thousands of tags, is stripped of them instead: time is linear then.
pub(super) fn from_html(html: &str) -> String {
    if is_modest(html) {
        let text = html2text::config::plain()
            .allow_width_overflow()
            .raw_mode(true)
            .string_from_read(html.as_bytes(), WIDTH);
        if let Ok(text) = text {
            return text;
        }
    }
    strip(html)
}

/// Whether a parser makes no more than [`MOST_ELEMENTS`] of it, whatever it is.
fn is_modest(html: &str) -> bool {
    let mut tags = 0;
    let mut formatting = 1;
    for after in html.split('<').skip(1) {
        tags += 1;
        if FORMATTING.iter().any(|name| is_tag(after, name)) {
            formatting += 1;
        }
        if tags > MOST_TAGS || tags * formatting > MOST_ELEMENTS {
            return false;
        }
    }
    true
}

/// Whether `after`, what follows a `<`, begins a tag of that name.
fn is_tag(after: &str, name: &str) -> bool {
    after
        .get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name))
        && !after[name.len()..].starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The text between the tags, a line for each block.
fn strip(html: &str) -> String {
    let mut text = String::with_capacity(html.len() / 4);
    let mut hidden = None;
    for (index, part) in html.split('<').enumerate() {
        let (tag, words) = match part.split_once('>') {
            Some((tag, words)) if index > 0 => (tag, words),
            _ if index > 0 => continue,
            _ => ("", part),
        };
        let name = tag.trim_start_matches('/');
        match hidden {
            Some(element) if tag.starts_with('/') && is_tag(name, element) => hidden = None,
            Some(_) => continue,
            None => {
                hidden = ["style", "script", "title"]
                    .into_iter()
                    .find(|hides| is_tag(tag, hides));
            }
        }
        if hidden.is_some() {
            continue;
        }
        if BLOCKS.iter().any(|block| is_tag(name, block))
            && !text.is_empty()
            && !text.ends_with('\n')
        {
            text.push('\n');
        }
        for word in words.split_whitespace() {
            if !text.is_empty() && !text.ends_with(['\n', ' ']) {
                text.push(' ');
            }
            decode(word, &mut text);
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Writes a word with its character references replaced by what they stand for, the usual ones.
fn decode(word: &str, text: &mut String) {
    let mut parts = word.split('&');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let reference = part.split_once(';').and_then(|(name, rest)| {
            let character = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                "nbsp" => ' ',
                _ => {
                    let number = name.strip_prefix('#')?;
                    let code = match number.strip_prefix(['x', 'X']) {
                        Some(digits) => u32::from_str_radix(digits, 16),
                        None => number.parse(),
                    };
                    char::from_u32(code.ok()?).filter(|character| !character.is_control())?
                }
            };
            Some((character, rest))
        });
        if let Some((character, rest)) = reference {
            text.push(character);
            text.push_str(rest);
        } else {
            text.push('&');
            text.push_str(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_mail_reads_as_text() {
        let html = "<html><head><title>T</title><style>p {color: red}</style></head><body>\
            <table width=600><tr><td><table><tr><td><h1>Hello A &amp; B</h1></td></tr>\
            <tr><td><p>Your <a href=\"https://shop.example/o/7\">order</a> is on its way.</p>\
            <ul><li>one</li><li>two</li></ul></td></tr></table></td></tr></table></body></html>";
        let text = from_html(html);
        for words in [
            "Hello A & B",
            "https://shop.example/o/7",
            "is on its way.",
            "* one",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        for markup in ["color", "<", "──", "|"] {
            assert!(!text.contains(markup), "{markup:?} is in\n{text}");
        }
    }

    #[test]
    fn a_long_line_is_wrapped() {
        let text = from_html(&format!("<p>{}</p>", "word ".repeat(200)));
        assert!(text.lines().count() > 10);
        assert!(
            text.lines().all(|line| line.chars().count() <= 78),
            "{text}"
        );
    }

    #[test]
    fn a_page_of_too_many_tags_is_stripped() {
        let row = "<tr><td>A &amp; B&#33;</td><td>x < y</td></tr>";
        let html = format!(
            "<style>td {{}}</style><p>Hi</p><table>{}</table>",
            row.repeat(2_000)
        );
        let text = from_html(&html);
        assert!(text.starts_with("Hi\nA & B! x\n"), "{}", &text[..40]);
        assert_eq!(text.lines().count(), 2_001);
    }

    #[test]
    fn html_that_nests_without_end_is_text_within_seconds() {
        let distinct: Vec<_> = (0..2_000).map(|n| format!("<b id={n}>")).collect();
        let again = "<p>".repeat(2_000);
        let mut pages = vec![
            distinct.concat() + &again,
            distinct[..150].concat() + &again,
        ];
        for piece in [
            "<div>",
            "<table><tr><td>",
            "<ul><li>",
            "<blockquote>",
            "<b>",
            "</p>",
            "<a href=x>",
            "<p>x",
            "<",
        ] {
            for tags in [MOST_TAGS, 100_000] {
                let count = piece.matches('<').count();
                pages.push(piece.repeat(tags / count));
            }
        }
        for html in pages {
            let begun = Instant::now();
            let text = from_html(&html);
            let took = begun.elapsed();
            assert!(
                took.as_secs() < 30 && text.len() < 2 * html.len(),
                "{}: {took:?}",
                &html[..20]
            );
        }
    }
}
