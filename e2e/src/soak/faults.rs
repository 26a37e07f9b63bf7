//! What is killed when.

use std::time::{Duration, Instant};

use anyhow::ensure;
use jiff::Timestamp;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::cluster::load::Load;
use crate::cluster::{Cluster, Gateway, Pod, sent};

/// How long what was killed stays away.
const AWAY: Duration = Duration::from_secs(1);

/// How often the metrics are read.
const LOOK: Duration = Duration::from_secs(1);

/// How often progress is said.
const SAY: Duration = Duration::from_secs(30);

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Gateway,
    Pod,
    Broker,
    Database,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Gateway, Self::Pod, Self::Broker, Self::Database];
}

/// Something to be killed.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// When, since the load began.
    pub at: Duration,
    victim: Victim,
}

/// The faults to come, and those that were.
pub struct Faults {
    begin: Instant,
    /// The next one last.
    due: Vec<Fault>,
    random: StdRng,
    /// From a kill until what was killed was ready again.
    pub were: Vec<(Victim, Timestamp, Timestamp)>,
    /// What the sweep found, in lives that are over, by gateway.
    before: Vec<f64>,
    /// In these lives.
    now: Vec<f64>,
    said: Instant,
}

impl Faults {
    /// Each victim so many times: in that many parts of the time, chosen by chance, one after the other; the other parts
    /// are quiet.
    pub fn new(over: Duration, each: usize, mut random: StdRng) -> Self {
        let parts = each * 2;
        let length = over.as_secs_f64() / parts as f64;
        // Not the first: it shows how things are when nothing fails.
        let mut chosen: Vec<usize> = (1..parts).collect();
        chosen.shuffle(&mut random);
        chosen.truncate(each);
        let mut due = Vec::new();
        for part in chosen {
            let mut victims = Victim::ALL;
            victims.shuffle(&mut random);
            for (k, victim) in victims.into_iter().enumerate() {
                // A broker takes some ten seconds to come back.
                let within = k as f64 + random.random_range(0.0..0.6);
                let at = (part as f64 + within / 4.0) * length;
                due.push(Fault {
                    at: Duration::from_secs_f64(at),
                    victim,
                });
            }
        }
        due.sort_by_key(|fault| std::cmp::Reverse(fault.at));
        Self {
            begin: Instant::now(),
            due,
            random,
            were: Vec::new(),
            before: Vec::new(),
            now: Vec::new(),
            said: Instant::now(),
        }
    }

    /// The next one.
    pub fn next(&mut self) -> Option<Fault> {
        self.due.pop()
    }

    /// What the sweep found.
    pub fn redriven(&self) -> f64 {
        self.before.iter().chain(&self.now).sum()
    }

    /// Reads what the gateways count.
    pub async fn look(&mut self, gateways: &[Gateway]) {
        self.now.resize(gateways.len(), 0.0);
        self.before.resize(gateways.len(), 0.0);
        for (gateway, now) in gateways.iter().zip(&mut self.now) {
            if let Ok(metrics) = gateway.probes.metrics().await {
                let found = metrics.get("herald_redriven_total");
                *now = found.copied().unwrap_or_default();
            }
        }
    }

    /// Waits until then, looking.
    pub async fn until(
        &mut self,
        at: Duration,
        gateways: &[Gateway],
        load: &Load,
        say: &impl Fn(&str),
    ) -> anyhow::Result<()> {
        while let Some(rest) = at.checked_sub(self.begin.elapsed()) {
            tokio::time::sleep(rest.min(LOOK)).await;
            self.look(gateways).await;
            if self.said.elapsed() > SAY {
                self.said = Instant::now();
                say(&format!("{} accepted", load.count()));
            }
            ensure!(
                !load.is_over() || rest < LOOK,
                "the load has ended before its time"
            );
        }
        Ok(())
    }

    /// Kills, and starts again.
    pub async fn strike(
        &mut self,
        fault: Fault,
        cluster: &mut Cluster,
        gateways: &mut [Gateway],
        pods: &mut [Pod],
        say: &impl Fn(&str),
    ) -> anyhow::Result<()> {
        let at = Timestamp::now();
        let begin = Instant::now();
        let what = match fault.victim {
            Victim::Gateway => {
                let k = self.random.random_range(0..gateways.len());
                self.look(gateways).await;
                self.before[k] += std::mem::take(&mut self.now[k]);
                gateways[k].kill();
                tokio::time::sleep(AWAY).await;
                cluster.start_gateway(&mut gateways[k]).await?;
                "a gateway".to_owned()
            }
            Victim::Pod => {
                let k = self.random.random_range(0..pods.len());
                pods[k].kill();
                tokio::time::sleep(AWAY).await;
                cluster.start_pod(&mut pods[k]).await?;
                format!("pod {}", pods[k].name)
            }
            Victim::Broker => {
                cluster.environment.pulsar_mut()?.restart().await?;
                "the broker".to_owned()
            }
            Victim::Database => {
                cluster.environment.postgres_mut()?.kill();
                tokio::time::sleep(AWAY).await;
                cluster.environment.postgres_mut()?.restart().await?;
                "the database".to_owned()
            }
        };
        self.were.push((fault.victim, at, Timestamp::now()));
        say(&format!(
            "{what} was killed, and was back after {:.1?}; about {} sent",
            begin.elapsed(),
            sent::count(&cluster.folder)?
        ));
        Ok(())
    }
}
