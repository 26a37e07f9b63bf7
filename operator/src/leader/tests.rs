//! Two candidates and one Lease, in an API server that is a map.

use super::*;
use crate::fixtures::ApiServer;

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
