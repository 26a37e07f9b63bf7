//! What arrived: the last mails and webhooks, in memory.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use mail_parser::{Addr, MessageParser};
use serde::Serialize;
use tokio::sync::watch;

/// Mails and webhooks that are kept, each: older ones make way.
const KEPT: usize = 200;

/// A mail that arrived.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mail {
    /// Its number, from 1.
    pub number: u64,
    /// When it arrived.
    pub at: Timestamp,
    /// Whom the envelope named.
    pub recipients: Vec<String>,
    /// Its `From`.
    pub from: String,
    /// Its `To`.
    pub to: String,
    /// Its subject.
    pub subject: String,
    /// Its HTML; `None` if it has none.
    pub html: Option<String>,
    /// Its plain text.
    pub text: String,
    /// Its header fields as they came, unfolded.
    pub headers: Vec<(String, String)>,
    /// All of it, as it came.
    pub source: String,
}

impl Mail {
    /// Takes a message apart. What is no mail at all is shown by its source alone.
    fn read(number: u64, recipients: Vec<String>, bytes: &[u8]) -> Self {
        let message = MessageParser::default().parse(bytes).unwrap_or_default();
        let addresses = |addresses: Option<&mail_parser::Address<'_>>| {
            let all = addresses.into_iter().flat_map(mail_parser::Address::iter);
            all.map(written).collect::<Vec<_>>().join(", ")
        };
        // Without a part of its own a parser makes HTML from text: only what was sent is shown.
        let html = message
            .html_bodies()
            .find(|part| part.is_text_html())
            .and_then(|part| part.text_contents());
        Self {
            number,
            at: Timestamp::now(),
            recipients,
            from: addresses(message.from()),
            to: addresses(message.to()),
            subject: message.subject().unwrap_or("(no subject)").to_owned(),
            html: html.map(str::to_owned),
            text: message.body_text(0).unwrap_or_default().into_owned(),
            headers: message
                .headers_raw()
                .map(|(name, value)| {
                    let value: Vec<_> = value.split_whitespace().collect();
                    (name.to_owned(), value.join(" "))
                })
                .collect(),
            source: String::from_utf8_lossy(bytes).into_owned(),
        }
    }
}

fn written(address: &Addr<'_>) -> String {
    let mail = address.address().unwrap_or_default();
    match address.name() {
        Some(name) => format!("{name} <{mail}>"),
        None => mail.to_owned(),
    }
}

/// A webhook that arrived.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Its number, from 1.
    pub number: u64,
    /// When it arrived.
    pub at: Timestamp,
    /// Its `webhook-id`: the same for every repeat.
    pub id: String,
    /// Whether it is from who it says: `signature verified`, `unsigned`, or what is wrong.
    pub signature: String,
    /// Its header fields.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

/// The last mails and webhooks.
#[derive(Debug)]
pub struct Arrived {
    kept: Mutex<Kept>,
    /// Counts what has arrived.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    mails: VecDeque<Mail>,
    webhooks: VecDeque<Webhook>,
}

impl Arrived {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            kept: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A mail arrived.
    pub fn mail(&self, recipients: Vec<String>, bytes: &[u8]) {
        let mut kept = self.kept();
        let number = kept.mails.back().map_or(1, |mail| mail.number + 1);
        if kept.mails.len() == KEPT {
            kept.mails.pop_front();
        }
        kept.mails.push_back(Mail::read(number, recipients, bytes));
        drop(kept);
        self.changes.send_modify(|count| *count += 1);
    }

    /// A webhook arrived; its number is given here.
    pub fn webhook(&self, webhook: Webhook) {
        let mut kept = self.kept();
        let number = kept.webhooks.back().map_or(1, |last| last.number + 1);
        if kept.webhooks.len() == KEPT {
            kept.webhooks.pop_front();
        }
        kept.webhooks.push_back(Webhook { number, ..webhook });
        drop(kept);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The mails, the newest first.
    pub fn mails(&self) -> Vec<Mail> {
        self.kept().mails.iter().rev().cloned().collect()
    }

    /// One mail.
    pub fn mail_numbered(&self, number: u64) -> Option<Mail> {
        let kept = self.kept();
        kept.mails
            .iter()
            .find(|mail| mail.number == number)
            .cloned()
    }

    /// The webhooks, the newest first.
    pub fn webhooks(&self) -> Vec<Webhook> {
        self.kept().webhooks.iter().rev().cloned().collect()
    }

    /// Tells of whatever arrives.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIL: &str = "From: Shop <orders@shop.example>\r\nTo: jiwoo@customer.example\r\n\
        Subject: =?utf-8?B?7KO866y4?=\r\nX-Order: A-1\r\n and more\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/alternative; boundary=b\r\n\r\n\
        --b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nHello\r\n\
        --b\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
        <p>caf=C3=A9</p>\r\n--b--\r\n";

    #[test]
    fn a_mail_is_shown_as_its_reader_would_see_it() {
        let mail = Mail::read(
            1,
            vec!["jiwoo@customer.example".to_owned()],
            MAIL.as_bytes(),
        );
        assert_eq!(mail.subject, "주문");
        assert_eq!(mail.from, "Shop <orders@shop.example>");
        assert_eq!(mail.html.as_deref().map(str::trim), Some("<p>café</p>"));
        assert_eq!(mail.text.trim(), "Hello");
        let field = ("X-Order".to_owned(), "A-1 and more".to_owned());
        assert!(mail.headers.contains(&field), "{:?}", mail.headers);
    }

    #[test]
    fn a_mail_without_html_has_none() {
        let mail = Mail::read(1, vec![], b"Subject: x\r\n\r\nonly text\r\n");
        assert_eq!(mail.html, None);
        assert_eq!(mail.text.trim(), "only text");
    }

    #[test]
    fn the_oldest_make_way_and_numbers_are_never_given_twice() {
        let arrived = Arrived::new();
        for _ in 0..KEPT + 3 {
            arrived.mail(vec![], b"Subject: x\r\n\r\n");
        }
        let mails = arrived.mails();
        assert_eq!(mails.len(), KEPT);
        assert_eq!(mails[0].number as usize, KEPT + 3);
        assert!(arrived.mail_numbered(3).is_none() && arrived.mail_numbered(4).is_some());
        assert_eq!(*arrived.changes().borrow() as usize, KEPT + 3);
    }
}
