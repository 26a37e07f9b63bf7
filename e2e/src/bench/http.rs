//! An HTTP client that costs next to nothing: one connection, kept alive, one request at a time.
//!
//! The client shares the machine with what it measures, so whatever it spends is missing there.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most bytes of an answer's head.
const HEAD: usize = 16 * 1024;

/// A server may close a connection that was unused for long: after this a new one is opened.
const IDLE: Duration = Duration::from_secs(5);

/// One connection.
pub struct Client {
    stream: TcpStream,
    address: SocketAddr,
    used: Instant,
    /// What every request of this client says beside its own lines.
    common: String,
    request: Vec<u8>,
    read: Vec<u8>,
}

async fn open(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its code.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON, if the code is the one expected.
    pub fn json(&self, expected: u16) -> Result<Value> {
        ensure!(
            self.status == expected,
            "answered {} instead of {expected}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }
}

impl Client {
    /// Connects, as the sender with this key.
    pub async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        Ok(Self {
            stream: open(address).await?,
            address,
            used: Instant::now(),
            common: format!("host: {address}\r\nauthorization: Bearer {key}\r\n"),
            request: Vec::with_capacity(4096),
            read: Vec::with_capacity(4096),
        })
    }

    /// Asks, without a body.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.request.clear();
        self.request
            .extend_from_slice(format!("GET {path} HTTP/1.1\r\n{}\r\n", self.common).as_bytes());
        self.write().await?;
        self.answer().await
    }

    /// Sends JSON.
    pub async fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer> {
        let mut head = String::with_capacity(256);
        write!(
            head,
            "POST {path} HTTP/1.1\r\n{}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.common,
            body.len()
        )?;
        self.request.clear();
        self.request.extend_from_slice(head.as_bytes());
        self.request.extend_from_slice(body);
        self.write().await?;
        self.answer().await
    }

    /// Streams lines, of which `fill` writes some at each call, until it writes none.
    pub async fn stream(
        &mut self,
        path: &str,
        media_type: &str,
        mut fill: impl FnMut(&mut Vec<u8>),
    ) -> Result<Answer> {
        let head = format!(
            "POST {path} HTTP/1.1\r\n{}content-type: {media_type}\r\ntransfer-encoding: chunked\r\n\r\n",
            self.common
        );
        self.stream.write_all(head.as_bytes()).await?;
        let mut lines = Vec::with_capacity(128 * 1024);
        loop {
            lines.clear();
            fill(&mut lines);
            let length = format!("{:x}\r\n", lines.len());
            self.stream.write_all(length.as_bytes()).await?;
            self.stream.write_all(&lines).await?;
            self.stream.write_all(b"\r\n").await?;
            if lines.is_empty() {
                break;
            }
        }
        self.answer().await
    }

    async fn write(&mut self) -> Result<()> {
        if self.used.elapsed() > IDLE {
            self.stream = open(self.address).await?;
        }
        self.stream.write_all(&self.request).await?;
        Ok(())
    }

    async fn answer(&mut self) -> Result<Answer> {
        self.read.clear();
        let head = loop {
            let read = self.stream.read_buf(&mut self.read).await?;
            ensure!(read > 0, "the connection was closed instead of an answer");
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(self.read.len() < HEAD, "an answer's head has no end");
        };
        let text = std::str::from_utf8(&self.read[..head])?;
        let status = text
            .split(' ')
            .nth(1)
            .context("an answer without a code")?
            .parse()?;
        let mut length = None;
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse::<usize>()?);
            }
            if name.eq_ignore_ascii_case("transfer-encoding") {
                bail!("an answer in chunks is not read here");
            }
        }
        let whole = head + length.unwrap_or(0);
        while self.read.len() < whole {
            let read = self.stream.read_buf(&mut self.read).await?;
            ensure!(read > 0, "the connection was closed within an answer");
        }
        self.used = Instant::now();
        Ok(Answer {
            status,
            body: self.read[head..whole].to_vec(),
        })
    }
}
