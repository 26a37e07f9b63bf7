//! A mail server that takes everything (RFC 5321), and shows how failures are dealt with.
//!
//! A recipient whose local part begins with `busy` is refused for the moment, the first time; one whose local part
//! begins with `gone` for good.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::arrived::Arrived;

/// Connections at a time; more wait.
const CONNECTIONS: usize = 128;

/// Longest line of a command, beyond RFC 5321's 512 for addresses in UTF-8.
const LONGEST_COMMAND: u64 = 4096;

/// Longest message.
const LONGEST_MESSAGE: u64 = 25 * 1024 * 1024;

/// Most recipients of a message.
const MOST_RECIPIENTS: usize = 100;

/// A client that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// Most recipients that are remembered as having been refused once.
const REMEMBERED: usize = 10_000;

/// A mail server.
#[derive(Debug)]
pub struct MailServer {
    arrived: Arc<Arrived>,
    /// Recipients that were told to come again.
    put_off: Mutex<HashSet<String>>,
}

/// What happens to the rest of a conversation.
enum Next {
    Go,
    Quit,
}

impl MailServer {
    /// A server that keeps what it gets in `arrived`.
    pub fn new(arrived: Arc<Arrived>) -> Self {
        Self {
            arrived,
            put_off: Mutex::default(),
        }
    }

    /// Takes mail for ever.
    pub async fn serve(self, listener: TcpListener) {
        let server = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let (reader, writer) = stream.into_split();
                // A client that hangs up is no event here.
                let _ = server.converse(BufReader::new(reader), writer).await;
                drop(place);
            });
        }
    }

    /// One conversation, until the client quits or hangs up.
    async fn converse(
        &self,
        mut reader: impl AsyncBufRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut envelope = Envelope::default();
        reply(&mut writer, "220 mail.customer.example takes everything").await?;
        loop {
            let Ok(line) = timeout(SILENCE, line(&mut reader, LONGEST_COMMAND)).await else {
                return reply(&mut writer, "421 4.4.2 nothing was said for a minute").await;
            };
            let Some(line) = line? else { return Ok(()) };
            if !line.ends_with(b"\n") {
                return reply(&mut writer, "500 5.5.2 the line is too long").await;
            }
            let line = String::from_utf8_lossy(&line);
            match self
                .command(line.trim_end(), &mut envelope, &mut reader, &mut writer)
                .await?
            {
                Next::Go => {}
                Next::Quit => return Ok(()),
            }
        }
    }

    async fn command(
        &self,
        line: &str,
        envelope: &mut Envelope,
        reader: &mut (impl AsyncBufRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Next> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                *envelope = Envelope::default();
                reply(writer, "250-mail.customer.example").await?;
                for extension in ["PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"] {
                    reply(writer, &format!("250-{extension}")).await?;
                }
                format!("250 SIZE {LONGEST_MESSAGE}")
            }
            "HELO" => {
                *envelope = Envelope::default();
                "250 mail.customer.example".to_owned()
            }
            "MAIL" => match path(rest, "FROM:") {
                Some(_) if envelope.is_open => "503 5.5.1 a message is under way".to_owned(),
                Some(_) => {
                    *envelope = Envelope {
                        is_open: true,
                        recipients: Vec::new(),
                    };
                    "250 2.1.0 ok".to_owned()
                }
                None => "501 5.5.4 MAIL FROM:<address> is expected".to_owned(),
            },
            "RCPT" => match path(rest, "TO:") {
                Some(address) if !address.is_empty() => {
                    self.recipient(address, envelope).to_owned()
                }
                _ => "501 5.5.4 RCPT TO:<address> is expected".to_owned(),
            },
            "DATA" if envelope.recipients.is_empty() => "503 5.5.1 nobody is to get it".to_owned(),
            "DATA" => {
                reply(writer, "354 end with a dot on a line of its own").await?;
                let Ok(message) = timeout(SILENCE, message(reader)).await else {
                    return Ok(Next::Quit);
                };
                let Some(message) = message? else {
                    return Ok(Next::Quit);
                };
                let recipients = std::mem::take(envelope).recipients;
                match message {
                    Message::Whole(bytes) => {
                        self.arrived.mail(recipients, &bytes);
                        "250 2.0.0 taken".to_owned()
                    }
                    Message::TooLong => "552 5.3.4 the message is too long".to_owned(),
                }
            }
            "RSET" => {
                *envelope = Envelope::default();
                "250 2.0.0 ok".to_owned()
            }
            "NOOP" => "250 2.0.0 ok".to_owned(),
            "VRFY" => "252 2.0.0 send some mail and see".to_owned(),
            "QUIT" => {
                reply(writer, "221 2.0.0 bye").await?;
                return Ok(Next::Quit);
            }
            _ => "502 5.5.1 this is not spoken here".to_owned(),
        };
        reply(writer, &answer).await?;
        Ok(Next::Go)
    }

    fn recipient(&self, address: &str, envelope: &mut Envelope) -> &'static str {
        if !envelope.is_open {
            return "503 5.5.1 MAIL FROM comes first";
        }
        if envelope.recipients.len() == MOST_RECIPIENTS {
            return "452 4.5.3 too many recipients";
        }
        if address.starts_with("gone") {
            return "550 5.1.1 there is no such mailbox";
        }
        if address.starts_with("busy") {
            let mut put_off = self.put_off.lock().unwrap_or_else(PoisonError::into_inner);
            if put_off.len() < REMEMBERED && put_off.insert(address.to_owned()) {
                return "451 4.3.2 busy, come again";
            }
        }
        envelope.recipients.push(address.to_owned());
        "250 2.1.5 ok"
    }
}

/// What was said of a message before its content.
#[derive(Debug, Default)]
struct Envelope {
    is_open: bool,
    recipients: Vec<String>,
}

/// A message's content.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Whole(Vec<u8>),
    TooLong,
}

async fn reply(writer: &mut (impl AsyncWrite + Unpin), line: &str) -> io::Result<()> {
    writer.write_all(format!("{line}\r\n").as_bytes()).await
}

/// The next line with its end, or its first `longest` bytes; `None`: the client hung up.
async fn line(
    reader: &mut (impl AsyncBufRead + Unpin),
    longest: u64,
) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(longest).read_until(b'\n', &mut line).await?;
    Ok((!line.is_empty()).then_some(line))
}

/// The address in `FROM:<address> …`; `None`: there is none. The empty one is that of bounces.
fn path<'a>(text: &'a str, keyword: &str) -> Option<&'a str> {
    let head = text.get(..keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let text = text[keyword.len()..].trim_start().strip_prefix('<')?;
    let (address, _) = text.split_once('>')?;
    Some(address)
}

/// Reads up to the line with a dot alone, and takes the dots away that were put before others (RFC 5321, 4.5.2).
/// `None`: the client hung up first.
async fn message(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Message>> {
    let mut bytes = Vec::new();
    let mut is_whole = true;
    // Whether the next piece begins a line, and the line before it ended with CR LF.
    let mut begins = true;
    while let Some(piece) = line(reader, LONGEST_COMMAND).await? {
        if begins && piece == b".\r\n" {
            return Ok(Some(if is_whole {
                Message::Whole(bytes)
            } else {
                Message::TooLong
            }));
        }
        let text = match piece.strip_prefix(b".") {
            Some(rest) if begins => rest,
            _ => &piece[..],
        };
        if bytes.len() as u64 + text.len() as u64 <= LONGEST_MESSAGE {
            bytes.extend_from_slice(text);
        } else {
            is_whole = false;
        }
        begins = piece.ends_with(b"\r\n");
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn conversation(server: &MailServer, said: &str) -> Vec<String> {
        let mut answers = Vec::new();
        server
            .converse(said.as_bytes(), &mut answers)
            .await
            .unwrap();
        let answers = String::from_utf8(answers).unwrap();
        answers.lines().map(str::to_owned).collect()
    }

    fn codes(answers: &[String]) -> Vec<&str> {
        answers.iter().map(|answer| &answer[..3]).collect()
    }

    #[tokio::test]
    async fn a_mail_arrives_as_it_was_written() {
        let arrived = Arc::new(Arrived::new());
        let server = MailServer::new(Arc::clone(&arrived));
        let answers = conversation(
            &server,
            "EHLO me\r\nMAIL FROM:<a@b.example> BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\nDATA\r\n\
             Subject: x\r\n\r\n..one\r\n.\ntwo\r\n.\r\nQUIT\r\n",
        )
        .await;
        assert_eq!(
            codes(&answers)[7..],
            ["250", "250", "354", "250", "221"],
            "{answers:?}"
        );
        let mail = arrived.mail_numbered(1).unwrap();
        assert_eq!(mail.recipients, ["c@d.example"]);
        assert_eq!(mail.source, "Subject: x\r\n\r\n.one\r\n\ntwo\r\n");
    }

    #[tokio::test]
    async fn a_busy_recipient_is_put_off_once_and_a_gone_one_always() {
        let server = MailServer::new(Arc::new(Arrived::new()));
        let said = "MAIL FROM:<>\r\nRCPT TO:<busy-1@d.example>\r\nRCPT TO:<gone@d.example>\r\n";
        assert_eq!(
            codes(&conversation(&server, said).await),
            ["220", "250", "451", "550"]
        );
        assert_eq!(
            codes(&conversation(&server, said).await),
            ["220", "250", "250", "550"]
        );
    }

    #[tokio::test]
    async fn what_is_out_of_order_or_unknown_is_refused() {
        let server = MailServer::new(Arc::new(Arrived::new()));
        let said = "DATA\r\nRCPT TO:<a@b.example>\r\nMAIL TO:<a@b.example>\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\nHACK\r\n";
        let answers = conversation(&server, said).await;
        assert_eq!(
            codes(&answers),
            ["220", "503", "503", "501", "250", "503", "502"]
        );
    }

    #[tokio::test]
    async fn a_message_that_breaks_off_does_not_arrive() {
        let arrived = Arc::new(Arrived::new());
        let server = MailServer::new(Arc::clone(&arrived));
        let said = "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nSubject: x\r\n";
        conversation(&server, said).await;
        assert!(arrived.mails().is_empty());
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let server = MailServer::new(Arc::new(Arrived::new()));
        let answers = conversation(&server, &"x".repeat(10_000)).await;
        assert_eq!(codes(&answers), ["220", "500"]);
    }

    #[tokio::test]
    async fn a_long_message_is_read_to_its_end_and_refused() {
        let arrived = Arc::new(Arrived::new());
        let server = MailServer::new(Arc::clone(&arrived));
        let line = format!("{}\r\n", "x".repeat(998));
        let lines = LONGEST_MESSAGE as usize / line.len() + 2;
        let said = format!(
            "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n{}.\r\nNOOP\r\n",
            line.repeat(lines)
        );
        let answers = conversation(&server, &said).await;
        assert_eq!(codes(&answers), ["220", "250", "250", "354", "552", "250"]);
        assert!(arrived.mails().is_empty());
    }
}
