//! A delivery becomes a mail (RFC 5322).

use herald_crds::render::Rendered;
use lettre::Address;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, MultiPart, SinglePart};

use super::session::Mail;
use crate::clock;
use crate::message::Delivery;

/// Header fields that Herald sets, or that tell how a mail travelled, which nobody may claim.
const OWN_HEADERS: [&str; 16] = [
    "arc-seal",
    "authentication-results",
    "auto-submitted",
    "bcc",
    "cc",
    "date",
    "dkim-signature",
    "from",
    "message-id",
    "mime-version",
    "received",
    "reply-to",
    "return-path",
    "sender",
    "subject",
    "to",
];

/// A delivery that cannot become a mail. Its texts hold neither addresses nor content.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// The content is another medium's.
    #[error("the content is not a mail's")]
    MatchMedium,
    /// The endpoint is not a mail address.
    #[error("the recipient's address is not a mail address")]
    ParseRecipient,
    /// `replyTo` is not a mail address.
    #[error("replyTo is not a mail address")]
    ParseReplyTo,
    /// A header field that cannot be sent.
    #[error("header field {name:?} {reason}")]
    CheckHeader {
        /// Its name, cut.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The parts do not make a mail.
    #[error("the mail cannot be put together")]
    Build,
}

/// The mail of `delivery` from `from`, as it goes over the wire.
///
/// Its Message-ID is the same at each attempt of a round, so that a receiver can tell a repeat.
pub fn compose(from: &Mailbox, delivery: &Delivery) -> Result<Mail, ComposeError> {
    let Rendered::Email {
        subject,
        html,
        text,
        reply_to,
        headers,
    } = &delivery.content
    else {
        return Err(ComposeError::MatchMedium);
    };
    let to = parse(&delivery.endpoint).ok_or(ComposeError::ParseRecipient)?;
    let id = format!(
        "<{}.{}@{}>",
        delivery.id,
        delivery.round,
        from.email.domain()
    );
    let mut builder = Message::builder()
        .from(from.clone())
        .to(Mailbox::new(None, to.email.clone()))
        .subject(one_line(subject))
        .message_id(Some(id))
        .date(clock::now().into())
        .raw_header(field("Auto-Submitted", "auto-generated")?);
    if let Some(reply_to) = reply_to {
        builder = builder.reply_to(parse(reply_to).ok_or(ComposeError::ParseReplyTo)?);
    }
    for (name, value) in headers {
        let lower = name.to_ascii_lowercase();
        if OWN_HEADERS.contains(&lower.as_str())
            || lower.starts_with("content-")
            || lower.starts_with("resent-")
        {
            return Err(wrong(name, "is set by Herald"));
        }
        builder = builder.raw_header(field(name, value)?);
    }
    let text = with_crlf(text);
    let message = match html {
        Some(html) => builder.multipart(MultiPart::alternative_plain_html(text, with_crlf(html))),
        None => builder.singlepart(SinglePart::plain(text)),
    }
    .map_err(|_| ComposeError::Build)?;
    Ok(Mail {
        from: from.email.to_string(),
        to: to.email.to_string(),
        content: wire(&message.formatted()),
    })
}

/// Reads `Name <local@domain>` or `local@domain`, the domain in its ASCII form (RFC 5890); `None` if it is neither.
pub fn parse(text: &str) -> Option<Mailbox> {
    let mailbox: Mailbox = text.trim().parse().ok()?;
    if mailbox.email.domain().is_ascii() {
        return Some(mailbox);
    }
    let domain = idna::domain_to_ascii(mailbox.email.domain()).ok()?;
    let email = Address::new(mailbox.email.user(), domain).ok()?;
    Some(Mailbox::new(mailbox.name, email))
}

fn field(name: &str, value: &str) -> Result<HeaderValue, ComposeError> {
    let field = HeaderName::new_from_ascii(name.to_owned())
        .ok()
        .filter(|_| name.bytes().all(|c| c.is_ascii_graphic() && c != b':'))
        .ok_or_else(|| wrong(name, "has a name that mail does not allow"))?;
    Ok(HeaderValue::new(field, one_line(value)))
}

fn wrong(name: &str, reason: &'static str) -> ComposeError {
    ComposeError::CheckHeader {
        name: name.chars().take(40).collect(),
        reason,
    }
}

/// `text` on one line: what a parameter brings along must not begin another header field.
fn one_line(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.trim().to_owned();
    }
    text.split(char::is_control)
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `text` with every line break as CR LF; `lettre` would do it too, in a time that grows with the square of the lines.
fn with_crlf(text: &str) -> String {
    let mut lines = String::with_capacity(text.len() + text.len() / 32 + 8);
    let mut rest = text;
    while let Some(end) = rest.find(['\r', '\n']) {
        let (line, after) = rest.split_at(end);
        lines.push_str(line);
        lines.push_str("\r\n");
        rest = after.strip_prefix("\r\n").unwrap_or(&after[1..]);
    }
    lines.push_str(rest);
    lines
}

/// A mail as DATA wants it: every line break CR LF, every dot at the head of a line doubled, a dot alone at the end.
///
/// A CR or LF by itself becomes a line break: servers that disagree about it can be made to see two mails in one.
fn wire(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + message.len() / 32 + 8);
    let mut rest = message;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|c| matches!(c, b'\r' | b'\n'))
            .unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        if line.first() == Some(&b'.') {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
        wire.extend_from_slice(b"\r\n");
        rest = after
            .strip_prefix(b"\r\n")
            .or_else(|| after.get(1..))
            .unwrap_or_default();
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::fixtures::{delivery, mail};

    fn shop() -> Mailbox {
        parse("\"Shop für alle\" <orders@shop.example>").unwrap()
    }

    fn composed(content: Rendered) -> Result<String, ComposeError> {
        compose(&shop(), &delivery("alice@shop.example", content))
            .map(|mail| String::from_utf8(mail.content).unwrap())
    }

    fn with(change: impl FnOnce(&mut Rendered)) -> Rendered {
        let mut content = mail();
        change(&mut content);
        content
    }

    #[test]
    fn a_mail_has_the_header_fields_that_receivers_look_for() {
        let delivery = delivery("alice@shop.example", mail());
        let mail = compose(&shop(), &delivery).unwrap();
        assert_eq!(mail.from, "orders@shop.example");
        assert_eq!(mail.to, "alice@shop.example");
        let text = String::from_utf8(mail.content).unwrap();
        for line in [
            "Subject: On its way".to_owned(),
            "To: alice@shop.example".to_owned(),
            format!("Message-ID: <{}.0@shop.example>", delivery.id),
            "Auto-Submitted: auto-generated".to_owned(),
            "MIME-Version: 1.0".to_owned(),
        ] {
            assert!(text.contains(&format!("{line}\r\n")), "{line}\n{text}");
        }
        assert!(text.contains("\r\nDate: ") || text.starts_with("Date: "));
        assert!(text.contains("=?utf-8?"), "{text}");
        assert!(text.ends_with("\r\n.\r\n") && text.is_ascii());
    }

    #[test]
    fn html_and_text_are_alternatives() {
        let text = composed(with(|content| {
            if let Rendered::Email { html, .. } = content {
                *html = Some("<p>Your order</p>".to_owned());
            }
        }))
        .unwrap();
        assert!(text.contains("multipart/alternative"));
        let plain = text.find("text/plain").unwrap();
        assert!(plain < text.find("text/html").unwrap());
    }

    #[test]
    fn nothing_that_a_parameter_brings_begins_a_header_field_or_ends_the_mail() {
        let text = composed(with(|content| {
            if let Rendered::Email {
                subject,
                headers,
                text,
                ..
            } = content
            {
                *subject = "Hello\r\nBcc: eve@evil.example\r\n".to_owned();
                headers.insert("X-Order".to_owned(), "1\nX-Evil: 2".to_owned());
                *text = "one\n.\nQUIT\r.\r\n.two".to_owned();
            }
        }))
        .unwrap();
        assert!(text.contains("Subject: Hello Bcc: eve@evil.example\r\n"));
        assert!(text.contains("X-Order: 1 X-Evil: 2\r\n"));
        assert_eq!(text.matches("\r\n.\r\n").count(), 1, "{text}");
        assert!(text.ends_with("\r\n.\r\n"));
        assert!(text.contains("\r\n..\r\nQUIT\r\n..\r\n..two\r\n"), "{text}");
    }

    #[test]
    fn header_fields_that_are_ours_or_impossible_are_refused() {
        for (name, value) in [
            ("From", "eve@evil.example"),
            ("message-id", "<1@x>"),
            ("Content-Type", "text/evil"),
            ("Resent-To", "x"),
            ("X Order", "1"),
            ("X-Order:", "1"),
            ("", "1"),
            ("X-Ördér", "1"),
        ] {
            let refused = composed(with(|content| {
                if let Rendered::Email { headers, .. } = content {
                    headers.insert(name.to_owned(), value.to_owned());
                }
            }));
            assert!(
                matches!(refused, Err(ComposeError::CheckHeader { .. })),
                "{name}"
            );
        }
        let kept = composed(with(|content| {
            if let Rendered::Email { headers, .. } = content {
                headers.insert(
                    "List-Unsubscribe".to_owned(),
                    "<https://shop.example/u>".to_owned(),
                );
            }
        }));
        assert!(
            kept.unwrap()
                .contains("List-Unsubscribe: <https://shop.example/u>\r\n")
        );
    }

    #[test]
    fn an_international_domain_travels_in_its_ascii_form() {
        let mail = compose(&shop(), &delivery("jörg@bücher.example", mail())).unwrap();
        assert_eq!(mail.to, "jörg@xn--bcher-kva.example");
    }

    #[test]
    fn what_is_no_mail_is_told_without_repeating_it() {
        for endpoint in [
            "",
            "alice",
            "alice@",
            "@x",
            "a b@c.example",
            "a@b.example\r\nDATA",
        ] {
            let error = compose(&shop(), &delivery(endpoint, mail())).err().unwrap();
            assert_eq!(error, ComposeError::ParseRecipient, "{endpoint}");
        }
        let sms = Rendered::Sms {
            text: "hello".to_owned(),
        };
        assert_eq!(composed(sms), Err(ComposeError::MatchMedium));
    }
}
