//! `herald send`: one notification, from a shell.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use herald_crds::{Address, Priority, RecipientRef};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::Map;

use super::client::{Client, Connection};
use super::status::{self, Shown, Waited};
use super::table::{Output, PLAIN, Table};
use super::{BAD, BOLD, CliError, DIM, GOOD, count, harmless, paint, parameters};
use crate::accept::SendRequest;
use crate::api::dry_run::{DryRun, LOOKED_AT};
use crate::api::preview::Block;
use crate::api::sending::AcceptedBody;
use crate::id::NotificationId;

/// What its help says.
pub(super) const HELP: &str = "\
Sends a notification, and waits for its end if asked.\n\n\
It exits with 0 once the notification is accepted; with --wait, once it has ended and no delivery failed or may have \
been lost. It exits with 1 if Herald refused it or a delivery did not go out, with 2 if nothing was sent.\n\n\
Examples:
  One person of the directory, and what became of it:
    herald send order-shipped --to recipient:alice -p order.json --wait

  An address, in Korean, with parameters on the spot:
    herald send login-code --to email:kim@customer.example --locale ko \\
      -p '{\"code\": \"402718\"}'

  A group tomorrow morning, over a quarter of an hour; first look what it would come to:
    herald send weekly-digest --to group:vip -p digest.json --dry-run \\
      --send-at 2030-01-07T09:00:00+01:00 --spread-over 15m

  From a script that may be started twice: the key makes it one notification
    herald send report --to group:board --key report-2030-01 -p - < report.json";

/// Sends a notification, and waits for its end if asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the template.
    template: String,
    /// To whom: recipient:ID, group:NAME, email:ADDRESS, phone:+NUMBER or webhook:URL; may be repeated.
    #[arg(long, value_name = "WHO", required = true, value_parser = who)]
    to: Vec<RecipientRef>,
    /// Language of the addresses given with --to, such as ko or pt-BR.
    #[arg(long, value_name = "TAG")]
    locale: Option<String>,
    /// The template's parameters: a file of JSON or YAML, - for standard input, or the object itself.
    #[arg(long, short, value_name = "OBJECT|FILE|-")]
    parameters: Option<String>,
    /// Another class than the template's: critical, high, normal or low.
    #[arg(long, value_name = "CLASS", value_parser = class)]
    priority: Option<Priority>,
    /// Over this channel instead of the template's routing; may be repeated.
    #[arg(long = "channel", value_name = "NAME")]
    channels: Vec<String>,
    /// Not before: a time such as 2030-01-07T09:00:00+01:00, or a duration from now such as 10m.
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    send_at: Option<Timestamp>,
    /// Not after: a time, or a duration from now.
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    expires_at: Option<Timestamp>,
    /// Released evenly over this time, such as 15m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    spread_over: Option<Duration>,
    /// More recipients than the template's maxRecipients are meant, up to so many.
    #[arg(long, value_name = "COUNT")]
    confirm_recipients: Option<u64>,
    /// Your own words about it, for search; may be repeated.
    #[arg(long = "metadata", value_name = "NAME=VALUE", value_parser = metadata_entry)]
    metadata: Vec<(String, String)>,
    /// Idempotency-Key: sent again with the same key it is the same notification [default: a random one].
    #[arg(long, value_name = "KEY", visible_alias = "idempotency-key")]
    key: Option<String>,
    /// Send nothing; show what would be sent to whom.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Wait until it has ended, at most so long; exit code 1 if a delivery failed or the time was up.
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, require_equals = true, default_missing_value = "30s")]
    wait: Option<Duration>,
    /// How the result is shown.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Sends, and waits if asked; writes what came of it to `out`.
pub(super) async fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let Args {
        template,
        to,
        locale,
        parameters,
        priority,
        channels,
        send_at,
        expires_at,
        spread_over,
        confirm_recipients,
        metadata,
        key,
        dry_run,
        wait,
        output,
        connection,
    } = args;
    let request = SendRequest {
        template,
        recipients: localized(to, locale.as_deref()),
        parameters: parameters
            .as_deref()
            .map_or(Ok(Map::new()), parameters::read)?,
        priority,
        channels,
        send_at,
        spread_over_seconds: spread_over.map(|time| time.as_secs() as u32),
        expires_at,
        metadata: metadata.into_iter().collect::<BTreeMap<_, _>>(),
        confirm_recipients,
    };
    // Always with a key, so that it can be repeated when the answer is lost.
    let key = key.unwrap_or_else(|| NotificationId::random().to_string());
    let client = Client::new(connection).map_err(CliError::Ask)?;
    let post = client
        .request(Method::POST, &["notifications"])
        .header("Idempotency-Key", &key)
        .json(&request);
    if dry_run {
        let post = post.query(&[("dryRun", "true")]);
        let answer = client.ask::<DryRun>(post).await.map_err(CliError::Ask)?;
        let report = match output {
            Output::Json => answer.text + "\n",
            Output::Table => preview(&answer.value),
        };
        out.write_all(report.as_bytes()).map_err(CliError::Print)?;
        return Ok(ExitCode::SUCCESS);
    }
    let answer = client
        .ask::<AcceptedBody>(post)
        .await
        .map_err(|source| CliError::Send { key, source })?;
    let AcceptedBody { id, priority, .. } = answer.value;
    let Some(longest) = wait else {
        let report = match output {
            Output::Json => answer.text + "\n",
            Output::Table => {
                let id = harmless(&id);
                format!(
                    "{} as {} ({priority})\n{}\n",
                    paint(GOOD, "accepted"),
                    paint(BOLD, &id),
                    paint(DIM, &format!("herald status {id}   # what became of it")),
                )
            }
        };
        out.write_all(report.as_bytes()).map_err(CliError::Print)?;
        return Ok(ExitCode::SUCCESS);
    };
    let follow = |error| match error {
        CliError::Ask(source) => CliError::Follow {
            id: id.clone(),
            source,
        },
        other => other,
    };
    let Waited {
        ended,
        notification,
    } = status::wait(&client, &id, longest).await.map_err(follow)?;
    status::show(&client, &notification, output, &Shown::default(), out)
        .await
        .map_err(follow)?;
    if !ended {
        status::say_not_ended(longest);
    }
    Ok(if ended && status::went_well(&notification.value) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Reads `recipient:alice` and the like.
fn who(text: &str) -> Result<RecipientRef, String> {
    let expected = "give recipient:ID, group:NAME, email:ADDRESS, phone:+NUMBER or webhook:URL";
    let (kind, rest) = text.split_once(':').ok_or(expected)?;
    if rest.is_empty() {
        return Err(format!("there is nothing after \"{kind}:\""));
    }
    let rest = Some(rest.to_owned());
    let mut who = RecipientRef::default();
    match kind {
        "recipient" => who.recipient = rest,
        "group" => who.group = rest,
        "email" | "phone" | "webhook" => {
            let mut address = Address::default();
            match kind {
                "email" => address.email = rest,
                "phone" => address.phone = rest,
                _ => address.webhook = rest,
            }
            who.address = Some(address);
        }
        _ => return Err(format!("\"{kind}\" is no kind of recipient; {expected}")),
    }
    Ok(who)
}

fn localized(mut to: Vec<RecipientRef>, locale: Option<&str>) -> Vec<RecipientRef> {
    if let Some(locale) = locale {
        for address in to.iter_mut().filter_map(|to| to.address.as_mut()) {
            address.locale = Some(locale.to_owned());
        }
    }
    to
}

fn class(text: &str) -> Result<Priority, String> {
    text.parse()
        .map_err(|_| "give critical, high, normal or low".to_owned())
}

/// Reads `30s`, `5m`, `1h30m`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map(|n| Duration::from_secs(n.into()));
    seconds
        .ok()
        .or_else(|| text.parse::<SignedDuration>().ok()?.try_into().ok())
        .ok_or_else(|| "give a duration such as 30s, 5m or 1h".to_owned())
}

/// Reads a time, or a duration from now.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    duration(text)
        .ok()
        .and_then(|after| Timestamp::now().checked_add(after).ok())
        .ok_or_else(|| {
            "give a time with its offset, such as 2030-01-07T09:00:00+01:00, or a duration from now, such as 10m"
                .to_owned()
        })
}

fn metadata_entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE".to_owned()),
    }
}

/// How many are named, and how many people they are.
fn named(answer: &DryRun) -> String {
    let (named, people) = (answer.recipients, answer.looked_at);
    if named == people {
        return named.to_string();
    }
    if people >= LOOKED_AT as u64 {
        return format!("{named} named, of whom the first {people} were looked at");
    }
    let twice = named.saturating_sub(people);
    let people = count(people as usize, "person").replace("persons", "people");
    format!("{named} named, {people} ({twice} in twice)")
}

/// What a dry run says, for people.
fn preview(answer: &DryRun) -> String {
    let mut table = Table::default();
    table.pair("nothing was sent", "this is what would be", PLAIN);
    table.pair("recipients", named(answer), BOLD);
    for (channel, count) in &answer.channels {
        table.pair(&format!("over {channel}"), count.to_string(), GOOD);
    }
    for (reason, count) in &answer.suppressed {
        table.pair(&format!("not: {reason}"), count.to_string(), BAD);
    }
    if let Some(segments) = answer.sms_segments {
        table.pair("parts of text messages", segments.to_string(), PLAIN);
    }
    if let Some(held) = &answer.held {
        table.pair("it would be held", status::why_held(held), BAD);
    }
    if answer.withheld > 0 {
        let withheld = format!("{}: you may not read the directory", answer.withheld);
        table.pair("samples not shown", withheld, PLAIN);
    }
    table.pair("priority", answer.priority.as_str(), PLAIN);
    let mut report = table.text();
    for sample in &answer.samples {
        let mut table = Table::default();
        let whom = sample.recipient.as_deref().unwrap_or("an address");
        table.pair("to", whom, BOLD);
        table.pair("over", &sample.channel, PLAIN);
        let mut said = "";
        match &sample.content {
            Block::Email {
                subject,
                text,
                warnings,
                ..
            } => {
                table.pair("subject", subject, PLAIN);
                for warning in warnings {
                    table.pair("mind", warning, BAD);
                }
                said = text;
            }
            Block::Sms { text, .. } => said = text,
            Block::Webhook { body } => table.pair("body", body.to_string(), PLAIN),
            Block::Broken { error } => table.pair("does not render", error, BAD),
        }
        report.push('\n');
        report.push_str(&table.text());
        for line in said.trim_end().lines() {
            report.push_str(&paint(DIM, "  │ "));
            report.push_str(&harmless(line));
            report.push('\n');
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::table::uncoloured;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        args: Args,
    }

    fn typed(words: &[&str]) -> Result<Args, clap::Error> {
        let words = ["send"].iter().chain(words);
        Typed::try_parse_from(words).map(|typed| typed.args)
    }

    #[test]
    fn who_is_meant_is_read_apart_and_what_is_nobody_is_refused_with_what_to_give() {
        let args = typed(&[
            "t",
            "--to",
            "recipient:alice",
            "--to",
            "email:a@b.example",
            "--to",
            "webhook:https://h.example/x",
            "--locale",
            "ko",
        ])
        .unwrap();
        let to = localized(args.to, args.locale.as_deref());
        assert_eq!(
            serde_json::to_value(to).unwrap(),
            serde_json::json!([
                {"recipient": "alice"},
                {"address": {"email": "a@b.example", "locale": "ko"}},
                {"address": {"webhook": "https://h.example/x", "locale": "ko"}},
            ])
        );
        for wrong in ["alice", "person:alice", "email:"] {
            let error = typed(&["t", "--to", wrong]).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::ValueValidation);
        }
    }

    #[test]
    fn waiting_takes_a_time_only_after_an_equals_sign() {
        let wait = |words: &[&str]| {
            let words = [&["--to", "group:vip"], words].concat();
            typed(&words).unwrap().wait
        };
        assert_eq!(wait(&["t"]), None);
        assert_eq!(wait(&["--wait", "t"]), Some(Duration::from_secs(30)));
        assert_eq!(wait(&["--wait=2m", "t"]), Some(Duration::from_mins(2)));
    }

    #[test]
    fn times_are_moments_or_durations_from_now() {
        assert_eq!(
            moment("2030-01-07T09:00:00+01:00").unwrap(),
            "2030-01-07T08:00:00Z".parse().unwrap()
        );
        let soon = moment("10m").unwrap();
        let ahead = soon.as_second() - Timestamp::now().as_second();
        assert!((590..=600).contains(&ahead), "{ahead}");
        assert!(moment("tomorrow").is_err());
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("45"), Ok(Duration::from_secs(45)));
        assert!(duration("-5s").is_err());
    }

    #[test]
    fn a_dry_run_says_how_many_people_those_named_are() {
        let said = |recipients, looked_at| {
            named(&DryRun {
                recipients,
                looked_at,
                ..DryRun::default()
            })
        };
        assert_eq!(said(8, 8), "8");
        assert_eq!(said(8, 7), "8 named, 7 people (1 in twice)");
        assert_eq!(said(2, 1), "2 named, 1 person (1 in twice)");
        assert_eq!(
            said(50_000, 10_000),
            "50000 named, of whom the first 10000 were looked at"
        );
    }

    #[test]
    fn a_dry_run_shows_counts_and_the_text_of_a_sample() {
        let answer = serde_json::json!({
            "recipients": 3, "lookedAt": 3, "channels": {"shop/mail": 2}, "suppressed": {"opted-out": 1},
            "priority": "normal", "direct": false, "held": {"recipients": 3, "allowed": 2},
            "withheld": 1, "samples": [{"recipient": "alice", "channel": "shop/mail",
                "content": {"medium": "email", "subject": "Hi", "text": "one\ntwo"}}],
        });
        let text = uncoloured(&preview(&serde_json::from_value(answer).unwrap()));
        for part in [
            "over shop/mail",
            "not: opted-out",
            "1: you may not read the directory",
            "--confirm-recipients 3",
            "Hi",
            "  │ two\n",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
