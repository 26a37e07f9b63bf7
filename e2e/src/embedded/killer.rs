//! Kills the server at random moments while it accepts and delivers, and starts it again at once.

use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::workload::Size;
use crate::server::{Api, Server};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How often it is said how far it is.
const SAY: Duration = Duration::from_secs(5);

/// The last kill comes before so much of everything is done, since there must be something left to do.
const LAST: f64 = 0.93;

/// Without any progress for so long, nothing is left to be killed.
const IDLE: Duration = Duration::from_secs(20);

/// Counters of a server that are lost with each of its lives.
#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    sent: f64,
    redriven: f64,
}

/// Watches the server and kills it when it is time.
#[derive(Debug)]
pub struct Killer {
    server: Server,
    api: Api,
    random: StdRng,
    /// Shares of the whole work after which it is killed, the next one last.
    due: Vec<f64>,
    notifications: usize,
    deliveries: usize,
    /// Of the lives that are over.
    before: Counted,
    /// Of this life, as last heard.
    now: Counted,
    progressed: (f64, Instant),
    said: Instant,
}

impl Killer {
    /// Kills `size.kills` times, once in each equal share of the work.
    pub fn new(server: Server, api: Api, size: Size, deliveries: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(1));
        let kills = size.kills as f64;
        let mut due: Vec<f64> = (0..size.kills)
            .map(|k| (k as f64 + random.random_range(0.05..0.95)) / kills * LAST)
            .collect();
        due.reverse();
        Self {
            server,
            api,
            random,
            due,
            notifications: size.notifications,
            deliveries,
            before: Counted::default(),
            now: Counted::default(),
            progressed: (0.0, Instant::now()),
            said: Instant::now(),
        }
    }

    /// Every kill was done.
    pub fn is_done(&self) -> bool {
        self.due.is_empty()
    }

    /// Nothing has moved for long.
    pub fn is_idle(&self) -> bool {
        self.progressed.1.elapsed() > IDLE
    }

    /// When it was killed, and when it was started again.
    pub fn kills(&self) -> Vec<SystemTime> {
        self.server.kills.clone()
    }

    /// Rows that the sweep found overdue, in all lives.
    pub fn redriven(&self) -> f64 {
        self.before.redriven + self.now.redriven
    }

    /// Fails if the server ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.server.check()
    }

    /// Reads the counters; if it does not answer they stay as they were.
    pub async fn look(&mut self) {
        if let Ok(metrics) = self.api.metrics().await {
            let of = |name: &str| metrics.get(name).copied().unwrap_or_default();
            self.now = Counted {
                sent: of("herald_sent_total"),
                redriven: of("herald_redriven_total"),
            };
        }
    }

    /// Waits a moment, looks, and kills if it is time.
    pub async fn step(&mut self, accepted: usize, say: &impl Fn(&str)) -> anyhow::Result<()> {
        tokio::time::sleep(LOOK).await;
        self.server.check()?;
        self.look().await;
        let sent = self.before.sent + self.now.sent;
        let shares = [
            accepted as f64 / self.notifications as f64,
            sent / self.deliveries as f64,
        ];
        let done = shares.iter().sum::<f64>() / 2.0;
        if done > self.progressed.0 {
            self.progressed = (done, Instant::now());
        }
        if self.said.elapsed() > SAY {
            self.said = Instant::now();
            say(&format!("{accepted} accepted, about {sent} sent"));
        }
        if self.due.last().is_some_and(|due| *due <= done) {
            self.due.pop();
            tokio::time::sleep(Duration::from_millis(
                self.random.random_range(0..LOOK.as_millis() as u64),
            ))
            .await;
            self.look().await;
            self.server.restart()?;
            self.before.sent += self.now.sent;
            self.before.redriven += self.now.redriven;
            self.now = Counted::default();
            let begin = Instant::now();
            self.server.ready(&self.api).await?;
            say(&format!(
                "killed at {accepted} accepted, about {sent} sent; ready again after {} ms",
                begin.elapsed().as_millis()
            ));
        }
        Ok(())
    }
}
