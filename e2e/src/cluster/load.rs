//! What is sent, at a fixed rate, and when it was accepted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::{Channel, NAMESPACE};
use crate::accepted::until_accepted;
use crate::server::Api;

/// The group that the bulk goes to.
pub const GROUP: &str = "everybody";

/// Requests at a time: more than come in the longest outage.
const AT_A_TIME: usize = 8_192;

/// How often the rate is kept to.
const STEP: Duration = Duration::from_millis(10);

/// What a notification is, of twenty: a share of them is critical and sent direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Alert,
    Note,
}

impl Kind {
    fn of(number: usize) -> Self {
        match number % 20 {
            0..3 => Self::Code,
            3..8 => Self::Alert,
            _ => Self::Note,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Alert => "alert",
            Self::Note => "note",
        }
    }
}

/// The group, and every template, for each Channel one: critical and mandatory, high, normal, low.
pub fn templates(channels: &[Channel]) -> String {
    let mut yaml = format!(
        "apiVersion: herald.dev/v1alpha1\n\
         kind: RecipientGroup\n\
         metadata: {{name: {GROUP}, namespace: {NAMESPACE}}}\n\
         spec: {{managed: true}}\n"
    );
    for channel in channels {
        for (kind, more) in [
            ("code", "mandatory: true\n  priority: critical"),
            ("alert", "priority: high"),
            ("note", "priority: normal"),
            ("news", "priority: low"),
        ] {
            // Writing to a string cannot fail.
            let _ = write!(
                yaml,
                "---\n\
                 apiVersion: herald.dev/v1alpha1\n\
                 kind: NotificationTemplate\n\
                 metadata: {{name: {kind}-{name}, namespace: {NAMESPACE}}}\n\
                 spec:\n  \
                   category: {kind}\n  \
                   {more}\n  \
                   parameters: {{type: object, properties: {{number: {{type: integer}}}}}}\n  \
                   routing: {{strategy: All, channels: [{{name: {name}}}]}}\n  \
                   defaultLocale: en\n  \
                   content: {{email: {{subject: A {kind}, text: \"It is {kind} {{{{ number }}}}.\"}}}}\n",
                name = channel.name,
            );
        }
    }
    yaml
}

/// What was accepted.
#[derive(Debug, Default)]
pub struct Accepted {
    /// The ids of all.
    pub ids: Vec<String>,
    /// The single ones, by the address: the template and when the 202 came.
    pub singles: BTreeMap<String, (String, Timestamp)>,
    /// The templates that went to the group.
    pub bulk: Vec<String>,
    /// Tries that were not answered 202, by what happened.
    pub repeated: BTreeMap<String, usize>,
    /// From a request's first try to its 202.
    pub took: Vec<Duration>,
}

/// One that was accepted.
struct One {
    id: String,
    template: String,
    address: Option<String>,
    at: Timestamp,
    took: Duration,
    repeated: BTreeMap<String, usize>,
}

/// The load as it runs.
pub struct Load {
    count: Arc<AtomicUsize>,
    task: JoinHandle<anyhow::Result<Accepted>>,
}

impl Load {
    /// Sends a bulk to the group on each channel, and so many single ones a second.
    pub fn start(
        apis: &Arc<[Api]>,
        channels: &'static [Channel],
        singles: u32,
        over: Duration,
    ) -> Self {
        let count = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(send(
            Arc::clone(apis),
            channels,
            f64::from(singles),
            over,
            Arc::clone(&count),
        ));
        Self { count, task }
    }

    /// How many were accepted until now.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether it has ended before its time, which only a failure can do.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for the last to be accepted.
    pub async fn finish(self) -> anyhow::Result<Accepted> {
        self.task.await.context("the load panicked")?
    }
}

async fn send(
    apis: Arc<[Api]>,
    channels: &'static [Channel],
    rate: f64,
    over: Duration,
    count: Arc<AtomicUsize>,
) -> anyhow::Result<Accepted> {
    let mut accepted = Accepted::default();
    let mut tasks = JoinSet::new();
    for channel in channels {
        let template = format!("news-{}", channel.name);
        let body = json!({
            "template": template,
            "recipients": [{"group": GROUP}],
            "parameters": {"number": 0},
            // More than any template lets pass without.
            "confirmRecipients": 1_000_000,
        });
        accepted.bulk.push(template.clone());
        tasks.spawn(one(Arc::clone(&apis), template, None, body.to_string(), 0));
    }
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let begin = Instant::now();
    let mut number = 0;
    while begin.elapsed() < over {
        let due = (begin.elapsed().as_secs_f64() * rate) as usize;
        while number < due {
            let place = Arc::clone(&places).acquire_owned().await?;
            let template = format!(
                "{}-{}",
                Kind::of(number).name(),
                // Not the same channel for each kind.
                channels[(number / 20 + number) % channels.len()].name
            );
            let address = format!("n{number}@single.example");
            let body = json!({
                "template": template,
                "recipients": [{"address": {"email": address}}],
                "parameters": {"number": number},
            });
            let sending = one(
                Arc::clone(&apis),
                template,
                Some(address),
                body.to_string(),
                number,
            );
            tasks.spawn(async move {
                let sent = sending.await;
                drop(place);
                sent
            });
            number += 1;
        }
        while let Some(done) = tasks.try_join_next() {
            accepted.add(done.context("a client panicked")??, &count);
        }
        tokio::time::sleep(STEP).await;
    }
    while let Some(done) = tasks.join_next().await {
        accepted.add(done.context("a client panicked")??, &count);
    }
    Ok(accepted)
}

async fn one(
    apis: Arc<[Api]>,
    template: String,
    address: Option<String>,
    body: String,
    number: usize,
) -> anyhow::Result<One> {
    let key = format!("{template}-{number}");
    let path = format!("/v1/namespaces/{NAMESPACE}/notifications");
    let begin = Instant::now();
    let mut repeated = BTreeMap::new();
    let order: Vec<Api> = (0..apis.len())
        .map(|k| apis[(number + k) % apis.len()].clone())
        .collect();
    let id = until_accepted(&order, &path, &key, &body, &mut repeated).await?;
    Ok(One {
        id,
        template,
        address,
        at: Timestamp::now(),
        took: begin.elapsed(),
        repeated,
    })
}

impl Accepted {
    fn add(&mut self, one: One, count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
        self.ids.push(one.id);
        self.took.push(one.took);
        for (what, times) in one.repeated {
            *self.repeated.entry(what).or_default() += times;
        }
        if let Some(address) = one.address {
            self.singles.insert(address, (one.template, one.at));
        }
    }
}
