//! What is sent, and whether it arrived.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::accepted::until_accepted;
use crate::cluster::{NAMESPACE, sent};
use crate::server::Api;

/// By when all that was accepted must have been sent in the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Where schedules send to.
pub(super) const SCHEDULED: &str = "schedule@single.example";

/// Everything that was accepted.
pub(super) struct Story {
    folder: PathBuf,
    /// By address, the template.
    accepted: BTreeMap<String, String>,
    /// How many may come twice, by what was done so far.
    allowed: usize,
    number: usize,
}

impl Story {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            accepted: BTreeMap::new(),
            allowed: 0,
            number: 0,
        }
    }

    /// How many were accepted.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// A fault touched pods that together may have had so many under way.
    pub(super) fn allow(&mut self, deliveries: usize) {
        self.allowed += deliveries;
    }

    /// Sends so many of a template, repeats each until it is accepted, and answers the addresses.
    pub(super) async fn send(
        &mut self,
        api: &Api,
        template: &str,
        count: usize,
    ) -> anyhow::Result<Vec<String>> {
        self.send_at(api, template, count, None).await
    }

    /// The same, to be sent at a certain time; `None`: at once.
    pub(super) async fn send_at(
        &mut self,
        api: &Api,
        template: &str,
        count: usize,
        at: Option<Timestamp>,
    ) -> anyhow::Result<Vec<String>> {
        let apis = [api.clone()];
        let mut sending = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (address, body) = self.next(template, at);
            let apis = apis.clone();
            sending.spawn(async move {
                let mut repeated = BTreeMap::new();
                until_accepted(&apis, &path(), &address, &body, &mut repeated).await?;
                anyhow::Ok(address)
            });
        }
        let mut addresses = Vec::with_capacity(count);
        while let Some(address) = sending.join_next().await {
            let address = address.context("a client panicked")??;
            self.accepted.insert(address.clone(), template.to_owned());
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// Sends one, once; the answer, and its address.
    pub(super) async fn try_one(
        &mut self,
        api: &Api,
        template: &str,
    ) -> anyhow::Result<(Response, String)> {
        let (address, body) = self.next(template, None);
        let answer = api
            .post(&path())
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .context("the gateway does not answer")?;
        if answer.status() == StatusCode::ACCEPTED {
            self.accepted.insert(address.clone(), template.to_owned());
        }
        Ok((answer, address))
    }

    fn next(&mut self, template: &str, at: Option<Timestamp>) -> (String, String) {
        self.number += 1;
        let address = format!("n{}@single.example", self.number);
        let mut body = json!({
            "template": template,
            "recipients": [{"address": {"email": address}}],
            "parameters": {"number": self.number},
        });
        if let Some(at) = at {
            body["sendAt"] = json!(at);
        }
        (address, body.to_string())
    }

    /// How many of these were sent until now.
    pub(super) fn count(&self, addresses: &[String]) -> anyhow::Result<usize> {
        let sent = sent::read(&self.folder)?;
        let sent: std::collections::HashSet<&str> =
            sent.iter().map(|sent| &*sent.endpoint).collect();
        Ok(addresses
            .iter()
            .filter(|a| sent.contains(a.as_str()))
            .count())
    }

    /// How many times schedules have sent until now.
    pub(super) fn scheduled(&self) -> anyhow::Result<usize> {
        let sent = sent::read(&self.folder)?;
        Ok(sent
            .iter()
            .filter(|sent| &*sent.endpoint == SCHEDULED)
            .count())
    }

    /// When the first of these was sent.
    pub(super) fn first(&self, addresses: &[String]) -> anyhow::Result<Timestamp> {
        let sent = sent::read(&self.folder)?;
        let mut sent = sent.iter();
        let first = sent.find(|sent| addresses.iter().any(|a| *a == *sent.endpoint));
        Ok(first.context("none of these was sent")?.at)
    }

    /// Waits until all of these were sent; how long that took.
    pub(super) async fn arrive(
        &self,
        addresses: &[String],
        within: Duration,
    ) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        loop {
            let count = self.count(addresses)?;
            if count == addresses.len() {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > within {
                bail!("{count} of {} were sent within {within:?}", addresses.len());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// All that was accepted was sent, and no more than may be came twice.
    pub(super) async fn end(&self) -> anyhow::Result<String> {
        let addresses: Vec<String> = self.accepted.keys().cloned().collect();
        self.arrive(&addresses, PATIENCE).await.context("lost")?;
        // What comes twice may come late.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut sent = sent::read(&self.folder)?;
        sent.retain(|sent| &*sent.endpoint != SCHEDULED);
        let mut copies: HashMap<&str, usize> = HashMap::new();
        for sent in &sent {
            *copies.entry(&sent.endpoint).or_default() += 1;
        }
        let twice = sent.len() - copies.len();
        ensure!(
            twice <= self.allowed,
            "{twice} came once more than they should, {} at the most may",
            self.allowed
        );
        Ok(format!(
            "in the end: all {} that were accepted were sent, {twice} came twice (at the most {} may)",
            addresses.len(),
            self.allowed
        ))
    }
}

fn path() -> String {
    format!("/v1/namespaces/{NAMESPACE}/notifications")
}

/// What a caller is told who has to try again: 503 with `Retry-After` and problem details; the problem's type.
pub(super) async fn refused(answer: Response) -> anyhow::Result<String> {
    let status = answer.status();
    let after = answer.headers().get("retry-after").cloned();
    let kind = answer.headers().get("content-type").cloned();
    let body = answer.text().await.unwrap_or_default();
    // Enough of what was not expected.
    let shown: String = body.chars().take(500).collect();
    ensure!(
        status == StatusCode::SERVICE_UNAVAILABLE,
        "answered {status} instead of 503: {shown}"
    );
    ensure!(after.is_some(), "503 without Retry-After: {shown}");
    ensure!(
        kind.is_some_and(|kind| kind == "application/problem+json"),
        "503 without problem details: {shown}"
    );
    let problem: Value = serde_json::from_str(&body).context("the problem is no JSON")?;
    let kind = problem["type"].as_str().unwrap_or_default();
    Ok(kind.rsplit('/').next().unwrap_or_default().to_owned())
}
