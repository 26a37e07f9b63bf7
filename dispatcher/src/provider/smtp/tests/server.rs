//! A mail server that does what a test wants it to.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What the server does instead of what it would.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// Answers this, without its line break.
    Say(&'static str),
    /// Answers this and hangs up.
    Last(&'static str),
    /// Hangs up.
    Close,
    /// Says nothing any more.
    Hang,
}

/// What a server met: the connection's number from 0 and the command, or the content after DATA.
pub type Met = Arc<Mutex<Vec<(usize, String)>>>;

/// Decides about a connection's number and a command: `""` at its begin, `"."` after a content; `None`: as usual.
type Script = dyn Fn(usize, &str) -> Option<Act> + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    pub met: Met,
}

pub struct Options {
    pub offers: &'static str,
    pub tls: Option<Arc<ServerConfig>>,
    /// TLS from the first byte.
    pub implicit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            offers: "PIPELINING 8BITMIME",
            tls: None,
            implicit: false,
        }
    }
}

impl Server {
    pub async fn start(
        options: Options,
        script: impl Fn(usize, &str) -> Option<Act> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let met = Met::default();
        let script: Arc<Script> = Arc::new(script);
        let options = Arc::new(options);
        let server = Self {
            address,
            met: Arc::clone(&met),
        };
        tokio::spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (options, script, met) =
                    (Arc::clone(&options), Arc::clone(&script), Arc::clone(&met));
                met.lock().unwrap().push((number, String::new()));
                tokio::spawn(async move {
                    // An error is a client that left: the test sees it from the client's side.
                    let _ = converse(stream, number, &options, &*script, &met).await;
                });
            }
        });
        server
    }

    /// Everything met so far on connection `number`.
    pub fn met(&self, number: usize) -> Vec<String> {
        let met = self.met.lock().unwrap();
        met.iter()
            .filter(|(n, what)| *n == number && !what.is_empty())
            .map(|(_, what)| what.clone())
            .collect()
    }

    pub fn connections(&self) -> usize {
        let met = self.met.lock().unwrap();
        met.iter().filter(|(_, what)| what.is_empty()).count()
    }

    /// The commands of connection `number` without their arguments; `"."` for a content.
    pub fn verbs(&self, number: usize) -> Vec<String> {
        self.met(number)
            .iter()
            .map(|what| match what.split_once([' ', '\r']) {
                Some(_) if what.contains("\r\n") => ".".to_owned(),
                Some((verb, _)) => verb.to_owned(),
                None => what.clone(),
            })
            .collect()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn converse(
    tcp: TcpStream,
    number: usize,
    options: &Options,
    script: &Script,
    met: &Met,
) -> std::io::Result<()> {
    let acceptor = options.tls.clone().map(TlsAcceptor::from);
    let stream: Box<dyn Stream> = match &acceptor {
        Some(acceptor) if options.implicit => Box::new(acceptor.accept(tcp).await?),
        _ => Box::new(tcp),
    };
    let mut stream = BufReader::new(stream);
    let mut command = String::new();
    loop {
        let usual = match command.split_once(' ').map_or(command.as_str(), |(v, _)| v) {
            "" | "QUIT" => "220 hello".to_owned(),
            "EHLO" => {
                let mut lines = vec!["250-server".to_owned()];
                lines.extend(
                    options
                        .offers
                        .split_whitespace()
                        .map(|o| format!("250-{}", o.replace('_', " "))),
                );
                lines.push("250 HELP".to_owned());
                lines.join("\r\n")
            }
            "DATA" => "354 go on".to_owned(),
            "STARTTLS" => "220 go on".to_owned(),
            "AUTH" => "235 2.7.0 welcome".to_owned(),
            "." => "250 2.0.0 Ok: queued as 4F3B2A".to_owned(),
            _ => "250 2.0.0 Ok".to_owned(),
        };
        let (answer, goes_on) = match script(number, &command) {
            None => (usual, true),
            Some(Act::Say(answer)) => (answer.to_owned(), true),
            Some(Act::Last(answer)) => (answer.to_owned(), false),
            Some(Act::Close) => return Ok(()),
            Some(Act::Hang) => {
                std::future::pending::<()>().await;
                return Ok(());
            }
        };
        stream
            .get_mut()
            .write_all(format!("{answer}\r\n").as_bytes())
            .await?;
        stream.get_mut().flush().await?;
        if !goes_on || command == "QUIT" {
            return Ok(());
        }
        if command == "STARTTLS" && answer.starts_with("220") {
            let Some(acceptor) = &acceptor else {
                return Ok(());
            };
            let protected: Box<dyn Stream> = Box::new(acceptor.accept(stream.into_inner()).await?);
            stream = BufReader::new(protected);
        }
        if command == "DATA" && answer.starts_with("354") {
            let mut content = String::new();
            while !content.ends_with("\r\n.\r\n") {
                if stream.read_line(&mut content).await? == 0 {
                    met.lock().unwrap().push((number, "cut".to_owned()));
                    return Ok(());
                }
            }
            met.lock().unwrap().push((number, content));
            ".".clone_into(&mut command);
            continue;
        }
        command.clear();
        if stream.read_line(&mut command).await? == 0 {
            return Ok(());
        }
        command.truncate(command.trim_end().len());
        met.lock().unwrap().push((number, command.clone()));
    }
}

/// A server's configuration with a certificate for `name`, whose authority is written to `ROOT/corp-ca/ca.crt`.
pub fn certify(name: &str, root: &Path) -> Arc<ServerConfig> {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_cert = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    std::fs::create_dir_all(root.join("corp-ca")).unwrap();
    std::fs::write(root.join("corp-ca/ca.crt"), authority_cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}
