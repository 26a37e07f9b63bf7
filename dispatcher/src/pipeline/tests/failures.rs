//! Providers that fail: retries, failover, dead letters, and when none works.

use super::*;
use crate::store::DeadLetterFilter;

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_goes_to_the_next_provider_and_a_recipient_who_is_refused_becomes_a_dead_letter()
 {
    let stages = Stages::begin(MAIL, |provider, delivery| {
        match (provider, &*delivery.endpoint) {
            (_, "gone@shop.example") => Outcome::Permanent {
                reason: reason("smtp-5.1.1"),
                address_gone: true,
            },
            ("first", _) => Outcome::Transient(reason("smtp-451")),
            _ => Outcome::Sent { provider_id: None },
        }
    })
    .await;
    stages.people(["alice", "gone"].map(str::to_owned)).await;
    let recipients = json!([{"recipient": "alice"}, {"recipient": "gone"}]);
    let id = stages
        .send(json!({"template": "order", "recipients": recipients, "parameters": {"n": 1}}))
        .await;
    let deliveries = stages.ended(&id).await;
    let of = |who: &str| {
        deliveries
            .iter()
            .find(|delivery| &*delivery.recipient == who)
            .unwrap()
    };
    assert_eq!((of("alice").state, of("alice").attempts), (State::Sent, 2));
    assert_eq!(of("alice").provider.as_deref(), Some("second"));
    assert_eq!(
        (of("gone").state, of("gone").reason.as_deref()),
        (State::Failed, Some("smtp-5.1.1"))
    );
    // An address that is gone is written to no more.
    let again =
        json!({"template": "order", "recipients": [{"recipient": "gone"}], "parameters": {"n": 2}});
    let again = stages.send(again).await;
    let again = &stages.ended(&again).await[0];
    assert_eq!(
        (again.state, again.reason.as_deref()),
        (State::Suppressed, Some("address-gone"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_are_used_up_make_a_dead_letter_that_a_replay_sends_in_its_next_round() {
    let stages = Stages::begin(MAIL, |_, delivery| match delivery.round {
        0 => Outcome::Transient(reason("smtp-451")),
        _ => Outcome::Sent { provider_id: None },
    })
    .await;
    let id = stages
        .send(json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": 1}}))
        .await;
    let deliveries = stages.ended(&id).await;
    assert_eq!(
        (deliveries[0].state, deliveries[0].attempts),
        (State::Failed, 3)
    );
    let replayed = stages
        .store
        .replay("shop", &DeadLetterFilter::default(), 10, Timestamp::now())
        .await
        .unwrap();
    assert_eq!(replayed.count, 1);
    stages.pipeline.lanes.ready_everywhere();
    stages
        .wait(&id, |record| record.counts.get(&State::Sent) == Some(&1))
        .await;
    let deliveries = stages.deliveries(&id).await;
    assert_eq!(
        (
            deliveries[0].state,
            deliveries[0].round,
            deliveries[0].attempts
        ),
        (State::Sent, 1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_every_provider_is_out_of_order_no_attempt_counts() {
    let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = Arc::clone(&works);
    let stages = Stages::begin(MAIL, move |_, _| {
        if works.load(std::sync::atomic::Ordering::SeqCst) {
            Outcome::Sent { provider_id: None }
        } else {
            Outcome::Transient(reason("connect"))
        }
    })
    .await;
    // Enough to open both breakers with first attempts alone.
    for n in 0..20 {
        let to = to(&format!("p{n}@b.example"));
        stages
            .send(json!({"template": "order", "recipients": to, "parameters": {"n": n}}))
            .await;
    }
    let is_stopped = |stages: &Stages| {
        let load = stages.pipeline.loads.get("shop/mail");
        load.is_some_and(|load| load.is_stopped())
    };
    stages.until(is_stopped).await;
    let asked = stages.asked().len();
    let last =
        json!({"template": "order", "recipients": to("last@b.example"), "parameters": {"n": 99}});
    let last = stages.send(last).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let probes = stages.asked().len() - asked;
    assert!(probes < 20, "{probes} attempts while nothing works");
    switch.store(true, std::sync::atomic::Ordering::SeqCst);
    let deliveries = stages.ended(&last).await;
    assert_eq!(deliveries[0].state, State::Sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_while_no_provider_works_is_prioritized_all_the_same() {
    let breaker = Duration::from_secs(3600);
    let timing = Timing {
        breaker,
        ..timing()
    };
    let fails = |_: &str, _: &Delivery| Outcome::Transient(reason("connect"));
    let stages = Stages::begin_over(MAIL, timing, fails, |broker| Arc::new(broker)).await;
    let order = |n: u32| {
        let to = to(&format!("p{n}@b.example"));
        json!({"template": "order", "recipients": to, "parameters": {"n": n}})
    };
    for n in 0..20 {
        stages.send(order(n)).await;
    }
    let load = |stages: &Stages| stages.pipeline.loads.get("shop/mail").unwrap_or_default();
    stages.until(|stages| load(stages).is_stopped()).await;
    let before = load(&stages).waiting[Priority::Critical.index()];
    let urgent = stages.send(order(99)).await;
    stages
        .wait(&urgent, |record| {
            record.counts.get(&State::Sending) == Some(&1)
        })
        .await;
    let orders = &stages.pipeline.orders;
    orders
        .prioritize(&urgent, Priority::Critical)
        .await
        .unwrap();
    assert_eq!(before, 0);
    stages
        .until(|stages| load(stages).waiting[Priority::Critical.index()] == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_whose_rate_is_used_up_holds_nobody_up() {
    let channel = MAIL.replace(
        "{name: second, log: {}}",
        "{name: second, log: {}, rateLimit: {count: 1, perSeconds: 3600}}",
    );
    // No two failures in a row, so that no breaker opens.
    let fails = std::sync::atomic::AtomicBool::new(false);
    let stages = Stages::begin(
        &format!("{channel}  concurrency: 2\n"),
        move |provider, delivery| {
            let is_first = provider == "first" && delivery.attempt == 1;
            if is_first && !fails.fetch_xor(true, std::sync::atomic::Ordering::SeqCst) {
                Outcome::Transient(reason("smtp-451"))
            } else {
                Outcome::Sent { provider_id: None }
            }
        },
    )
    .await;
    let mut ids = Vec::new();
    for n in 0..12 {
        let to = to(&format!("p{n}@b.example"));
        let request = json!({"template": "order", "recipients": to, "parameters": {"n": n}});
        ids.push(stages.send(request).await);
    }
    for id in &ids {
        assert_eq!(stages.ended(id).await[0].state, State::Sent);
    }
    let asked = stages.asked();
    let second = asked.iter().filter(|(name, _)| name == "second").count();
    assert_eq!(
        second, 1,
        "one token, and who has none asks the first again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_provider_may_send_whose_rate_is_used_up_is_put_off_and_no_attempt_counts() {
    let channel = MAIL.replace(
        "{name: second, log: {}}",
        "{name: second, log: {}, rateLimit: {count: 1, perSeconds: 5}}",
    );
    // The second leaves it unknown once, so that it alone may be asked again.
    let stages = Stages::begin(&channel, |provider, delivery| {
        match (provider, delivery.tried) {
            ("first", _) => Outcome::Transient(reason("smtp-451")),
            (_, 1) => Outcome::Unknown(reason("timeout")),
            _ => Outcome::Sent { provider_id: None },
        }
    })
    .await;
    let id = stages
        .send(json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": 1}}))
        .await;
    assert_eq!(stages.ended(&id).await[0].state, State::Sent);
    let asked = stages.asked();
    let asked: Vec<_> = asked.iter().map(|(name, d)| (&**name, d.tried)).collect();
    assert_eq!(asked, [("first", 0), ("second", 1), ("second", 2)]);
    let last = stages.asked()[2].1.attempt;
    assert!(last > 3, "it was put off before attempt {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_in_order_again_is_asked_before_a_fallback_has_its_next_token() {
    let channel = MAIL
        .replace(
            "{name: second, log: {}}",
            "{name: second, log: {}, rateLimit: {count: 1, perSeconds: 3600}}",
        )
        .replace("maxAttempts: 3", "maxAttempts: 20");
    let failures = std::sync::atomic::AtomicU32::new(0);
    let stages = Stages::begin(&channel, move |provider, _| {
        let so_far = failures.load(std::sync::atomic::Ordering::SeqCst);
        if provider == "first" && so_far < 20 {
            failures.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Outcome::Transient(reason("connect"))
        } else {
            Outcome::Sent { provider_id: None }
        }
    })
    .await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let to = to(&format!("p{n}@b.example"));
        let request = json!({"template": "order", "recipients": to, "parameters": {"n": n}});
        ids.push(stages.send(request).await);
    }
    for id in &ids {
        assert_eq!(stages.ended(id).await[0].state, State::Sent);
    }
}
