//! `herald status`: what became of a notification, or of one delivery step by step.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::client::{Answer, Client, Connection};
use super::table::{BUSY, Output, PLAIN, Table, of_state};
use super::{BAD, BOLD, CliError, DIM, GOOD, paint};
use crate::api::PageOf;
use crate::api::view::{Delivery, Held, Notification, Status, Trail};
use crate::id::{DeliveryId, NotificationId};
use crate::store::State;

/// How long one question waits for an end, so that progress shows.
const STEP: Duration = Duration::from_secs(1);

/// How long a notification that was accepted may be unknown.
const UNKNOWN: Duration = Duration::from_secs(5);

/// What its help says.
pub(super) const HELP: &str = "\
Shows what became of a notification, or of one delivery step by step.\n\n\
States: scheduled, queued, sending, retrying; then one of sent, failed (a dead letter), suppressed, cancelled, expired, \
unknown (perhaps sent: the provider's answer was lost).\n\n\
Examples:
  A notification, with its deliveries:
    herald status 4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4

  Those that failed, and why:
    herald status 4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4 --state failed

  One delivery, every step of it:
    herald status 9d41c07ab52e6f8830a1b2c3";

/// Shows what became of a notification, or of one delivery step by step.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id of a notification (32 digits) or of a delivery (24 digits).
    id: String,
    /// Show deliveries in this state alone.
    #[arg(long, value_parser = state)]
    state: Option<State>,
    /// Show so many deliveries at most.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Wait until it has ended, at most so long; exit code 1 if the time was up.
    #[arg(long, value_name = "DURATION", value_parser = super::send::duration, num_args = 0..=1, require_equals = true, default_missing_value = "30s")]
    wait: Option<Duration>,
    /// How it is shown.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Which deliveries are shown.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// Of this state alone.
    pub(super) state: Option<State>,
    /// At most so many.
    pub(super) limit: u16,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            state: None,
            limit: 20,
        }
    }
}

fn state(text: &str) -> Result<State, String> {
    text.parse().map_err(|_| {
        "give scheduled, queued, sending, retrying, sent, failed, suppressed, cancelled, expired or unknown".to_owned()
    })
}

/// Writes what became of it to `out`.
pub(super) async fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let Args {
        id,
        state,
        limit,
        wait: longest,
        output,
        connection,
    } = args;
    let client = Client::new(connection).map_err(CliError::Ask)?;
    if id.parse::<DeliveryId>().is_ok() {
        delivery(&client, &id, output, out).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if id.parse::<NotificationId>().is_err() {
        return Err(CliError::ReadId { id });
    }
    let shown = Shown { state, limit };
    let Some(longest) = longest else {
        let path = ["notifications", &id];
        let notification = client.get(&path, &()).await.map_err(CliError::Ask)?;
        show(&client, &notification, output, &shown, out).await?;
        return Ok(ExitCode::SUCCESS);
    };
    let waited = wait(&client, &id, longest).await?;
    show(&client, &waited.notification, output, &shown, out).await?;
    if waited.ended {
        return Ok(ExitCode::SUCCESS);
    }
    say_not_ended(longest);
    Ok(ExitCode::FAILURE)
}

/// Tells on standard error that the time was up.
pub(super) fn say_not_ended(longest: Duration) {
    anstream::eprintln!("it had not ended after {} s", longest.as_secs());
}

/// A notification that was waited for.
#[derive(Debug)]
pub(super) struct Waited {
    /// Nothing more happens to it by itself.
    pub(super) ended: bool,
    /// As it was last.
    pub(super) notification: Answer<Notification>,
}

/// Waits until a notification has ended, `longest` at most, and shows on a terminal how it is coming along.
pub(super) async fn wait(client: &Client, id: &str, longest: Duration) -> Result<Waited, CliError> {
    let begun = Instant::now();
    let mut progress = Progress::new();
    loop {
        let left = longest.saturating_sub(begun.elapsed());
        let step = left.min(STEP).as_secs_f32().ceil();
        let question = [("wait", format!("{step}s"))];
        let asked = Instant::now();
        match client
            .get::<Notification>(&["notifications", id], &question)
            .await
        {
            Ok(notification) => {
                let ended = is_over(notification.value.status);
                progress.show(&notification.value);
                if ended || begun.elapsed() >= longest {
                    return Ok(Waited {
                        ended,
                        notification,
                    });
                }
            }
            // Accepted a moment ago and not planned yet.
            Err(error) if error.is_not_found() && begun.elapsed() < UNKNOWN.min(longest) => {}
            Err(error) => return Err(CliError::Ask(error)),
        }
        // A server that does not wait is not asked without a pause.
        tokio::time::sleep(STEP.saturating_sub(asked.elapsed()).min(left)).await;
    }
}

const fn is_over(status: Status) -> bool {
    matches!(status, Status::Ended | Status::Cancelled | Status::Held)
}

/// Whether it ended with nothing that needs a look.
pub(super) fn went_well(notification: &Notification) -> bool {
    let bad = [State::Failed, State::Unknown];
    notification.status == Status::Ended
        && bad
            .iter()
            .all(|state| !notification.counts.contains_key(state))
}

/// One line on standard error that is written over; gone at the end.
struct Progress {
    visible: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            visible: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, notification: &Notification) {
        if self.visible {
            let mut line = format!("{}", notification.status);
            for (state, count) in &notification.counts {
                let _ = write!(line, " · {count} {state}");
            }
            eprint!("\r\u{1b}[K{line}");
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.visible {
            eprint!("\r\u{1b}[K");
        }
    }
}

/// Writes a notification with its deliveries to `out`.
pub(super) async fn show(
    client: &Client,
    notification: &Answer<Notification>,
    output: Output,
    shown: &Shown,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    if output == Output::Json {
        return writeln!(out, "{}", notification.text).map_err(CliError::Print);
    }
    let id = notification.value.id.as_str();
    let mut question = vec![("limit", shown.limit.to_string())];
    if let Some(state) = shown.state {
        question.push(("status", state.to_string()));
    }
    let path = ["notifications", id, "deliveries"];
    let page = client.get::<PageOf<Delivery>>(&path, &question).await;
    let page = page.map_err(CliError::Ask)?.value;
    let zone = TimeZone::system();
    let mut report = summary(&notification.value, &zone);
    if !page.items.is_empty() {
        report.push('\n');
        report.push_str(&deliveries(&page.items, &zone));
    }
    if page.next.is_some() {
        report.push_str(&paint(
            DIM,
            "… and more: --limit shows up to 1000, --state chooses",
        ));
        report.push('\n');
    }
    out.write_all(report.as_bytes()).map_err(CliError::Print)
}

/// A time for people: of today without its date.
pub(super) fn clock(at: Timestamp, zone: &TimeZone) -> String {
    let at = at.to_zoned(zone.clone());
    let today = Timestamp::now().to_zoned(zone.clone()).date();
    let form = if at.date() == today {
        "%H:%M:%S%.3f"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    at.strftime(form).to_string()
}

fn summary(notification: &Notification, zone: &TimeZone) -> String {
    let tone = match notification.status {
        Status::Ended if went_well(notification) => GOOD,
        Status::Accepted | Status::Scheduled | Status::Processing => BUSY,
        Status::Ended | Status::Held => BAD,
        Status::Cancelled => DIM,
    };
    let at = |at: Option<Timestamp>| at.map(|at| clock(at, zone)).unwrap_or_default();
    let mut table = Table::default();
    table.pair("notification", &notification.id, BOLD);
    table.pair("status", notification.status.to_string(), tone);
    table.pair("template", &notification.template, PLAIN);
    table.pair("priority", notification.priority.as_str(), PLAIN);
    table.pair("sender", &notification.sender, PLAIN);
    table.pair("accepted", clock(notification.accepted_at, zone), PLAIN);
    table.pair("not before", at(notification.send_at), PLAIN);
    table.pair("not after", at(notification.expires_at), PLAIN);
    table.pair("cancelled", at(notification.cancelled_at), PLAIN);
    table.pair("ended", at(notification.ended_at), PLAIN);
    if let Some(held) = &notification.held {
        table.pair("held", why_held(held), BAD);
    }
    if notification.conflicts > 0 {
        let why = format!(
            "{} further requests with the same key asked for something else",
            notification.conflicts
        );
        table.pair("conflicts", why, BAD);
    }
    for (name, value) in &notification.metadata {
        table.pair(name, value, PLAIN);
    }
    let counts: Vec<String> = notification
        .counts
        .iter()
        .map(|(state, count)| paint(of_state(*state), &format!("{count} {state}")))
        .collect();
    let mut text = table.text();
    if !counts.is_empty() {
        let _ = writeln!(
            text,
            "{}    {}",
            paint(DIM, "deliveries"),
            counts.join(" · ")
        );
    }
    text
}

/// Why it is held, and what to do about it.
pub(super) fn why_held(held: &Held) -> String {
    let Held {
        recipients,
        allowed,
    } = held;
    format!(
        "{recipients} recipients, and the template allows {allowed}: add --confirm-recipients {recipients}"
    )
}

fn deliveries(deliveries: &[Delivery], zone: &TimeZone) -> String {
    let mut table = Table::new([
        "delivery", "to", "channel", "state", "tries", "when", "what",
    ]);
    for delivery in deliveries {
        let plain = |text: &str| (text.to_owned(), PLAIN);
        let when = delivery.ended_at.unwrap_or(delivery.due_at);
        let what = match (why(delivery), &delivery.provider) {
            (why, Some(provider)) if why.is_empty() => format!("by {provider}"),
            (why, _) => why,
        };
        table.row([
            (delivery.id.clone(), DIM),
            plain(&whom(delivery)),
            plain(delivery.channel.as_deref().unwrap_or("")),
            (delivery.state.to_string(), of_state(delivery.state)),
            plain(&delivery.attempts.to_string()),
            plain(&clock(when, zone)),
            plain(&what),
        ]);
    }
    table.text()
}

/// Writes a delivery and every step of it to `out`.
async fn delivery(
    client: &Client,
    id: &str,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let question = [("limit", "1000")];
    let path = ["deliveries", id, "events"];
    let page = client.get::<PageOf<Trail>>(&path, &question).await;
    let page = page.map_err(CliError::Ask)?;
    if output == Output::Json {
        return writeln!(out, "{}", page.text).map_err(CliError::Print);
    }
    let found = client.get::<Delivery>(&["deliveries", id], &()).await;
    let found = found.map_err(CliError::Ask)?.value;
    let zone = TimeZone::system();
    let mut table = Table::default();
    table.pair("delivery", &found.id, BOLD);
    table.pair("notification", &found.notification, PLAIN);
    table.pair("to", whom(&found), PLAIN);
    table.pair("channel", found.channel.as_deref().unwrap_or(""), PLAIN);
    table.pair("state", found.state.to_string(), of_state(found.state));
    table.pair("because", why(&found), PLAIN);
    table.pair("provider", found.provider.as_deref().unwrap_or(""), PLAIN);
    table.pair(
        "there known as",
        found.provider_id.as_deref().unwrap_or(""),
        PLAIN,
    );
    let report = format!("{}\n{}", table.text(), steps(&page.value.items, &zone));
    out.write_all(report.as_bytes()).map_err(CliError::Print)
}

/// Who gets it, and where.
fn whom(delivery: &Delivery) -> String {
    match &delivery.recipient {
        Some(recipient) if delivery.endpoint.is_empty() => recipient.clone(),
        Some(recipient) => format!("{recipient} ({})", delivery.endpoint),
        None => delivery.endpoint.clone(),
    }
}

/// What its state is due to; empty if there is nothing to say.
fn why(delivery: &Delivery) -> String {
    match (&delivery.reason, &delivery.error) {
        (Some(reason), Some(error)) if reason != error => format!("{reason}: {error}"),
        (Some(text), _) | (None, Some(text)) => text.clone(),
        (None, None) => String::new(),
    }
}

fn steps(trail: &[Trail], zone: &TimeZone) -> String {
    let mut table = Table::new(["when", "after", "step", "round", "attempt", "particulars"]);
    let first = trail.first().map(|step| step.at);
    for step in trail {
        let tone = match step.step.as_str() {
            "sent" => GOOD,
            "failed" | "unknown" => BAD,
            "retrying" | "returned" => BUSY,
            _ => PLAIN,
        };
        let after = first.map_or(Duration::ZERO, |first| {
            Duration::try_from(step.at.duration_since(first)).unwrap_or_default()
        });
        table.row([
            (clock(step.at, zone), PLAIN),
            (format!("{:.3}s", after.as_secs_f64()), DIM),
            (step.step.clone(), tone),
            (step.round.to_string(), PLAIN),
            (step.attempt.to_string(), PLAIN),
            (particulars(&step.detail), PLAIN),
        ]);
    }
    table.text()
}

/// A JSON object as `name=value` in one line; objects in it are taken apart.
fn particulars(detail: &Value) -> String {
    fn add(prefix: &str, value: &Value, words: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let name = match prefix {
                        "" => name.clone(),
                        prefix => format!("{prefix}.{name}"),
                    };
                    add(&name, value, words);
                }
            }
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => words.push(format!("{prefix}={text}")),
            other => words.push(format!("{prefix}={other}")),
        }
    }
    let mut words = Vec::new();
    add("", detail, &mut words);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::table::uncoloured;

    fn notification(more: &Value) -> Notification {
        let mut all = json!({
            "id": "4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4", "namespace": "shop", "sender": "till", "template": "order-shipped",
            "definition": "sha256:0", "priority": "normal", "status": "ended", "counts": {"sent": 2},
            "acceptedAt": "2030-01-01T00:00:00Z", "endedAt": "2030-01-01T00:00:01.5Z", "listed": 1, "system": {},
        });
        for (name, value) in more.as_object().unwrap() {
            all[name] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn what_ended_well_is_told_from_what_did_not() {
        assert!(went_well(&notification(&json!({}))));
        assert!(went_well(&notification(
            &json!({"counts": {"sent": 1, "suppressed": 4}})
        )));
        assert!(!went_well(&notification(
            &json!({"counts": {"sent": 1, "failed": 1}})
        )));
        assert!(!went_well(&notification(
            &json!({"counts": {"unknown": 1}})
        )));
        assert!(!went_well(&notification(&json!({"status": "cancelled"}))));
    }

    #[test]
    fn a_summary_says_what_there_is_to_say_and_no_more() {
        let text = uncoloured(&summary(
            &notification(&json!({"metadata": {"order": "A-1"}})),
            &TimeZone::UTC,
        ));
        assert_eq!(
            text,
            "notification  4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4\n\
             status        ended\n\
             template      order-shipped\n\
             priority      normal\n\
             sender        till\n\
             accepted      2030-01-01 00:00:00\n\
             ended         2030-01-01 00:00:01\n\
             order         A-1\n\
             deliveries    2 sent\n"
        );
    }

    #[test]
    fn a_held_notification_says_how_to_confirm_it() {
        let held =
            notification(&json!({"status": "held", "held": {"recipients": 12, "allowed": 10}}));
        let text = uncoloured(&summary(&held, &TimeZone::UTC));
        assert!(text.contains("--confirm-recipients 12"), "{text}");
    }

    #[test]
    fn a_delivery_that_did_not_go_out_says_why() {
        let delivery: Delivery = serde_json::from_value(json!({
            "id": "9d41c07ab52e6f8830a1b2c3", "notification": "4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4", "recipient": "alice",
            "channel": "shop/mail", "endpoint": "alice@customer.example", "priority": "normal", "state": "failed",
            "reason": "smtp-550", "error": "no such mailbox", "round": 0, "attempts": 1,
            "createdAt": "2030-01-01T00:00:00Z", "dueAt": "2030-01-01T00:00:00Z",
        }))
        .unwrap();
        let text = uncoloured(&deliveries(&[delivery], &TimeZone::UTC));
        assert!(text.contains("alice (alice@customer.example)"), "{text}");
        assert!(
            text.trim_end().ends_with("smtp-550: no such mailbox"),
            "{text}"
        );
    }

    #[test]
    fn a_trail_shows_the_time_since_its_first_step() {
        let step = |at: &str, step: &str, detail| Trail {
            at: at.parse().unwrap(),
            step: step.to_owned(),
            round: 0,
            attempt: 1,
            detail,
        };
        let text = steps(
            &[
                step("2030-01-01T00:00:00Z", "accepted", json!({})),
                step(
                    "2030-01-01T00:00:01.25Z",
                    "sent",
                    json!({"provider": "ses", "error": {"reason": "x", "provider": null}}),
                ),
            ],
            &TimeZone::UTC,
        );
        let text = uncoloured(&text);
        let last = text.lines().last().unwrap();
        assert!(last.contains("1.250s  sent"), "{text}");
        assert!(
            last.contains("error.reason=x") && last.contains("provider=ses"),
            "{text}"
        );
    }
}
