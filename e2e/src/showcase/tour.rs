//! One notification of each kind, each step with the command that does it.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;

use super::arrived::Arrived;

/// How long one notification may take to end; a retry comes after 5 s.
const END: &str = "30s";

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(45);

/// The people of the tour. `busy` is refused once by the mail server of the showcase, `gone` always.
const PEOPLE: &str = r#"{"id": "alice", "locale": "en", "labels": {"tier": "vip"}, "addresses": {"email": "alice@customer.example"}}
{"id": "jiwoo", "locale": "ko", "timeZone": "Asia/Seoul", "addresses": {"email": "jiwoo@customer.example"}}
{"id": "kim", "locale": "de-AT", "labels": {"tier": "vip"}, "addresses": {"email": "kim@customer.example"}}
{"id": "sam", "locale": "en", "addresses": {"email": "busy.sam@customer.example"}}
{"id": "robin", "locale": "en", "addresses": {"email": "gone.robin@customer.example"}}
"#;

/// Herald, as its callers see it, and what comes out at the other end.
#[derive(Debug)]
pub struct Tour {
    /// `http://address:port`.
    pub url: String,
    /// An API key that may do everything.
    pub key: String,
    /// The namespace of the samples.
    pub namespace: String,
    /// The program `herald`.
    pub program: PathBuf,
    /// What arrives.
    pub arrived: Arc<Arrived>,
    /// What calls.
    pub http: reqwest::Client,
}

/// What a call takes.
enum Body {
    None,
    Json(Value),
    Lines(&'static str),
}

/// What a call answers.
struct Answer {
    status: StatusCode,
    body: Value,
    took: Duration,
}

impl Tour {
    /// Takes every step; fails at the first that does not come out as it should.
    pub async fn run(&self) -> anyhow::Result<()> {
        title("People come into the directory, and one joins a group that is kept there");
        let answer = self
            .call(Method::POST, "recipients/import", Body::Lines(PEOPLE))
            .await?;
        ensure!(
            answer.body["created"] == 5,
            "five people were to be imported: {}",
            answer.body
        );
        told(&format!(
            "{} created, {} failed",
            answer.body["created"], answer.body["failed"]
        ));
        let answer = self
            .call(Method::PUT, "groups/subscribers/members/jiwoo", Body::None)
            .await?;
        ensure!(answer.status.is_success(), "{}", answer.body);
        told(&answer.status.to_string());

        title("A sign-in code to an address: critical, straight on, past the waiting room");
        self.send(
            json!({
                "template": "login-code",
                "recipients": [{"address": {"email": "new@customer.example"}}],
                "parameters": {"code": "402718", "device": "a new phone"},
            }),
            &[("sent", 1)],
        )
        .await?;

        title("An order to one person who reads Korean: a mail, and a webhook to the warehouse");
        self.send(
            json!({
                "template": "order-shipped",
                "recipients": [{"recipient": "jiwoo"}],
                "parameters": {"order": {
                    "id": "K-2211", "customer": "지우", "lines": [{"name": "핸드드립 주전자", "quantity": 1}],
                    "total": 92000, "currency": "KRW", "carrier": "우편택배",
                    "trackingUrl": "https://parcelpost.example/track/6012345678901",
                }},
            }),
            &[("sent", 2)],
        )
        .await?;

        title("What would a digest to two groups come to? A dry run: nothing is sent");
        let mut digest = json!({
            "template": "weekly-digest",
            "recipients": [{"group": "vip"}, {"group": "subscribers"}],
            "parameters": {"headline": "New beans have arrived", "articles": [
                {"title": "A light roast from the highlands", "url": "https://shop.example/beans/highlands", "price": "14.90 EUR"},
                {"title": "How to store coffee", "url": "https://shop.example/guides/storing-coffee"},
            ]},
        });
        let answer = self
            .call(
                Method::POST,
                "notifications?dryRun=true",
                Body::Json(digest.clone()),
            )
            .await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.body);
        told(&format!(
            "{} recipients; over each channel: {}; not sent: {}",
            answer.body["recipients"], answer.body["channels"], answer.body["suppressed"]
        ));

        title(
            "Now it is sent: nested groups, labels, addresses, three languages, each person once",
        );
        digest["metadata"] = json!({"campaign": "autumn"});
        // alice is in vip by name and by label, kim by label; board is nested in it, and oncall an address.
        self.send(digest, &[("sent", 7)]).await?;

        title("A mistake is told with its place, and nothing is sent");
        let mistake = json!({
            "template": "login-code",
            "recipients": [{"address": {"email": "new@customer.example"}}],
            "parameters": {"code": 402_718},
        });
        let answer = self
            .call(Method::POST, "notifications", Body::Json(mistake))
            .await?;
        ensure!(
            answer.status == StatusCode::UNPROCESSABLE_ENTITY,
            "a number is no code: {}",
            answer.body
        );
        for error in answer.body["errors"].as_array().into_iter().flatten() {
            let (pointer, detail) = (&error["pointer"], &error["detail"]);
            told(&format!(
                "422 {}: {}",
                pointer.as_str().unwrap_or_default(),
                detail.as_str().unwrap_or_default()
            ));
        }

        title("A mailbox that does not exist: refused for good, a dead letter");
        self.send(order("robin", "A-1043"), &[("sent", 1), ("failed", 1)])
            .await?;

        title("A mail server that is busy: tried again after 5 s");
        let id = self.send(order("sam", "A-1042"), &[("sent", 2)]).await?;

        title("What became of it");
        self.status(&[&id]).await?;
        let path = format!("notifications/{id}/deliveries");
        let deliveries = self.quietly(Method::GET, &path, Body::None).await?.body;
        let retried = deliveries["items"].as_array().into_iter().flatten();
        let retried = retried.max_by_key(|delivery| delivery["attempts"].as_u64());
        if let Some(delivery) = retried.and_then(|delivery| delivery["id"].as_str()) {
            self.status(&[delivery]).await?;
        }
        Ok(())
    }

    /// Sends, waits for the end, and shows what arrived; `expected` are the deliveries by state. Answers the id.
    async fn send(&self, request: Value, expected: &[(&str, u64)]) -> anyhow::Result<String> {
        let newest = |arrived: &Arrived| {
            let mail = arrived.mails().first().map_or(0, |mail| mail.number);
            let webhook = arrived
                .webhooks()
                .first()
                .map_or(0, |webhook| webhook.number);
            (mail, webhook)
        };
        let before = newest(&self.arrived);
        let begun = Instant::now();
        let answer = self
            .call(Method::POST, "notifications", Body::Json(request))
            .await?;
        let Answer { status, body, took } = answer;
        ensure!(
            status == StatusCode::ACCEPTED,
            "it was not accepted: {status} {body}"
        );
        let id = body["id"]
            .as_str()
            .context("the answer has no id")?
            .to_owned();
        told(&format!("202 after {} · {id}", milliseconds(took)));
        let path = format!("notifications/{id}?wait={END}");
        let ended = self.quietly(Method::GET, &path, Body::None).await?.body;
        let took = begun.elapsed();
        for mail in self
            .arrived
            .mails()
            .iter()
            .rev()
            .filter(|mail| mail.number > before.0)
        {
            told(&format!(
                "✉ {} · {}",
                mail.recipients.join(", "),
                mail.subject
            ));
        }
        for webhook in self
            .arrived
            .webhooks()
            .iter()
            .rev()
            .filter(|one| one.number > before.1)
        {
            told(&format!("⇢ webhook {} · {}", webhook.id, webhook.signature));
        }
        let mut counts = String::new();
        for (state, count) in ended["counts"].as_object().into_iter().flatten() {
            let _ = write!(counts, " · {count} {state}");
        }
        told(&format!(
            "{} after {}{counts}",
            ended["status"].as_str().unwrap_or("?"),
            milliseconds(took)
        ));
        let expected: Value = expected
            .iter()
            .map(|(state, count)| ((*state).to_owned(), Value::from(*count)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        ensure!(
            ended["status"] == "ended" && ended["counts"] == expected,
            "{expected} was to be seen of {id}, and this was:\n{ended:#}"
        );
        Ok(id)
    }

    /// Shows a command, and does what it does.
    async fn call(&self, method: Method, path: &str, body: Body) -> anyhow::Result<Answer> {
        shown(&self.curl(&method, path, &body, "$HERALD_API_KEY"));
        self.quietly(method, path, body).await
    }

    async fn quietly(&self, method: Method, path: &str, body: Body) -> anyhow::Result<Answer> {
        let request = self
            .http
            .request(method, self.address(path))
            .bearer_auth(&self.key)
            .timeout(ANSWER);
        let request = match body {
            Body::None => request,
            Body::Json(value) => request.json(&value),
            Body::Lines(lines) => request
                .header("Content-Type", "application/x-ndjson")
                .body(lines),
        };
        let begun = Instant::now();
        let answer = request.send().await.context("Herald does not answer")?;
        let status = answer.status();
        let text = answer.text().await.context("Herald's answer broke off")?;
        Ok(Answer {
            status,
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
            took: begun.elapsed(),
        })
    }

    fn address(&self, path: &str) -> String {
        let Self { url, namespace, .. } = self;
        format!("{url}/v1/namespaces/{namespace}/{path}")
    }

    /// The same as a command for a shell.
    fn curl(&self, method: &Method, path: &str, body: &Body, key: &str) -> String {
        let mut command = "curl -s".to_owned();
        if *method != Method::GET && !matches!((method, body), (&Method::POST, Body::Json(_))) {
            let _ = write!(command, "X {method}");
        }
        let _ = write!(
            command,
            " '{}' -H \"Authorization: Bearer {key}\"",
            self.address(path)
        );
        match body {
            Body::None => {}
            Body::Json(value) => {
                let _ = write!(
                    command,
                    " --json '{}'",
                    value.to_string().replace('\'', r"'\''")
                );
            }
            Body::Lines(lines) => {
                let _ = write!(
                    command,
                    " -H 'Content-Type: application/x-ndjson' --data-binary @- <<'END'\n{lines}END"
                );
            }
        }
        command
    }

    /// A command that sends another each time it is called: an order is told only once to a recipient.
    pub fn another(&self) -> String {
        let mut request = json!({
            "template": "order-shipped",
            "recipients": [{"address": {"email": "you@customer.example", "locale": "de"}}],
            "parameters": {"order": {"id": "ORDER", "customer": "Robin", "total": 74.85, "carrier": "ParcelPost",
                "lines": [{"name": "Kaffeebohnen 1 kg", "quantity": 3}],
                "trackingUrl": "https://parcelpost.example/track/00340434161094042558"}},
        });
        request["metadata"] = json!({"from": "showcase"});
        self.curl(
            &Method::POST,
            "notifications",
            &Body::Json(request),
            &self.key,
        )
        .replace("ORDER", "A-'$(date +%s)'")
    }

    /// Runs `herald status`.
    async fn status(&self, arguments: &[&str]) -> anyhow::Result<()> {
        shown(&format!(
            "{} status {}",
            self.program.display(),
            arguments.join(" ")
        ));
        let status = Command::new(&self.program)
            .arg("status")
            .args(arguments)
            .env("HERALD_URL", &self.url)
            .env("HERALD_API_KEY", &self.key)
            .env("HERALD_NAMESPACE", &self.namespace)
            .stdin(Stdio::null())
            .status()
            .await
            .context("cannot run herald status")?;
        ensure!(status.success(), "herald status ended with {status}");
        Ok(())
    }
}

/// An order for somebody.
fn order(recipient: &str, id: &str) -> Value {
    json!({
        "template": "order-shipped",
        "recipients": [{"recipient": recipient}],
        "parameters": {"order": {"id": id, "total": 68.45, "lines": [{"name": "Pour-over coffee kettle", "quantity": 1}]}},
    })
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Sets text off on a terminal.
pub fn set_off(code: &str, text: &str) -> String {
    let wanted = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn title(text: &str) {
    println!("\n{}", set_off("1", &format!("■ {text}")));
}

fn shown(command: &str) {
    println!("{}", set_off("2", &format!("$ {command}")));
}

fn told(text: &str) {
    println!("  {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tour() -> Tour {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Tour {
            url: "http://h.example".to_owned(),
            key: "k".to_owned(),
            namespace: "shop".to_owned(),
            program: "herald".into(),
            arrived: Arc::new(Arrived::new()),
            http: reqwest::Client::new(),
        }
    }

    #[test]
    fn a_command_says_what_is_done_and_survives_a_shell() {
        let body = Body::Json(json!({"a": "it's"}));
        assert_eq!(
            tour().curl(&Method::POST, "notifications", &body, "$K"),
            "curl -s 'http://h.example/v1/namespaces/shop/notifications' -H \"Authorization: Bearer $K\" \
             --json '{\"a\":\"it'\\''s\"}'"
        );
        let put = tour().curl(&Method::PUT, "x", &Body::None, "k");
        assert!(put.starts_with("curl -sX PUT "), "{put}");
    }

    #[test]
    fn the_command_for_another_names_another_order_each_time() {
        let another = tour().another();
        assert!(another.contains(r#""id":"A-'$(date +%s)'""#), "{another}");
    }
}
