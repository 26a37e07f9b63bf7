//! Connections that wait for their next mail.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::super::credentials::Hidden;
use super::session::Session;

/// Idle connections, the latest used first, so that those too many grow old.
#[derive(Debug)]
pub struct Pool {
    capacity: usize,
    idle: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<(Session, Instant)>,
    /// Somebody is closing what grows old; ends when there is nothing left to wait for.
    reaping: bool,
}

impl Pool {
    /// Keeps at most `capacity` connections, each unused for at most `idle`.
    pub fn new(capacity: usize, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            idle,
            state: Mutex::default(),
        })
    }

    /// A connection that seems alive and was opened with this user name and password; `None`: open one.
    ///
    /// One of another login is let go: under load it would outlive for good the password that was taken from it.
    pub async fn take(&self, login: Option<&(Hidden, Hidden)>) -> Option<Session> {
        loop {
            let (mut session, since) = self.lock().idle.pop()?;
            if session.login() == login && since.elapsed() < self.idle && session.is_quiet().await {
                return Some(session);
            }
        }
    }

    /// Takes a connection back, unless it is broken or there are enough.
    pub fn give(self: &Arc<Self>, session: Session) {
        if !session.is_usable() {
            return;
        }
        let mut state = self.lock();
        if state.idle.len() >= self.capacity {
            return;
        }
        state.idle.push((session, Instant::now()));
        if !state.reaping {
            state.reaping = true;
            tokio::spawn(reap(Arc::downgrade(self), self.idle));
        }
    }

    /// Lets all idle connections go: one of them was closed by the server, and so may be the others.
    pub fn clear(&self) {
        self.lock().idle.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are too old; `None` if there is none left at all.
    fn old(&self) -> Option<Vec<Session>> {
        let mut state = self.lock();
        let young = state
            .idle
            .partition_point(|(_, since)| since.elapsed() >= self.idle);
        let old: Vec<Session> = state
            .idle
            .drain(..young)
            .map(|(session, _)| session)
            .collect();
        if old.is_empty() && state.idle.is_empty() {
            state.reaping = false;
            return None;
        }
        Some(old)
    }
}

/// Closes connections as they grow old, as long as there are any.
async fn reap(pool: Weak<Pool>, idle: Duration) {
    loop {
        tokio::time::sleep(idle).await;
        let Some(old) = pool.upgrade().and_then(|pool| pool.old()) else {
            return;
        };
        for session in old {
            session.quit().await;
        }
    }
}
