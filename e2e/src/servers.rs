//! What a cluster's servers meet: each shown by a line of a log and by a metric or an answer, and in the end nothing is
//! lost and nothing came twice that a fault does not explain.
//!
//! - This file: the run. [`story`]: what is sent, and whether it arrived. [`witness`]: what logs, probes and metrics say.
//! - [`wrong`]: addresses, tokens, grants and topics that are not as they should be; settings; schemas.
//!   [`tokens`]: a token that expires. [`away`]: broker and database away, or full. [`garbage`]: what nobody can read.
//!   [`hang`]: pods that hang, and pods that end. [`clock`]: clocks that are wrong.

mod away;
mod clock;
mod garbage;
mod hang;
mod story;
mod tokens;
mod witness;
mod wrong;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::load;
use crate::cluster::{Channel, Cluster, Gateway, Pod, Setup};
use crate::run::Options;
use story::Story;

/// W of each pod.
const WINDOW: usize = 64;

const fn channel(name: &'static str) -> Channel {
    Channel {
        name,
        rate: None,
        latency: Duration::from_millis(20),
        slots: 32,
        kept: true,
    }
}

/// What most is sent through.
const MAIL: Channel = channel("mail");

/// The one whose first pod hangs.
const POST: Channel = channel("post");

/// Everything that the steps share.
struct Stage {
    cluster: Cluster,
    /// The one that stays.
    gateway: Gateway,
    /// One that stays.
    pod: Pod,
    story: Story,
    /// How long what is away stays away.
    away: Duration,
    begin: Instant,
}

impl Stage {
    /// One line of what was shown.
    fn shown(&self, words: &str) {
        println!("{:>7.1} s  {words}", self.begin.elapsed().as_secs_f64());
    }
}

/// Runs it. An error says what was not as it has to be.
pub async fn run(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let cluster = Cluster::start(
        Setup {
            channels: &[MAIL, POST],
            templates: load::templates(&[MAIL, POST]),
            horizon: Duration::from_mins(2),
            window: WINDOW,
            sync: true,
            broker: vec![
                // A client that is silent is found to be gone within seconds, not a minute.
                ("keepAliveIntervalSeconds".to_owned(), "4".to_owned()),
            ],
        },
        folder,
    )
    .await?;
    let (gateway, pod) =
        tokio::try_join!(cluster.gateway("gateway-a"), cluster.pod("mail-a", MAIL))?;
    let mut stage = Stage {
        story: Story::new(folder),
        cluster,
        gateway,
        pod,
        away: Duration::from_secs(if options.small { 12 } else { 60 }),
        begin,
    };
    stage.shown("up: a gateway and a pod");
    let hanging = hang::begin(&mut stage).await?;
    wrong::settings(&stage)?;
    wrong::addresses_and_grants(&mut stage).await?;
    wrong::schemas(&stage).await?;
    tokens::expire(&mut stage).await?;
    hang::end(&mut stage, hanging).await?;
    garbage::put_aside(&mut stage).await?;
    away::database_paused(&mut stage).await?;
    away::database_killed(&mut stage).await?;
    hang::stopped(&mut stage).await?;
    hang::terminated(&mut stage).await?;
    clock::step(&mut stage).await?;
    away::broker_paused(&mut stage).await?;
    away::broker_killed(&mut stage).await?;
    let verdict = stage.story.end().await?;
    stage.shown(&verdict);
    wrong::secrets(&stage)?;
    Ok(())
}
