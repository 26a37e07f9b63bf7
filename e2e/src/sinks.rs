//! What mail and events are sent to: real servers, and what they noted of what arrived.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::process::{self, Running};
#[cfg(feature = "kubernetes")]
use herald_e2e::environment::kubernetes::{self, Kubernetes};

/// Most connections that `smtp-sink` takes at a time.
const MOST_CONNECTIONS: &str = "512";

/// A copy of a delivery that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// When, to the accuracy of a file's time (some milliseconds) for `smtp-sink`.
    pub at: SystemTime,
    /// To whom; empty for events.
    pub to: String,
    /// What a mail's parser made of it.
    pub parsed: Option<Parsed>,
}

/// A mail as Python's parser sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// `To`.
    pub to: String,
    /// `Subject`, decoded.
    pub subject: String,
    /// Media types of its leaves.
    pub parts: Vec<String>,
    /// Its plain text.
    pub text: String,
    /// What is wrong with its form.
    pub defects: Vec<String>,
    /// As whom its sender had logged in, where that is asked for.
    pub user: Option<String>,
}

/// Copies by the id of their delivery.
pub type Copies = HashMap<String, Vec<Copy>>;

/// A mail server.
#[derive(Debug)]
pub struct MailSink {
    /// Held for its `Drop`.
    _running: Running,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// One file for each mail in this folder.
    Files(PathBuf),
    /// One JSON line for each mail in this file.
    Lines(PathBuf),
}

impl MailSink {
    /// Postfix's `smtp-sink`, which writes a file for each mail.
    pub fn smtp_sink(folder: &Path, port: u16) -> anyhow::Result<Self> {
        let mails = folder.join("mails");
        fs::create_dir_all(&mails).context("cannot make the folder for mails")?;
        let path = std::env::join_paths(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .chain([PathBuf::from("/usr/sbin")]),
        )?;
        let mut command = Command::new("smtp-sink");
        command.env("PATH", path).current_dir(&mails);
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "root"]);
        }
        command
            .args(["-m", MOST_CONNECTIONS, "-d", "%H%M%S."])
            .args([&format!("127.0.0.1:{port}"), "512"]);
        let running = Running::start("smtp-sink", &mut command, &folder.join("smtp-sink.log"))?;
        Ok(Self {
            _running: running,
            kind: Kind::Files(mails),
        })
    }

    /// `aiosmtpd`, which parses each mail.
    pub fn parsing(folder: &Path, port: u16) -> anyhow::Result<Self> {
        let mut command = Command::new(process::python());
        command.arg(script("mails.py"));
        Self::parse(command, folder, "127.0.0.1", port)
    }

    /// The same beside a cluster, where pods reach it as `mail.neighbours`.
    #[cfg(feature = "kubernetes")]
    pub fn beside(kubernetes: &Kubernetes, folder: &Path, port: u16) -> anyhow::Result<Self> {
        let mut command = kubernetes.beside(process::python());
        command.arg(script("mails.py"));
        let sink = Self::parse(command, folder, kubernetes::ADDRESS, port)?;
        kubernetes.neighbour("mail", &[("smtp", port)])?;
        Ok(sink)
    }

    /// Another beside a cluster, `guarded-mail.neighbours`, which takes mail only from those who are in the file `logins`
    /// now: a JSON object of passwords by name.
    #[cfg(feature = "kubernetes")]
    pub fn guarded(
        kubernetes: &Kubernetes,
        folder: &Path,
        port: u16,
        logins: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = kubernetes.beside(process::python());
        command.arg(script("mails.py")).arg("--logins").arg(logins);
        let sink = Self::parse(command, folder, kubernetes::ADDRESS, port)?;
        kubernetes.neighbour("guarded-mail", &[("smtp", port)])?;
        Ok(sink)
    }

    fn parse(mut command: Command, folder: &Path, host: &str, port: u16) -> anyhow::Result<Self> {
        let mails = folder.join("mails.jsonl");
        command
            .args(["--host", host, "--port", &port.to_string()])
            .arg("--mails")
            .arg(&mails);
        let (running, _) =
            Running::start_until_line("mails.py", &mut command, &folder.join("mails.log"))?;
        Ok(Self {
            _running: running,
            kind: Kind::Lines(mails),
        })
    }

    /// What arrived.
    pub fn arrived(&self) -> anyhow::Result<Copies> {
        match &self.kind {
            Kind::Files(mails) => read_files(mails),
            Kind::Lines(mails) => read_mails(mails),
        }
    }
}

/// A webhook receiver that verifies signatures.
#[derive(Debug)]
pub struct HookSink {
    /// Held for its `Drop`.
    _running: Running,
    events: PathBuf,
}

/// What a webhook receiver noted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Events that were verified and taken.
    pub copies: Copies,
    /// Events that were answered 503.
    pub refused: usize,
    /// Events whose signature is wrong.
    pub forged: usize,
}

impl HookSink {
    /// Starts it. All is refused for a moment after so many requests, and one event in fifty once.
    pub fn start(
        folder: &Path,
        port: u16,
        secret: &str,
        outage_after: usize,
    ) -> anyhow::Result<Self> {
        let events = folder.join("events.txt");
        let mut command = Command::new(process::python());
        command
            .arg(script("hooks.py"))
            .args(["--port", &port.to_string(), "--secret", secret])
            .args(["--outage-after", &outage_after.to_string()])
            .arg("--events")
            .arg(&events);
        let (running, _) =
            Running::start_until_line("hooks.py", &mut command, &folder.join("hooks.log"))?;
        Ok(Self {
            _running: running,
            events,
        })
    }

    /// What arrived.
    pub fn arrived(&self) -> anyhow::Result<Events> {
        let text = fs::read_to_string(&self.events)
            .with_context(|| format!("cannot read {}", self.events.display()))?;
        parse_events(&text)
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("sinks")
        .join(name)
}

fn parse_events(text: &str) -> anyhow::Result<Events> {
    let mut events = Events::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(what), Some(id), Some(at)) = (words.next(), words.next(), words.next()) else {
            bail!("a line of the webhook receiver is not whole: {line:?}");
        };
        match what {
            "ok" => events.copies.entry(id.to_owned()).or_default().push(Copy {
                at: nanoseconds(at.parse().with_context(|| format!("no time in {line:?}"))?),
                to: String::new(),
                parsed: None,
            }),
            "refused" => events.refused += 1,
            _ => events.forged += 1,
        }
    }
    Ok(events)
}

fn nanoseconds(since: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(since)
}

/// `<delivery.round@domain>`: the delivery.
fn delivery(message_id: &str) -> &str {
    let id = message_id.trim().trim_start_matches('<');
    let id = id.split('@').next().unwrap_or(id);
    id.split('.').next().unwrap_or(id)
}

fn read_files(folder: &Path) -> anyhow::Result<Copies> {
    let mut copies = Copies::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path.display();
        let read = || anyhow::Ok((fs::read(&path)?, path.metadata()?.modified()?));
        let (mail, at) = read().with_context(|| format!("cannot read {name}"))?;
        let mail = String::from_utf8_lossy(&mail);
        let head = mail.split("\n\n").next().unwrap_or(&mail);
        let field = |field: &str| {
            head.lines()
                .find_map(|line| {
                    Some(line.split_at_checked(field.len())?)
                        .filter(|(name, _)| name.eq_ignore_ascii_case(field))
                })
                .map(|(_, value)| value.trim())
        };
        let id = field("Message-ID:").with_context(|| format!("{name} has no Message-ID"))?;
        let to = field("X-Rcpt-Args:").unwrap_or_default();
        let to = to.split('>').next().unwrap_or(to).trim_start_matches('<');
        copies
            .entry(delivery(id).to_owned())
            .or_default()
            .push(Copy {
                at,
                to: to.to_owned(),
                parsed: None,
            });
    }
    Ok(copies)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MailLine {
    at: u64,
    message_id: String,
    envelope: Vec<String>,
    to: String,
    subject: String,
    parts: Vec<String>,
    text: String,
    defects: Vec<String>,
    user: Option<String>,
}

fn read_mails(file: &Path) -> anyhow::Result<Copies> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    // What comes after the last is being written.
    let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
    let mut copies = Copies::new();
    for (number, line) in (1..).zip(whole.lines()) {
        let line: MailLine = serde_json::from_str(line)
            .with_context(|| format!("{name}: line {number} is not a mail"))?;
        copies
            .entry(delivery(&line.message_id).to_owned())
            .or_default()
            .push(Copy {
                at: nanoseconds(line.at),
                to: line.envelope.join(" "),
                parsed: Some(Parsed {
                    to: line.to,
                    subject: line.subject,
                    parts: line.parts,
                    text: line.text,
                    defects: line.defects,
                    user: line.user,
                }),
            });
    }
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_known_by_its_message_id() {
        assert_eq!(delivery(" <0a1b.0@herald.example>"), "0a1b");
    }

    #[test]
    fn dumped_mails_are_counted_by_delivery_with_their_recipient() {
        let folder = tempfile::tempdir().unwrap();
        let mail = "X-Client-Addr: 127.0.0.1\nX-Rcpt-Args: <a@b.example> NOTIFY=NEVER\nReceived: from x\n\tby y\nmessage-id: <0a.0@c>\nTo: x\n\nMessage-ID: <9.0@c>\n";
        fs::write(folder.path().join("1.a"), mail).unwrap();
        fs::write(folder.path().join("1.b"), mail).unwrap();
        let copies = read_files(folder.path()).unwrap();
        assert_eq!(copies.len(), 1);
        assert_eq!(copies["0a"].len(), 2);
        assert_eq!(copies["0a"][0].to, "a@b.example");
    }

    #[test]
    fn events_are_told_apart_by_what_became_of_them() {
        let events = parse_events("ok a 1\nrefused b 2\nok a 3\nforged - 4\n").unwrap();
        assert_eq!(events.copies["a"].len(), 2);
        assert_eq!((events.refused, events.forged), (1, 1));
        assert!(parse_events("ok a").is_err());
    }
}
