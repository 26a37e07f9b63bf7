//! The large group, and what is said to it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::server::Server;

/// A text of 400 bytes, of which the last are the recipient's.
const TEXT: &str = "Dear customer, from the first of next month our shops in the centre, at the harbour and at the \
    eastern station open at seven in the morning and close at ten in the evening, on Sundays and holidays as well. \
    Parcels that you have sent to one of them can be fetched at any time in between; please bring the code that you were \
    given when you ordered, or this message, and something that shows your name. Yours, {{ recipient.id }}";

/// A channel without a limit, two with one, a template for each, one for what is critical, and the group.
pub fn yaml() -> String {
    let mut yaml = String::new();
    for (name, rate) in [
        ("free", ""),
        ("ten", "\n  rateLimit: {count: 10}"),
        ("hundred", "\n  rateLimit: {count: 100}"),
    ] {
        // To a string, which cannot fail.
        let _ = write!(
            yaml,
            "apiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  \
             medium: sms\n  providers: [{{name: \"null\", log: {{path: /dev/null}}}}]{rate}\n---\n\
             apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {{name: {name}, namespace: bench}}\n\
             spec:\n  description: Opening hours\n  category: news\n  routing: {{channels: [{{name: {name}}}]}}\n  \
             content: {{sms: {{text: \"{TEXT}\"}}}}\n---\n"
        );
    }
    yaml.push_str(
        "apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {name: code, namespace: bench}\nspec:\n  \
         description: A code\n  category: security\n  mandatory: true\n  priority: critical\n  \
         routing: {channels: [{name: free}]}\n  content: {sms: {text: \"Your code is 402718\"}}\n---\n\
         apiVersion: herald.dev/v1alpha1\nkind: RecipientGroup\nmetadata: {name: everybody, namespace: bench}\nspec:\n  \
         description: A large group\n  managed: true\n",
    );
    yaml
}

/// Imports so many people with one request; answers how long it took.
pub async fn import(server: &Server, people: usize, medium: &str) -> Result<Duration> {
    let mut client = server.client().await?;
    let mut next = 0;
    let began = Instant::now();
    let answer = client
        .stream(
            "/v1/namespaces/bench/recipients/import?group=everybody",
            "application/x-ndjson",
            |lines| {
                while next < people && lines.len() < 64 * 1024 {
                    let address = match medium {
                        "email" => format!("person-{next}@mail.example"),
                        _ => format!("+8210{next:08}"),
                    };
                    lines.extend_from_slice(
                        format!(
                            "{{\"id\":\"person-{next}\",\"locale\":\"en\",\"addresses\":{{\"{medium}\":\"{address}\"}}}}\n"
                        )
                        .as_bytes(),
                    );
                    next += 1;
                }
            },
        )
        .await?;
    let took = began.elapsed();
    let report = answer.json(200)?;
    ensure!(
        report["failed"].as_u64() == Some(0),
        "not everybody was imported: {report}"
    );
    Ok(took)
}

/// A notification to everybody.
pub fn to_everybody(template: &str, people: usize) -> Value {
    json!({"template": template, "recipients": [{"group": "everybody"}], "confirmRecipients": people})
}
