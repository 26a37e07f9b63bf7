//! What may only go on for as long as something holds: a write, while the Lease counts.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Goes on with `future` as long as `may` says so, which is asked at each step; `None` once it may not. What was sent
/// already may still arrive.
pub async fn fenced<F: Future>(future: F, may: impl Fn() -> bool) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| {
        if may() {
            future.as_mut().poll(context).map(Some)
        } else {
            Poll::Ready(None)
        }
    })
    .await
}
