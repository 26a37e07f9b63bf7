//! One connection to a mail server (RFC 5321), which knows at each moment how far it has come.
//!
//! Our own rather than `lettre`'s, whose connection does not say where a transaction failed, cannot be watched while it
//! is idle, and writes contents and passwords to its debug log. `lettre` composes the mails.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use herald_crds::SmtpTls;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
    ReadBuf,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::reply::{Line, Reply};
use crate::provider::credentials::Hidden;
use crate::provider::tls;

/// Longest line of a reply: four times what RFC 5321 allows.
const MAX_LINE: u64 = 2048;

/// Most lines of a reply.
const MAX_LINES: usize = 64;

/// How long one of several addresses may take to connect before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server that hung up may take to have said why: its words are on the way already.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// How far a conversation had come when the server refused; in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The server's first words.
    Greeting,
    /// EHLO.
    Hello,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Auth,
    /// RSET and MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA.
    Data,
    /// After the content.
    Content,
}

/// A conversation that did not come to its end.
#[derive(Debug)]
pub enum Failure {
    /// The server refused.
    Refused(Stage, Reply),
    /// The connection failed, or what came over it was not SMTP.
    Broken {
        /// The reason's code: `connect`, `tls`, `reset`, `protocol`…
        code: &'static str,
        /// What happened, in words that hold nothing private.
        detail: String,
    },
    /// The message cannot go through this server.
    Unfit {
        /// The reason's code.
        code: &'static str,
        /// Why, in words that hold nothing private.
        detail: &'static str,
    },
}

impl Failure {
    fn reset(error: &io::Error) -> Self {
        Self::Broken {
            code: if tls::is_tls(error) { "tls" } else { "reset" },
            detail: format!("the connection failed: {error}"),
        }
    }

    fn protocol(detail: &str) -> Self {
        Self::Broken {
            code: "protocol",
            detail: detail.to_owned(),
        }
    }

    /// Whether it may be the end of an old connection rather than about this message.
    pub fn is_hangup(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Refused(_, reply) => reply.code == 421,
            Self::Unfit { .. } => false,
        }
    }
}

/// How a connection is made, besides where to.
pub struct Opening<'a> {
    /// How it is protected.
    pub tls: SmtpTls,
    /// Whom it trusts; not used without TLS.
    pub trust: Option<Arc<ClientConfig>>,
    /// The name that the server's certificate must have.
    pub host: &'a str,
    /// User name and password; `None`: no authentication.
    pub login: Option<(Hidden, Hidden)>,
}

/// A mail as it goes over the wire.
pub struct Mail {
    /// Envelope sender.
    pub from: String,
    /// Envelope recipient.
    pub to: String,
    /// Its content with dots doubled and the final one at its end.
    pub content: Vec<u8>,
}

impl Mail {
    /// Whether an address has letters that only SMTPUTF8 (RFC 6531) carries.
    fn needs_utf8(&self) -> bool {
        !self.from.is_ascii() || !self.to.is_ascii()
    }
}

/// A byte stream, protected or not.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// What the server's EHLO offers.
#[derive(Debug, Clone, Default)]
struct Offers {
    start_tls: bool,
    pipelining: bool,
    utf8: bool,
    /// The better of the two that we can; `None`: neither.
    auth: Option<Mechanism>,
    /// Most bytes of a message, `usize::MAX` for any number; `None`: MAIL may not say how long the message is.
    size: Option<usize>,
}

/// How to authenticate (RFC 4616; LOGIN was never standardized and is what some offer alone).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mechanism {
    Login,
    Plain,
}

/// A connection on which mails can be sent, one after the other.
pub struct Session {
    stream: BufReader<Box<dyn Stream>>,
    offers: Offers,
    /// With what it was opened; `None`: no authentication.
    login: Option<(Hidden, Hidden)>,
    /// A transaction was begun and not ended by the content: the next begins with RSET.
    unfinished: bool,
    /// It is no longer known which reply comes next, or the server hung up.
    broken: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("offers", &self.offers)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects to the first of `addresses` that answers, and gets ready to send.
    pub async fn open(addresses: &[SocketAddr], opening: &Opening<'_>) -> Result<Self, Failure> {
        let tcp = connect(addresses).await?;
        let hello = hello_name(&tcp);
        let stream: Box<dyn Stream> = match opening.tls {
            SmtpTls::Tls => Box::new(protect(tcp, opening).await?),
            SmtpTls::None | SmtpTls::StartTls => Box::new(tcp),
        };
        let mut session = Self {
            stream: BufReader::new(stream),
            offers: Offers::default(),
            login: opening.login.clone(),
            unfinished: false,
            broken: false,
        };
        session.expect(Stage::Greeting).await?;
        session.hello(&hello).await?;
        if opening.tls == SmtpTls::StartTls {
            session = session.upgrade(opening).await?;
            session.hello(&hello).await?;
        }
        if let Some((user, password)) = &opening.login {
            session.log_in(user, password).await?;
        }
        Ok(session)
    }

    /// The user name and password that it was opened with.
    pub fn login(&self) -> Option<&(Hidden, Hidden)> {
        self.login.as_ref()
    }

    /// Whether another mail can be sent.
    pub fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Whether nothing has come since the last reply: neither an end nor a last word (421), which servers send to
    /// connections that idle too long. Costs no round trip.
    pub async fn is_quiet(&mut self) -> bool {
        if !self.stream.buffer().is_empty() {
            return false;
        }
        let stream = self.stream.get_mut();
        std::future::poll_fn(|cx| {
            let mut byte = [0];
            let found = Pin::new(&mut *stream).poll_read(cx, &mut ReadBuf::new(&mut byte));
            Poll::Ready(found.is_pending())
        })
        .await
    }

    /// Sends one mail. `handed` is set when the whole content, its final dot included, has been given to the connection:
    /// from then on the server may have accepted it.
    ///
    /// After an error the session [may still be usable](Session::is_usable).
    pub async fn send(&mut self, mail: &Mail, handed: &AtomicBool) -> Result<Reply, Failure> {
        self.check(mail)?;
        let utf8 = if mail.needs_utf8() { " SMTPUTF8" } else { "" };
        let size = if self.offers.size.is_some() {
            format!(" SIZE={}", mail.content.len())
        } else {
            String::new()
        };
        let mut commands = Vec::with_capacity(4);
        if self.unfinished {
            commands.push((Stage::Sender, "RSET\r\n".to_owned()));
        }
        commands.push((
            Stage::Sender,
            format!("MAIL FROM:<{}>{size}{utf8}\r\n", mail.from),
        ));
        commands.push((Stage::Recipient, format!("RCPT TO:<{}>\r\n", mail.to)));
        commands.push((Stage::Data, "DATA\r\n".to_owned()));
        self.unfinished = true;
        if self.offers.pipelining {
            self.begin_at_once(&commands).await?;
        } else {
            for (stage, command) in &commands {
                self.write(command.as_bytes()).await?;
                self.expect(*stage).await?;
            }
        }
        // One write, so that the final dot leaves last or not at all.
        if let Err(error) = self.stream.get_mut().write_all(&mail.content).await {
            self.broken = true;
            return Err(self.last_words().await.unwrap_or(Failure::reset(&error)));
        }
        handed.store(true, Ordering::Release);
        self.flush().await?;
        let reply = self.expect(Stage::Content).await?;
        self.unfinished = false;
        Ok(reply)
    }

    /// Why the server hung up in the middle of a content, if it said so.
    async fn last_words(&mut self) -> Option<Failure> {
        let reply = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.read()).await;
        match reply {
            Ok(Ok(reply)) if !reply.is_positive() => Some(Failure::Refused(Stage::Content, reply)),
            _ => None,
        }
    }

    /// All commands in one write, then all replies (RFC 2920); the first refusal counts.
    async fn begin_at_once(&mut self, commands: &[(Stage, String)]) -> Result<(), Failure> {
        let batch: String = commands.iter().map(|(_, c)| c.as_str()).collect();
        self.write(batch.as_bytes()).await?;
        let mut refused = None;
        for (stage, _) in commands {
            match self.expect(*stage).await {
                // It waits for a content although it refused the rest: leaving is the only way to send none.
                Ok(_) if *stage == Stage::Data && refused.is_some() => self.broken = true,
                Ok(_) => {}
                Err(failure @ Failure::Refused(..)) if !self.broken => {
                    refused.get_or_insert(failure);
                }
                Err(failure) => return Err(refused.unwrap_or(failure)),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Says goodbye without waiting for the answer.
    pub async fn quit(mut self) {
        let goodbye = async {
            let _ = self.write(b"QUIT\r\n").await;
            let _ = self.stream.get_mut().shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }

    fn check(&self, mail: &Mail) -> Result<(), Failure> {
        if !self.offers.utf8 && mail.needs_utf8() {
            return Err(Failure::Unfit {
                code: "smtp-5.6.7",
                detail: "the address needs SMTPUTF8, which the server does not offer",
            });
        }
        if self
            .offers
            .size
            .is_some_and(|most| mail.content.len() > most)
        {
            return Err(Failure::Unfit {
                code: "smtp-5.3.4",
                detail: "the mail is larger than the server takes",
            });
        }
        Ok(())
    }

    async fn hello(&mut self, name: &str) -> Result<(), Failure> {
        self.write(format!("EHLO {name}\r\n").as_bytes()).await?;
        self.offers = Offers::read(&self.expect(Stage::Hello).await?);
        Ok(())
    }

    async fn upgrade(mut self, opening: &Opening<'_>) -> Result<Self, Failure> {
        if !self.offers.start_tls {
            return Err(Failure::Broken {
                code: "tls",
                detail: "the server does not offer STARTTLS, and tls is StartTls".to_owned(),
            });
        }
        self.write(b"STARTTLS\r\n").await?;
        self.expect(Stage::StartTls).await?;
        if !self.stream.buffer().is_empty() {
            // Said before the handshake by whoever sits in between (CVE-2011-0411).
            return Err(Failure::protocol(
                "the server went on in plain text after STARTTLS",
            ));
        }
        let stream = protect(self.stream.into_inner(), opening).await?;
        Ok(Self {
            stream: BufReader::new(Box::new(stream)),
            offers: Offers::default(),
            login: self.login,
            unfinished: false,
            broken: false,
        })
    }

    async fn log_in(&mut self, user: &Hidden, password: &Hidden) -> Result<(), Failure> {
        let (user, password) = (user.expose(), password.expose());
        let steps = match self.offers.auth {
            Some(Mechanism::Plain) => {
                let token = STANDARD.encode(format!("\0{user}\0{password}"));
                vec![format!("AUTH PLAIN {token}\r\n")]
            }
            Some(Mechanism::Login) => vec![
                "AUTH LOGIN\r\n".to_owned(),
                format!("{}\r\n", STANDARD.encode(user)),
                format!("{}\r\n", STANDARD.encode(password)),
            ],
            None => {
                return Err(Failure::Broken {
                    code: "auth",
                    detail: "the server offers neither AUTH PLAIN nor AUTH LOGIN".to_owned(),
                });
            }
        };
        for step in steps {
            self.write(step.as_bytes()).await?;
            self.expect(Stage::Auth).await?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if let Err(error) = self.stream.get_mut().write_all(bytes).await {
            self.broken = true;
            return Err(Failure::reset(&error));
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        self.stream.get_mut().flush().await.map_err(|error| {
            self.broken = true;
            Failure::reset(&error)
        })
    }

    /// The next reply, if it is a positive one.
    async fn expect(&mut self, stage: Stage) -> Result<Reply, Failure> {
        let reply = match self.read().await {
            Ok(reply) => reply,
            Err(failure) => {
                self.broken = true;
                return Err(failure);
            }
        };
        if reply.code == 421 {
            self.broken = true;
        }
        if !reply.is_positive() {
            return Err(Failure::Refused(stage, reply));
        }
        if stage == Stage::Data && reply.code != 354 {
            self.broken = true;
            return Err(Failure::protocol(
                "the answer to DATA is neither 354 nor a refusal",
            ));
        }
        Ok(reply)
    }

    async fn read(&mut self) -> Result<Reply, Failure> {
        let mut lines = Vec::new();
        let mut buffer = Vec::with_capacity(128);
        loop {
            buffer.clear();
            (&mut self.stream)
                .take(MAX_LINE)
                .read_until(b'\n', &mut buffer)
                .await
                .map_err(|error| Failure::reset(&error))?;
            if buffer.is_empty() {
                return Err(Failure::Broken {
                    code: "reset",
                    detail: "the server closed the connection".to_owned(),
                });
            }
            let Some(line) = buffer.strip_suffix(b"\n") else {
                return Err(Failure::protocol("the server's reply ends within a line"));
            };
            let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
            let Some(line) = Line::parse(&text) else {
                return Err(Failure::protocol("the server's reply is not SMTP"));
            };
            if lines.len() == MAX_LINES {
                return Err(Failure::protocol("the server's reply has no end"));
            }
            lines.push(line.text.to_owned());
            if line.last {
                return Ok(Reply::new(line.code, lines));
            }
        }
    }
}

impl Offers {
    fn read(hello: &Reply) -> Self {
        let mut offers = Self::default();
        for line in hello.lines.iter().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else {
                continue;
            };
            match keyword.to_ascii_uppercase().as_str() {
                "STARTTLS" => offers.start_tls = true,
                "PIPELINING" => offers.pipelining = true,
                "SMTPUTF8" => offers.utf8 = true,
                "SIZE" => {
                    // 0 stands for no limit (RFC 1870).
                    let most = words.next().and_then(|n| n.parse().ok());
                    offers.size = Some(most.filter(|n| *n > 0).unwrap_or(usize::MAX));
                }
                "AUTH" => {
                    let known = words.filter_map(|name| match name.to_ascii_uppercase().as_str() {
                        "PLAIN" => Some(Mechanism::Plain),
                        "LOGIN" => Some(Mechanism::Login),
                        _ => None,
                    });
                    offers.auth = offers.auth.max(known.max());
                }
                _ => {}
            }
        }
        offers
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Commands are small and each waits for its answer. A refusal costs milliseconds, no more.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Failure::Broken {
        code: "connect",
        detail: format!("cannot connect: {last}"),
    })
}

/// TLS over `stream`, for the server that is named, not for the address that it had.
async fn protect<S: Stream>(
    stream: S,
    opening: &Opening<'_>,
) -> Result<tokio_rustls::client::TlsStream<S>, Failure> {
    let failed = |detail: String| Failure::Broken {
        code: "tls",
        detail,
    };
    let name = ServerName::try_from(opening.host.to_owned())
        .map_err(|_| failed("the host's name cannot be in a certificate".to_owned()))?;
    let Some(trust) = &opening.trust else {
        return Err(failed("nobody is trusted".to_owned()));
    };
    TlsConnector::from(Arc::clone(trust))
        .connect(name, stream)
        .await
        .map_err(|error| failed(format!("cannot set up TLS: {error}")))
}

/// What EHLO calls us: our address, since a pod's name means nothing outside (RFC 5321, section 4.1.3).
fn hello_name(tcp: &TcpStream) -> String {
    match tcp.local_addr().map(|address| address.ip()) {
        Ok(std::net::IpAddr::V6(ip)) => format!("[IPv6:{ip}]"),
        Ok(ip) => format!("[{ip}]"),
        Err(_) => "localhost".to_owned(),
    }
}
