//! The tutorial: what it says to run is run as it stands, and sends. Then the samples, by the same installation, become
//! Ready, and mail.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use herald_crds::names;
use herald_dispatcher::catalog::yaml;
use herald_e2e::process::Running;
use serde_json::{Value, json};

use super::super::client;
use super::super::herald::{RELEASE, Team, api, helm};
use super::super::rights::{judged, told_twice};
use super::super::samples::shipped;
use super::{Set, docs};
use crate::sinks::MailSink;

/// Where the tutorial ends what it began.
const LAST: &str = "Tidy up";

/// How long the first notification may take from `helm install`, as the tutorial promises.
const PROMISED: Duration = Duration::from_mins(5);

/// A block of commands.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// The heading it is under.
    section: String,
    commands: String,
}

/// Plays it.
pub async fn play(set: &mut Set) -> anyhow::Result<String> {
    set.load()?;
    let text = fs::read_to_string(docs().join("quickstart/README.md"));
    let blocks = blocks(&text.context("cannot read the tutorial")?);
    let begin = Instant::now();
    let mut shell = set.shell(&blocks)?;
    let reached = set.folder.join("reached");
    while !reached.exists() {
        if let Some(status) = shell.ended()? {
            bail!("the tutorial's shell ended ({status}): shell.log says why");
        }
        ensure!(begin.elapsed() < PROMISED, "no mail within {PROMISED:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = begin.elapsed();
    seen(&blocks, &set.folder)?;
    let samples = samples(set).await?;
    let rights = rights(set)?;

    fs::write(set.folder.join("go-on"), "").context("cannot let the shell go on")?;
    let status = shell.wait(Duration::from_mins(5)).await?;
    ensure!(status.success(), "tidying up: {status}");
    let left = set.kubernetes()?.kubectl(&["get", "namespaces,crds"])?;
    ensure!(
        !left.contains("hello") && !left.contains("herald.dev"),
        "left behind: {left}"
    );
    let count = blocks.len();
    let seconds = first.as_secs_f64();
    Ok(format!(
        "{count} blocks as they stand: the first notification was sent {seconds:.0} s after helm install began; {samples}; \
         {rights}; nothing is left"
    ))
}

impl Set {
    /// Runs the blocks in one shell. Before the last section it makes a file, `reached`, and waits for another, `go-on`.
    /// What each block prints is in a file, `NUMBER.out`.
    fn shell(&self, blocks: &[Block]) -> anyhow::Result<Running> {
        let mut script = String::new();
        let folder = self.folder.display();
        let mut paused = false;
        for (number, block) in blocks.iter().enumerate() {
            if block.section == LAST && !paused {
                paused = true;
                let wait = format!("until [ -e '{folder}/go-on' ]; do sleep 0.1; done");
                let _ = writeln!(script, ": >'{folder}/reached'\n{wait}");
            }
            let _ = writeln!(script, "exec >'{folder}/{number}.out'\n{}", block.commands);
        }
        ensure!(paused, "the tutorial has no section \"{LAST}\"");
        let file = self.folder.join("tutorial.sh");
        fs::write(&file, script).context("cannot write the tutorial's commands")?;
        let mut command = self.kubernetes()?.user("bash")?;
        // With -x its log says how far it came.
        command
            .args(["-ex"])
            .arg(&file)
            .current_dir(herald_e2e::process::repository());
        Running::start("bash", &mut command, &self.folder.join("shell.log"))
    }
}

/// Checks what the tutorial's reader is shown in the end: two deliveries, each sent, each with a line of the log.
fn seen(blocks: &[Block], folder: &Path) -> anyhow::Result<()> {
    let mut shown = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        if block.section.ends_with("See") {
            shown.push(fs::read_to_string(folder.join(format!("{number}.out")))?);
        }
    }
    let [answer, log] = &shown[..] else {
        bail!("{} blocks show what became of it", shown.len());
    };
    let answer: Value = serde_json::from_str(answer)
        .with_context(|| format!("not what became of a notification: {answer}"))?;
    ensure!(
        answer["status"] == "ended" && answer["counts"]["sent"] == 2,
        "what became of it: {answer}"
    );
    for recipient in ["ann@reader.example", "minho@reader.example"] {
        let lines = log.lines().filter(|line| line.contains(recipient)).count();
        ensure!(lines == 1, "{lines} lines about {recipient}: {log}");
    }
    Ok(())
}

/// The samples, by the same installation.
async fn samples(set: &mut Set) -> anyhow::Result<String> {
    let mail = MailSink::beside(set.kubernetes()?, &set.folder, 2525)?;
    let gateway = api(set.environment.kubernetes_mut()?, "hello")?;
    let kubernetes = set.kubernetes()?;
    kubernetes.kubectl(&["create", "namespace", "shop"])?;
    let team = Team::new(kubernetes, client(kubernetes).await?, &gateway, "shop")?;
    let unsigned = |sample: &mut Value| {
        let webhook = sample.pointer_mut("/spec/providers/0/webhook");
        if let Some(webhook) = webhook.and_then(Value::as_object_mut) {
            webhook.remove("credentialsRef");
        }
    };
    let shown = shipped(&team, &mail, unsigned).await?;
    // The one pod reads credentials in its own namespace alone, though the Secret is there.
    let webhook = json!({
        "url": "https://warehouse.team.example/", "credentialsRef": {"name": "warehouse-signing"},
    });
    let providers = json!([{"name": "warehouse", "webhook": webhook}]);
    let spec = json!({"medium": "webhook", "providers": providers});
    team.apply(&[team.resource("Channel", "signed", spec)])?;
    let said = team.stalled("channel/signed").await?;
    ensure!(said.contains("in namespace hello alone"), "it says: {said}");
    // What is seldom done: the same is told again, and a Channel is let go that an operator over Pulsar held.
    let mut held = team.mail("held");
    held["metadata"]["finalizers"] = json!([names::TOPICS_FINALIZER]);
    team.apply(&[held])?;
    team.ready("channel/held").await?;
    told_twice(&team, team.template("news", "news", &["held"])).await?;
    team.kubectl(&["delete", "channel/held", "--timeout=240s"])?;
    Ok(shown)
}

/// What Herald asked of the API server: its roles for one pod suffice, and are needed.
fn rights(set: &Set) -> anyhow::Result<String> {
    let kubernetes = set.kubernetes()?;
    let release = ["get", "manifest", RELEASE, "--namespace", "hello"];
    let documents = yaml::read(helm(kubernetes, &release)?.as_bytes())?;
    let documents: Vec<_> = documents
        .into_iter()
        .map(|document| document.value)
        .collect();
    let granted = judged::granted(&documents)?;
    let calls = judged::calls(&kubernetes.audited()?)?;
    let calls = calls.into_iter().filter(|call| {
        call.account
            .starts_with("system:serviceaccount:hello:herald-")
    });
    let calls: Vec<_> = calls.collect();
    judged::compare(&granted, &calls, &[]).check()?;
    Ok(format!(
        "{} calls of Herald's were allowed by {} rules",
        calls.len(),
        granted.len()
    ))
}

/// The blocks marked `sh` of a page, in order.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut section = "";
    // `None` outside; in a block, its commands if it is one of commands.
    let mut block: Option<Option<String>> = None;
    for line in page.lines() {
        match (&mut block, line) {
            (Some(commands), "```") => {
                blocks.extend(commands.take().map(|commands| Block {
                    section: section.to_owned(),
                    commands,
                }));
                block = None;
            }
            (Some(commands), line) => {
                if let Some(commands) = commands {
                    commands.push_str(line);
                    commands.push('\n');
                }
            }
            (None, line) => {
                if let Some(mark) = line.strip_prefix("```") {
                    block = Some((mark == "sh").then(String::new));
                } else if let Some(heading) = line.strip_prefix("## ") {
                    section = heading;
                }
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_marked_sh_are_taken_as_they_stand_and_no_others() {
        let page = "# Page\n```console\nno\n```\n## One\n```sh\na\n## b\n```\ntext\n```sh\nc\n```\n## Two\n```\nno\n```\n```sh\nd\n```\n";
        let block = |section: &str, commands: &str| Block {
            section: section.to_owned(),
            commands: commands.to_owned(),
        };
        let expected = [
            block("One", "a\n## b\n"),
            block("One", "c\n"),
            block("Two", "d\n"),
        ];
        assert_eq!(blocks(page), expected);
    }
}
