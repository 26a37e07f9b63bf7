//! What gateways tell each other, by `NOTIFY`: at once to those who listen, and to nobody else.
//!
//! Told by a statement of its own after the rows were written, not within their transactions: those that notify commit one
//! after another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use herald_crds::Priority;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{Instant, timeout, timeout_at};

use super::{PostgresStore, failed};
use crate::store::{News, StoreError};

/// The channel of `NOTIFY`, one in each database.
const CHANNEL: &str = "herald";

/// At the latest after so long a gateway looks by itself: whoever had to tell it may be gone.
const LOOK: Duration = Duration::from_secs(15);

/// Listens to other gateways.
pub(super) struct Ear {
    at: PgConnectOptions,
    /// How long a call waits for the database.
    patience: Duration,
    /// Who speaks, so that nobody listens to himself.
    name: String,
    /// `None`: nobody listens, or somebody has taken it to listen.
    listening: Mutex<Option<Listening>>,
}

struct Listening {
    listener: PgListener,
    /// When it looks by itself.
    look: Instant,
}

impl Ear {
    pub(super) fn new(at: PgConnectOptions, patience: Duration) -> Self {
        Self {
            at,
            patience,
            name: format!("{:016x}", rand::random::<u64>()),
            listening: Mutex::new(None),
        }
    }

    /// A connection of its own, and a pool for that one connection: whoever drops it waits for nothing.
    async fn listen(&self) -> Result<Listening, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.patience)
            .connect_lazy_with(self.at.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Listening {
            listener,
            look: Instant::now() + LOOK,
        })
    }

    fn take(&self) -> Option<Listening> {
        let mut listening = self.listening.lock();
        listening
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut())
            .take()
    }

    fn put(&self, listening: Listening) {
        *self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(listening);
    }

    async fn hear(&self) -> Result<Vec<News>, StoreError> {
        let silent = |_| StoreError::Unavailable {
            reason: "it does not answer".to_owned(),
        };
        let Some(mut listening) = self.take() else {
            let listening = timeout(self.patience, self.listen()).await;
            self.put(listening.map_err(silent)?.map_err(failed)?);
            return Ok(vec![News::Anything]);
        };
        let Listening { listener, look } = &mut listening;
        let mut news = Vec::new();
        while news.is_empty() {
            let Ok(heard) = timeout_at(*look, listener.try_recv()).await else {
                // Nobody may have said anything, or nobody be there any more.
                let asked = sqlx::query("SELECT 1").execute(&mut *listener);
                timeout(self.patience, asked)
                    .await
                    .map_err(silent)?
                    .map_err(failed)?;
                *look = Instant::now() + LOOK;
                news.push(News::Anything);
                break;
            };
            let mut heard = heard.map_err(failed)?;
            if heard.is_none() {
                return Err(StoreError::Unavailable {
                    reason: "the connection on which others are heard is lost".to_owned(),
                });
            }
            while let Some(one) = heard {
                news.extend(read(one.payload(), &self.name));
                heard = listener.next_buffered();
            }
        }
        self.put(listening);
        Ok(news)
    }
}

impl PostgresStore {
    /// See [`WaitingStore::tell`](crate::store::WaitingStore::tell).
    pub(super) async fn tell_others(&self, news: &[News]) -> Result<(), StoreError> {
        if news.is_empty() {
            return Ok(());
        }
        let words: Vec<String> = news.iter().map(|one| write(one, &self.ear.name)).collect();
        sqlx::query("SELECT pg_notify($1, word) FROM unnest($2::text[]) AS w(word)")
            .bind(CHANNEL)
            .bind(words)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    /// See [`WaitingStore::hear`](crate::store::WaitingStore::hear).
    pub(super) async fn hear_others(&self) -> Result<Vec<News>, StoreError> {
        let mut closed = self.pool.close_event();
        match closed.do_until(self.ear.hear()).await {
            Ok(heard) => heard,
            Err(error) => Err(failed(error)),
        }
    }
}

/// A word: who says it, what, and of which channel and class.
fn write(news: &News, name: &str) -> String {
    match news {
        News::Ready(channel, Some(class)) => format!("{name} ready {channel} {class}"),
        News::Ready(channel, None) => format!("{name} ready {channel}"),
        News::Scheduled => format!("{name} scheduled"),
        News::Anything => format!("{name} anything"),
    }
}

/// What somebody else says; `None`: it is one's own word. What is not understood, from a newer program, may mean anything.
fn read(word: &str, name: &str) -> Option<News> {
    let mut parts = word.split(' ');
    if parts.next() == Some(name) {
        return None;
    }
    let class = |text: &str| Priority::ALL.into_iter().find(|one| one.as_str() == text);
    Some(match (parts.next(), parts.next(), parts.next()) {
        (Some("ready"), Some(channel), None) => News::Ready(Arc::from(channel), None),
        (Some("ready"), Some(channel), Some(text)) => match class(text) {
            Some(class) => News::Ready(Arc::from(channel), Some(class)),
            None => News::Anything,
        },
        (Some("scheduled"), ..) => News::Scheduled,
        _ => News::Anything,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::WaitingStore;
    use crate::store::contract::stages::MAIL;
    use crate::store::postgres::tests::{cut, open};
    use crate::waiting::{Lanes, share};

    /// Less than [`LOOK`], so that what is heard within it was told.
    const PATIENCE: Duration = Duration::from_secs(10);

    const LISTENERS: &str = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'LISTEN %'";

    async fn heard(store: &PostgresStore) -> Result<Vec<News>, StoreError> {
        timeout(PATIENCE, store.hear()).await.unwrap()
    }

    #[tokio::test]
    async fn what_one_gateway_says_the_others_hear_and_itself_does_not() {
        let opened = open().await;
        let (one, other) = (&opened.store, opened.database.open().await);
        assert_eq!(heard(one).await.unwrap(), [News::Anything]);
        assert_eq!(heard(&other).await.unwrap(), [News::Anything]);
        let ready = News::Ready(Arc::from(MAIL), Some(Priority::High));
        one.tell(std::slice::from_ref(&ready)).await.unwrap();
        assert_eq!(heard(&other).await.unwrap(), [ready]);
        other.tell(&[News::Scheduled]).await.unwrap();
        assert_eq!(heard(one).await.unwrap(), [News::Scheduled]);
    }

    #[tokio::test]
    async fn a_gateway_that_may_have_missed_something_looks_at_everything() {
        let opened = open().await;
        let (one, other) = (&opened.store, opened.database.open().await);
        assert_eq!(heard(&other).await.unwrap(), [News::Anything]);
        cut(&opened, LISTENERS).await;
        one.tell(&[News::Scheduled]).await.unwrap();
        let lost = heard(&other).await;
        assert!(matches!(lost, Err(StoreError::Unavailable { .. })));
        assert_eq!(heard(&other).await.unwrap(), [News::Anything]);
        one.tell(&[News::Scheduled]).await.unwrap();
        assert_eq!(heard(&other).await.unwrap(), [News::Scheduled]);
    }

    #[tokio::test]
    async fn whoever_closes_the_store_hears_nothing_more() {
        let opened = open().await;
        let store = &opened.store;
        assert_eq!(heard(store).await.unwrap(), [News::Anything]);
        let (heard, ()) = futures::join!(heard(store), store.close());
        assert!(matches!(heard, Err(StoreError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn what_becomes_ready_in_one_gateway_rings_in_the_other() {
        let opened = open().await;
        let stop = CancellationToken::new();
        let gateway = |store: PostgresStore| {
            let lanes = Arc::<Lanes>::default();
            let sharing = share(
                Arc::new(store),
                Arc::clone(&lanes),
                Arc::default(),
                stop.clone(),
            );
            (lanes, tokio::spawn(sharing))
        };
        let (here, _) = gateway(opened.database.open().await);
        let (there, _) = gateway(opened.database.open().await);
        let lane = there.lane(MAIL);
        // What it hears first is that anything may have changed.
        timeout(PATIENCE, lane.rung()).await.unwrap();
        for class in Priority::ALL {
            lane.take(class);
        }
        here.ready(MAIL, Some(Priority::Low));
        timeout(PATIENCE, lane.rung()).await.unwrap();
        let rung = Priority::ALL.map(|class| lane.take(class));
        assert_eq!(rung, Priority::ALL.map(|class| class == Priority::Low));
        here.ready_everywhere();
        timeout(PATIENCE, lane.rung()).await.unwrap();
        assert!(Priority::ALL.iter().all(|class| lane.take(*class)));
        stop.cancel();
    }

    #[test]
    fn what_is_written_is_read_by_everybody_else_and_what_is_not_understood_means_anything() {
        let channel = Arc::from("shop/mail");
        let news = [
            News::Ready(Arc::clone(&channel), Some(Priority::Critical)),
            News::Ready(channel, None),
            News::Scheduled,
            News::Anything,
        ];
        for one in news {
            assert_eq!(read(&write(&one, "me"), "me"), None);
            assert_eq!(read(&write(&one, "me"), "you"), Some(one));
        }
        for word in [
            "",
            "me",
            "me ready",
            "me ready shop/mail urgent",
            "me later",
        ] {
            assert_eq!(read(word, "you"), Some(News::Anything), "{word}");
        }
    }
}
