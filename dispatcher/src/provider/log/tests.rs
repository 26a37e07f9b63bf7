use std::sync::Arc;
use std::time::Instant;

use herald_crds::LogRule;
use tokio::task::JoinSet;

use super::*;
use crate::provider::fixtures::{delivery, mail};

const TIMEOUT: Duration = Duration::from_millis(100);

fn rule(recipient: &str, outcome: LogOutcome) -> LogRule {
    LogRule {
        recipient: recipient.to_owned(),
        outcome,
    }
}

fn log(path: &Path, rules: Vec<LogRule>) -> Log {
    Log::new(&LogSpec {
        path: Some(path.to_str().unwrap().to_owned()),
        rules,
        latency_milliseconds: None,
    })
}

#[tokio::test]
async fn each_recipient_meets_the_outcome_that_the_first_matching_rule_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sent.jsonl");
    let log = log(
        &path,
        vec![
            rule("fail@*", LogOutcome::Transient),
            rule("gone@*", LogOutcome::Permanent),
            rule("slow@*", LogOutcome::Throttled),
            rule("odd@*", LogOutcome::Unknown),
            rule("hang@*", LogOutcome::Hang),
        ],
    );
    let send = async |to: &str| {
        let to = format!("{to}@shop.example");
        log.send(&delivery(&to, mail()), TIMEOUT).await
    };
    assert_eq!(send("alice").await, Outcome::Sent { provider_id: None });
    assert!(matches!(send("fail").await, Outcome::Transient(_)));
    assert!(matches!(
        send("gone").await,
        Outcome::Permanent {
            address_gone: false,
            ..
        }
    ));
    assert!(matches!(
        send("slow").await,
        Outcome::Throttled {
            retry_after: Some(_),
            ..
        }
    ));
    assert!(matches!(send("odd").await, Outcome::Unknown(_)));
    let begun = Instant::now();
    assert!(matches!(send("hang").await, Outcome::Transient(r) if &*r.code == "timeout"));
    assert!(begun.elapsed() >= TIMEOUT);

    let lines = std::fs::read_to_string(&path).unwrap();
    let outcomes: Vec<String> = lines
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["content"]["email"]["subject"], "On its way");
            line["outcome"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(
        outcomes,
        ["Sent", "Transient", "Permanent", "Throttled", "Unknown"]
    );
}

#[tokio::test]
async fn what_is_sensitive_is_not_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sent.jsonl");
    let mut secret = delivery("alice@shop.example", mail());
    secret.sensitive = true;
    log(&path, Vec::new()).send(&secret, TIMEOUT).await;
    let lines = std::fs::read_to_string(&path).unwrap();
    assert!(lines.contains(&secret.id.to_string()) && !lines.contains("On its way"));
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_not_the_messages_fault() {
    let log = log(Path::new("/nowhere/at/all"), Vec::new());
    let outcome = log.send(&delivery("a@b.example", mail()), TIMEOUT).await;
    assert!(matches!(outcome, Outcome::Transient(r) if &*r.code == "write"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_concurrent_sends_do_not_run_into_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sent.jsonl");
    let log = Arc::new(log(&path, Vec::new()));
    let mut sends = JoinSet::new();
    for task in 0..8 {
        let log = Arc::clone(&log);
        sends.spawn(async move {
            for n in 0..250 {
                log.send(
                    &delivery(&format!("{task}-{n}@shop.example"), mail()),
                    TIMEOUT,
                )
                .await;
            }
        });
    }
    sends.join_all().await;
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.lines().count(), 2_000);
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

/// Not an assertion on the machine's speed: run it by name, with `--release`, and read the figure.
#[tokio::test]
#[ignore = "a measurement"]
async fn measures_lines_per_second_to_the_null_device() {
    let log = log(Path::new("/dev/null"), Vec::new());
    let delivery = delivery("alice@shop.example", mail());
    let begun = Instant::now();
    for _ in 0..1_000_000 {
        log.send(&delivery, TIMEOUT).await;
    }
    println!("{:.0} lines/s", 1_000_000.0 / begun.elapsed().as_secs_f64());
}
