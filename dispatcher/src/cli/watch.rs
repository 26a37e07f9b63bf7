//! `herald watch`: outcomes, one line each, as they happen.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use jiff::tz::TimeZone;
use reqwest::{Method, Response};

use super::client::{Client, ClientError, Connection};
use super::table::{BUSY, Output, PLAIN};
use super::{BAD, BOLD, CliError, DIM, GOOD, harmless, paint, status};
use crate::api::stream::Outcome;

/// Most bytes of one event.
const LONGEST_EVENT: usize = 1024 * 1024;

/// How long to wait before a stream that ended is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// The server says something every 15 s; a stream that is silent for longer has died.
const SILENCE: Duration = Duration::from_secs(45);

/// What its help says.
pub(super) const HELP: &str = "\
Shows what happens to deliveries, as it happens, until Ctrl-C.\n\n\
It begins now, and goes on where it was after a connection that was lost for up to a quarter of an hour; what it misses \
else is in the history, which `herald status` shows.\n\n\
Examples:
  herald watch
  herald watch --channel mail
  herald watch --notification 4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4
  herald watch -o json | jq 'select(.step == \"failed\")'";

/// Shows what happens to deliveries, as it happens.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this notification alone.
    #[arg(long, value_name = "ID")]
    notification: Option<String>,
    /// Over this channel alone: its name, or namespace/name.
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// How they are shown: as a line of text, or as a line of JSON.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Writes a line to `out` for each outcome, for ever.
pub(super) async fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let Args {
        notification,
        channel,
        output,
        connection,
    } = args;
    let client = Client::new(connection).map_err(CliError::Ask)?;
    let mut question: Vec<_> = [("notification", notification), ("channel", channel)]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect();
    let zone = TimeZone::system();
    let mut stream = open(&client, &question).await.map_err(CliError::Ask)?;
    loop {
        let last = follow(&mut stream, output, &zone, out)
            .await
            .map_err(CliError::Print)?;
        if let Some(id) = last {
            question.retain(|(name, _)| *name != "after");
            question.push(("after", id));
        }
        anstream::eprintln!("{}", paint(DIM, "the connection was lost; trying again"));
        stream = loop {
            tokio::time::sleep(PAUSE).await;
            match open(&client, &question).await {
                Ok(stream) => break stream,
                // Refused for good: another try changes nothing.
                Err(error @ ClientError::Refused { .. }) if !error.is_uncertain() => {
                    return Err(CliError::Ask(error));
                }
                Err(_) => {}
            }
        };
        anstream::eprintln!("{}", paint(DIM, "connected again"));
    }
}

async fn open(client: &Client, question: &[(&str, String)]) -> Result<Response, ClientError> {
    let request = client.request(Method::GET, &["events"]).query(question);
    client
        .send(request.header("Accept", "text/event-stream"))
        .await
}

/// Writes what comes until the stream ends; answers the last id that came.
async fn follow(
    stream: &mut Response,
    output: Output,
    zone: &TimeZone,
    out: &mut dyn Write,
) -> std::io::Result<Option<String>> {
    let mut events = Events::default();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, stream.chunk()).await {
        for event in events.take(&chunk) {
            write(&event, output, zone, out)?;
        }
        out.flush()?;
    }
    Ok(events.id)
}

fn write(
    event: &Event,
    output: Output,
    zone: &TimeZone,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    match event.name.as_str() {
        "lagged" => {
            let missed = format!(
                "outcomes since {} may be missing here: the history has them",
                event.data
            );
            anstream::eprintln!("{}", paint(DIM, &harmless(&missed)));
            Ok(())
        }
        "outcome" if output == Output::Json => writeln!(out, "{}", event.data),
        "outcome" => match serde_json::from_str::<Outcome>(&event.data) {
            Ok(outcome) => writeln!(out, "{}", line(&outcome, zone)),
            Err(_) => writeln!(out, "{}", harmless(&event.data)),
        },
        _ => Ok(()),
    }
}

/// One outcome, for people.
fn line(outcome: &Outcome, zone: &TimeZone) -> String {
    let style = match outcome.step.as_str() {
        "sent" => GOOD,
        "failed" | "unknown" => BAD,
        "retrying" | "returned" => BUSY,
        _ => PLAIN,
    };
    let mut line = format!(
        "{}  {}  {}  {:8}  {}  {}",
        paint(DIM, &status::clock(outcome.at, zone)),
        paint(style, &format!("{:10}", harmless(&outcome.step))),
        paint(BOLD, &harmless(&outcome.channel)),
        outcome.priority.as_str(),
        harmless(&outcome.notification),
        paint(DIM, &harmless(&outcome.delivery)),
    );
    if let Some(provider) = &outcome.provider {
        line = format!("{line}  by {}", harmless(provider));
    }
    if let Some(reason) = &outcome.reason {
        line = format!("{line}  {}", paint(style, &harmless(reason)));
    }
    if let Some(due) = outcome.due_at {
        line = format!("{line}  again at {}", status::clock(due, zone));
    }
    line
}

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
}

/// Takes a stream of server-sent events apart (WHATWG HTML, 9.2.6), without retry times, which are not used.
#[derive(Debug, Default)]
struct Events {
    /// What has come of a line that has not ended.
    rest: Vec<u8>,
    /// What has come of an event that has not ended.
    event: Event,
    /// The id that came last, with an event or by itself.
    id: Option<String>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
}

impl Events {
    /// Takes what came; answers the events that it completed. What is longer than an event may be is left out.
    fn take(&mut self, chunk: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in chunk {
            let is_second = self.after_return && *byte == b'\n';
            self.after_return = *byte == b'\r';
            match byte {
                _ if is_second => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.rest);
                    self.line(&String::from_utf8_lossy(&line), &mut events);
                }
                byte if self.rest.len() < LONGEST_EVENT => self.rest.push(*byte),
                _ => {}
            }
        }
        events
    }

    fn line(&mut self, line: &str, events: &mut Vec<Event>) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if !event.data.is_empty() {
                events.push(event);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.id = Some(value.to_owned()),
            "data" if self.event.data.len() + value.len() <= LONGEST_EVENT => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::uncoloured;

    fn event(name: &str, data: &str) -> Event {
        Event {
            name: name.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut_and_its_lines_end() {
        let text = ": beat\n\nevent: outcome\ndata: {\"a\":\ndata: 1}\nid: 7\n\nevent:lagged\ndata:12\n\ndata\n\n";
        let expected = [event("outcome", "{\"a\":\n1}"), event("lagged", "12")];
        for text in [
            text.to_owned(),
            text.replace('\n', "\r\n"),
            text.replace('\n', "\r"),
        ] {
            for size in 1..8 {
                let mut events = Events::default();
                let got: Vec<_> = text
                    .as_bytes()
                    .chunks(size)
                    .flat_map(|chunk| events.take(chunk))
                    .collect();
                assert_eq!(got, expected, "in pieces of {size}");
                assert_eq!(events.id.as_deref(), Some("7"), "in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_line_without_end_takes_no_more_than_its_bound() {
        let mut events = Events::default();
        for _ in 0..3 {
            assert!(events.take(&vec![b'x'; LONGEST_EVENT]).is_empty());
        }
        assert_eq!(events.rest.len(), LONGEST_EVENT);
    }

    #[test]
    fn an_outcome_is_a_line_that_says_what_when_where_and_why() {
        let outcome = serde_json::json!({
            "at": "2030-01-01T00:00:00Z", "notification": "4f2a", "delivery": "9d41", "channel": "shop/mail",
            "priority": "normal", "step": "retrying", "round": 0, "attempt": 1, "reason": "smtp-451",
            "provider": "local", "dueAt": "2030-01-01T00:00:05Z",
        });
        let mut out = Vec::new();
        let event = event("outcome", &outcome.to_string());
        write(&event, Output::Table, &TimeZone::UTC, &mut out).unwrap();
        assert_eq!(
            uncoloured(&String::from_utf8(out).unwrap()),
            "2030-01-01 00:00:00  retrying    shop/mail  normal    4f2a  9d41  by local  smtp-451  again at 2030-01-01 00:00:05\n"
        );
    }

    #[test]
    fn as_json_an_outcome_is_what_came() {
        let mut out = Vec::new();
        let event = event("outcome", r#"{"new": true}"#);
        write(&event, Output::Json, &TimeZone::UTC, &mut out).unwrap();
        assert_eq!(out, b"{\"new\": true}\n");
    }
}
