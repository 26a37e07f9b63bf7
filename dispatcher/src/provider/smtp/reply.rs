//! What a mail server said, and what that means.

use std::fmt;

use super::session::Stage;
use crate::provider::{Outcome, Reason};

/// An enhanced status code (RFC 3463): class, subject, detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A whole reply, possibly of several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its three digits: 200 to 599.
    pub code: u16,
    /// Its enhanced status code; `None` if it has none that fits the code.
    pub enhanced: Option<Enhanced>,
    /// Its lines without codes.
    pub lines: Vec<String>,
}

/// One line of a reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The three digits.
    pub code: u16,
    /// Whether no further line belongs to the reply.
    pub last: bool,
    /// What follows.
    pub text: &'a str,
}

impl<'a> Line<'a> {
    /// Reads a line without its line break (RFC 5321, section 4.2); `None` if it is no reply's.
    pub fn parse(line: &'a str) -> Option<Self> {
        let digits = line.get(..3)?;
        if !digits.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let code = digits.parse().ok().filter(|c| (200..600).contains(c))?;
        let (last, text) = match line.as_bytes().get(3) {
            None => (true, ""),
            Some(b' ') => (true, &line[4..]),
            Some(b'-') => (false, &line[4..]),
            Some(_) => return None,
        };
        Some(Self { code, last, text })
    }
}

impl Reply {
    /// A reply of these lines; the enhanced status code is the first line's.
    pub fn new(code: u16, lines: Vec<String>) -> Self {
        let enhanced = lines.first().and_then(|line| enhanced(code, line));
        Self {
            code,
            enhanced,
            lines,
        }
    }

    /// Whether the server did, or goes on with, what it was asked.
    pub fn is_positive(&self) -> bool {
        self.code < 400
    }

    /// Its name as a reason: `smtp-5.1.1`, or `smtp-550` if the server has no enhanced codes.
    pub fn reason_code(&self) -> String {
        match self.enhanced {
            Some(enhanced) => format!("smtp-{enhanced}"),
            None => format!("smtp-{}", self.code),
        }
    }

    /// All of it on one line.
    pub fn text(&self) -> String {
        format!("{} {}", self.code, self.lines.join(" "))
    }

    /// What the server calls the message it took, from the words that servers commonly use; `None` if it does not say.
    pub fn queue_id(&self) -> Option<String> {
        let line = self.lines.last()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let id = words
            .iter()
            .position(|w| w.eq_ignore_ascii_case("as") || w.to_ascii_lowercase().starts_with("id="))
            .map_or_else(
                // Amazon SES: "Ok 0102018…".
                || match words.as_slice() {
                    [ok, id] if ok.eq_ignore_ascii_case("ok") => Some(*id),
                    _ => None,
                },
                |at| match words[at].split_once('=') {
                    Some((_, id)) => Some(id),
                    None => words.get(at + 1).copied(),
                },
            )?;
        let id = id.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        (!id.is_empty() && id.len() <= 128).then(|| id.to_owned())
    }

    /// What this refusal means for the delivery (RFC 3463, RFC 5248, RFC 7505), with `hidden` kept out of the reason.
    ///
    /// A refusal for good ends the delivery only if it is about this recipient or this message. One that is about us
    /// (a password, a relay's permission, a sender that it does not know, a reputation) is transient whatever its
    /// first digit says: a wrong password must not kill a customer's mail.
    pub fn refusal(&self, stage: Stage, hidden: &[&str]) -> Outcome {
        let reason = Reason::quoted(self.reason_code(), &self.text(), hidden);
        if self.throttles() {
            return Outcome::Throttled {
                reason,
                retry_after: None,
            };
        }
        if self.code < 500 || self.concerns_us(stage) {
            return Outcome::Transient(reason);
        }
        Outcome::Permanent {
            reason,
            address_gone: stage == Stage::Recipient && self.address_gone(),
        }
    }

    /// Whether it asks to slow down. Greylisting looks alike and is not: it concerns one recipient.
    fn throttles(&self) -> bool {
        let text = self.text().to_ascii_lowercase();
        match (self.code, self.enhanced) {
            (421 | 451, Some(Enhanced(4, 7, _))) => {
                !text.contains("greylist") && !text.contains("graylist")
            }
            // Amazon SES.
            (454, _) => text.contains("throttling"),
            _ => false,
        }
    }

    /// Whether a refusal for good is about us rather than about this recipient or this message.
    fn concerns_us(&self, stage: Stage) -> bool {
        match (self.code, self.enhanced) {
            // Too large: this message's matter, although it is said to the sender.
            (552, None) | (_, Some(Enhanced(5, 3, 4))) => stage < Stage::Sender,
            // Authentication required, too weak or failed; SPF, DKIM, DMARC, reverse DNS; a server that takes no mail.
            (530 | 534 | 535 | 538, _)
            | (_, Some(Enhanced(5, 7, 8 | 9 | 11 | 20..=29) | Enhanced(5, 3, 2))) => true,
            // Not allowed to relay, or a network of bad repute. Said of a content it is about the content.
            (_, Some(Enhanced(5, 7, 0 | 1))) => stage < Stage::Content,
            (_, None) if stage == Stage::Recipient => {
                let text = self.text().to_ascii_lowercase();
                text.contains("relay") || text.contains("blocked using")
            }
            _ => stage < Stage::Recipient,
        }
    }

    /// Whether the address itself is gone, so that no further mail should be tried.
    ///
    /// Not 5.1.2 and 5.4.4 (a domain without DNS today may have it tomorrow), nor a bare 550, which may be a policy.
    fn address_gone(&self) -> bool {
        match self.enhanced {
            // No such mailbox; moved; the domain takes no mail at all (null MX); the owner has changed (RFC 7293).
            Some(Enhanced(5, 1, 1 | 6 | 10) | Enhanced(5, 7, 17 | 18)) => true,
            // Disabled. Some say it of a mailbox that gets too much at once.
            Some(Enhanced(5, 2, 1)) => !self.text().to_ascii_lowercase().contains(" rate"),
            _ => false,
        }
    }
}

/// The enhanced status code at the head of a reply's text, if its class fits the reply's code (RFC 2034, section 4).
///
/// Only numbers that can be registered count, so that a server cannot make up metrics' labels without end.
fn enhanced(code: u16, text: &str) -> Option<Enhanced> {
    let mut numbers = text.split_whitespace().next()?.split('.');
    let (class, subject, detail) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let found = Enhanced(
        class.parse().ok()?,
        subject.parse().ok()?,
        detail.parse().ok()?,
    );
    let fits = u16::from(found.0) == code / 100 && found.1 <= 7 && found.2 <= 99;
    (fits && numbers.next().is_none()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        let line = Line::parse(text).unwrap();
        Reply::new(line.code, vec![line.text.to_owned()])
    }

    #[derive(Debug, PartialEq)]
    enum Meaning {
        Transient,
        Throttled,
        Permanent,
        Gone,
    }
    use Meaning::{Gone, Permanent, Throttled, Transient};

    fn meaning(stage: Stage, text: &str) -> Meaning {
        match reply(text).refusal(stage, &[]) {
            Outcome::Transient(_) => Transient,
            Outcome::Throttled { .. } => Throttled,
            Outcome::Permanent {
                address_gone: true, ..
            } => Gone,
            Outcome::Permanent { .. } => Permanent,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_means_what_its_codes_and_its_moment_say() {
        use Stage::{Auth, Content, Greeting, Recipient, Sender};
        for (stage, text, expected) in [
            (Recipient, "550 5.1.1 No such user", Gone),
            (Recipient, "550 5.1.6 Moved", Gone),
            (Recipient, "556 5.1.10 Null MX", Gone),
            (Recipient, "550 5.2.1 Mailbox disabled", Gone),
            (
                Recipient,
                "550 5.2.1 Receiving mail at a rate that",
                Permanent,
            ),
            (Recipient, "550 5.1.2 Domain not found", Permanent),
            (Recipient, "552 5.2.2 Mailbox full", Permanent),
            (Recipient, "550 No", Permanent),
            (Recipient, "553 5.1.3 Bad syntax", Permanent),
            (Recipient, "450 4.2.0 Greylisted", Transient),
            (Recipient, "451 4.7.1 Greylisting in action", Transient),
            (Recipient, "451 4.7.1 Too many messages", Throttled),
            (Greeting, "421 4.7.0 Too many connections", Throttled),
            (Auth, "454 Throttling failure: rate exceeded", Throttled),
            (Auth, "454 4.7.0 Temporary failure", Transient),
            (Recipient, "452 4.2.2 Over quota", Transient),
            (Greeting, "554 No service here", Transient),
            (Auth, "535 5.7.8 Bad credentials", Transient),
            (Auth, "535 No", Transient),
            (Sender, "530 5.7.0 Authentication required", Transient),
            (Sender, "550 5.7.1 Not your sender", Transient),
            (Sender, "552 5.3.4 Too large", Permanent),
            (Recipient, "530 5.7.0 STARTTLS first", Transient),
            (Recipient, "554 5.7.1 Relay access denied", Transient),
            (Recipient, "550 relaying denied", Transient),
            (Content, "554 5.7.1 Rejected as spam", Permanent),
            (Content, "550 5.7.26 Unauthenticated sender", Transient),
            (Content, "552 5.3.4 Too large", Permanent),
            (Content, "550 5.1.1 Said too late", Permanent),
            (Content, "554 Transaction failed", Permanent),
            (Content, "451 4.3.0 Try again", Transient),
        ] {
            assert_eq!(meaning(stage, text), expected, "{stage:?} {text}");
        }
    }

    #[test]
    fn the_reason_names_the_enhanced_code_only_if_it_is_one() {
        for (text, code) in [
            ("550 5.1.1 No", "smtp-5.1.1"),
            ("550 4.1.1 No", "smtp-550"),
            ("550 5.1 No", "smtp-550"),
            ("550 5.1.1.1 No", "smtp-550"),
            ("550 5.9.1 No", "smtp-550"),
            ("550 5.1.123 No", "smtp-550"),
            ("550", "smtp-550"),
        ] {
            assert_eq!(reply(text).reason_code(), code, "{text}");
        }
    }

    #[test]
    fn lines_that_are_no_replies_are_told() {
        for line in [
            "", "2", "25", "2x0 ok", "199 ok", "600 ok", "250_ok", "é50 ok", "+50 ok",
        ] {
            assert_eq!(Line::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_servers_name_for_a_message_is_found() {
        for (text, id) in [
            ("250 2.0.0 Ok: queued as 4F3B2A", Some("4F3B2A")),
            ("250 Ok 0102018f-abc-000000", Some("0102018f-abc-000000")),
            ("250 OK id=1rX2-0003", Some("1rX2-0003")),
            ("250 2.0.0 OK", None),
            ("250", None),
        ] {
            assert_eq!(reply(text).queue_id().as_deref(), id, "{text}");
        }
    }
}
