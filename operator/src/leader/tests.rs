//! Two candidates and one Lease, in an API server that is a map.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::Response;
use herald_crds::Channel;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use serde_json::json;

use super::*;
use crate::fixtures::{ApiServer, document};

fn candidate(server: &ApiServer, name: &str) -> Candidate {
    Candidate::new(
        server.client(),
        "herald-system",
        name.to_owned(),
        Duration::from_secs(15),
    )
}

/// Wins, or it is found out at once that nobody can.
async fn win(candidate: &mut Candidate) {
    assert_eq!(candidate.try_hold().await.unwrap(), Held::Ours);
    candidate.win().await;
}

fn holder(server: &ApiServer) -> String {
    let lease = server.get("Lease", NAME).unwrap();
    lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn of_two_one_holds_the_lease_and_the_other_waits_until_it_runs_out() {
    let server = ApiServer::default();
    let (mut one, mut other) = (candidate(&server, "one"), candidate(&server, "other"));
    win(&mut one).await;
    assert_eq!(other.try_hold().await.unwrap(), Held::Anothers);
    tokio::time::advance(Duration::from_secs(14)).await;
    assert_eq!(one.try_hold().await.unwrap(), Held::Ours);
    // It was renewed: the fifteen seconds begin anew, by the other's own clock.
    assert_eq!(other.try_hold().await.unwrap(), Held::Anothers);
    tokio::time::advance(Duration::from_secs(14)).await;
    assert_eq!(other.try_hold().await.unwrap(), Held::Anothers);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(other.try_hold().await.unwrap(), Held::Ours);
    assert_eq!(one.try_hold().await.unwrap(), Held::Anothers);
    let lease = server.get("Lease", NAME).unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_back_is_taken_at_once() {
    let server = ApiServer::default();
    let (mut one, mut other) = (candidate(&server, "one"), candidate(&server, "other"));
    win(&mut one).await;
    // Not by one who does not hold it.
    other.release().await;
    assert_eq!(holder(&server), "one");
    one.release().await;
    assert_eq!(other.try_hold().await.unwrap(), Held::Ours);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_before_another_may_begin() {
    let server = ApiServer::default();
    let mut one = candidate(&server, "one");
    win(&mut one).await;
    let begun = Instant::now();
    server.refuse(&format!("PUT leases/{NAME}"), 500);
    assert_eq!(one.keep(&CancellationToken::new()).await, Kept::Lost);
    let held = begun.elapsed();
    assert!(
        held >= Duration::from_secs(7) && held < Duration::from_secs(15),
        "{held:?}"
    );
}

/// A Channel that is there.
fn declare(server: &ApiServer) {
    server.declare(&document("Channel", "mail", &json!({"medium": "email"})));
}

async fn write(client: &Client) -> Result<(), kube::Error> {
    let channels: Api<PartialObjectMeta<Channel>> = Api::namespaced(client.clone(), "shop");
    let labelled = Patch::Merge(json!({"metadata": {"labels": {"by": "us"}}}));
    let parameters = PatchParams::default();
    let written = channels.patch("mail", &parameters, &labelled).await;
    written.map(drop)
}

#[tokio::test(start_paused = true)]
async fn who_was_suspended_writes_nothing_when_it_wakes_before_it_looks_at_the_lease() {
    let server = ApiServer::default();
    declare(&server);
    let mut one = candidate(&server, "one");
    let term = one.term();
    let client = term.fence(server.client());
    let refused = write(&client).await.unwrap_err();
    assert!(
        refused.to_string().contains("the Lease has run out"),
        "{refused}"
    );
    win(&mut one).await;
    write(&client).await.unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    assert!(term.lasts());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!term.lasts());
    server.asked();
    write(&client).await.unwrap_err();
    assert!(server.wrote().is_empty());
    // It may look, and what it has renewed it may write.
    let channels: Api<PartialObjectMeta<Channel>> = Api::namespaced(client.clone(), "shop");
    channels.get_metadata("mail").await.unwrap();
    assert_eq!(one.try_hold().await.unwrap(), Held::Ours);
    write(&client).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_that_waits_in_the_client_is_not_sent_once_the_term_is_over() {
    let server = ApiServer::default();
    let mut one = candidate(&server, "one");
    win(&mut one).await;
    let sent = Arc::<AtomicBool>::default();
    let sends = Arc::clone(&sent);
    // As before it tries again what was answered with 503.
    let waits = tower::service_fn(move |_: Request<Body>| {
        let sends = Arc::clone(&sends);
        async move {
            tokio::time::sleep(Duration::from_secs(12)).await;
            sends.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let client = one.term().fence(Client::new(waits, "shop"));
    write(&client).await.unwrap_err();
    assert!(!sent.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_term_ends_with_giving_the_lease_back_and_with_losing_it() {
    let server = ApiServer::default();
    let (mut one, mut other) = (candidate(&server, "one"), candidate(&server, "other"));
    let (of_one, of_other) = (one.term(), other.term());
    win(&mut one).await;
    assert!(of_one.lasts());
    let renewing = format!("PUT leases/{NAME}");
    server.refuse(&renewing, 500);
    one.release().await;
    assert!(!of_one.lasts(), "it ended before the Lease was given back");
    server.refuse(&renewing, 0);
    one.release().await;
    win(&mut other).await;
    assert!(of_other.lasts());
    server.change("Lease", NAME, |lease| {
        lease["spec"]["holderIdentity"] = json!("third");
    });
    assert_eq!(other.try_hold().await.unwrap(), Held::Anothers);
    assert!(!of_other.lasts());
}

#[tokio::test(start_paused = true)]
async fn it_is_kept_until_told_to_stop() {
    let server = ApiServer::default();
    let mut one = candidate(&server, "one");
    win(&mut one).await;
    let stop = CancellationToken::new();
    let keeping = one.keep(&stop);
    assert!(
        tokio::time::timeout(Duration::from_mins(10), keeping)
            .await
            .is_err()
    );
    assert_eq!(holder(&server), "one");
    stop.cancel();
    assert_eq!(one.keep(&stop).await, Kept::UntilStopped);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_while_the_last_things_are_finished_counts_from_the_last_renewal() {
    let server = ApiServer::default();
    let mut one = candidate(&server, "one");
    win(&mut one).await;
    let begun = Instant::now();
    server.refuse(&format!("PUT leases/{NAME}"), 500);
    let stop = CancellationToken::new();
    let keeping = tokio::time::timeout(Duration::from_secs(8), one.keep(&stop));
    assert!(keeping.await.is_err(), "eight of its ten seconds are left");
    assert_eq!(one.keep(&stop).await, Kept::Lost);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}
